"""Dividing inputs into pieces: every live row once, in order, in pieces of like size, whatever the inputs look like."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from loader import CompactionOptions
from loader.lake import Lake
from loader.table.compaction.division import divide
from loader.table.segments import open_segment
from loader.table.stored import open_rows

MANY = 4_000


pytestmark = pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)  # these are about files


def _filled(lake: Lake, *, cluster_by: list[str] | None) -> object:
    random = np.random.default_rng(2)
    fields = [("id", pa.int64()), ("name", pa.string()), ("rank", pa.float64()), ("x", pa.int32())]
    table = lake.create_table("t", pa.schema(fields), primary_key=["id"], cluster_by=cluster_by, durability="relaxed")
    for start in range(0, MANY, MANY // 4):
        ids = np.arange(start, start + MANY // 4)
        names = [None if value % 50 == 0 else "same" if value < 1_500 else f"n{value % 97}" for value in random.permutation(MANY // 4) + start]
        table.append(pa.table({"id": ids, "name": names, "rank": random.random(len(ids)), "x": ids.astype(np.int32)}))
    table.delete(pa.table({"id": list(range(3, MANY, 10))}))
    return table


@pytest.mark.parametrize("cluster_by", [None, ["name"], ["name", "rank"]])
@pytest.mark.parametrize("pieces", [1, 2, 9, 40])
def test_every_live_row_is_in_one_piece(lake: Lake, cluster_by: list[str] | None, pieces: int) -> None:
    table = _filled(lake, cluster_by=cluster_by)
    inputs = [open_rows(table.spec, ref, lake.storage) for ref in table.view().segments]
    division = divide(table.spec, inputs, pieces, lake.storage)
    found, sizes = [], []
    for number in range(division.num_pieces):
        parts = [item.reader.read(["id"], rows)["id"].to_numpy() for item, rows in zip(inputs, division.piece(number), strict=True)]
        found += parts
        sizes.append(sum(map(len, parts)))
    assert sorted(np.concatenate(found).tolist()) == [number for number in range(MANY) if number % 10 != 3]
    assert len(sizes) == pieces and max(sizes) < 1.5 * sum(sizes) / pieces, "also where most rows have one key"


@pytest.mark.parametrize("cluster_by", [None, ["name"], ["name", "rank"]])
def test_pieces_make_one_sorted_run(lake: Lake, cluster_by: list[str] | None) -> None:
    table = _filled(lake, cluster_by=cluster_by)
    before = table.to_arrow().sort_by("id")
    report = table.compact(full=True, options=CompactionOptions(memory_bytes=60_000))
    assert report.segments_after > 5 and report.rows_written == before.num_rows
    after = pa.concat_tables([open_segment(lake.storage, ref).read(columns=["id", "name", "rank", "x"]) for ref in table.view().segments])
    assert table.to_arrow().sort_by("id").equals(before)
    if cluster_by:
        keys = after.select(cluster_by)
        order = pa.compute.sort_indices(keys, sort_keys=[(name, "ascending") for name in cluster_by])
        assert keys.take(order).equals(keys)
    table.patch(pa.table({"id": [0, 1, 3_999], "x": pa.array([7, 8, 9], pa.int32())}))
    assert table.lookup(pa.array([0, 1, 3_999]), ["x"])["x"].to_pylist() == [7, 8, 9]
