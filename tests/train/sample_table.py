"""A small table with everything a loader has to get right: buckets, many blocks, lists that repeat, nulls, late labels, patched lists, deleted rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

import loader
from loader.catalog.records import SegmentRef
from loader.segment.layout import ROW_COLUMN_ID, Feature
from loader.segment.writer import encode_segment

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("user", pa.int32(), nullable=False),
        pa.field("ts", pa.int64(), nullable=False),
        pa.field("price", pa.float32()),
        pa.field("flag", pa.bool_()),
        pa.field("vector", pa.list_(pa.float32(), 3)),
        pa.field("history", pa.list_(pa.int64())),
        pa.field("tags", pa.list_(pa.int16())),
        pa.field("name", pa.string()),
        pa.field("label", pa.int8()),
    ]
)
TENSOR_COLUMNS = [name for name in SCHEMA.names if name != "name"]
WINDOW = 50


def rows(start: int, stop: int, seed: int = 0) -> pa.Table:
    """Samples start … stop − 1; a user's history slides by one value a sample and lies far from zero, so that its pools are stored narrow."""
    rng = np.random.default_rng([seed, start])
    count = stop - start
    user = rng.integers(0, 7, count)
    step = np.arange(start, stop)
    history = [None if i % 11 == 3 else list(10**12 * int(u) + np.arange(i // 3, i // 3 + int(i % 6))) for i, u in zip(step, user, strict=True)]
    return pa.table(
        {
            "id": step,
            "user": user.astype(np.int32),
            "ts": step,
            "price": pa.array(rng.random(count).astype(np.float32), mask=rng.random(count) < 0.2),
            "flag": pa.array(rng.random(count) < 0.5, mask=rng.random(count) < 0.1),
            "vector": [None if i % 13 == 0 else [float(i), 0.5, -1.0] for i in step],
            "history": history,
            "tags": [[int(u)] * int(u) for u in user],
            "name": [f"sample-{i}" if i % 5 else None for i in step],
            "label": pa.nulls(count, pa.int8()),
        },
        schema=SCHEMA,
    )


def create(lake: loader.Lake, *, name: str = "samples", num_rows: int = 600, commit_rows: int = 60, patch: bool = True) -> loader.Table:
    """A table of `num_rows` samples in commits of `commit_rows`, each a block a bucket, with positive labels for every fifth and a patched list."""
    table = lake.create_table(
        name,
        SCHEMA,
        primary_key=["id"],
        bucket_by=["user"],
        buckets=2,
        cluster_by=["user", "ts"],
        time_column="ts",
        attribution=loader.Attribution(column="label", window_seconds=WINDOW, default=0),
        durability="relaxed",
    )
    for start in range(0, num_rows, commit_rows):
        table.append(rows(start, min(start + commit_rows, num_rows)), on_conflict="trust", watermark=start)
    if patch:
        positive = np.arange(0, num_rows, 5)
        table.patch(pa.table({"id": positive, "label": pa.array(np.ones(len(positive), np.int8))}), watermark=num_rows - 1)
        lists = np.arange(2, num_rows, 17)
        table.patch(pa.table({"id": lists, "history": [[-1] * int(i % 4) for i in lists], "price": pa.array(np.full(len(lists), 9.0, np.float32))}))
    return table


def delete_rows(lake: loader.Lake, table: loader.Table, ref: SegmentRef, numbers: list[int]) -> None:
    """Record a deletion vector, as `table.delete` will."""
    section = encode_segment(pa.table({"row": pa.array(numbers, pa.uint32())}), column_ids=[ROW_COLUMN_ID], features=Feature.OVERLAY)
    path = f"deletes/{ref.segment_id}"
    lake.storage.files.put(path, bytes(section.data))
    head = table.view().snapshot_id
    with lake.database.write() as connection:
        connection.execute(
            "insert into overlays (table_id, segment_id, kind, level, sequence, path, section_offset, num_bytes, num_rows, num_deleted, column_ids, added_in) "
            "values (?, ?, 'deletes', 0, ?, ?, 0, ?, ?, ?, '[]', ?)",
            (table.spec.id, ref.segment_id, head, path, len(section.data), len(numbers), len(numbers), head),
        )


def as_rows(batch: Any) -> list[dict[str, Any]]:
    """A batch as plain Python rows, nulls as None; padding left out."""
    columns: dict[str, list[Any]] = {}
    for name in batch:
        column, valid = batch[name], batch.validity[name].tolist()
        values = [column[i].tolist() for i in range(len(column))] if isinstance(column, loader.Jagged) else column.tolist()
        columns[name] = [value if there else None for value, there in zip(values, valid, strict=True)]
    return [{name: columns[name][i] for name in columns} for i in range(batch.num_samples)]


def ids(batch: Any) -> list[int]:
    """The ids of a batch's samples."""
    return [int(value) for value in batch["id"][: batch.num_samples]]
