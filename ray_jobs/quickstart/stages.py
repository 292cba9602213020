"""The quickstart's stages up to the trained model's rivals: prepare, ingest, compact, weigh, load, baselines. Each returns plain values.

A stage may be interrupted anywhere: the next run finds its result missing and does it again, and what the lake has committed stays committed.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import loader
from loader.config import ExperimentConfig
from loader.errors import CommitError, ConfigError
from loader.ingest.loop import Progress, Stream, run, stop_on_interrupt
from loader.ingest.sources.files import FileSource
from loader.lake import Lake
from loader.table.table import Table
from ray_jobs.quickstart import baselines, dataset, storage
from ray_jobs.quickstart.dataset import KEY, LABEL, TIME, Manifest
from ray_jobs.quickstart.features import WINDOW_SECONDS
from ray_jobs.quickstart.workspace import PIPELINE, TABLE, Workspace

Advance = Callable[[int, int], None]  # done, in all
ROUND_ROWS = 65_536
SMALL_ROUND_ROWS = 16_384


class Stopped(KeyboardInterrupt):
    """Ctrl-C was heard, and the stage stopped at a good place."""


def prepare(workspace: Workspace, advance: Advance) -> Manifest:
    workspace.output.mkdir(parents=True, exist_ok=True)
    return dataset.prepare(workspace.streams, num_households=dataset.SMALL_HOUSEHOLDS if workspace.small else None, progress=advance)


def check_split(config: ExperimentConfig, manifest: Manifest) -> None:
    """The experiment must train before the cut that the data has, and test after it.

    Raises:
        ConfigError: It names another moment.
    """
    cut = manifest.cut_text
    if config.data.closed_before != cut or config.data.test_where != f"{TIME} >= '{cut}'":
        raise ConfigError(
            f"data.closed_before is {config.data.closed_before!r} and data.test_where {config.data.test_where!r}, but 80% of the time ends at {cut!r}: use that"
        )


def open_table(lake: Lake, *, small: bool) -> Table:
    """The table of samples, made if it is not there."""
    if TABLE in lake.tables():
        return lake.table(TABLE)
    return lake.create_table(
        TABLE,
        dataset.table_schema(),
        primary_key=list(KEY),
        bucket_by=["household_id"],
        buckets=1 if small else 4,
        cluster_by=["household_id", TIME],
        time_column=TIME,
        partition_by="month",
        attribution=loader.Attribution(LABEL, WINDOW_SECONDS, 0),
    )


def ingest(workspace: Workspace, manifest: Manifest, advance: Advance) -> dict[str, Any]:
    """Replay both streams into the lake, from where it stands.

    Raises:
        Stopped: Ctrl-C; everything up to the last commit is in the lake.
    """
    streams = [
        Stream(source=FileSource("samples", workspace.streams / "samples"), time_column=TIME),
        Stream(
            source=FileSource("labels", workspace.streams / "labels"), write="patch", time_column="event_time", columns={name: name for name in (*KEY, LABEL)}
        ),
    ]
    workspace.ingest_log.parent.mkdir(parents=True, exist_ok=True)
    with loader.connect(workspace.lake) as lake, stop_on_interrupt() as stop, open(workspace.ingest_log, "a", encoding="utf-8") as log:
        table = open_table(lake, small=workspace.small)
        before = sum(table.offsets(PIPELINE, "samples").values())

        def after_round(progress: Progress) -> None:
            log.write(json.dumps({"time": time.time(), **dataclasses.asdict(progress)}) + "\n")
            log.flush()
            advance(before + progress.rows["samples"], manifest.samples)

        report = run(table, streams, pipeline=PIPELINE, round_rows=SMALL_ROUND_ROWS if workspace.small else ROUND_ROWS, after_round=after_round, stop=stop)
        if report.stopped:
            raise Stopped
        state = table.describe()
    if (state["num_rows"], state["num_pending"]) != (manifest.samples, 0):
        raise CommitError(
            f"the lake holds {state['num_rows']:,} rows and {state['num_pending']} labels without one, not the {manifest.samples:,} samples of the streams"
        )
    return {"samples": manifest.samples, "labels": manifest.labels, "snapshot": state["snapshot"]}


def compact(workspace: Workspace, advance: Advance) -> dict[str, Any]:
    """Bring rows into order and labels into rows; weigh the table before and after."""
    before = workspace.result("ingested_bytes")
    with loader.connect(workspace.lake) as lake:
        table = lake.table(TABLE)
        if before is None:
            before = workspace.save("ingested_bytes", dataclasses.asdict(storage.lake_bytes(table)))
        began = time.monotonic()
        report = table.compact(full=True, progress=advance)
        after = dataclasses.asdict(storage.lake_bytes(table))
    return {"before": before, "after": after, "seconds": time.monotonic() - began, "rows_written": report.rows_written}


def weigh_parquet(workspace: Workspace, manifest: Manifest, advance: Advance) -> dict[str, Any]:
    with loader.connect(workspace.lake, create=False) as lake:
        total, columns = storage.parquet_bytes(lake.table(TABLE), manifest, workspace.output / "parquet", progress=advance)
    return {"total": total, "columns": columns}


def measure_loader(workspace: Workspace, config: ExperimentConfig, advance: Advance) -> dict[str, Any]:
    """One shuffled epoch of the training rows as torch batches, with nobody training on them."""
    with loader.connect(workspace.lake, create=False) as lake:
        scan = lake.table(TABLE).scan(columns=config.data.columns, where=config.data.where, closed_before=config.data.closed_before)
        options = {"global_batch_size": config.loader.global_batch_size, "shuffle": config.loader.shuffle, "remainder": config.loader.remainder}
        with loader.DataLoader(scan, rank=0, world_size=1, threads=2, **options) as batches:
            rows, began = 0, time.monotonic()
            for batch in batches:
                rows += batch.num_samples
                advance(rows, batches.plan.num_rows)
            seconds = time.monotonic() - began
    return {"rows": rows, "seconds": seconds, "samples_per_second": rows / seconds}


def compare(workspace: Workspace, config: ExperimentConfig, advance: Advance) -> dict[str, Any]:
    """The baselines on the model's own training and test rows."""
    data = config.data
    with loader.connect(workspace.lake, create=False) as lake:
        table = lake.table(TABLE)
        train = baselines.read(table.scan(columns=data.columns, where=data.where, closed_before=data.closed_before), data)
        test = baselines.read(table.scan(columns=data.columns, where=data.test_where, closed_before=data.test_closed_before), data)
    advance(1, 2)
    regression = baselines.evaluate_regression(train, test, seeds=config.train.seeds)
    return {"train_rows": len(train), "test_rows": len(test), "rule": baselines.evaluate_rule(train, test), "regression": regression}
