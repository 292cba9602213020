"""A block laid out column after column, by one native call for all lists or without the library: the same arrays, and Arrow's values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loader.batch.buffers import BufferPool
from loader.batch.whole import PlainColumn, plain_batches, plain_columns
from loader.segment.reader import SegmentReader
from loader.segment.stream import stream_blocks
from loader.segment.writer import encode_segment
from scripts.bench_samples import make_samples

ROWS = 700


def table() -> pa.Table:
    rng = np.random.default_rng(4)
    lists = [rng.integers(0, 90, int(rng.integers(0, 7))).tolist() for _ in range(ROWS)]
    return pa.table(
        {
            "id": pa.array(rng.integers(0, 1 << 40, ROWS)),
            "clicks": pa.array([None if i % 9 == 0 else row for i, row in enumerate(lists)], pa.list_(pa.int64())),
            "weights": pa.array([[x / 4 for x in row] for row in lists], pa.list_(pa.float32())),
            "pairs": pa.array([[[x, x + 1] for x in row] for row in lists], pa.list_(pa.list_(pa.int32(), 2))),
            "nested": pa.array([[row, [], row[:1]] for row in lists], pa.list_(pa.list_(pa.int16()))),
            "price": pa.array([None if x % 5 == 0 else x / 100 for x in range(ROWS)], pa.float64()),
        }
    )


def laid_out(data: pa.Table, threads: int) -> list[PlainColumn]:
    reader = SegmentReader(encode_segment(data, column_ids=list(range(data.num_columns))).data)
    ids = reader.resolve(None)
    return plain_columns(reader.read_block(0, ids), [reader.leaf(column) for column in ids], BufferPool(), threads=threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_all_lists_at_once_equal_one_by_one(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    data = table()
    at_once = laid_out(data, threads)
    monkeypatch.setenv("HEADRACE_NATIVE", "0")
    for one, other in zip(at_once, laid_out(data, 1), strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        assert one.values.dtype == other.values.dtype
        assert len(one.offsets) == len(other.offsets)
        for mine, theirs in zip(one.offsets, other.offsets, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert (one.validity is None) == (other.validity is None)


def test_values_and_offsets_are_those_of_the_table() -> None:
    data = table()
    clicks = laid_out(data, 2)[1]
    column = data["clicks"].combine_chunks()
    np.testing.assert_array_equal(clicks.values, column.flatten().to_numpy())
    np.testing.assert_array_equal(np.diff(clicks.offsets[0]), [0 if row is None else len(row) for row in column.to_pylist()])
    assert clicks.validity is not None
    np.testing.assert_array_equal(clicks.validity.astype(bool), column.is_valid().to_numpy(zero_copy_only=False))


def test_batches_are_the_block_in_pieces() -> None:
    table = make_samples(900)
    reader = SegmentReader(encode_segment(table, column_ids=range(1, table.num_columns + 1)).data)
    leaves = reader.leaves(reader.resolve(None))
    for _, block in stream_blocks(reader):
        whole = plain_columns(block, leaves, BufferPool())
        pieces = list(plain_batches(block, leaves, 900, 256, BufferPool()))
        assert [len(piece[0].values) for piece in pieces] == [256, 256, 256, 132]
        for index, column in enumerate(whole):
            assert np.array_equal(np.concatenate([piece[index].values for piece in pieces]), column.values, equal_nan=column.values.dtype.kind == "f")


@pytest.mark.parametrize("library", ["", "0"])
def test_tensors_of_a_batch_are_its_columns(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("HEADRACE_NATIVE", library)
    rng = np.random.default_rng(5)
    weighed = [{int(key): float(rng.random()) for key in rng.integers(0, 99, int(rng.integers(0, 4)))} for _ in range(ROWS)]
    data = table().append_column("weighed", pa.array([list(row.items()) for row in weighed], pa.map_(pa.int64(), pa.float32())))
    reader = SegmentReader(encode_segment(data, column_ids=list(range(data.num_columns))).data)
    ids = reader.resolve(None)

    def same(column: PlainColumn, found: tuple[Any, ...]) -> None:
        values, offsets, validity, *weights = found
        assert torch.equal(values, torch.from_numpy(column.values))
        assert len(offsets) == len(column.offsets)
        assert all(np.array_equal(one.numpy(), other) for one, other in zip(offsets, column.offsets, strict=True))
        assert (validity is None) == (column.validity is None)
        assert validity is None or np.array_equal(validity.numpy(), column.validity.astype(bool))
        assert len(weights) == (column.weights is not None)
        if column.weights is not None:
            same(column.weights, weights[0])

    seen = 0
    for batch in plain_batches(reader.read_block(0, ids), reader.leaves(ids), ROWS, 300, BufferPool()):
        tensors = batch.tensors()
        seen += batch.num_rows
        assert len(tensors) == len(batch) == data.num_columns
        for column, found in zip(batch, tensors, strict=True):
            same(column, found)
    assert seen == ROWS


def test_memory_of_a_batch_is_used_again_only_when_nobody_holds_it() -> None:
    samples = make_samples(4_000)
    reader = SegmentReader(encode_segment(samples, column_ids=range(1, samples.num_columns + 1)).data)
    leaves, pool = reader.leaves(reader.resolve(None)), BufferPool()
    block, place = reader.read_block(0, reader.resolve(None)), samples.schema.get_field_index("history_item")
    held = []
    for batch in plain_batches(block, leaves, 4_000, 1_000, pool):
        column = batch[place]
        held.append((column.values, column.values.copy()))
        del batch, column
    assert len({values.ctypes.data for values, _ in held}) == 4
    assert all(np.array_equal(values, before) for values, before in held)
    held.clear()
    addresses = set()
    for batch in plain_batches(block, leaves, 4_000, 1_000, pool):
        addresses.add(batch[place].offsets[0].ctypes.data)  # the offsets lie first
        del batch
    assert len(addresses) <= 2  # of four: a batch that takes much more than the first has new memory


def test_a_batch_laid_out_ahead_leaves_the_one_in_hand_alone() -> None:
    data = make_samples(3_000)
    reader = SegmentReader(encode_segment(data, column_ids=list(range(data.num_columns))).data)
    ids, pool = reader.resolve(None), BufferPool()
    leaves = [reader.leaf(column) for column in ids]
    alone, ahead = (plain_batches(reader.read_block(0, ids), leaves, 3_000, 500, pool, threads=threads) for threads in (1, 3))
    held = []
    for one, other in zip(alone, ahead, strict=True):
        held.append((one, other))
        for mine, theirs in held:
            assert all(np.array_equal(first.values, second.values) for first, second in zip(mine, theirs, strict=True))
    assert len(held) == 6


def test_a_scan_that_ends_early_leaves_nothing_behind() -> None:
    data = make_samples(3_000)
    reader = SegmentReader(encode_segment(data, column_ids=list(range(data.num_columns))).data)
    ids, pool = reader.resolve(None), BufferPool()
    for taken in range(4):
        batches = plain_batches(reader.read_block(0, ids), [reader.leaf(column) for column in ids], 3_000, 500, pool, threads=3)
        for _ in range(taken):
            next(batches)
        del batches
    assert pool.idle_bytes > 0
