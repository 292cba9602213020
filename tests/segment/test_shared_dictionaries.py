"""Dictionaries shared by the blocks of a segment: hashed ids that come in several blocks are stored once, wherever that is smaller, and read everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loader
from loader.decode.result import FixedColumn
from loader.distributed.wire import pack, unpack
from loader.encodings import shared
from loader.errors import CorruptSegmentError
from loader.lake import Lake
from loader.scan.decoded import decode
from loader.scan.encoded import EncodedBlock, FetchRequest
from loader.segment.column_files import JoinedReader, encode_column_file
from loader.segment.layout import Feature, Section
from loader.segment.reader import SegmentReader
from loader.segment.verify import verify_segment
from loader.segment.writer import EncodedSegment, WriteOptions, encode_segment
from tests.segment.tables import same_table

Array = np.ndarray[Any, np.dtype[Any]]
ROWS = 16_000
BLOCKS = WriteOptions(block_rows=4_000, segment_id=bytes(16))


def hashed(rng: np.random.Generator, count: int, distinct: int = 4_000) -> Array:
    return rng.integers(-(1 << 63), (1 << 63) - 1, distinct)[np.minimum(rng.zipf(1.1, count), distinct) - 1]


def ids_table(rows: int = ROWS) -> pa.Table:
    """Hashed ids in every place that has them, beside columns that share nothing."""
    rng = np.random.default_rng(1)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 6, rows))]).astype(np.int32)
    return pa.table(
        {
            "id": hashed(rng, rows),
            "nullable": pa.array(hashed(rng, rows), mask=rng.random(rows) < 0.2),
            "unsigned": hashed(rng, rows).astype(np.uint64),
            "short": rng.integers(0, 1 << 32, 3_000).astype(np.uint32)[rng.integers(0, 3_000, rows)],
            "lists": pa.ListArray.from_arrays(offsets, pa.array(hashed(rng, int(offsets[-1])))),
            "map": pa.MapArray.from_arrays(offsets, pa.array(hashed(rng, int(offsets[-1]))), pa.array(rng.random(offsets[-1], np.float32))),
            "unique": rng.integers(-(1 << 63), (1 << 63) - 1, rows),
            "count": rng.integers(0, 100, rows),
            "text": [f"{number % 50}" for number in range(rows)],
        }
    )


SHARING = ["id", "nullable", "unsigned", "short", "lists", "map"]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return ids_table()


@pytest.fixture(scope="module")
def segment(table: pa.Table) -> EncodedSegment:
    return encode_segment(table, column_ids=range(1, table.num_columns + 1), options=BLOCKS)


def apart(table: pa.Table, monkeypatch: pytest.MonkeyPatch, options: WriteOptions = BLOCKS) -> EncodedSegment:
    """The table written without sharing."""
    with monkeypatch.context() as context:
        context.setattr(shared.SharingEstimate, "is_worth_trying", False)
        return encode_segment(table, column_ids=range(1, table.num_columns + 1), options=options)


def test_ids_are_stored_once(table: pa.Table, segment: EncodedSegment, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = SegmentReader(segment.data)
    assert reader.features & Feature.SHARED_DICTIONARIES
    trees = {column.name: column.encoding for column in reader.layout().columns}
    assert [name for name, tree in trees.items() if "shared dictionary[" in tree] == SHARING
    before = apart(table, monkeypatch)
    assert not SegmentReader(before.data).features & Feature.SHARED_DICTIONARIES
    for number, name in enumerate(table.column_names, 1):
        if name in SHARING:
            assert segment.column_bytes[number] < 0.97 * before.column_bytes[number], name
        else:
            assert segment.column_bytes[number] == before.column_bytes[number], name
    assert segment.column_bytes[1] < 0.8 * before.column_bytes[1]
    assert [column.num_bytes for column in reader.layout().columns] == list(segment.column_bytes.values())


def test_four_blocks_of_hashed_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of CHANGELOG.md: ids drawn evenly from 60,000, and by Zipf's law."""
    rng, rows = np.random.default_rng(1), 4 * 65_536
    ids = rng.integers(-(1 << 63), (1 << 63) - 1, 60_000)
    for picks, most in ((rng.integers(0, 60_000, rows), 0.57), (np.minimum(rng.zipf(1.2, rows), 60_000) - 1, 0.84)):
        table = pa.table({"id": ids[picks]})
        with_one = encode_segment(table, column_ids=[1])
        assert len(with_one.block_rows) == 4
        assert same_table(SegmentReader(with_one.data).read(), table)
        assert with_one.column_bytes[1] < most * apart(table, monkeypatch, WriteOptions()).column_bytes[1]


@pytest.mark.parametrize("native", ["0", ""])
def test_every_way_of_reading_finds_them(table: pa.Table, segment: EncodedSegment, monkeypatch: pytest.MonkeyPatch, native: str) -> None:
    monkeypatch.setenv("HEADRACE_NATIVE", native)
    reader = SegmentReader(segment.data)
    assert same_table(reader.read(), table)
    assert same_table(reader.read(["map", "count", "id"], rows=slice(3_900, 9_000)), table.select(["map", "count", "id"]).slice(3_900, 5_100))
    rows = np.random.default_rng(2).integers(0, ROWS, 30)
    assert same_table(reader.read(rows=rows).combine_chunks(), table.take(pa.array(rows)).combine_chunks())
    for verify in (True, False):
        assert same_table(pa.Table.from_batches([reader.take(rows, verify=verify)]).combine_chunks(), table.take(pa.array(rows)).combine_chunks())


INTEGERS = [pa.int64(), pa.uint64(), pa.int32(), pa.uint32(), pa.timestamp("ns")]
SHAPES = [lambda kind: kind, pa.list_, pa.large_list, lambda kind: pa.list_(pa.list_(kind)), lambda kind: pa.map_(kind, pa.float32())]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(INTEGERS), st.sampled_from(SHAPES), st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.9]), st.sampled_from([1, 40, 700, 5_000]))
def test_any_column_of_ids(integer: pa.DataType, shape: Any, seed: int, null_share: float, distinct: int) -> None:
    """Ends of the range among the ids, blocks that have all, some or none of them, and rows of every shape."""
    rng, wide, rows = np.random.default_rng(seed), integer.bit_width == 64, 2_400
    pool = rng.integers(0, 1 << 63 if wide else 1 << 32, distinct, dtype=np.uint64) << np.uint64(1 if wide else 0)
    ends = [0, (1 << 64) - 1 if wide else (1 << 32) - 1, 1 << 63 if wide else 1 << 31]
    pool[:3] = ends[: pool.size]

    def ids(count: int) -> pa.Array:
        values = pool[rng.integers(0, distinct, count)].astype(np.uint64 if wide else np.uint32)
        values[count // 2 :][rng.random(count - count // 2) < rng.choice([0.0, 0.5, 1.0])] = 7
        nulls = None if not null_share else pa.py_buffer(np.packbits(rng.random(count) >= null_share, bitorder="little"))
        return pa.Array.from_buffers(integer, count, [nulls, pa.py_buffer(values)])

    def column(kind: pa.DataType, count: int) -> pa.Array:
        if kind == integer:
            return ids(count)
        ends = np.concatenate([[0], np.cumsum(rng.integers(0, 4, count))])
        if pa.types.is_map(kind):
            keys = ids(int(ends[-1]))
            keys = keys.fill_null(pa.scalar(0, pa.int64()).cast(integer)) if keys.null_count else keys
            return pa.MapArray.from_arrays(pa.array(ends, pa.int32()), keys, pa.array(rng.random(ends[-1], np.float32)))
        stored = pa.py_buffer(ends.astype(np.int64 if pa.types.is_large_list(kind) else np.int32))
        return pa.Array.from_buffers(kind, count, [None, stored], children=[column(kind.value_type, int(ends[-1]))])

    table = pa.table({"c": column(shape(integer), rows)})
    reader = SegmentReader(encode_segment(table, column_ids=[1], options=WriteOptions(block_rows=int(rng.choice([300, 800, 1_000])))).data)
    assert same_table(reader.read(), table)
    chosen = rng.integers(0, rows, 9)
    read = pa.Table.from_batches([reader.take(chosen)])
    assert same_table(read, pa.concat_tables([table.slice(int(row), 1) for row in chosen]).combine_chunks())


def test_the_same_rows_give_the_same_bytes(table: pa.Table, segment: EncodedSegment) -> None:
    again = encode_segment(table, column_ids=range(1, table.num_columns + 1), options=BLOCKS)
    assert again.data == segment.data


def test_a_dictionary_is_read_once_for_all_blocks(segment: EncodedSegment) -> None:
    class Counting:
        name, num_bytes = "counted", len(segment.data)

        def __init__(self) -> None:
            self.read: list[tuple[int, int]] = []

        def read_ranges(self, ranges: list[tuple[int, int]]) -> list[memoryview]:
            self.read += ranges
            return [segment.data[offset : offset + num_bytes] for offset, num_bytes in ranges]

    source = Counting()
    reader = SegmentReader(source)
    (dictionary,), _ = reader.dictionaries([1])
    for block in range(reader.num_blocks):
        reader.read_block(block, [1])
    assert sum(offset == int(dictionary["offset"]) for offset, _ in source.read) == 1


def test_one_block_or_no_dictionaries_share_nothing(table: pa.Table) -> None:
    for options in (WriteOptions(), WriteOptions(block_rows=4_000, dictionary=False)):
        reader = SegmentReader(encode_segment(table, column_ids=range(1, table.num_columns + 1), options=options).data)
        assert not reader.features & Feature.SHARED_DICTIONARIES
        assert Section.SHARED_CHUNKS not in reader.section_kinds


def test_too_many_ids_are_not_shared(table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.segment.column.MAX_ENTRIES", 100)
    data = encode_segment(table, column_ids=range(1, table.num_columns + 1), options=BLOCKS).data
    assert not SegmentReader(data).features & Feature.SHARED_DICTIONARIES
    assert same_table(SegmentReader(data).read(), table)


def test_a_block_that_has_none_of_the_ids_codes_for_itself() -> None:
    rng = np.random.default_rng(3)
    column = np.concatenate([hashed(rng, 8_000), np.full(4_000, 7), np.arange(4_000)])
    lists = pa.ListArray.from_arrays(np.arange(0, 16_001, 2, dtype=np.int32), pa.array(column))
    table = pa.table({"id": column, "null": pa.array(column, mask=np.arange(ROWS) // 4_000 == 3)}).slice(0, 8_000).append_column("list", lists)
    table = pa.concat_tables([table, table.slice(4_000)])
    reader = SegmentReader(encode_segment(table, column_ids=[1, 2, 3], options=BLOCKS).data)
    assert same_table(reader.read(), table)


def damaged(segment: EncodedSegment, at: int) -> bytes:
    data = bytearray(segment.data)
    data[at] ^= 1
    return bytes(data)


def test_damage_is_found_and_named(segment: EncodedSegment) -> None:
    (dictionary,), _ = SegmentReader(segment.data).dictionaries([1])
    data = damaged(segment, int(dictionary["offset"]) + 40)
    with pytest.raises(CorruptSegmentError, match=f"dictionary that blocks share, at offset {int(dictionary['offset'])}, does not match its checksum"):
        SegmentReader(data).read(["id"])
    SegmentReader(data).read(["count"])
    report = verify_segment(data)
    assert len(report.problems) == 4
    assert all("dictionary that blocks share" in problem for problem in report.problems)
    assert verify_segment(segment.data).num_chunks == 4 * 9 + len(SHARING)
    # structure is checked whatever the checksums say; the error names the column whose dictionary it is
    for offset, value in ((0, 1), (4, 0), (32, 99)):  # rows, no regions, a role that there is not
        changed = bytearray(segment.data)
        changed[int(dictionary["offset"]) + offset] = value
        with pytest.raises(CorruptSegmentError, match="'id'"):
            SegmentReader(bytes(changed), verify=False).read(["id"])


def test_a_footer_that_points_elsewhere_is_refused(segment: EncodedSegment) -> None:
    reader = SegmentReader(segment.data)
    records = reader.shared._records.copy()
    for field, value in (("offset", 1 << 40), ("offset", 65), ("column_index", 99), ("num_bytes", 1 << 31)):
        bad = records.copy()
        bad[field][-1] = value

        class Pages:
            records = staticmethod(lambda _, bad=bad: bad)

        with pytest.raises(CorruptSegmentError, match="SHARED_CHUNKS section does not hold together"):
            type(reader.shared)(Pages, reader.num_columns, reader.num_bytes, "file", reader._read)  # type: ignore[arg-type]


def test_column_files_have_their_own(table: pa.Table, segment: EncodedSegment) -> None:
    reader = SegmentReader(segment.data)
    beside = table.select(["id", "lists"]).rename_columns(["more", "most"])
    file = SegmentReader(encode_column_file(reader, beside, column_ids=[50, 51], options=BLOCKS).data)
    assert file.features & Feature.SHARED_DICTIONARIES
    joined = JoinedReader(reader, [file])
    assert same_table(joined.read(["more", "id"]), pa.table({"more": table["id"], "id": table["id"]}))


def test_blocks_bring_them_through_a_scan_and_over_the_wire(lake: Lake) -> None:
    rng = np.random.default_rng(4)
    rows = 90_000  # a block has 65,536 at most
    ids = rng.integers(-(1 << 63), (1 << 63) - 1, 4_000)[rng.integers(0, 4_000, rows)]
    table = lake.create_table("t", pa.schema([("key", pa.int64()), ("count", pa.int64()), ("id", pa.int64())]), primary_key=["key"], buckets=1)
    table.append(pa.table({"key": np.arange(rows), "count": rng.integers(0, 9, rows), "id": ids}))
    table.patch(pa.table({"key": [5, 70_000], "id": [-1, -2]}))
    ids[[5, 70_000]] = -1, -2
    scan = table.scan(columns=["key", "id", "count"])
    plan = scan.plan()
    fetcher, seen = plan.fetcher(), 0
    for number in range(2):
        block = fetcher.fetch(FetchRequest(sequence=number, shard=0, block=number))
        assert block.dictionaries is not None
        assert block.dictionaries.of_column.tolist() == [-1, 0, -1]
        for each in (block, *unpack(pack(block)), EncodedBlock.from_buffers([bytes(memoryview(buffer)) for buffer in block.to_buffers()])):
            key, found, _ = decode(each, plan.read)
            assert isinstance(key, FixedColumn)
            assert isinstance(found, FixedColumn)
            assert np.array_equal(found.values, ids[key.values])
        seen += block.num_rows
    assert seen == rows
    for batch in loader.DataLoader(scan, global_batch_size=30_000):
        assert np.array_equal(batch["id"].numpy(), ids[batch["key"].numpy()])
    table.append(pa.table({"key": rows + np.arange(10), "count": np.arange(10), "id": np.arange(10)}))
    table.compact(full=True)
    after = table.to_arrow()
    assert dict(zip(after["key"].to_pylist(), after["id"].to_pylist(), strict=True)) == dict(enumerate([*ids.tolist(), *range(10)]))
