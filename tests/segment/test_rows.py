"""Rows by number: what the table holds, whichever way they are read; from bytes once read, and from no more of them than are needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.decode.rows import RowFields
from loader.errors import ColumnNotFoundError, CorruptSegmentError, HeadraceError
from loader.kernels import native
from loader.segment import rows as segment_rows
from loader.segment.reader import SegmentReader
from loader.segment.rows import RowCache, RowReader
from loader.segment.writer import WriteOptions, encode_segment
from scripts.bench_samples import make_samples
from tests.segment.tables import columns, same_table

Array = np.ndarray[Any, np.dtype[Any]]
ROWS = 6_000
NO_LIBRARY = native.load() is None


class Counted:
    """A segment in memory that notes what is read of it."""

    def __init__(self, data: memoryview) -> None:
        self._data, self.num_bytes = data, len(data)
        self.asked: list[int] = []

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        self.asked += [num_bytes for _, num_bytes in ranges]
        return [self._data[offset : offset + num_bytes] for offset, num_bytes in ranges]


def entries(table: pa.Table, rows: Array) -> pa.Table:
    return pa.concat_tables([table.slice(0, 0), *(table.slice(int(row), 1) for row in rows)]).combine_chunks()


def as_table(batch: pa.RecordBatch) -> pa.Table:
    batch.validate(full=True)
    return pa.Table.from_batches([batch])


@pytest.fixture
def read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_rows, "WHOLE_CHUNK_BYTES", 0)
    monkeypatch.setattr(segment_rows, "HEAD_PAGES", 1)
    monkeypatch.setattr(segment_rows, "GAP_PAGES", 0)


@pytest.fixture(scope="module")
def samples() -> pa.Table:
    return make_samples(ROWS)


@pytest.fixture(scope="module")
def sample_bytes(samples: pa.Table) -> memoryview:
    return encode_segment(samples, column_ids=range(1, samples.num_columns + 1), options=WriteOptions(block_rows=2_500)).data


@settings(deadline=None, max_examples=250)
@given(column=columns(), seed=st.integers(0, 2**32), verify=st.booleans())
def test_any_rows_of_any_column(column: pa.Array, seed: int, verify: bool) -> None:
    rows = np.random.default_rng(seed).integers(0, len(column), 9 if len(column) else 0)
    table = pa.table({"c": column})
    reader = SegmentReader(encode_segment(table, column_ids=[1], options=WriteOptions(block_rows=700)).data)
    assert same_table(as_table(reader.take(rows, verify=verify)), entries(table, rows))


@settings(deadline=None, max_examples=80)
@given(column=columns(), seed=st.integers(0, 2**32))
def test_the_reference_finds_the_same(column: pa.Array, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, len(column), 5 if len(column) else 0)
    table = pa.table({"c": column})
    reader = SegmentReader(encode_segment(table, column_ids=[1]).data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_NATIVE", "0")
        assert same_table(as_table(reader.take(rows)), entries(table, rows))


@settings(deadline=None, max_examples=60)
@given(column=columns(), seed=st.integers(0, 2**32))
def test_any_rows_of_chunks_read_in_parts(column: pa.Array, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, len(column), 5 if len(column) else 0)
    table = pa.table({"c": column})
    reader = SegmentReader(encode_segment(table, column_ids=[1]).data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_rows, "WHOLE_CHUNK_BYTES", 0)
        patch.setattr(segment_rows, "HEAD_PAGES", 1)
        assert same_table(as_table(reader.take(rows, verify=False)), entries(table, rows))


@settings(deadline=None, max_examples=150)
@given(column=columns(), seed=st.integers(0, 2**32))
def test_decoded_chunks_hold_the_same_rows(column: pa.Array, seed: int) -> None:
    table = pa.table({"column": column, "other": pa.array(np.arange(len(column)))})
    reader = SegmentReader(encode_segment(table, column_ids=[1, 2], options=WriteOptions(block_rows=700)).data)
    cache = RowCache(num_rows=table.num_rows, decode_after=2)
    taken = RowReader(reader, cache=cache)
    random = np.random.default_rng(seed)
    for turn in range(3):  # the second look-up decodes, and so the third finds it
        rows = random.integers(0, max(table.num_rows, 1), min(40, table.num_rows))
        assert same_table(as_table(taken.take(rows)), entries(table, rows)), turn
        assert same_table(as_table(taken.take(rows, ["other"])), entries(table.select(["other"]), rows)), turn
    for block in range(reader.num_blocks):
        known = cache.find((taken._number, block), (2,))
        if not isinstance(known, list):
            chunks, number = known[0][0], int(known[1]["chunk"][0])
            assert chunks is not None
            inside = np.arange(min(5, int(reader.block_rows[block])))
            (found,) = chunks.columns([number], [pa.int64()], inside)  # the reference on what was decoded
            assert found.to_pylist() == (inside + int(reader.block_starts[block])).tolist()


def test_blocks_are_decoded_only_where_all_rows_would_fit(samples: pa.Table, sample_bytes: memoryview) -> None:
    rows = np.arange(0, ROWS, 7)
    sizes = {}
    for num_rows in (ROWS, 1_000 * ROWS):
        cache = RowCache(32 << 20, num_rows=num_rows, decode_after=1)
        taken = RowReader(SegmentReader(sample_bytes), cache=cache)
        assert same_table(as_table(taken.take(rows)), entries(samples, rows))
        sizes[num_rows] = cache.num_bytes
        assert cache.num_bytes <= 32 << 20
    assert sizes[ROWS] > 1.2 * sizes[1_000 * ROWS]  # decoded takes more


@pytest.mark.parametrize("library", ["", "0"])
@pytest.mark.parametrize("verify", [True, False])
def test_rows_of_samples_in_any_order_and_twice(
    samples: pa.Table, sample_bytes: memoryview, monkeypatch: pytest.MonkeyPatch, read_in_parts: None, library: str, verify: bool
) -> None:
    monkeypatch.setenv("HEADRACE_NATIVE", library)
    rows = np.random.default_rng(17).integers(0, ROWS, 60)
    rows[7] = rows[3]
    reader = SegmentReader(sample_bytes)
    assert same_table(as_table(reader.take(rows, verify=verify)), entries(samples, rows))
    assert same_table(reader.read(rows=rows, verify=verify).combine_chunks(), entries(samples, rows))
    every = np.random.default_rng(18).permutation(ROWS)
    assert same_table(reader.read(["ts", "list_03"], rows=every).combine_chunks(), samples.select(["ts", "list_03"]).take(pa.array(every)).combine_chunks())


def test_many_rows_are_the_same_as_few(samples: pa.Table, sample_bytes: memoryview) -> None:
    """Where most of a vector is wanted, the library decodes all of it."""
    rows = np.sort(np.random.default_rng(19).choice(ROWS, ROWS // 2, replace=False))
    assert same_table(as_table(SegmentReader(sample_bytes).take(rows)), samples.take(pa.array(rows)).combine_chunks())


def test_the_portable_instructions_find_the_same(samples: pa.Table, sample_bytes: memoryview) -> None:
    library, rows = native.load(), np.arange(0, ROWS, 37)
    if library is None:
        pytest.skip("no native library")
    library.force_portable(True)
    try:
        assert same_table(as_table(SegmentReader(sample_bytes).take(rows)), samples.take(pa.array(rows)).combine_chunks())
    finally:
        library.force_portable(False)


def test_what_was_read_is_not_read_again(sample_bytes: memoryview) -> None:
    source = Counted(sample_bytes)
    reader = RowReader(SegmentReader(source))
    first = reader.take([3, 5_999], ["user_id", "list_03"])
    source.asked.clear()
    assert reader.take([3, 5_999], ["user_id", "list_03"]).equals(first)
    reader.take([10], ["list_03"])
    assert source.asked == []
    reader.take([10], ["list_03", "label"])
    assert len(source.asked) == 1


@pytest.mark.skipif(NO_LIBRARY, reason="the reference reads chunks whole")
def test_a_row_of_a_large_chunk_takes_few_of_its_bytes(read_in_parts: None) -> None:
    rng = np.random.default_rng(5)
    rows = 60_000
    ends = np.arange(0, 20 * rows + 1, 20, dtype=np.int32)
    table = pa.table({"id": rng.integers(0, 1 << 60, rows), "events": pa.ListArray.from_arrays(ends, rng.integers(0, 1 << 33, 20 * rows))})
    source = Counted(encode_segment(table, column_ids=[1, 2]).data)
    reader = SegmentReader(source)
    reader.take([], verify=False)
    source.asked.clear()
    assert same_table(as_table(reader.take([54_321], verify=False)), table.slice(54_321, 1).combine_chunks())
    assert sum(source.asked) < 100_000 < source.num_bytes / 40


def test_the_cache_keeps_within_its_bounds_and_answers_right_all_the_same(samples: pa.Table, sample_bytes: memoryview) -> None:
    reader = SegmentReader(sample_bytes)
    everything = RowCache()
    RowReader(reader, cache=everything).take(np.arange(0, ROWS, 100))
    assert everything.num_bytes > len(sample_bytes) // 2
    for max_bytes in (0, everything.num_bytes // 2):
        cache = RowCache(max_bytes)
        two = [RowReader(reader, cache=cache), RowReader(SegmentReader(sample_bytes), cache=cache, verify=False)]
        for row in (0, 5_999, 2_600, 17, 5_000, 2_499, 2_500):
            for rows in two:
                assert same_table(as_table(rows.take([row])), samples.slice(row, 1).combine_chunks())
            assert cache.num_bytes <= max_bytes
        for rows in two:
            rows.close()
        assert cache.num_bytes == 0


def test_threads_share_a_reader(samples: pa.Table, sample_bytes: memoryview, read_in_parts: None) -> None:
    cache = RowCache(300_000)
    readers = [RowReader(SegmentReader(sample_bytes), cache=cache, verify=verify) for verify in (True, False)]
    wrong: list[Any] = []

    def look(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(30):
                rows, chosen = rng.integers(0, ROWS, 5), rng.choice(samples.column_names, 4, replace=False).tolist()
                found = as_table(readers[int(rng.integers(2))].take(rows, chosen))
                if not same_table(found, entries(samples.select(chosen), rows)):
                    wrong.append((rows, chosen))
        except Exception as error:  # noqa: BLE001 - a thread's error is the test's
            wrong.append(error)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("library", ["", "0"])
def test_rows_of_several_segments_and_of_none_in_one_look_up(samples: pa.Table, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Places that nobody names are null, and so are columns that a segment does not have."""
    monkeypatch.setenv("HEADRACE_NATIVE", library)
    names = ["user_id", "list_02", "decimal_01"]
    one, two = samples.select(names).slice(0, 1_000), samples.select(names[:2]).slice(1_000, 500)
    readers = [RowReader(SegmentReader(encode_segment(table, column_ids=range(1, table.num_columns + 1)).data)) for table in (one, two)]
    fields = readers[0].fields((1, 2, 3))
    parts = readers[0].parts(np.array([900, 7]), (1, 2, 3), np.array([4, 0], np.uint32))
    parts += readers[1].parts(np.array([499]), (1, 2, -1), np.array([2], np.uint32))
    found = fields.take(parts, 6)
    expected = [one.slice(7, 1), None, two.slice(499, 1), None, one.slice(900, 1), None]
    for name in names:
        for place, row in enumerate(expected):
            value = None if row is None or name not in row.column_names else row[name][0].as_py()
            assert found.column(name)[place].as_py() == value
    assert fields.take([], 2).to_pylist() == [dict.fromkeys(names)] * 2
    assert RowFields(pa.schema([])).take([], 0).num_columns == 0


def test_rows_and_columns_that_are_not_there(sample_bytes: memoryview) -> None:
    reader = RowReader(SegmentReader(sample_bytes))
    with pytest.raises(ValueError, match="rows go from 0 to 5,999, not -1 to 4"):
        reader.take([4, -1])
    with pytest.raises(ValueError, match="not 6,000 to 6,000"):
        reader.take([6_000])
    with pytest.raises(ColumnNotFoundError, match="no column 'lable': did you mean label"):
        reader.take([1], ["lable"])
    with pytest.raises(ColumnNotFoundError, match="no column with id 99"):
        reader.take([1], [99])
    assert reader.take([], ["label"]).num_rows == 0


def test_a_changed_chunk_is_named(sample_bytes: memoryview) -> None:
    reader = SegmentReader(sample_bytes)
    column = reader.resolve(["list_03"])[0]
    chunk = reader.chunks([column], [1])[0, 0]
    data = bytearray(sample_bytes)
    data[int(chunk["offset"]) + int(chunk["num_bytes"]) // 2] ^= 1
    damaged = SegmentReader(bytes(data))
    with pytest.raises(CorruptSegmentError, match=rf"block 1 of column 'list_03' at offset {int(chunk['offset']):,}: its checksum does not match"):
        damaged.take([2_600])
    assert damaged.take([0, 5_100], ["list_03"]).num_rows == 2
    data[int(chunk["offset"]) + 8] ^= 1
    for verify in (True, False):
        with pytest.raises(CorruptSegmentError, match=rf"block 1 of column 'list_03' at offset {int(chunk['offset']):,}: .*fetch the file again or restore it"):
            SegmentReader(bytes(data)).take([2_600], verify=verify)


def flipped(data: memoryview, low: int, high: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    changed = np.frombuffer(data, np.uint8).copy()
    at = int(rng.integers(low, high)) + np.arange(rng.integers(1, 5))
    changed[at[at < high]] = rng.choice([0, 1, 2, 4, 5, 127, 128, 255, int(rng.integers(256))], int((at < high).sum()))
    return changed.tobytes()


@pytest.mark.parametrize("library", ["", "0"])
def test_damage_gives_an_error_or_some_values(samples: pa.Table, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setenv("HEADRACE_NATIVE", library)
    names = ["ts", "flag_00", "list_02", "list_03", "history_item", "decimal_01", "count_10"]
    table = samples.select(names).slice(0, 1_500)
    sound = encode_segment(table, column_ids=range(1, len(names) + 1)).data
    chunks = SegmentReader(sound).chunks(range(1, len(names) + 1), [0])[:, 0]
    refused = 0
    for seed in range(400 if library == "" else 60):
        chunk = chunks[seed % len(names)]
        start = int(chunk["offset"])
        tables = seed % 3 == 0
        data = flipped(sound, start, start + (400 if tables else int(chunk["num_bytes"])), seed)
        try:
            as_table(SegmentReader(data).take([3, 1_499, 1_100], [seed % len(names) + 1], verify=False))
        except HeadraceError:
            refused += 1
    assert refused >= 15
