"""The native executor gives the reference's bytes on any program, on real chunks, and refuses the same corruption."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.decode import cpu, program, reference
from loader.encodings.chooser import EncodeOptions
from loader.encodings.chunk import encode_chunk
from loader.encodings.leaf import leaf_type
from loader.encodings.shred import shred
from loader.errors import CorruptSegmentError
from loader.kernels import native
from loader.segment.layout import PADDING_BYTES, OpKind, OutKind, Scan, SourceKind
from tests.kernels.programs import Array, Built, ProgramBuilder, aligned, random_program


def expected(built: Built) -> Array:
    arena = built.arena()
    reference.execute(built.program, built.slab, arena)
    return arena


def decoded(library: native.NativeLibrary, built: Built, threads: int = 1) -> Array:
    arena = built.arena()
    library.decode(built.slab, arena, built.program.ops, built.program.sources, threads)
    return arena


@given(seed=st.integers(0, 1 << 32), threads=st.sampled_from([1, 3]))
def test_random_programs_decode_to_the_reference_and_touch_nothing_else(library: native.NativeLibrary, seed: int, threads: int) -> None:
    built = random_program(seed)
    want = expected(built)
    for portable in (False, True):
        library.force_portable(portable)
        np.testing.assert_array_equal(decoded(library, built, threads), want)
    library.force_portable(False)


@pytest.mark.parametrize("width", range(33))
def test_every_width_into_every_store(each_library: native.NativeLibrary, width: int) -> None:
    b = ProgramBuilder(width)
    for count in (1, 33, 1024, 1024 * 2 + 517):
        values = b.rng.integers(0, 1 << width, count, dtype=np.uint64).astype(np.uint32)
        values[:1] = (1 << width) - 1
        for out_kind in (OutKind.U8, OutKind.U16, OutKind.U32, OutKind.U64):
            b.op(OpKind.DIRECT, out_kind, count, first_source=b.packed(values), base=-(1 << 40) if out_kind == OutKind.U64 else 7)
    built = b.finish()
    np.testing.assert_array_equal(decoded(each_library, built), expected(built))


def real_columns(rng: np.random.Generator, rows: int) -> dict[str, pa.Array]:
    numbers = rng.integers(0, 1000, rows)
    history = [numbers[max(i - 20, 0) : i].tolist() for i in range(rows)]
    present = rng.random(rows) < 0.6
    return {
        "id": pa.array(rng.integers(-(1 << 62), 1 << 62, rows)),
        "small": pa.array(rng.integers(0, 5, rows).astype(np.int8)),
        "price": pa.array(np.round(rng.random(rows) * 100, 2), mask=~present),
        "wide": pa.array(rng.integers(0, 1 << 45, rows), mask=~present),
        "flag": pa.array([bool(x % 3) if x % 7 else None for x in numbers], pa.bool_()),
        "city": pa.array([None if x % 11 == 0 else f"city {x % 40}" for x in numbers], pa.string()),
        "history": pa.array(history, pa.list_(pa.int64())),
        "session": pa.array([history[i // 16 * 16] for i in range(rows)], pa.list_(pa.int64())),
        "nested": pa.array([[[int(x)], None, [1, 2]] if x % 5 else None for x in numbers], pa.list_(pa.list_(pa.int32()))),
        "constant": pa.array(np.full(rows, 17)),
    }


@pytest.mark.parametrize("rows", [1, 1000, 5000])
def test_real_chunks_decode_to_the_reference(each_library: native.NativeLibrary, rows: int) -> None:
    chunks = []
    for name, array in real_columns(np.random.default_rng(rows), rows).items():
        leaf = leaf_type(array.type, name)
        chunks.append(encode_chunk(shred(array, leaf), leaf, rows, EncodeOptions()).data)
    sizes = np.array([chunk.size for chunk in chunks], np.int64)
    offsets = np.cumsum((sizes + 63) // 64 * 64) - (sizes + 63) // 64 * 64
    slab = np.zeros(int(offsets[-1] + sizes[-1]) + PADDING_BYTES, np.uint8)
    for offset, chunk in zip(offsets, chunks, strict=True):
        slab[offset : offset + chunk.size] = chunk
    built = Built(program.build(aligned(slab), offsets, sizes), aligned(slab))
    np.testing.assert_array_equal(decoded(each_library, built, threads=2), expected(built))


def test_execute_runs_without_the_library_and_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    built = random_program(5)
    want = expected(built)
    for setting in ("", "0"):
        monkeypatch.setenv("HEADRACE_NATIVE", setting)
        arena = built.arena()
        cpu.execute(built.program, built.slab, arena, threads=2)
        np.testing.assert_array_equal(arena, want)


def broken_program(what: str) -> Built:
    """A program of three good ops whose fourth has one thing wrong."""
    b = ProgramBuilder(3)
    for _ in range(3):
        b.op(OpKind.DIRECT, OutKind.U32, 2000, first_source=b.packed(b.numbers(2000, 9)))
    values = b.numbers(2000, 9)
    if what == "code":
        b.op(OpKind.DIRECT, OutKind.U32, 2000, level=1, first_source=b.packed(values % 50), dict=b.dictionary(OutKind.U32, 50), dict_count=49)
    if what in ("width", "words", "exceptions"):
        source = b.packed(values)
        meta = np.concatenate(b.parts).view(np.uint8)[int(b.sources[source]["meta"][0]) :].copy()
        at = 12 + {"width": 8, "words": 0, "exceptions": 10}[what]
        meta[at] = 200
        b.sources[source]["meta"] = b.stream(meta)
        b.op(OpKind.DIRECT, OutKind.U32, 2000, level=1, first_source=source)
    if what in ("anchor", "bits", "present"):
        mask = b.rng.random(2000) < 0.5
        words = np.zeros(64, np.uint32)
        words[:63] = np.packbits(np.append(mask, np.zeros(16, bool)), bitorder="little").view(np.uint32)
        anchors = np.array([0, mask[:1024].sum() + (what == "anchor")], np.uint32)
        words[63] = what == "bits"
        source = b.packed(values[: mask.sum() - (what == "present")])
        b.op(OpKind.NULLS, OutKind.U32, 2000, level=1, first_source=source, bits0=b.stream(words), anchors=b.stream(anchors))
    return b.finish()


@pytest.mark.parametrize("what", ["code", "width", "words", "exceptions", "anchor", "bits", "present"])
@pytest.mark.parametrize("threads", [1, 4])
def test_bad_streams_are_refused_by_the_chunk_as_the_reference_does(each_library: native.NativeLibrary, what: str, threads: int) -> None:
    built = broken_program(what)
    chunk = int(built.program.ops["chunk"][-1])
    with pytest.raises(CorruptSegmentError, match=f"^chunk {chunk} of the request is corrupt: "):
        decoded(each_library, built, threads)
    with pytest.raises(CorruptSegmentError, match=f"^chunk {chunk} of the request is corrupt: "):
        expected(built)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("kind", 9, "does not know"), ("out_kind", 6, "does not know"), ("scan", 7, "does not know"), ("num_patches", 1, "does not know"),
        ("out", 1 << 40, "outside the arena"), ("out", 2, "not aligned"), ("dict", 1 << 63, "outside the arena"), ("count", 0xFFFF_FFFF, "outside the arena"),
        ("count", 2001, "too few values"), ("first_source", 1 << 31, "sources are missing"),
    ],
)  # fmt: skip
def test_op_tables_are_checked_before_anything_is_written(each_library: native.NativeLibrary, field: str, value: int, reason: str) -> None:
    b = ProgramBuilder(1)
    b.op(OpKind.DIRECT, OutKind.U32, 2000, first_source=b.packed(b.numbers(2000, 9)))
    b.ops[0][field] = value
    b.region(4096)
    built = b.finish()
    arena = built.arena()
    with pytest.raises(CorruptSegmentError, match=reason):
        each_library.decode(built.slab, arena, built.program.ops, built.program.sources)
    assert (arena == 0xA5).all()


def test_levels_out_of_order_and_views_without_lengths_are_refused(library: native.NativeLibrary) -> None:
    b = ProgramBuilder(1)
    for level in (1, 0):
        b.op(OpKind.DIRECT, OutKind.U32, 10, level=level, first_source=b.packed(b.numbers(10, 9)))
    ops, built = np.concatenate(b.ops), b.finish()
    with pytest.raises(CorruptSegmentError, match="order of their levels"):
        library.decode(built.slab, built.arena(), ops, built.program.sources)
    b = ProgramBuilder(1)
    b.op(OpKind.DIRECT, OutKind.VIEW, 10, scan=int(Scan.SUM), scan_anchors=b.stream(np.zeros(1, np.uint32)), first_source=b.source(SourceKind.CONSTANT, 10))
    with pytest.raises(CorruptSegmentError, match="sources are missing"):
        decoded(library, b.finish())
