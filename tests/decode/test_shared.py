"""Dictionaries shared by chunks of several blocks, in the decode program: placed once, looked up by every chunk that says so, checked before use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loader.decode import cpu, reference
from loader.decode.program import build
from loader.decode.result import FixedColumn, decode_block
from loader.encodings.builder import ChunkBuilder
from loader.encodings.leaf import LeafType
from loader.encodings.plain import Plain
from loader.encodings.stream import Packed
from loader.encodings.target import OUT_KINDS, Target
from loader.errors import CorruptSegmentError
from loader.segment.layout import CHUNK_HEADER, NO_REGION, OP, PADDING_BYTES, REGION, SHARED_REGION, Feature, Role, ValueType, round_up

Array = np.ndarray[Any, np.dtype[Any]]
LEAF = LeafType(value_type=ValueType.UINT64)
ENTRIES = np.random.default_rng(1).integers(0, 1 << 63, 40_000).astype(np.uint64)


def dictionary_chunk() -> Array:
    builder = ChunkBuilder()
    region = builder.region(Role.VALUES, depth=0, item_bytes=8, value_type=ValueType.UINT64, count=ENTRIES.size)
    Plain(values=ENTRIES).emit(Target(builder=builder, region=region, out_kind=OUT_KINDS[8], count=ENTRIES.size))
    return builder.finish(0)


def coded_chunk(codes: Array, *, level: int = 1, dictionary: int = SHARED_REGION, entries: int = ENTRIES.size) -> tuple[Array, int]:
    builder = ChunkBuilder()
    region = builder.region(Role.VALUES, depth=0, item_bytes=8, value_type=ValueType.UINT64, count=codes.size)
    target = Target(builder=builder, region=region, out_kind=OUT_KINDS[8], count=codes.size)
    target.read(Packed(codes.astype(np.uint32)), dictionary=dictionary, dict_count=entries, level=level)
    return builder.finish(codes.size), builder.features


def request(*chunks: Array) -> tuple[Array, Array, Array]:
    sizes = np.array([chunk.size for chunk in chunks], np.int64)
    offsets = np.cumsum([0, *(round_up(chunk.size) for chunk in chunks)])
    slab = np.zeros(int(offsets[-1]) + PADDING_BYTES, np.uint8)
    for chunk, offset in zip(chunks, offsets, strict=False):
        slab[offset : offset + chunk.size] = chunk
    return slab, offsets[:-1], sizes


def test_chunks_look_one_dictionary_up() -> None:
    rng = np.random.default_rng(2)
    codes = [rng.integers(0, ENTRIES.size, count) for count in (3000, 1, 1024)]
    chunks = [coded_chunk(each) for each in codes]
    assert all(features & Feature.SHARED_DICTIONARIES for _, features in chunks)
    slab, offsets, sizes = request(*(chunk for chunk, _ in chunks), dictionary_chunk())
    shared = np.array([3, 3, 3, -1])
    block = decode_block(slab, offsets, sizes, [LEAF] * 3, shared=shared)
    assert len(block) == 3
    for column, each in zip(block, codes, strict=True):
        assert isinstance(column, FixedColumn)
        assert np.array_equal(column.values, ENTRIES[each])
    # its region stands in the arena once
    program = build(slab, offsets, sizes, shared=shared)
    assert program.arena_bytes < 8 * ENTRIES.size + 8 * sum(each.size for each in codes) + 64 * 5
    assert int((program.regions["count"] == ENTRIES.size).sum()) == 1
    one, two = (np.zeros(program.arena_bytes + PADDING_BYTES, np.uint8) for _ in range(2))
    reference.execute(program, slab, one)
    cpu.execute(program, slab, two)
    assert np.array_equal(one[: program.arena_bytes], two[: program.arena_bytes])


@pytest.mark.parametrize("shared", [None, [-1, -1], [2, -1], [0, -1]])
def test_a_chunk_without_its_dictionary_is_refused(shared: list[int] | None) -> None:
    slab, offsets, sizes = request(coded_chunk(np.arange(100))[0], dictionary_chunk())
    with pytest.raises(CorruptSegmentError, match=r"chunk 0 of the request is corrupt: its? .*shared dictionary"):
        build(slab, offsets, sizes, shared=None if shared is None else np.array(shared))


def test_what_does_not_fit_the_dictionary_is_refused() -> None:
    codes = np.arange(100)
    cases = [
        (coded_chunk(codes, level=0)[0], "before it is written"),
        (coded_chunk(codes, entries=ENTRIES.size + 1)[0], "larger than its region"),
    ]
    for chunk, message in cases:
        slab, offsets, sizes = request(chunk, dictionary_chunk())
        with pytest.raises(CorruptSegmentError, match=message):
            build(slab, offsets, sizes, shared=np.array([1, -1]))
    past = coded_chunk(np.array([5, 9]), entries=9)[0]
    slab, offsets, sizes = request(past, dictionary_chunk())
    with pytest.raises(CorruptSegmentError, match="chunk 0 of the request"):
        decode_block(slab, offsets, sizes, [LEAF], shared=np.array([1, -1]))


def test_the_flag_of_the_header_is_what_counts() -> None:
    chunk = coded_chunk(np.arange(100))[0]
    chunk[: CHUNK_HEADER.itemsize].view(CHUNK_HEADER)["flags"] = 0
    slab, offsets, sizes = request(chunk, dictionary_chunk())
    with pytest.raises(CorruptSegmentError, match="looks up a shared dictionary where it may not"):
        build(slab, offsets, sizes, shared=np.array([1, -1]))
    chunk[: CHUNK_HEADER.itemsize].view(CHUNK_HEADER)["flags"] = 2
    slab, offsets, sizes = request(chunk, dictionary_chunk())
    with pytest.raises(CorruptSegmentError, match="unknown flags"):
        build(slab, offsets, sizes, shared=np.array([1, -1]))


def test_a_chunk_of_rows_is_no_dictionary() -> None:
    rows = coded_chunk(np.arange(100), dictionary=NO_REGION, entries=0)[0]
    slab, offsets, sizes = request(coded_chunk(np.arange(100), entries=100)[0], rows)
    with pytest.raises(CorruptSegmentError, match="in a chunk of rows"):
        build(slab, offsets, sizes, shared=np.array([1, -1]))


def test_any_byte_of_the_tables_may_be_wrong() -> None:
    sound, offsets, sizes = request(coded_chunk(np.arange(100))[0], dictionary_chunk())
    rng = np.random.default_rng(3)
    tables = CHUNK_HEADER.itemsize + REGION.itemsize + OP.itemsize
    for start in offsets.tolist():
        for at in range(start, start + tables):
            slab = sound.copy()
            slab[at] = rng.choice([0, 1, 2, 3, 254, 255])
            try:
                decode_block(slab, offsets, sizes, [LEAF], shared=np.array([1, -1]))
            except CorruptSegmentError:
                continue
