"""`headrace quickstart` and `headrace train`: hand over to the Ray entry points, which are imported only then."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.logging import RichHandler

from loader.cli import output
from loader.errors import MissingDependencyError

NAMES = ("quickstart", "train")
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    app.command("quickstart", context_settings=_PASS_ON, add_help_option=False)(quickstart)
    app.command("train")(train)


def quickstart(context: typer.Context) -> int:
    """The main job on real data: stream, label, compact, train, kill, resume, report. --small takes a slice."""
    output.settings.on_stop = None
    return int(_import("ray_jobs.quickstart.driver", "quickstart").main(context.args) or 0)


def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="The experiment: a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, with dotted keys: train.epochs=2", metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Train the model of an experiment file. A run of the same name goes on from its newest checkpoint."""
    from loader import config as experiments

    experiment = experiments.load(config, overrides or [])
    handler = RichHandler(console=output.messages, show_path=False, omit_repeated_times=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", datefmt="%H:%M:%S", handlers=[handler])
    output.settings.on_stop = "the same command goes on from the newest checkpoint"
    _import("ray_jobs.train", "ray").train(experiment)


def _import(module: str, extra: str) -> Any:
    """A job's module; a package that it lacks is named with the extra that brings it."""
    try:
        return importlib.import_module(module)
    except MissingDependencyError:
        raise
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("loader", "ray_jobs"):
            raise
        raise MissingDependencyError(f"{error.name} is not installed and this needs it: pip install 'headrace[{extra}]'", name=error.name) from error
