"""Compact a table with Ray: `python -m ray_jobs.compact LAKE TABLE [--continuous] [key=value…]`, or `--config job.yaml`, alone or under `ray job submit`.

    lake: {location: s3://bucket/lake, catalog: "postgresql://…", table: samples}
    continuous: true              # or once, until nothing is worth it
    interval_seconds: 30
    workers: 4                    # actors; each works on one bucket at a time
    expire_older_than_days: 7     # after each round; left out keeps all snapshots
    collect_garbage: true
    compaction: {memory_bytes: 2_000_000_000, max_segments: 14}   # the keys of loader.CompactionOptions

A bucket has one owner by lease, so any number of these jobs, on any number of hosts, may run beside each other. Each task is committed by itself: a job or
an actor that is stopped or dies loses what it had in hand and nothing else. SIGTERM and Ctrl-C end it in good order.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import logging
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml

import loader
from loader import CompactionOptions
from loader.catalog.records import ALL_BUCKETS
from loader.cli import output
from loader.config import LakeConfig
from loader.errors import ConfigError, HeadraceError
from loader.table.compaction.run import buckets_to_compact
from loader.table.maintenance import MaintenanceOptions, MaintenanceTotals, clean_up, stop_on_signals
from ray_jobs.compaction import Pool, Work
from ray_jobs.training import cluster

log = logging.getLogger("headrace.compact")
INTERRUPTED = 130


class CompactConfig(pydantic.BaseModel):
    """A compaction job; see the module for an example."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    lake: LakeConfig
    full: bool = False
    continuous: bool = False
    interval_seconds: pydantic.NonNegativeFloat = 10.0
    workers: pydantic.PositiveInt = 2
    expire_older_than_days: pydantic.NonNegativeFloat | None = None
    keep_snapshots: pydantic.PositiveInt = 1
    collect_garbage: bool = False
    compaction: CompactionOptions = CompactionOptions()

    @pydantic.field_validator("compaction", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        unknown = set(value) - {field.name for field in dataclasses.fields(CompactionOptions)} if isinstance(value, dict) else set()
        if unknown:
            raise ValueError(f"no option {sorted(unknown)[0]!r}: there are {', '.join(field.name for field in dataclasses.fields(CompactionOptions))}")
        return value

    @property
    def maintenance(self) -> MaintenanceOptions:
        age = None if self.expire_older_than_days is None else datetime.timedelta(days=self.expire_older_than_days)
        return MaintenanceOptions(
            compaction=self.compaction,
            full=self.full,
            expire_older_than=age,
            keep_snapshots=self.keep_snapshots,
            collect_garbage=self.collect_garbage,
        )


def load(tree: dict[str, Any], overrides: Sequence[str], source: str) -> CompactConfig:
    """A job from its keys; `overrides` are `key=value`, with dots for sections (`compaction.memory_bytes=…`).

    Raises:
        ConfigError: A key is wrong or unknown.
    """
    try:
        for override in overrides:
            key, _, value = override.partition("=")
            section, _, name = key.rpartition(".")
            (tree.setdefault(section, {}) if section else tree)[name] = yaml.safe_load(value)
        return CompactConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{source}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}; its keys are explained in ray_jobs/compact.py") from None
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        raise ConfigError(f"{source}: not a compaction job: {error}") from error


def compact(config: CompactConfig, stop: threading.Event | None = None) -> MaintenanceTotals:
    """Run a job until nothing is left worth doing, or, if it is continuous, until `stop` is set: by SIGTERM and Ctrl-C, if none is given."""
    options, totals, started = config.maintenance, MaintenanceTotals(), time.monotonic()
    with (
        cluster.connect(ranks=config.workers, object_store_bytes=0),
        contextlib.nullcontext(stop) if stop is not None else stop_on_signals() as stop,  # Ray sets a handler of its own when it starts
        loader.connect(config.lake.location, catalog=config.lake.catalog, create=False) as lake,
        output.progress(f"compacting {config.lake.table}") as advance,
    ):
        work = Work(location=config.lake.location, catalog=config.lake.catalog, table=config.lake.table, full=config.full, options=config.compaction)
        pool = Pool(work, config.workers)
        while not stop.is_set():
            table = lake.table(config.lake.table)
            buckets = buckets_to_compact(table.view(), options.compaction, full=config.full)
            total, before = sum(buckets.values()), totals.rows_written
            try:
                for report in pool.run(list(buckets), stop, lambda rows, before=before, total=total: advance(totals.rows_written - before + rows, total)):
                    totals.add(report)
                clean_up(lake, table, options, totals)
            except HeadraceError as error:
                if not config.continuous:
                    raise
                log.error("this round failed, the next one tries again: %s", error)
            totals.rounds += 1
            totals.seconds = time.monotonic() - started
            if buckets:
                log.info("round %d: %s", totals.rounds, totals)
            if not config.continuous and (ALL_BUCKETS not in buckets or totals.rounds > 1):
                break  # rows that were sorted into buckets are merged with these in one more round
            if config.continuous:
                stop.wait(config.interval_seconds)
        totals.stopped = stop.is_set()
    return totals


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m ray_jobs.compact", description="Merge small segments and fold patches, with Ray.")
    made.add_argument("--config", type=Path, help="the job: a YAML file")
    made.add_argument("--catalog", help="URL of the catalog, if it is not inside the lake")
    made.add_argument("--full", action="store_true", help="rewrite everything that is not one sorted run, not only what is worth it by size")
    made.add_argument("--continuous", action="store_true", help="go on until stopped")
    made.add_argument("--interval", type=float, metavar="SECONDS", help="pause between the rounds of a continuous job")
    made.add_argument("--workers", type=int, help="actors, each at work on one bucket")
    made.add_argument("words", nargs="*", metavar="LAKE TABLE | key=value", help="the lake and the table, if no --config names them; changes to the job")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when nothing is left worth doing or a continuous job was stopped, 1 for an error it can name, 130 where it was stopped half-way."""
    options = parser().parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = _config(options)
        totals = compact(config)
    except HeadraceError as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.warning("stopped; what was rewritten is committed, and the same command goes on with the rest")
        return INTERRUPTED
    log.info("%s", totals)
    return INTERRUPTED if totals.stopped and not config.continuous else 0


def _config(options: argparse.Namespace) -> CompactConfig:
    """The job that the command line describes.

    Raises:
        ConfigError: It does not say which lake and table.
    """
    overrides = [word for word in options.words if "=" in word and "://" not in word.partition("=")[0]]
    names = [word for word in options.words if word not in overrides]
    if options.config is not None:
        try:
            tree = yaml.safe_load(options.config.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{options.config}: not a compaction job: {error}") from error
        if names:
            raise ConfigError(f"{names[0]!r} beside --config: the file names the lake and the table, change them with lake.location=… and lake.table=…")
    elif len(names) == 2:
        tree = {"lake": {"location": names[0], "table": names[1]}}
    else:
        raise ConfigError(f"give LAKE and TABLE, or --config: got {names}")
    if options.catalog is not None:
        tree.setdefault("lake", {})["catalog"] = options.catalog
    given = {"full": options.full or None, "continuous": options.continuous or None, "interval_seconds": options.interval, "workers": options.workers}
    tree |= {key: value for key, value in given.items() if value is not None}
    return load(tree, overrides, str(options.config or "command line"))


if __name__ == "__main__":
    sys.exit(main())
