"""The decode program: built for any number of chunks at once, exact on sound chunks, and refusing everything that does not hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.decode import cpu, reference
from loader.decode.arrow import to_arrow
from loader.decode.program import NO_OFFSET, Program, build
from loader.decode.result import FixedColumn, ListColumn, decode_block
from loader.encodings.chooser import EncodeOptions
from loader.encodings.chunk import encode_chunk
from loader.encodings.leaf import LeafType, leaf_type
from loader.encodings.shred import shred
from loader.errors import CorruptSegmentError
from loader.segment.layout import CHUNK_HEADER, OP, OUT_ITEM_BYTES, PADDING_BYTES, REGION, SOURCE, round_up
from tests.segment.tables import Maker, columns, same

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass
class Slab:
    """Chunks laid one after another, padding included."""

    data: Array
    offsets: Array
    sizes: Array
    leaves: list[LeafType]


def chunk_of(array: pa.Array) -> Array:
    leaf = leaf_type(array.type, "test")
    return encode_chunk(shred(array, leaf), leaf, len(array), EncodeOptions()).data


def slab_of(arrays: list[pa.Array]) -> Slab:
    chunks = [chunk_of(array) for array in arrays]
    sizes = np.array([chunk.size for chunk in chunks], np.int64)
    offsets = np.cumsum([0, *(round_up(chunk.size) for chunk in chunks)])
    data = np.zeros(int(offsets[-1]) + PADDING_BYTES, np.uint8)
    for chunk, offset in zip(chunks, offsets, strict=False):
        data[offset : offset + chunk.size] = chunk
    return Slab(data, offsets[:-1], sizes, [leaf_type(array.type, "test") for array in arrays])


def sample_arrays(rows: int = 300) -> list[pa.Array]:
    few, sliding = Maker(np.random.default_rng(1), "few", 0.2), Maker(np.random.default_rng(2), "narrow", 0.0)
    kinds = [pa.int64(), pa.bool_(), pa.string(), pa.list_(pa.int64()), pa.list_(pa.list_(pa.int16())), pa.list_(pa.float32(), 3)]
    wide = pa.array(np.arange(rows) * (1 << 35))
    return [*cascaded_arrays(rows), *(few.array(kind, rows) for kind in kinds), sliding.array(pa.list_(pa.int32()), rows), wide, pa.array(np.zeros(rows))]


def cascaded_arrays(rows: int) -> list[pa.Array]:
    """One array for each encoding beyond packing, with nulls and without; `test_every_encoding_is_there` says which."""
    rng = np.random.default_rng(3)
    decimals = np.where(rng.random(rows) < 0.03, np.nan, rng.integers(0, 1 << 14, rows) / 100)
    skewed = np.where(rng.random(rows) < 0.6, rng.integers(0, 4, rows), rng.integers(0, 1 << 20, rows)).astype(np.int64)
    frequent = rng.integers(0, 1 << 60, 65)[np.minimum(rng.zipf(1.4, rows), 64)]
    plain = [
        decimals.astype(np.float32), decimals, skewed, np.cumsum(rng.integers(0, 9, rows)), np.cumsum(np.where(rng.random(rows) < 0.02, 1 << 20, 3)),
        np.repeat(rng.integers(0, 1 << 62, rows // 10 + 1), 10)[:rows], np.repeat(rng.integers(0, 1 << 20, rows // 10 + 1), 10)[:rows], frequent,
        np.where(rng.random(rows) < 0.01, 1 << 20, rng.integers(0, 16, rows)),
    ]  # fmt: skip
    mask = rng.random(rows) < 0.3
    return [*(pa.array(values) for values in plain), *(pa.array(values, mask=mask) for values in plain)]


def test_every_encoding_is_there() -> None:
    trees = [chunk_text(array) for array in cascaded_arrays(3000)]
    for part in ("decimals[1/100, ", "split(", "delta(packed", "exceptions", "runs[300](packed", "runs[300](halves", "](decimals[", "](split("):
        assert any(part in tree for tree in trees), (part, trees)


def chunk_text(array: pa.Array) -> str:
    leaf = leaf_type(array.type, "test")
    return encode_chunk(shred(array, leaf), leaf, len(array), EncodeOptions()).decision.tree


@given(st.data())
def test_many_chunks_in_one_program(data: st.DataObject) -> None:
    count = data.draw(st.sampled_from([1, 900, 1025]))
    arrays = data.draw(st.lists(columns(count=count), min_size=0, max_size=5))
    slab = slab_of(arrays)
    block = decode_block(slab.data, slab.offsets, slab.sizes, slab.leaves)
    assert len(block.columns) == len(arrays)
    for column, array in zip(block.columns, arrays, strict=True):
        assert same(to_arrow(column, array.type), array)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_native_and_reference_write_the_same_arena(threads: int) -> None:
    slab = slab_of(sample_arrays(3000))
    program = build(slab.data, slab.offsets, slab.sizes)
    one, two = (np.zeros(program.arena_bytes + PADDING_BYTES, np.uint8) for _ in range(2))
    reference.execute(program, slab.data, one)
    cpu.execute(program, slab.data, two, threads=threads)
    assert np.array_equal(one[: program.arena_bytes], two[: program.arena_bytes])


def test_a_program_whose_chunks_read_each_other_runs_level_by_level() -> None:
    """As a joined program may: the dictionary of one chunk's op is what another chunk wrote."""
    slab = slab_of([pa.array(np.arange(5000) % 7 * 1_000_003 + (1 << 40)), pa.array(np.arange(5000) % 7 * 999_983 + (1 << 41))])
    program = build(slab.data, slab.offsets, slab.sizes)
    looked_up = np.flatnonzero(program.ops["dict"] != NO_OFFSET)
    assert looked_up.size == 2
    program.ops["dict"][looked_up] = program.ops["dict"][looked_up[::-1]]
    one, two = (np.zeros(program.arena_bytes + PADDING_BYTES, np.uint8) for _ in range(2))
    reference.execute(program, slab.data, one)
    cpu.execute(program, slab.data, two)
    assert np.array_equal(one[: program.arena_bytes], two[: program.arena_bytes])


def test_ops_are_sorted_by_level() -> None:
    slab = slab_of(sample_arrays())
    program = build(slab.data, slab.offsets, slab.sizes)
    for level in range(program.level_starts.size - 1):
        ops = program.ops[program.level_starts[level] : program.level_starts[level + 1]]
        assert (ops["level"] == level).all()
    assert program.level_starts[-1] == program.ops.size
    assert (program.regions["arena"] % 64 == 0).all()


def test_columns_share_the_arena() -> None:
    values = np.random.default_rng(0).integers(0, 1000, 5000)
    lists = pa.ListArray.from_arrays(np.arange(0, 5001, 1, dtype=np.int32), pa.array(values + (1 << 40)))
    slab = slab_of([pa.array(values), lists])
    arena = np.zeros(1 << 20, np.uint8)
    block = decode_block(slab.data, slab.offsets, slab.sizes, slab.leaves, arena=arena)
    fixed, listed = block.columns
    assert isinstance(fixed, FixedColumn)
    assert np.shares_memory(fixed.values, arena)
    assert isinstance(listed, ListColumn)
    assert isinstance(listed.child, FixedColumn)
    # a pool of 64-bit values in a narrow range keeps 4 bytes an item and a base
    assert listed.child.values.dtype == np.uint32
    assert listed.base == listed.child.base == int(values.min()) + (1 << 40)


def run(slab: Slab, array: pa.Array) -> None:
    """Decode one chunk, with a small limit, by whatever executor there is, down to Arrow."""
    program = build(slab.data, slab.offsets, slab.sizes, max_arena_bytes=1 << 22)
    check_inside(program, slab)
    block = decode_block(slab.data, slab.offsets, slab.sizes, slab.leaves)
    to_arrow(block.columns[0], array.type)


def check_inside(program: Program, slab: Slab) -> None:
    """What `build` promises: every op writes and reads inside the arena, and the tables inside the slab."""
    sizes = OUT_ITEM_BYTES.astype(np.int64)[program.ops["out_kind"]]
    assert (program.ops["out"] + program.ops["count"] * sizes <= program.arena_bytes).all()
    assert (program.ops["first_source"] + program.ops["num_sources"] <= program.sources.size).all()
    assert (program.sources["data"] <= max(slab.data.size, program.arena_bytes)).all()


@pytest.mark.parametrize("native", ["0", ""])
def test_any_byte_of_the_tables_may_be_wrong(monkeypatch: pytest.MonkeyPatch, native: str) -> None:
    monkeypatch.setenv("HEADRACE_NATIVE", native)
    rng = np.random.default_rng(5)
    refused = tried = 0
    for array in sample_arrays():
        sound = slab_of([array])
        header = sound.data[: CHUNK_HEADER.itemsize].view(CHUNK_HEADER)[0]
        tables = CHUNK_HEADER.itemsize + sum(
            int(header[name]) * record.itemsize for name, record in (("num_regions", REGION), ("num_ops", OP), ("num_sources", SOURCE))
        )
        # a part of the bytes each time, fewer of them by the reference, which is slower
        for at in range(0, tables, 11 if native == "0" else 3):
            damaged = dataclasses.replace(sound, data=sound.data.copy())
            damaged.data[at] = rng.choice([0, 1, 2, 3, 4, 64, 128, 255]) if rng.random() < 0.7 else damaged.data[at] ^ (1 << rng.integers(8))
            tried += 1
            try:
                run(damaged, array)
            except CorruptSegmentError:
                refused += 1
    assert refused > tried / 3


@pytest.mark.parametrize(
    ("record", "field", "value", "message"),
    [
        ("header", "num_bytes", 64, "states another length"),
        ("header", "num_ops", 60_000, "tables pass its end"),
        ("header", "arena_bytes", 1 << 50, "do not add up"),
        ("region", "count", 1 << 60, "more than"),
        ("region", "item_bytes", 3, "1, 2, 4 or 8 bytes"),
        ("op", "kind", 9, "kind this version does not know"),
        ("op", "out_region", 7, "region does not exist"),
        ("op", "count", 299, "number of values"),
        ("op", "out_offset", 8, "past its region"),
        ("op", "level", 3, "level"),
        ("op", "first_source", 5, "sources do not exist"),
        ("source", "data", 1 << 31, "lie outside"),
        ("source", "meta", 1 << 31, "lie outside"),
        ("source", "num_words", 1 << 30, "lie outside"),
        ("source", "count", 7, "number of values"),
    ],
)
def test_errors_name_the_chunk_and_what_is_wrong(record: str, field: str, value: int, message: str) -> None:
    values = pa.array(np.random.default_rng(4).integers(0, 300, 300))
    slab = slab_of([values, values])
    start, records = int(slab.offsets[1]), {"header": (CHUNK_HEADER, 0), "region": (REGION, 32), "op": (OP, 32 + 24), "source": (SOURCE, 32 + 24 + 64)}
    dtype, position = records[record]
    slab.data[start + position : start + position + dtype.itemsize].view(dtype)[field] = value
    with pytest.raises(CorruptSegmentError, match=f"chunk 1 of the request is corrupt: .*{message}"):
        build(slab.data, slab.offsets, slab.sizes)


def test_a_limit_on_memory_holds() -> None:
    slab = slab_of([pa.array(np.zeros(60_000))])
    with pytest.raises(CorruptSegmentError, match="more than 1,000 bytes"):
        build(slab.data, slab.offsets, slab.sizes, max_arena_bytes=1000)


def test_a_view_outside_of_its_pool_is_refused() -> None:
    column = ListColumn(views=np.array([3 | 2 << 32], np.uint64), validity=None, child=FixedColumn(values=np.arange(4)))
    with pytest.raises(CorruptSegmentError, match="item 5 of a pool of 4"):
        to_arrow(column, pa.list_(pa.int64()))


def test_work_does_not_grow_with_columns_in_python() -> None:
    import sys

    def calls(num_chunks: int) -> int:
        slab = slab_of([pa.array(np.arange(5))] * num_chunks)
        count = 0

        def profile(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(profile)
        try:
            build(slab.data, slab.offsets, slab.sizes)
        finally:
            sys.setprofile(None)
        return count

    calls(1)
    assert calls(200) <= calls(2) + 5
