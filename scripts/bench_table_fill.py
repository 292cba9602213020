"""A catalog of very many segments, filled by script: no file is there, and planning a scan needs none.

`fill(lake, n)` makes a table `t` of n segments over 8 buckets and 365 days in the order of time, as a stream leaves them after compaction: one commit for
every 1,000 segments, statistics of five columns, sealed as commits seal them. Both databases.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

import loader
from loader.catalog import sealing
from loader.catalog.column_stats import RECORD, Kind, flags_of
from loader.catalog.connection import Database
from loader.catalog.insert import _SEGMENT as INSERT

SEGMENT_ROWS, SEGMENT_BYTES = 65_536, 9_000_000
DAYS, DAY, BUCKETS = 365, 86_400, 8
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("ts", pa.timestamp("s"), nullable=False),
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("price", pa.float64()),
        pa.field("count", pa.int32()),
    ]
)


def fill(lake: loader.Lake, num_segments: int, name: str = "t") -> Any:
    """The filled table."""
    table = lake.create_table(
        name, SCHEMA, primary_key=["id"], bucket_by=["user_id"], buckets=BUCKETS, cluster_by=["user_id", "ts"], time_column="ts", partition_by="day"
    )
    database: Database = lake.database
    for first in range(0, num_segments, sealing.PACK_SEGMENTS):
        count = min(sealing.PACK_SEGMENTS, num_segments - first)
        with database.write(table.spec.id, durability="relaxed") as connection:
            snapshot = first // sealing.PACK_SEGMENTS + 1
            connection.execute(
                "insert into snapshots (table_id, id, commit_id, kind, schema_id, num_rows, created_at, summary) values (?, ?, ?, 'append', 1, ?, ?, '{}')",
                (table.spec.id, snapshot, f"fill-{snapshot}", SEGMENT_ROWS * (first + count), time.time_ns() // 1000),
            )
            connection.executemany(INSERT, _rows(table.spec.id, snapshot, first, count, num_segments))
            connection.execute("update tables set head = ? where id = ?", (snapshot, table.spec.id))
            sealing.seal(connection, table.spec.id)
    return table


def _rows(table_id: int, snapshot: int, first: int, count: int, num_segments: int) -> list[tuple[Any, ...]]:
    """Rows of `segments`, in the order of time."""
    at = np.arange(first, first + count)
    days = at * DAYS // num_segments
    low = np.random.default_rng(first).integers(-(1 << 62), 1 << 61, count)
    stats = np.zeros((count, len(SCHEMA)), RECORD)
    ends = [
        (low, low + (1 << 60)),
        (days * DAY, days * DAY + DAY - 1),
        (at % 16, at % 16 + 10_000),
        (0.5 * (at % 7), 100.0 + at % 7),
        (at % 5, 50 + at % 5),
    ]
    for place, (least, most) in enumerate(ends):
        kind, wide = (Kind.FLOAT, np.float64) if place == 3 else (Kind.SIGNED, np.int64)
        stats["column_id"][:, place], stats["flags"][:, place] = place + 1, flags_of(kind, has_range=True)
        stats["min"][:, place], stats["max"][:, place] = (np.ascontiguousarray(end, wide).view(np.uint64) for end in (least, most))
    blocks = np.array([SEGMENT_ROWS], "<u4").tobytes()
    return [
        (
            table_id, f"{first + n:032x}", int(at[n] % BUCKETS), int(days[n]), 1, f"data/{first:012x}/{n:08d}.hr", 0, SEGMENT_BYTES, 1, SEGMENT_ROWS,
            SEGMENT_ROWS, snapshot, snapshot, int(low[n]), int(low[n]) + (1 << 60), int(days[n]) * DAY, int(days[n]) * DAY + DAY - 1, blocks, snapshot,
            stats[n].tobytes(),
        )
        for n in range(count)
    ]  # fmt: skip


def week_where() -> str:
    """One week and one user."""
    return "ts >= '1970-04-11' and ts < '1970-04-18' and user_id = 17"


def headrace(folder: pathlib.Path, num_files: int) -> Callable[[], int]:
    """Open and plan, as `bench_table_fills` wants it of every system."""
    with loader.connect(folder / "headrace") as lake:
        fill(lake, num_files)

    def plan() -> int:
        with loader.connect(folder / "headrace", create=False) as lake:
            return len(lake.table("t").view().segments)

    return plan


def add_one(connection: Any, table_id: int) -> int:
    """One more commit of one segment; returns its snapshot."""
    (head,) = connection.execute("select head from tables where id = ?", (table_id,)).fetchone()
    connection.execute(
        "insert into snapshots (table_id, id, commit_id, kind, schema_id, num_rows, created_at, summary) values (?, ?, ?, 'append', 1, 1, ?, '{}')",
        (table_id, head + 1, f"one-{head}", time.time_ns() // 1000),
    )
    connection.executemany(INSERT, [(*row[:1], f"one-{head}", *row[2:]) for row in _rows(table_id, head + 1, 0, 1, 1)])
    connection.execute("update tables set head = ? where id = ?", (head + 1, table_id))
    return int(head) + 1
