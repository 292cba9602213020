"""The native `program.build` against its NumPy reference: the same program to the last byte, and never one that the reference refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.decode.program import MAX_ARENA_BYTES, PROGRAM_OP, PROGRAM_SOURCE, REGION_ITEM, Program, build, build_reference
from loader.errors import CorruptSegmentError
from loader.kernels import native
from loader.segment.layout import CHUNK_HEADER, OP, PADDING_BYTES, REGION, SHARED_REGION, SOURCE
from tests.decode.test_program import Slab, sample_arrays, slab_of
from tests.decode.test_shared import coded_chunk, dictionary_chunk, request
from tests.segment.tables import columns

Array = np.ndarray[Any, np.dtype[Any]]
RECORDS = (REGION_ITEM, PROGRAM_OP, PROGRAM_SOURCE)
INTERESTING = (0, 1, 2, 3, 4, 5, 31, 32, 33, 255, 1024, 65_535, 65_536, 0xFFFE, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 40, (1 << 64) - 1)


@pytest.fixture(scope="module")
def library() -> native.NativeLibrary:
    found = native.load()
    if found is None:
        pytest.skip("no native library")
    return found


def same(one: Program, other: Program) -> bool:
    arrays = all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in ("ops", "sources", "level_starts", "regions", "num_rows"))
    return arrays and (one.arena_bytes, one.features) == (other.arena_bytes, other.features)


def agree(library: native.NativeLibrary, data: Array, offsets: Array, sizes: Array, shared: Array | None = None, limit: int = MAX_ARENA_BYTES) -> bool:
    """Whether both accept; fails where they differ."""
    fields = library.build_program(data, data.size - PADDING_BYTES, offsets, sizes, shared, limit, RECORDS)
    try:
        truth = build_reference(data, offsets, sizes, shared=shared, max_arena_bytes=limit)
    except CorruptSegmentError:
        assert fields is None
        return False
    assert fields is not None
    assert same(Program(**fields), truth)
    return True


@given(data=st.data())
def test_good_chunks_make_the_same_program(data: st.DataObject, library: native.NativeLibrary) -> None:
    arrays = data.draw(st.lists(columns(count=data.draw(st.sampled_from([1, 700, 1025]))), max_size=4))
    slab = slab_of(arrays)
    assert agree(library, slab.data, slab.offsets, slab.sizes)


def tables_end(slab: Slab, chunk: int) -> int:
    header = slab.data[slab.offsets[chunk] :][: CHUNK_HEADER.itemsize].view(CHUNK_HEADER)[0]
    return CHUNK_HEADER.itemsize + sum(
        int(header[name]) * record.itemsize for name, record in (("num_regions", REGION), ("num_ops", OP), ("num_sources", SOURCE))
    )


def damage(data: Array, start: int, num_bytes: int, rng: np.random.Generator) -> None:
    """Another value in some 1, 2, 4 or 8 aligned bytes: an interesting one, or one near the old."""
    size = int(rng.choice([1, 2, 4, 8]))
    field = data[start + int(rng.integers(0, num_bytes // size)) * size :][:size]
    near = int.from_bytes(field.tobytes(), "little") + int(rng.integers(-9, 10))
    value = near if rng.random() < 0.5 else int(rng.choice(np.array(INTERESTING, object)))
    field[:] = np.frombuffer((value % (1 << 8 * size)).to_bytes(size, "little"), np.uint8)


def test_damaged_tables_are_refused_by_both_or_mean_the_same(library: native.NativeLibrary) -> None:
    slab, rng = slab_of(sample_arrays(1100)[::2]), np.random.default_rng(5)
    good = slab.data.copy()
    accepted = 0
    for _ in range(1000):
        slab.data[:] = good
        for _ in range(int(rng.integers(1, 3))):
            chunk = int(rng.integers(0, slab.offsets.size))
            damage(slab.data, int(slab.offsets[chunk]), tables_end(slab, chunk), rng)
        offsets = slab.offsets.copy()
        if rng.random() < 0.05:
            offsets[rng.integers(0, offsets.size)] += int(rng.choice([-8, 8, 4, 1 << 40, -(1 << 40)]))
        accepted += agree(library, slab.data, offsets, slab.sizes, limit=1 << 22)
    assert 50 < accepted < 950


def test_shared_dictionaries_are_found_or_refused_alike(library: native.NativeLibrary) -> None:
    rng = np.random.default_rng(6)
    coded = [coded_chunk(np.arange(count), dictionary=SHARED_REGION, level=level)[0] for count, level in ((2000, 1), (9, 1), (30, 0))]
    chunks = [coded[0], dictionary_chunk(), *coded[1:]]
    good, offsets, sizes = request(*chunks[:3])
    assert agree(library, good, offsets, sizes, np.array([1, -1, 1]))
    for shared in (None, *(np.array(each) for each in ([1, -1, -1], [1, -1, 0], [2, -1, 1], [1, -1, 3], [-1, 0, 1], [1, 1, 1]))):
        agree(library, good, offsets, sizes, shared)
    for _ in range(300):
        data = good.copy()
        damage(data, int(offsets[rng.integers(0, 3)]), 200, rng)
        agree(library, data, offsets, sizes, np.array([1, -1, 1]))
    data, offsets, sizes = request(*chunks)
    assert not agree(library, data, offsets, sizes, np.array([1, -1, 1, 1]))


def test_limits_of_the_arena_are_the_same(library: native.NativeLibrary) -> None:
    slab = slab_of(sample_arrays(700))
    needed = build_reference(slab.data, slab.offsets, slab.sizes).arena_bytes
    assert agree(library, slab.data, slab.offsets, slab.sizes, limit=needed)
    assert not agree(library, slab.data, slab.offsets, slab.sizes, limit=needed - 1)
    # one too large for sums of 64 bits is the reference's business
    assert same(build(slab.data, slab.offsets, slab.sizes, max_arena_bytes=1 << 62), build(slab.data, slab.offsets, slab.sizes))


def test_a_slab_at_any_address_is_built() -> None:
    slab = slab_of(sample_arrays(100))
    moved = np.zeros(slab.data.size + 1, np.uint8)[1:]
    moved[:] = slab.data
    assert same(build(moved, slab.offsets, slab.sizes), build(slab.data, slab.offsets, slab.sizes))
