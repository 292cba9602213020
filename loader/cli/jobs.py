"""`headrace quickstart` and `headrace train`: hand over to the Ray entry points, which are imported only then."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from loader.errors import MissingDependencyError

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    app.command("quickstart", context_settings=_PASS_ON, add_help_option=False)(quickstart)
    app.command("train")(train)


def quickstart(context: typer.Context) -> int:
    """The main job on real data: stream, label, compact, train, kill, resume, report. --small takes a slice."""
    return _main("ray_jobs.quickstart", "quickstart", context.args)


def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="The experiment: a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, with dotted keys: train.epochs=2", metavar="[KEY=VALUE]...")] = None,
) -> int:
    """Train the model of an experiment file."""
    return _main("ray_jobs.train", "ray", ["--config", str(config), *(overrides or [])])


def _main(module: str, extra: str, arguments: list[str]) -> int:
    """Call `main(arguments)` of a job; a package that it lacks is named with the extra that brings it."""
    try:
        job: Any = importlib.import_module(module)
    except MissingDependencyError:
        raise
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("loader", "ray_jobs"):
            raise
        raise MissingDependencyError(f"{error.name} is not installed and this needs it: pip install 'headrace[{extra}]'", name=error.name) from error
    return int(job.main(arguments) or 0)
