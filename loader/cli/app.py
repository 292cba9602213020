"""Puts the commands together and turns what they raise into one line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.logging import RichHandler

from loader.cli import backup, doctor, jobs, maintenance, output, reading, retention, segments, tables, top, verify, writing
from loader.errors import HeadraceError

_INTERRUPTED = 130  # what typer gives for Ctrl-C, as shells do
# Some versions of typer carry click's classes inside, others import click's own: this is UsageError in both.
_USAGE_ERROR: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="headrace",
    help="Training samples in a streaming lakehouse, decoded where the model trains.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (jobs, top, tables, segments, verify, doctor, writing, maintenance, retention, backup, reading):
    group.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(f"headrace {importlib.metadata.version('headrace')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens inside; on an error, the whole traceback.")] = False,
) -> None:
    output.settings.verbose = verbose
    if context.invoked_subcommand in jobs.NAMES:  # they report on themselves for minutes, with the time of each line
        return
    handler = RichHandler(console=output.messages, show_path=False, show_time=False)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", handlers=[handler])


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: As on the command line; default `sys.argv`.

    Returns:
        The exit code. Nothing but a bug of ours leaves a traceback.
    """
    output.settings.on_stop = output.STOPPED
    try:
        result = app(args=None if arguments is None else list(arguments), prog_name="headrace", standalone_mode=False)
    except _USAGE_ERROR as error:
        return _wrong_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        result = _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (HeadraceError, ValueError, OSError) as error:
        if output.settings.verbose:
            output.messages.print_exception()
        return output.fail(str(error) or type(error).__name__)
    if result == _INTERRUPTED and output.settings.on_stop:
        return output.fail(f"stopped; {output.settings.on_stop}", code=_INTERRUPTED)
    return result if isinstance(result, int) else 0


def _wrong_usage(error: Any) -> int:
    """Wrong arguments: one line, with the command that explains them; no arguments at all: the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        output.console.print(error.format_message(), markup=False)
        return 2
    command = error.ctx.command_path if error.ctx else "headrace"
    return output.fail(f"{error.format_message().rstrip('.')}: see {command} --help", code=2)
