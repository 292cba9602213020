"""A small table of samples, for tests of writers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from loader import Attribution
from loader.lake import Lake
from loader.table.table import Table

SCHEMA = pa.schema(
    [
        ("user", pa.int64()),
        ("item", pa.int64()),
        ("ts", pa.timestamp("s")),
        ("history", pa.list_(pa.int32())),
        ("label", pa.int8()),
        ("clicks", pa.int64()),
    ]
)
HOUR = 3600


def create(lake: Lake, name: str = "samples", **options: Any) -> Table:
    settings: dict[str, Any] = {
        "primary_key": ["user", "item"],
        "bucket_by": ["user"],
        "buckets": 3,
        "cluster_by": ["user", "ts"],
        "time_column": "ts",
        "merge": {"clicks": "sum"},
        "attribution": Attribution("label", window_seconds=HOUR),
    }
    return lake.create_table(name, SCHEMA, **settings | options)


def rows(start: int, stop: int) -> pa.Table:
    """Samples `start` to `stop`: item i of user i % 7, i minutes after 1970."""
    items = np.arange(start, stop)
    return pa.table(
        {
            "user": items % 7,
            "item": items,
            "ts": pa.array(items * 60).cast(pa.timestamp("s")),
            "history": pa.array([list(range(i % 5)) for i in items.tolist()], pa.list_(pa.int32())),
            "label": pa.nulls(len(items), pa.int8()),
            "clicks": pa.array(np.zeros(len(items), np.int64)),
        },
        schema=SCHEMA,
    )


def labels(items: list[int], **columns: Any) -> pa.Table:
    """Patches of samples by key."""
    return pa.table({"user": [item % 7 for item in items], "item": items, **columns})
