"""Whatever goes into a segment comes out again, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.errors import SchemaError
from loader.segment.reader import SegmentReader
from loader.segment.writer import WriteOptions, encode_segment
from tests.segment.tables import BYTES, LEAVES, LISTS, ODD, SHAPES, Maker, columns, same, same_table, types


def round_trip(table: pa.Table, **options: Any) -> pa.Table:
    encoded = encode_segment(table, column_ids=range(1, table.num_columns + 1), options=WriteOptions(**options))
    read = SegmentReader(encoded.data).read()
    read.validate(full=True)
    return read


@given(columns(), st.sampled_from([1, 1000, 1024, 65_536]))
def test_any_column(column: pa.Array, block_rows: int) -> None:
    block_rows = max(block_rows, len(column) // 20 + 1)
    table = pa.table({"column": column})
    assert same_table(round_trip(table, block_rows=block_rows), table)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("null_share", [0.0, 0.3])
def test_every_type_in_one_table(shape: str, null_share: float) -> None:
    maker = Maker(np.random.default_rng(7), shape, null_share)
    maps = [pa.map_(pa.int64(), pa.float32()), pa.map_(pa.string(), pa.list_(pa.int8())), pa.map_(pa.binary(3), pa.string())]
    lists = [*(make(leaf) for make in LISTS for leaf in LEAVES), *(pa.list_(leaf, 3) for leaf in LEAVES), pa.list_(pa.list_(pa.string()))]
    kinds = [*LEAVES, *BYTES, *ODD, *maps, *lists]
    table = pa.table({f"{index}: {kind}": maker.array(kind, 1100) for index, kind in enumerate(kinds)})
    assert same_table(round_trip(table, block_rows=600, threads=2), table)


@given(st.lists(types(), min_size=1, max_size=4))
def test_no_rows(kinds: list[pa.DataType]) -> None:
    table = pa.schema([(str(index), kind) for index, kind in enumerate(kinds)]).empty_table()
    assert same_table(round_trip(table), table)


def test_no_columns() -> None:
    table = pa.table({})
    assert round_trip(table).num_columns == 0


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025, 65_535, 65_536, 65_537, 140_000])
def test_block_and_vector_boundaries(rows: int) -> None:
    rng = np.random.default_rng(rows)
    values = rng.integers(0, 1000, rows)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 3, rows))]).astype(np.int32)
    table = pa.table(
        {"value": values, "null": pa.array(values, mask=values < 100), "list": pa.ListArray.from_arrays(offsets, pa.array(np.arange(offsets[-1])))}
    )
    assert same_table(round_trip(table), table)


def test_bits_of_floats_survive() -> None:
    patterns = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 0, 0x00000001, 0xFF800000, 0x7F7FFFFF] * 200, np.uint32)
    wide = (patterns.astype(np.uint64) << np.uint64(32)) | np.uint64(0xDEADBEEF)
    half = (patterns >> np.uint32(16)).astype(np.uint16)
    table = pa.table({"single": pa.array(patterns.view(np.float32)), "double": pa.array(wide.view(np.float64)), "half": pa.array(half.view(np.float16))})
    assert same_table(round_trip(table), table)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64])
def test_ends_of_integer_ranges(dtype: type) -> None:
    info = np.iinfo(dtype)
    values = np.array([info.min, info.max, 0, 1, info.max - 1, info.min + 1] * 300, dtype)
    lists = pa.ListArray.from_arrays(np.arange(0, values.size + 1, 3, dtype=np.int32), pa.array(values))
    table = pa.table({"value": values[: len(lists)], "null": pa.array(values[: len(lists)], mask=values[: len(lists)] == 0), "list": lists})
    assert same_table(round_trip(table), table)


def test_null_and_empty_lists_differ() -> None:
    rows = [None, [], [None], [1, None], [], None] * 3
    table = pa.table({"list": pa.array(rows, pa.list_(pa.int64())), "text": pa.array([None, "", "a", "", None, "b"] * 3)})
    assert round_trip(table).to_pydict() == table.to_pydict()


def test_a_row_of_a_million_items() -> None:
    table = pa.table({"list": pa.array([[1], list(range(1_000_000)), None, []], pa.list_(pa.int64()))})
    assert same_table(round_trip(table), table)


def test_blocks_are_cut_by_bytes() -> None:
    table = pa.table({"list": pa.array([[7] * 1000] * 100, pa.list_(pa.int64())), "value": np.arange(100)})
    encoded = encode_segment(table, column_ids=[1, 2], options=WriteOptions(block_bytes=81_000))
    assert max(encoded.block_rows) == 10
    assert same_table(SegmentReader(encoded.data).read(), table)


def test_dictionary_columns_come_back_as_dictionaries() -> None:
    words = pa.array(["a", "b", None, "a"]).dictionary_encode()
    lists = pa.ListArray.from_arrays(pa.array([0, 2, None, 2, 4], pa.int32()), words)
    table = pa.table({"word": words, "words": lists})
    read = round_trip(table)
    assert read.schema.equals(table.schema)
    assert read["word"].to_pylist() == ["a", "b", None, "a"]
    assert read["words"].to_pylist() == lists.to_pylist()


def test_columns_of_nothing_but_nulls() -> None:
    table = pa.table({"null": pa.nulls(5), "list": pa.array([[None], None, [], [None, None], []], pa.list_(pa.null()))})
    assert round_trip(table).to_pydict() == table.to_pydict()
    assert round_trip(table).schema.equals(table.schema)


def test_metadata_survives() -> None:
    field = pa.field("x", pa.int64(), nullable=False, metadata={"unit": "seconds"})
    table = pa.Table.from_arrays([pa.array([1, 2])], schema=pa.schema([field], metadata={"origin": "test", "bytes": b"\x00\xff"}))
    assert round_trip(table).schema.equals(table.schema, check_metadata=True)


def test_extension_types_survive() -> None:
    table = pa.table({"id": pa.array([bytes(range(16)), None, bytes(16)], pa.uuid())})
    assert same_table(round_trip(table), table)


def test_values_hidden_under_nulls_do_not_show() -> None:
    hidden = pa.Array.from_buffers(pa.string(), 3, [pa.py_buffer(b"\x05"), pa.py_buffer(np.array([0, 1, 3, 4], np.int32)), pa.py_buffer(b"abcd")])
    items = pa.ListArray.from_arrays(pa.array([0, 2, 4, 5], pa.int32()), pa.array([1, 2, 3, 4, 5]), mask=pa.array([False, True, False]))
    table = pa.table({"text": hidden, "list": items})
    assert round_trip(table).to_pydict() == {"text": ["a", None, "d"], "list": [[1, 2], None, [5]]}


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (pa.struct([("a", pa.int64())]), "split it into a column for each field"),
        (pa.decimal128(10, 2), "cast it to float64, or to int64"),
        (pa.list_(pa.list_(pa.int8()), 2), "to variable-length lists"),
        (pa.list_(pa.string_view()), "cast the items to large_string"),
        (pa.list_(pa.map_(pa.int64(), pa.int64())), "a column of keys and one of weights"),
        (pa.map_(pa.int64(), pa.list_(pa.float32(), 4)), "weights of the map, .* to variable-length lists"),
        (pa.map_(pa.int64(), pa.struct([("a", pa.int64())])), "split it into a column for each field"),
        (pa.run_end_encoded(pa.int32(), pa.int64()), "run_end_decode"),
        (pa.month_day_nano_interval(), "cast it to a duration"),
    ],
)
def test_other_types_are_refused_with_what_to_do(kind: pa.DataType, advice: str) -> None:
    with pytest.raises(SchemaError, match=f"column 'odd': .*{advice}") as refused:
        encode_segment(pa.schema([("odd", kind)]).empty_table(), column_ids=[1])
    assert str(kind) in str(refused.value)


@given(columns(count=2500, kind=pa.list_(pa.int32())), st.data())
def test_some_rows_and_columns(column: pa.Array, data: st.DataObject) -> None:
    table = pa.table({"list": column, "row": np.arange(2500)})
    reader = SegmentReader(encode_segment(table, column_ids=[9, 4], options=WriteOptions(block_rows=600)).data)
    rows = data.draw(st.lists(st.integers(0, 2499), max_size=20))
    read = reader.read(["row", 9], rows=rows)
    assert read.column_names == ["row", "list"]
    assert read["row"].to_pylist() == rows
    assert same(read["list"].combine_chunks(), column.take(pa.array(rows, pa.int64())))
    start, stop = sorted(data.draw(st.tuples(st.integers(0, 2500), st.integers(0, 2500))))
    assert same_table(reader.read(rows=slice(start, stop)), table.slice(start, stop - start))


@pytest.mark.parametrize("off", ["dictionary", "list_views"])
def test_options_turn_encodings_off(off: str) -> None:
    table = pa.table({"few": np.tile([5, 1 << 40, -(1 << 50)], 500), "list": pa.array([[1, 2, 3]] * 1500)})
    encoded = encode_segment(table, column_ids=[1, 2], options=WriteOptions(**{off: False}))
    reader = SegmentReader(encoded.data)
    trees = [column.encoding for column in reader.layout().columns]
    assert not any({"dictionary": "dictionary", "list_views": "views"}[off] in tree for tree in trees)
    assert same_table(reader.read(), table)


def test_the_same_rows_give_the_same_bytes() -> None:
    maker = Maker(np.random.default_rng(3), "few", 0.1)
    table = pa.table({str(index): maker.array(kind, 900) for index, kind in enumerate([pa.int64(), pa.string(), pa.list_(pa.int32())])})
    options = WriteOptions(segment_id=bytes(16), block_rows=500)
    one, two = (encode_segment(table, column_ids=[1, 2, 3], options=options).data for _ in range(2))
    assert one == two
