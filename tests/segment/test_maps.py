"""Maps of id → weight: two aligned lists, in one set of views where both repeat alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loader.decode.result import ListColumn
from loader.errors import CorruptSegmentError
from loader.segment.layout import REGION, Feature, Role
from loader.segment.reader import SegmentReader
from loader.segment.writer import WriteOptions, encode_segment
from tests.segment.tables import same_table

Array = np.ndarray[Any, np.dtype[Any]]
KIND = pa.map_(pa.int64(), pa.float32())


def map_of(offsets: Array, keys: Array, weights: Array) -> pa.Array:
    return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(keys), pa.array(weights, pa.float32()))


def written(column: pa.Array, **options: Any) -> tuple[SegmentReader, str, int]:
    """The reader, the encoding, and the bytes of the column."""
    encoded = encode_segment(pa.table({"m": column}), column_ids=[1], options=WriteOptions(**options))
    reader = SegmentReader(encoded.data)
    assert same_table(reader.read(), pa.table({"m": column}))
    return reader, reader.layout().columns[0].encoding, encoded.column_bytes[1]


def test_nulls_and_what_is_empty_stay_apart() -> None:
    rows = [None, [], [(7, None)], [(7, 0.5), (-1, None)], [], None, [(7, float("nan"))], [(7, -0.0)]] * 3
    column = pa.array(rows, KIND)
    reader, _, _ = written(column)
    assert reader.features & Feature.MAPS
    assert str(reader.read()["m"].to_pylist()) == str(column.to_pylist())
    found = reader.read(rows=[3, 0, 1, 2])["m"].to_pylist()
    assert found == [rows[3], rows[0], rows[1], rows[2]]


def test_order_of_keys_and_weights_without_nulls_survive() -> None:
    # names of entries do not: Arrow's own schema message has no place for them
    kind = pa.map_(pa.uint32(), pa.field("value", pa.float16(), nullable=False), keys_sorted=True)
    table = pa.table({"m": pa.array([[(1, np.float16(2))], None], kind)})
    read = SegmentReader(encode_segment(table, column_ids=[1]).data).read()
    assert read.schema.equals(table.schema, check_metadata=True)
    assert read.to_pydict() == table.to_pydict()


def test_maps_that_repeat_share_views() -> None:
    rng = np.random.default_rng(1)
    ids, weights = rng.integers(0, 1 << 40, 64 * 500), rng.random(64 * 500, np.float32)
    # 500 sessions of 16 rows, each with one map of 64 entries
    at = (np.arange(500).repeat(16)[:, None] * 64 + np.arange(64)).reshape(-1)
    reader, tree, num_bytes = written(map_of(np.arange(0, at.size + 1, 64), ids[at], weights[at]))
    assert tree.startswith("map views(")
    assert num_bytes < 1.1 * (ids.size * 5.1 + weights.nbytes)
    column = reader.read_block(0, [1])[0]
    assert isinstance(column, ListColumn)
    assert column.weights is not None
    assert column.weights.views is column.views


@pytest.mark.parametrize("newest_first", [False, True])
def test_windows_of_maps_slide(newest_first: bool) -> None:
    rng = np.random.default_rng(2)
    ids, weights = rng.integers(0, 1 << 31, 9_000), rng.random(9_000, np.float32)
    starts = np.arange(8_000) if not newest_first else np.arange(8_000)[::-1]
    at = (starts[:, None] + np.arange(50)).reshape(-1)
    _, tree, num_bytes = written(map_of(np.arange(0, at.size + 1, 50), ids[at], weights[at]))
    assert tree.startswith("map sliding views")
    assert num_bytes < 1.2 * (9_000 * 8)


def test_weights_that_change_under_keys_that_repeat_have_views_of_their_own() -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 1 << 40, 40 * 100)
    at = (np.arange(100).repeat(30)[:, None] * 40 + np.arange(40)).reshape(-1)
    weights = rng.random(at.size, np.float32)
    reader, tree, num_bytes = written(map_of(np.arange(0, at.size + 1, 40), ids[at], weights))
    assert tree.startswith("map(views(")
    assert num_bytes < 1.1 * (ids.size * 5.1 + weights.nbytes)
    column = reader.read_block(0, [1])[0]
    assert isinstance(column, ListColumn)
    assert column.weights is not None
    assert np.array_equal(column.views >> np.uint64(32), column.weights.views >> np.uint64(32))


def test_a_row_of_a_million_entries() -> None:
    rows = [[(1, 0.5)], [(number, 0.25) for number in range(1_000_000)], None, []]
    written(pa.array(rows, KIND))


def test_keys_of_strings_and_weights_of_lists() -> None:
    rows = [[("a", [1, None]), ("", None)], [], None, [("a", []), ("bc", [3])]] * 40
    written(pa.array(rows, pa.map_(pa.string(), pa.list_(pa.int16()))))


@pytest.mark.parametrize("role", [Role.SCRATCH, Role.VIEWS])
def test_lists_that_are_not_aligned_are_refused(role: Role) -> None:
    """Whatever the checksum says: weights without views of their own under keys that share theirs, and weights with views of other lengths."""
    rng = np.random.default_rng(4)
    at = np.tile(np.arange(40), 60)
    column = map_of(np.arange(0, at.size + 1, 40), at, rng.random(at.size, np.float32))
    data = encode_segment(pa.table({"m": column}), column_ids=[1]).data
    record = SegmentReader(data).chunks([1], [0])[0, 0]
    damaged = np.frombuffer(bytes(data), np.uint8).copy()
    chunk = damaged[int(record["offset"]) : int(record["offset"] + record["num_bytes"])]
    regions = chunk[32 : 32 + 24 * int(chunk[4:6].view("<u2")[0])].view(REGION)
    assert sorted(regions["role"][(regions["role"] == Role.VIEWS) | (regions["role"] == Role.WEIGHT_VIEWS)].tolist()) == [Role.VIEWS, Role.WEIGHT_VIEWS]
    if role is Role.SCRATCH:
        regions["role"][regions["role"] == Role.WEIGHT_VIEWS] = role
        message = "other numbers of keys than of weights"
    else:
        regions["role"][regions["role"] == Role.VIEWS] = Role.SCRATCH
        message = "no views at depth 0"
    with pytest.raises(CorruptSegmentError, match=message):
        SegmentReader(damaged.tobytes(), verify=False).read()
