"""Event files into a table, exactly once: `python -m ray_jobs.ingest --config streams.yaml key=value…`, alone or under `ray job submit`.

    lake: {location: lake, table: samples}
    pipeline: shop
    streams:
      - {name: samples, files: events/samples, time_column: ts}
      - {name: labels, files: events/labels, write: patch, time_column: event_time, columns: {id: id, label: label}}

The table must exist. A run that was killed goes on from what it committed; Ctrl-C stops after the commit in hand.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

import loader
from loader.config import LakeConfig
from loader.errors import ConfigError, HeadraceError
from loader.ingest.loop import ROUND_ROWS, IngestReport, Progress, Stream, run, stop_on_interrupt
from loader.ingest.sources.files import FileSource

log = logging.getLogger("headrace.ingest")
INTERRUPTED = 130


class StreamConfig(pydantic.BaseModel):
    """One stream; the keys are those of `loader.ingest.loop.Stream`, and `name` and `files` of its source."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    files: str | tuple[str, ...]
    write: Literal["append", "patch"] = "append"
    time_column: str | None = None
    columns: dict[str, str] | None = None
    on_conflict: Literal["check", "trust"] = "check"
    order: str | None = None
    on_missing: Literal["hold", "drop"] = "hold"


class IngestConfig(pydantic.BaseModel):
    """An ingest job."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    lake: LakeConfig
    pipeline: str
    streams: Annotated[tuple[StreamConfig, ...], pydantic.Field(min_length=1)]
    round_rows: pydantic.PositiveInt = ROUND_ROWS
    lateness_seconds: pydantic.NonNegativeInt = 0


def load(path: Path, overrides: Sequence[str] = ()) -> IngestConfig:
    """Read a job's file; `overrides` are `key=value` for keys of the top level and of `lake` (`lake.location=…`).

    Raises:
        ConfigError: It is not there, not YAML, or has a wrong or unknown key.
    """
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        for override in overrides:
            key, _, value = override.partition("=")
            section, _, name = key.rpartition(".")
            (tree[section] if section else tree)[name] = yaml.safe_load(value)
        return IngestConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}; its keys are explained in ray_jobs/ingest.py") from None
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not an ingest job: {error}") from error


def ingest(config: IngestConfig) -> IngestReport:
    """Run a job until its sources end, or Ctrl-C."""
    streams = [Stream(source=FileSource(stream.name, stream.files), **stream.model_dump(exclude={"name", "files"})) for stream in config.streams]
    with loader.connect(config.lake.location, catalog=config.lake.catalog, create=False) as lake, stop_on_interrupt() as stop:
        table = lake.table(config.lake.table)
        return run(
            table, streams, pipeline=config.pipeline, round_rows=config.round_rows, lateness_seconds=config.lateness_seconds, after_round=_say, stop=stop
        )


def _say(progress: Progress) -> None:
    rows = ", ".join(f"{count:,} of {name}" for name, count in progress.rows.items())
    log.info("%s in %.1f s", rows, progress.seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 at the end of the sources, 1 for an error it can name, 130 when it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.ingest", description="Commit event files to a table, exactly once.")
    parser.add_argument("--config", required=True, type=Path, help="the job: a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the job, such as lake.location=/data/lake")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return INTERRUPTED if ingest(load(options.config, options.overrides)).stopped else 0
    except HeadraceError as error:
        log.error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
