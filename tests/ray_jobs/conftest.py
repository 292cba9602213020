"""The session's Ray cluster, and a tiny table whose label a model can learn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import loader
from tests.ray_cluster import small_cluster

ROWS = 6_000
PRODUCTS = 200


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    with small_cluster():
        yield


@pytest.fixture(scope="session")
def tiny_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with the table `samples`: a label is positive where the price is high or the product stands in the history."""
    path = tmp_path_factory.mktemp("tiny") / "lake"
    random = np.random.default_rng(5)
    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("user", pa.int64()),
            ("ts", pa.int64()),
            ("product", pa.int32()),
            ("price", pa.float32()),
            ("past", pa.list_(pa.int32())),
            ("past_ts", pa.list_(pa.int64())),
            ("label", pa.int8()),
        ]
    )
    with loader.connect(str(path)) as lake:
        table = lake.create_table(
            "samples",
            schema,
            primary_key=["id"],
            bucket_by=["user"],
            buckets=2,
            cluster_by=["user", "ts"],
            time_column="ts",
            attribution=loader.Attribution(column="label", window_seconds=100, default=0),
        )
        for first in range(0, ROWS, ROWS // 4):
            table.append(_rows(random, first, ROWS // 4, schema), watermark=first + ROWS // 4)
    return path


def _rows(random: np.random.Generator, first: int, count: int, schema: pa.Schema) -> pa.Table:
    ids = np.arange(first, first + count)
    product, price = random.integers(0, PRODUCTS, count), random.random(count)
    lengths = random.integers(0, 12, count)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    past = random.integers(0, PRODUCTS, int(lengths.sum()))
    met = np.bincount(np.repeat(np.arange(count), lengths), weights=past == np.repeat(product, lengths), minlength=count) > 0
    positive = (price > 0.7) | met
    times = np.repeat(ids, lengths) - random.integers(1, 1_000, len(past))
    columns = [
        ids,
        random.integers(0, 50, count),
        ids,
        product.astype(np.int32),
        price.astype(np.float32),
        pa.ListArray.from_arrays(offsets, pa.array(past.astype(np.int32))),
        pa.ListArray.from_arrays(offsets, pa.array(times)),
        pa.array(positive.astype(np.int8), mask=~positive),
    ]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema)
