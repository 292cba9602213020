"""Claims about window fill and assembly, against rows taken one by one."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.batch.assemble import Part, assemble
from loader.batch.batch import Batch, BatchLayout
from loader.batch.window import Columns, WindowFill
from loader.errors import ColumnNotFoundError, SchemaError
from loader.scan.columns import read_columns
from loader.scan.decoded import decode
from loader.scan.encoded import BlockPatch, EncodedBlock, FetchRequest, empty_slab
from loader.schema import Schema
from loader.segment.reader import SegmentReader
from loader.segment.writer import encode_segment

SCHEMA = pa.schema(
    [
        ("a", pa.int64()),
        ("b", pa.float32()),
        ("c", pa.int64()),
        ("pair", pa.list_(pa.int32(), 2)),
        ("ids", pa.list_(pa.int64())),
        ("text", pa.string()),
        ("flag", pa.bool_()),
        ("map", pa.map_(pa.int64(), pa.float32())),
    ]
)
READ = read_columns(Schema.from_arrow(SCHEMA), SCHEMA.names)


def block_table(rng, count):
    base = int(rng.integers(0, 2**40))
    return pa.table(
        {
            "a": rng.integers(-(2**62), 2**62, count),
            "b": pa.array(rng.random(count).astype(np.float32), mask=rng.random(count) < 0.3),
            "c": rng.integers(0, 5, count),
            "pair": [None if rng.random() < 0.2 else [int(i), -int(i)] for i in range(count)],
            "ids": [None if rng.random() < 0.2 else [base + int(v) for v in range(int(i) % 3, int(i) % 3 + int(rng.integers(0, 5)))] for i in range(count)],
            "text": [None if rng.random() < 0.2 else "x" * int(i % 4) + "é" for i in range(count)],
            "flag": pa.array(rng.random(count) < 0.5),
            "map": [None if rng.random() < 0.2 else [(base + int(v), float(v) / (1 + i % 2)) for v in range(int(rng.integers(0, 4)))] for i in range(count)],
        },
        schema=SCHEMA,
    )


def encode(table, number, selected=None, patches=None):
    """A block as a fetcher would hand it over."""
    read = read_columns(Schema.from_arrow(table.schema), table.schema.names)
    segment = encode_segment(table, column_ids=[column.id for column in read])
    chunks = SegmentReader(segment.data).chunks([column.id for column in read], [0])[:, 0]
    sizes = chunks["num_bytes"].astype(np.int64)
    padded = -(-sizes // 64) * 64
    offsets = np.cumsum(padded) - padded
    slab = empty_slab(int(padded.sum()))
    for chunk, offset in zip(chunks, offsets, strict=True):
        part = np.frombuffer(segment.data, np.uint8)[int(chunk["offset"]) : int(chunk["offset"]) + int(chunk["num_bytes"])]
        slab[offset : offset + len(part)] = part
    bits = None if selected is None else np.packbits(selected, bitorder="little")
    request = FetchRequest(sequence=number, shard=0, block=number)
    return EncodedBlock(request=request, num_rows=len(table), slab=slab, chunk_offsets=offsets, chunk_bytes=sizes, selected=bits, patches=patches or {})


def layout(read=READ, output="numpy"):
    columns = Columns.of(read)
    names = tuple(column.name for column in read)
    return BatchLayout(columns=columns, names=names, block_segments=np.arange(100), block_row_starts=np.zeros(100, np.int64), output=output)


def fill(blocks, pieces, order):
    """A window of (block index, head, tail) pieces whose rows come in `order`."""
    piece = np.repeat(np.arange(len(pieces)), [tail - head for _, head, tail in pieces])[order]
    ordinal = np.concatenate([np.arange(head, tail) for _, head, tail in pieces])[order]
    window = WindowFill(Columns.of(READ), piece, ordinal, len(pieces))
    for index, head, tail in pieces:
        window.add(index, blocks[index].selected_rows(), decode(blocks[index], READ), head, tail)
    return window.finish()


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 40), st.sampled_from([None, 0.1, 0.6, 0.95])), min_size=1, max_size=4))
def test_a_batch_holds_the_rows_it_was_told_to(seed, blocks):
    rng = np.random.default_rng(seed)
    tables, encoded, pieces, rows = [], [], [], []
    for number, (count, share) in enumerate(blocks):
        tables.append(block_table(rng, count))
        mask = None if share is None else rng.random(count) < share
        if mask is not None and not mask.any():
            mask[0] = True
        encoded.append(encode(tables[-1], number, mask))
        chosen = np.arange(count) if mask is None else np.flatnonzero(mask)
        head = int(rng.integers(0, len(chosen)))
        tail = int(rng.integers(head + 1, len(chosen) + 1))
        pieces.append((number, head, tail))
        rows += [(number, int(row)) for row in chosen[head:tail]]
    order = rng.permutation(len(rows))
    window = fill(encoded, pieces, order)
    start, step = int(rng.integers(0, len(rows))), int(rng.integers(1, 4))
    parts = [Part(window=window, start=start, stop=len(rows), step=step), Part(window=window, start=0, stop=start)]
    taken = [rows[i] for i in [*order[start::step], *order[:start]]]
    batch = Batch(layout(), assemble(Columns.of(READ), parts))
    want = pa.concat_tables([tables[block].slice(row, 1) for block, row in taken])
    assert batch.to_arrow().to_pylist() == want.to_pylist()
    assert batch.positions().tolist() == [list(pair) for pair in taken]


def test_patches_replace_values_lists_and_nulls_in_their_rows_only():
    rng = np.random.default_rng(3)
    table = block_table(rng, 12)
    rows = np.array([1, 5, 11], np.uint32)
    new = {
        "a": [1, 2, None],
        "b": [None, 2.5, 3.5],
        "pair": [[9, 9], None, [8, 8]],
        "ids": [[-1, -2], [], None],
        "text": ["new", None, ""],
        "flag": [True, None, False],
        "map": [[(5, 0.5), (-6, 1.5)], None, []],
    }
    patches = {SCHEMA.get_field_index(name): BlockPatch(rows=rows, values=pa.array(values, SCHEMA.field(name).type)) for name, values in new.items()}
    encoded = encode(table, 0, patches=patches)
    want = table.to_pylist()
    for name, values in new.items():
        for row, value in zip(rows, values, strict=True):
            want[row][name] = value
    for block in (encoded, EncodedBlock.from_buffers([bytes(memoryview(buffer)) for buffer in encoded.to_buffers()])):
        batch = Batch(layout(), assemble(Columns.of(READ), [Part(window=fill([block], [(0, 0, 12)], np.arange(12)), start=0, stop=12)]))
        assert batch.to_arrow().to_pylist() == want


def test_a_column_younger_than_the_segment_reads_as_null():
    rng = np.random.default_rng(4)
    block = encode(block_table(rng, 5), 0)
    offsets = block.chunk_offsets.copy()
    offsets[[0, 3, 4, 5, 7]] = -1
    block = dataclasses.replace(block, chunk_offsets=offsets)
    batch = Batch(layout(), assemble(Columns.of(READ), [Part(window=fill([block], [(0, 0, 5)], np.arange(5)), start=0, stop=5)]))
    assert all(row["a"] is row["pair"] is row["ids"] is row["text"] is row["map"] is None for row in batch.to_arrow().to_pylist())


def test_fixed_columns_of_one_type_lie_in_one_matrix():
    rng = np.random.default_rng(5)
    window = fill([encode(block_table(rng, 9), 0)], [(0, 0, 9)], rng.permutation(9))
    arrays = assemble(Columns.of(READ), [Part(window=window, start=0, stop=9)])
    assert [matrix.shape for matrix in arrays.fixed] == [(2, 9), (1, 9), (1, 9)]
    batch = Batch(layout(READ[:1] + READ[2:3], output="numpy"), dataclasses.replace(arrays, lists={}))
    assert batch["a"].base is batch["c"].base


def test_nulls_inside_lists_and_lists_of_lists_are_refused_by_column():
    schema = pa.schema([("deep", pa.list_(pa.list_(pa.int64())))])
    with pytest.raises(SchemaError, match="'deep'.*not lists of lists"):
        Columns.of(read_columns(Schema.from_arrow(schema), ["deep"]))
    table = block_table(np.random.default_rng(6), 3).set_column(4, "ids", pa.array([[1], [None], []], pa.list_(pa.int64())))
    with pytest.raises(SchemaError, match="'ids' has nulls inside its lists"):
        fill([encode(table, 0)], [(0, 0, 3)], np.arange(3))


@pytest.mark.parametrize(
    ("name", "stored", "patch"),
    [("ids", [1], [7, None]), ("ids", [1, None], [7]), ("pair", [1, 2], [7, None]), ("map", [(1, 2.0)], [(7, None)]), ("map", [(1, None)], [(7, 2.0)])],
    ids=["list", "stored list", "fixed list", "map", "stored map"],
)
def test_nulls_inside_patched_lists_are_refused_too(name, stored, patch):
    kind = SCHEMA.field(name).type
    table = block_table(np.random.default_rng(7), 3)
    table = table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), pa.array([stored, stored, None], kind))
    patches = {SCHEMA.get_field_index(name): BlockPatch(rows=np.array([1], np.uint32), values=pa.array([patch], kind))}
    with pytest.raises(SchemaError, match=f"'{name}' has nulls inside its lists"):
        fill([encode(table, 0, patches=patches)], [(0, 0, 3)], np.arange(3))


def test_a_patch_that_fills_the_nulls_inside_a_fixed_size_list_makes_it_whole():
    kind = SCHEMA.field("pair").type
    table = block_table(np.random.default_rng(8), 3)
    table = table.set_column(SCHEMA.get_field_index("pair"), SCHEMA.field("pair"), pa.array([[1, None], [2, 3], None], kind))
    patches = {SCHEMA.get_field_index("pair"): BlockPatch(rows=np.array([0], np.uint32), values=pa.array([[7, 8]], kind))}
    window = fill([encode(table, 0, patches=patches)], [(0, 0, 3)], np.arange(3))
    batch = Batch(layout(), assemble(Columns.of(READ), [Part(window=window, start=0, stop=3)]))
    assert batch.to_arrow()["pair"].to_pylist() == [[7, 8], [2, 3], None]


@pytest.mark.parametrize("output", ["numpy", "dict"])
def test_a_map_is_a_jagged_with_weights(output):
    rows = [[(7, 0.5), (8, 0.1)], None, [], [(8, 2.0)]] * 30
    table = block_table(np.random.default_rng(9), 120)
    table = table.set_column(SCHEMA.get_field_index("map"), SCHEMA.field("map"), pa.array(rows, SCHEMA.field("map").type))
    window = fill([encode(table, 0)], [(0, 0, 120)], np.arange(120)[::-1])
    shown = dataclasses.replace(layout(), names=("map",), output=output)
    batch = Batch(shown, assemble(Columns.of(READ), [Part(window=window, start=0, stop=120)], pad_to=121))
    column = batch["map"]
    assert len(column) == 121
    assert column[0].tolist() == [8] and column[3].tolist() == [7, 8] and column[120].tolist() == []
    assert np.allclose(column.weights[column.offsets[3] : column.offsets[4]], [0.5, 0.1])
    assert len(column.weights) == len(column.values)
    assert batch.validity["map"].tolist()[:3] == [True, True, False]


def test_maps_that_no_tensor_holds_are_refused_by_column():
    for kind in (pa.map_(pa.string(), pa.float32()), pa.map_(pa.int64(), pa.list_(pa.int8()))):
        schema = pa.schema([("odd", kind)])
        with pytest.raises(SchemaError, match=r"'odd' is map<.*maps of numbers to numbers"):
            Columns.of(read_columns(Schema.from_arrow(schema), ["odd"]))


def test_a_batch_is_freed_with_its_last_reference():
    window = fill([encode(block_table(np.random.default_rng(9), 5), 0)], [(0, 0, 5)], np.arange(5))
    batch = Batch(layout(), assemble(Columns.of(READ), [Part(window=window, start=0, stop=5)]))
    assert len(batch.validity["a"]) == 5
    freed = weakref.ref(batch)
    gc.disable()  # a batch is large and few objects: the collector of circles would come by too late
    try:
        del batch
        assert freed() is None
    finally:
        gc.enable()


def test_another_stream_is_told_of_validity_too():
    class Recorded:
        def __init__(self):
            self.streams = []

        def record_stream(self, stream):
            self.streams.append(stream)

    window = fill([encode(block_table(np.random.default_rng(10), 5), 0)], [(0, 0, 5)], np.arange(5))
    arrays = assemble(Columns.of(READ), [Part(window=window, start=0, stop=5)])
    values, valid, mask = Recorded(), Recorded(), Recorded()
    Batch(layout(), arrays, {"a": values}, {"a": valid}, mask).record_stream("side")
    assert values.streams == valid.streams == mask.streams == ["side"]


def test_all_of_a_batch_moves_to_a_device():
    window = fill([encode(block_table(np.random.default_rng(11), 5), 0)], [(0, 0, 5)], np.arange(5))
    columns = Columns.of(READ[:1])
    arrays = dataclasses.replace(assemble(Columns.of(READ), [Part(window=window, start=0, stop=5)], pad_to=6), lists={}, wide={})
    moved = Batch(layout(columns.read, output="dict"), arrays).to("meta")
    more = moved.replace(twice=moved["a"] * 2)
    assert {str(tensor.device) for tensor in (moved["a"], moved.validity["a"], moved.mask, more.mask)} == {"meta"}


def test_a_batch_is_a_mapping_that_names_its_columns():
    batch = Batch(layout(), assemble(Columns.of(READ), []))
    assert list(batch) == SCHEMA.names and "a" in batch and len(batch) == 0 and bool(batch)
    with pytest.raises(ColumnNotFoundError, match="no column 'flags': did you mean flag"):
        batch["flags"]
