"""The whole-column encoder writes what NumPy writes, to the last byte, whatever the types, nulls, slices and lists; and it can be read again."""

from __future__ import annotations

import io
import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.kernels import native
from loader.segment.encode import WORKING_BYTES, num_threads
from loader.segment.reader import SegmentReader
from loader.segment.writer import WriteOptions, encode_segment, encode_segments
from tests.segment.tables import LEAVES, Maker, columns, same, types

pytestmark = pytest.mark.skipif(native.load() is None, reason="the native library is not built")


def both(table: pa.Table, **options: object) -> tuple[bytes, bytes]:
    """The segment by NumPy, and natively."""
    written = []
    with pytest.MonkeyPatch.context() as patch:
        for value in ("0", ""):
            patch.setenv("HEADRACE_NATIVE", value)
            asked = WriteOptions(segment_id=bytes(16), threads=1, **options)  # type: ignore[arg-type]
            written.append(bytes(encode_segment(table, column_ids=range(1, table.num_columns + 1), options=asked).data))
    return written[0], written[1]


@settings(max_examples=120)
@given(array=columns(), effort=st.sampled_from(["size", "balanced", "speed"]), block_rows=st.sampled_from([300, 65_536]))
def test_any_column_is_the_same(array: pa.Array, effort: str, block_rows: int) -> None:
    reference, made = both(pa.table({"a": array}), effort=effort, block_rows=block_rows)
    assert made == reference


@settings(max_examples=40)
@given(
    kind=st.sampled_from([kind for kind in LEAVES if not pa.types.is_boolean(kind)]),
    shape=st.sampled_from(["zipf", "steps", "runs", "cents", "rare", "clusters"]),
    count=st.sampled_from([100, 999, 5000, 20_000]),
    nulls=st.sampled_from([0.0, 0.0, 0.3]),
    in_lists=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
def test_values_that_cascade_are_the_same(kind: pa.DataType, shape: str, count: int, nulls: float, in_lists: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = kind.bit_width
    made = {
        "zipf": lambda: np.minimum(rng.zipf(1.2, count), 1 << 60),
        "steps": lambda: np.cumsum(rng.integers(-1, 6, count)),
        "runs": lambda: np.repeat(rng.integers(0, 1 << 40, count), rng.integers(1, 40, count))[:count],
        "cents": lambda: np.round(rng.gamma(2, 30, count), 2),
        "rare": lambda: np.where(rng.random(count) < 0.01, rng.integers(0, 1 << 50, count), rng.integers(0, 9, count)),
        "clusters": lambda: rng.choice(rng.integers(0, 1 << 60, 3), count) + rng.integers(0, 50, count),
    }[shape]()
    if pa.types.is_floating(kind):
        values = made.astype(f"<f{bits // 8}") if bits > 16 else made.astype(np.float32).clip(-6e4, 6e4).astype("<f2")
    else:
        values = made.astype(np.int64).astype(f"<u{bits // 8}")
    mask = rng.random(count) < nulls if nulls else None
    validity = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
    array = pa.Array.from_buffers(kind, count, [validity, pa.py_buffer(values)])
    if in_lists:
        array = pa.ListArray.from_arrays(pa.array(np.append(np.sort(rng.integers(0, count, count // 5)), count).astype(np.int32)), array)
    reference, native_bytes = both(pa.table({"a": array}))
    assert native_bytes == reference


def test_all_types_in_one_table_come_back_on_several_threads() -> None:
    maker = Maker(np.random.default_rng(3), "few", 0.1)
    kinds = [pa.list_(kind) if number % 3 == 0 else kind for number, kind in enumerate(LEAVES * 4)]
    table = pa.table({str(number): maker.array(kind, 900) for number, kind in enumerate(kinds)})
    made = encode_segment(table, column_ids=range(1, table.num_columns + 1), options=WriteOptions(threads=3, block_rows=400))
    read = SegmentReader(made.data).read()
    assert all(same(left.combine_chunks(), right.combine_chunks()) for left, right in zip(table.columns, read.columns, strict=True))


@settings(max_examples=30)
@given(kind=types(), seed=st.integers(0, 1 << 20))
def test_a_table_in_pieces_is_the_same_as_whole(kind: pa.DataType, seed: int) -> None:
    maker = Maker(np.random.default_rng(seed), "few", 0.2)
    parts = [pa.table({"a": maker.array(kind, rows), "b": maker.array(pa.int32(), rows)}) for rows in (70, 1, 300)]
    table = pa.concat_tables(parts)
    whole = table.combine_chunks()
    for options in ({}, {"block_rows": 100}):
        asked = WriteOptions(segment_id=bytes(16), **options)
        pieces, joined = (bytes(encode_segment(rows, column_ids=[1, 2], options=asked).data) for rows in (table, whole))
        assert pieces == joined


def test_a_buffer_that_is_not_aligned_is_read_all_the_same() -> None:
    raw = np.zeros(8 * 500 + 3, np.uint8)
    raw[3:] = np.arange(500, dtype="<i8").view(np.uint8)
    array = pa.Array.from_buffers(pa.int64(), 500, [None, pa.py_buffer(raw)[3:]])
    made = encode_segment(pa.table({"a": array}), column_ids=[1])
    assert SegmentReader(io.BytesIO(bytes(made.data)).getvalue()).read()["a"].to_pylist() == list(range(500))


def test_threads_are_bounded_by_work_and_memory() -> None:
    assert num_threads(8, 100_000, 8_000, 1 << 30) == 1
    assert num_threads(8, 100_000_000, 8_000, 1 << 30) == 8
    assert num_threads(8, 100_000_000, 1_000_000, 3 * WORKING_BYTES * 1_000_000) == 3
    assert num_threads(8, 100_000_000, 1_000_000, 1) == 1


def test_working_memory_stays_within_what_bounds_the_threads() -> None:
    script = """
import sys
import numpy as np, pyarrow as pa
from loader.segment.encode import WORKING_BYTES
from loader.segment.writer import WriteOptions, encode_segment
items, rows = 2_000_000, 20_000
values = np.random.default_rng(0).integers(0, 1 << 60, items)
table = pa.table({"a": pa.ListArray.from_arrays(np.arange(0, items + 1, items // rows, dtype=np.int32), values)})
encode_segment(table.slice(0, 10), column_ids=[1])
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")
before = peak()
written = len(encode_segment(table, column_ids=[1], options=WriteOptions(threads=1)).data)
grown = peak() - before - 2 * written
sys.exit(0 if grown < WORKING_BYTES * values.nbytes else f"{grown:,} bytes for a column of {values.nbytes:,}")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2], check=False)
    assert result.returncode == 0, result.stderr


@settings(max_examples=25)
@given(rows=st.integers(0, 500), cuts=st.lists(st.integers(0, 500), max_size=5), wide=st.booleans(), seed=st.integers(0, 1 << 20))
def test_several_segments_in_one_call_are_those_of_a_call_each(rows: int, cuts: list[int], wide: bool, seed: int) -> None:
    maker = Maker(np.random.default_rng(seed), "few", 0.1)
    kinds = [pa.int64(), pa.list_(pa.int32()), pa.string(), pa.float32(), *([pa.map_(pa.int32(), pa.float32()), pa.string_view()] if wide else [])]
    table = pa.table({str(number): maker.array(kind, rows) if not pa.types.is_map(kind) else pa.nulls(rows, kind) for number, kind in enumerate(kinds)})
    bounds = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    ids = range(1, len(kinds) + 1)
    made = encode_segments(table, bounds, column_ids=ids, options=WriteOptions(block_rows=200))
    for segment, (start, stop) in zip(made, itertools.pairwise(bounds), strict=True):
        own = WriteOptions(block_rows=200, segment_id=segment.segment_id)
        alone = encode_segment(table.slice(start, stop - start), column_ids=ids, options=own)
        assert bytes(segment.data) == bytes(alone.data)
        assert segment.block_rows == alone.block_rows
        assert dict(segment.stats) == dict(alone.stats)
        assert segment.column_bytes == alone.column_bytes


def test_bounds_that_do_not_fit_the_table_are_refused() -> None:
    table = pa.table({"a": [1, 2, 3]})
    for bounds in ([], [0, 2], [1, 3], [0, 2, 1, 3]):
        with pytest.raises(ValueError, match="must rise from 0 to the table's 3 rows"):
            encode_segments(table, bounds, column_ids=[1])
    with pytest.raises(ValueError, match="leave segment_id out"):
        encode_segments(table, [0, 3], column_ids=[1], options=WriteOptions(segment_id=bytes(16)))


def test_a_table_far_wider_than_it_is_long_comes_back() -> None:
    table = pa.table({f"c{number}": np.arange(7) + number for number in range(3000)})
    segment = encode_segment(table, column_ids=range(1, 3001))
    assert SegmentReader(segment.data).read().equals(table)
    assert segment.stats[3000].min == 2999
