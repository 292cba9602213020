"""What keeping a table compacted costs while it is streamed into, and what its reads pay for patches: functions for `scripts/bench_table`, which print nothing.

`write_amplification` streams micro-batches with late labels into a real table, maintenance between; every byte that any commit wrote is counted from the
catalog: segments with their key indexes, overlays, column files, waiting labels. `simulate` plays the same policy over plain records for longer streams.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import loader
from loader.catalog.records import ALL_BUCKETS, SegmentRef, SnapshotView
from loader.table.compaction.pick import CompactionOptions, pick, total_bytes
from loader.table.table import Table

WRITERS = ("append", "patch")  # kinds of commits that bring something; all others only move it
TABLES = ("segments", "overlays", "column_files", "pending")
LABELLED = 0.3  # share of the rows whose label comes at all
LATE_BATCHES = 200  # a label comes up to so many micro-batches after its row


def simulate(batches: int, *, every: int = 2, options: CompactionOptions | None = None) -> dict[str, float]:
    """The policy alone, over equal micro-batches of one bucket and partition.

    Args:
        batches: How many.
        every: Maintenance runs after so many.
        options: Of the policy.

    Returns:
        write_amplification (bytes written, by the bytes that came), max_runs (at any time), mean_runs.
    """
    options = options or CompactionOptions(target_segment_bytes=1 << 50, task_bytes=1 << 60, task_rows=1 << 30)
    size, live, next_id = 1_000_000, list[SegmentRef](), 0
    written, most, total = 0, 0, 0

    def add(num_bytes: int, level: int) -> None:
        nonlocal next_id, written
        next_id += 1
        written += num_bytes
        live.append(_segment(next_id, num_bytes, level))

    for number in range(1, batches + 1):
        add(size, 0)
        most = max(most, len(live))
        while number % every == 0:
            tasks = pick(SnapshotView(spec=None, snapshot_id=1, watermark=None, segments=tuple(live)), options)  # type: ignore[arg-type]  # not looked at
            if not tasks:
                break
            gone = {segment.segment_id for segment in tasks[0].segments}
            live[:] = [segment for segment in live if segment.segment_id not in gone]
            add(tasks[0].num_bytes, tasks[0].level)
        total += len(live)
    return {"write_amplification": written / (size * batches), "max_runs": most, "mean_runs": total / batches}


def _segment(number: int, num_bytes: int, level: int) -> SegmentRef:
    fields: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(SegmentRef)}
    fields |= {"segment_id": number, "added_in": number, "path": "", "num_bytes": num_bytes, "level": level, "num_rows": 1, "live_rows": 1}
    return SegmentRef(**fields | {"block_rows": (1,), "overlays": (), "column_files": ()})


def write_amplification(folder: Path, *, batches: int = 720, rows: int = 400, buckets: int = 4, every: int = 2, columns: int = 20) -> dict[str, float]:
    """An hour's stream: each micro-batch brings rows, and labels of rows before them.

    Args:
        folder: Empty; the lake is made in it.
        batches: Micro-batches: 720 of them are an hour's at one every five seconds.
        rows: Of a micro-batch.
        buckets: Of the table.
        every: Maintenance runs after so many micro-batches.
        columns: Float columns beside key, time and label.

    Returns:
        write_amplification (all bytes written, by those that writers wrote), maintenance_bytes, first_bytes, max_segments (of a bucket, at any time),
        size_ratio (live bytes at the end, by those of the same table fully compacted), max_overlays (of a segment, after maintenance).
    """
    random = np.random.default_rng(11)
    with loader.connect(folder / "lake") as lake:
        table = _stream_table(lake, columns, buckets)
        segments, overlays = 0, 0
        for number in range(batches):
            table.append(_rows(random, table, number * rows, rows), on_conflict="trust")
            first = max(0, number - LATE_BATCHES) * rows
            late = first + random.choice(number * rows + rows - first, int(LABELLED * rows), replace=False)
            table.patch(pa.table({"id": np.sort(late), "label": random.random(len(late)).astype(np.float32)}))
            counts = Counter(ref.bucket for ref in table.view().segments)
            mixed = counts.pop(ALL_BUCKETS, 0)  # hold rows of every bucket, and count for each
            segments = max(segments, mixed + max(counts.values(), default=0))
            if (number + 1) % every == 0:
                table.compact()
                overlays = max(overlays, max(len(ref.overlays) for ref in table.view().segments))
        written, first_bytes = _bytes_written(table)
        live = sum(map(total_bytes, table.view().segments))
        table.compact(full=True)
        compacted = sum(map(total_bytes, table.view().segments))
    return {
        "write_amplification": written / first_bytes,
        "first_bytes": first_bytes,
        "maintenance_bytes": written - first_bytes,
        "max_segments": segments,
        "max_overlays": overlays,
        "size_ratio": live / compacted,
    }


def _stream_table(lake: loader.Lake, columns: int, buckets: int) -> Table:
    fields = [
        ("id", pa.int64()),
        ("user", pa.int32()),
        ("ts", pa.timestamp("s")),
        *((f"f{at}", pa.float32()) for at in range(columns)),
        ("label", pa.float32()),
    ]
    return lake.create_table(
        "stream", pa.schema(fields), primary_key=["id"], buckets=buckets, cluster_by=["user", "ts"], time_column="ts", partition_by="hour", durability="relaxed"
    )


def _rows(random: np.random.Generator, table: Table, first: int, rows: int) -> pa.Table:
    data: dict[str, Any] = {"id": np.arange(first, first + rows), "user": random.integers(0, 5_000, rows).astype(np.int32)}
    data["ts"] = pa.array(np.full(rows, first // 1_000)).cast(pa.timestamp("s"))
    for column in table.schema.to_arrow().names[3:-1]:
        data[column] = np.round(random.random(rows) * 100).astype(np.float32)
    return pa.table(data | {"label": pa.nulls(rows, pa.float32())})


def _bytes_written(table: Table) -> tuple[int, int]:
    """(by all commits, by those of writers); for a table of which nothing has expired."""
    total, first = 0, 0
    with table.lake.database.read() as connection:
        for part in TABLES:
            rows = connection.execute(
                f"select s.kind, sum(p.num_bytes) from {part} p join snapshots s on s.table_id = p.table_id and s.id = p.added_in "
                "where p.table_id = ? group by s.kind",
                (table.spec.id,),
            )
            for kind, num_bytes in rows:
                total += int(num_bytes)
                first += int(num_bytes) if kind in WRITERS else 0
    return total, first


def reads_under_patches(folder: Path, *, rows: int = 5_000_000, commits: int = 100, share: float = 0.01, every: int = 1, reads: int = 3) -> dict[str, float]:
    """Reads of all columns and of the two patched ones: after patches of random keys, and of the same table compacted.

    Args:
        folder: Empty; the lake is made in it.
        rows: Of the table, of eleven columns.
        commits: Patches.
        share: Of the rows that each patches.
        every: Maintenance runs after so many patches; 0 is never.
        reads: Of each kind; the fastest counts.

    Returns:
        Seconds of all_patched, all_compacted, some_patched, some_compacted, maintenance; all_ratio, some_ratio.
    """
    random = np.random.default_rng(7)
    data: dict[str, Any] = {"id": np.arange(rows)}
    data |= {f"f{at}": random.random(rows).astype(np.float32) for at in range(4)} | {f"c{at}": random.integers(0, 1_000, rows) for at in range(4)}
    samples = pa.table(data | {"clicks": np.zeros(rows, np.int64), "label": np.zeros(rows, np.float32)})
    maintenance = 0.0
    with loader.connect(folder / "lake") as lake:
        table = lake.create_table("samples", samples.schema, primary_key=["id"], buckets=8, merge={"clicks": "sum"}, durability="relaxed")
        table.append(samples, on_conflict="trust")
        for number in range(commits):
            ids = random.choice(rows, int(share * rows), replace=False)
            table.patch(pa.table({"id": ids, "clicks": np.ones(len(ids), np.int64), "label": random.random(len(ids)).astype(np.float32)}))
            if every and (number + 1) % every == 0:
                begun = time.perf_counter()
                table.compact()
                maintenance += time.perf_counter() - begun
        found = {"all_patched": _read_seconds(table, None, reads), "some_patched": _read_seconds(table, ["clicks", "label"], reads)}
        table.compact(full=True)
        found |= {"all_compacted": _read_seconds(table, None, reads), "some_compacted": _read_seconds(table, ["clicks", "label"], reads)}
    ratios = {f"{what}_ratio": found[f"{what}_patched"] / found[f"{what}_compacted"] for what in ("all", "some")}
    return found | {"maintenance": maintenance} | ratios


def _read_seconds(table: Table, columns: list[str] | None, reads: int) -> float:
    best = float("inf")
    for _ in range(reads):
        begun = time.perf_counter()
        table.to_arrow(columns)
        best = min(best, time.perf_counter() - begun)
    return best
