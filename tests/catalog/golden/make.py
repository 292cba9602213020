"""Writes a golden lake with the Headrace that is on PYTHONPATH: run once with each version of the catalog, never again. Later versions read what it wrote.

    PYTHONPATH=<a checkout of that version> python tests/catalog/golden/make.py <version> <folder>

It uses only what version 1 had: `lake-v<version>.tar.gz` is the lake, `lake-v<version>.arrow` what each of its snapshots showed, by snapshot and item.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

import loader
from loader import Attribution, SourceOffsets
from loader.table import files

SCHEMA = pa.schema(
    [
        ("user", pa.int64()),
        ("item", pa.int64()),
        ("ts", pa.timestamp("s")),
        ("country", pa.string()),
        ("history", pa.list_(pa.int32())),
        ("label", pa.int8()),
        ("clicks", pa.int64()),
        ("score", pa.float32()),
    ]
)


def rows(start: int, stop: int) -> pa.Table:
    items = np.arange(start, stop)
    return pa.table(
        {
            "user": items % 7,
            "item": items,
            "ts": pa.array(items * 600).cast(pa.timestamp("s")),
            "country": pa.array([("NL", "US", None)[item % 3] for item in items.tolist()]),
            "history": pa.array([list(range(item % 5)) for item in items.tolist()], pa.list_(pa.int32())),
            "label": pa.nulls(len(items), pa.int8()),
            "clicks": pa.array(np.zeros(len(items), np.int64)),
            "score": pa.array(items.astype(np.float32) / 8),
        },
        schema=SCHEMA,
    )


def labels(items: list[int], **columns: list[int]) -> pa.Table:
    return pa.table({"user": [item % 7 for item in items], "item": items, **columns})


def fill(lake: loader.Lake) -> pa.Table:
    """Every kind of write, in files and inline; returns what each snapshot shows."""
    table = lake.create_table(
        "samples",
        SCHEMA,
        primary_key=["user", "item"],
        bucket_by=["user"],
        buckets=2,
        cluster_by=["user", "ts"],
        time_column="ts",
        partition_by="day",
        merge={"clicks": "sum", "score": "max"},
        attribution=Attribution("label", window_seconds=3600),
    )
    table.append(rows(0, 200), watermark=30_000, offsets=SourceOffsets("pipe", "events", {0: (0, 200), 1: (5, 9)}))
    table.patch(labels([1, 2, 500], clicks=[1, 2, 3], label=[1, 1, 1]))
    table.append(rows(200, 260))
    table.compact(full=True)
    table.tag("baseline")
    table.patch(labels(list(range(0, 260, 4)), clicks=[5] * 65))
    table.delete(labels([7, 8, 9]))
    table.upsert(rows(255, 265).drop_columns(["label"]))
    table.overwrite(rows(100, 103), "item >= 100 and item < 110")
    table.patch(labels([900, 901], clicks=[4, 4]))
    lake.create_table("events", pa.schema([("id", pa.string()), ("value", pa.float64())]), primary_key=["id"])
    lake.table("events").append(pa.table({"id": [f"event {number}" for number in range(20)], "value": np.arange(20) / 4}))
    shown = []
    for entry in table.history():
        read = table.to_arrow(snapshot=entry.id).sort_by("item")
        shown.append(read.add_column(0, "snapshot", pa.array([entry.id] * read.num_rows, pa.int64())))
    return pa.concat_tables(shown)


def main(version: str, folder: Path) -> None:
    files.INLINE_BYTES = 4000
    with tempfile.TemporaryDirectory() as temporary:
        with loader.connect(Path(temporary) / "lake") as lake:
            shown = fill(lake)
        with tarfile.open(folder / f"lake-v{version}.tar.gz", "w:gz") as archive:
            archive.add(Path(temporary) / "lake", "lake", filter=lambda member: None if member.name.endswith(("-queue", "-wal", "-shm")) else member)
    with (
        pa.OSFile(str(folder / f"lake-v{version}.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, shown.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer,
    ):
        writer.write_table(shown.combine_chunks())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
