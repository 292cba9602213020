"""The native executor gives the reference's bytes on any program, on real chunks, and refuses the same corruption."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.decode import cpu, program, reference
from loader.encodings import bitpack
from loader.encodings.bits import pack_bits
from loader.encodings.chooser import EncodeOptions
from loader.encodings.chunk import encode_chunk
from loader.encodings.leaf import leaf_type
from loader.encodings.shred import shred
from loader.encodings.split import class_anchors
from loader.errors import CorruptSegmentError
from loader.kernels import native
from loader.segment.layout import PADDING_BYTES, PATCH_F32, OpKind, OutKind, Scan, SourceKind
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


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_share_the_vectors_of_large_programs(library: native.NativeLibrary, threads: int) -> None:
    built = random_program(threads, max_count=150_000, num_ops=24)
    np.testing.assert_array_equal(decoded(library, built, threads), expected(built))


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
        chunks.append(encode_chunk(shred(array, leaf), leaf, rows, EncodeOptions(compress=False)).data)
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


def damaged_stream(b: ProgramBuilder, source: int, field: str, at: int, value: int) -> int:
    """The stream that a source's field points to, with one byte of a copy changed."""
    data = np.concatenate(b.parts).view(np.uint8)[int(b.sources[source][field][0]) :].copy()
    data[at] = value
    return b.stream(data)


def add_broken_ranks(b: ProgramBuilder, what: str, values: Array) -> None:
    mask = b.rng.random(2000) < 0.5
    mask[0] = what != "first run"
    words = np.zeros(64, np.uint32)
    words[:63] = np.packbits(np.append(mask, np.zeros(16, bool)), bitorder="little").view(np.uint32)
    anchors = np.array([0, mask[:1024].sum() + (what == "anchor")], np.uint32)
    words[63] = what == "bits"
    source = b.packed(values[: mask.sum() - (what == "present")])
    kind = OpKind.RUNS if what == "first run" or b.rng.random() < 0.5 else OpKind.NULLS
    b.op(kind, OutKind.U32, 2000, level=1, first_source=source, bits0=b.stream(words), anchors=b.stream(anchors))


def add_broken_split(b: ProgramBuilder, what: str, values: Array) -> None:
    classes = b.rng.integers(0, 3, 2000).astype(np.uint8)
    fields = {"anchors": b.stream(class_anchors(classes, 3)), "num_sources": 3}
    chosen = [values[classes == number] for number in range(3)]
    if what == "class anchor":
        fields["anchors"] = b.stream(class_anchors(np.roll(classes, 1), 3) + np.array([0, 0, 0, 1], np.uint32))
    if what == "class size":
        chosen = [chosen[0][1:], np.append(chosen[1], chosen[1][:1]), chosen[2]]
    low, high = pack_bits(classes & 1 != 0), pack_bits(classes >> 1 != 0)
    if what == "class 3":
        low[30] |= high[30]
    if what == "plane":
        high[63] = 1
    b.op(OpKind.SPLIT, OutKind.U32, 2000, level=1, first_source=b.neighbours(*map(b.packed, chosen)), bits0=b.stream(low), bits1=b.stream(high), **fields)


def add_broken_decimals(b: ProgramBuilder, what: str, values: Array) -> None:
    records = np.zeros(3, PATCH_F32)
    records["position"] = {"patch order": (7, 1500, 9), "patch twice": (7, 7, 9), "patch past": (7, 9, 2000)}[what]
    b.op(OpKind.DIRECT, OutKind.F32_DECIMAL, 2000, level=1, first_source=b.packed(values), scale=10, patches=b.stream(records), num_patches=3)


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
        b.sources[source]["meta"] = damaged_stream(b, source, "meta", 12 + {"width": 8, "words": 0, "exceptions": 10}[what], 200)
        b.op(OpKind.DIRECT, OutKind.U32, 2000, level=1, first_source=source)
    if what in ("anchor", "bits", "present", "first run"):
        add_broken_ranks(b, what, values)
    if what in ("class anchor", "class size", "class 3", "plane"):
        add_broken_split(b, what, values)
    if what.startswith("patch"):
        add_broken_decimals(b, what, values)
    return b.finish()


BROKEN = (
    "code", "width", "words", "exceptions", "anchor", "bits", "present", "first run", "class anchor", "class size", "class 3", "plane",
    "patch order", "patch twice", "patch past",
)  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
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
        ("kind", 9, "does not know"), ("out_kind", 10, "does not know"), ("out_kind", 5, "does not know"),
        ("scan", 7, "does not know"), ("num_patches", 1, "does not know"),
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


@pytest.mark.parametrize("damage", ["order", "twice", "past the end"])
def test_exceptions_that_do_not_ascend_are_refused(each_library: native.NativeLibrary, damage: str) -> None:
    b = ProgramBuilder(5)
    values = b.rng.integers(0, 16, 1500).astype(np.uint32)
    values[[3, 700, 1490]] = 1 << 20
    source = b.excepted(values)
    data, words = int(b.sources[source]["data"][0]), int(b.sources[source]["num_words"][0])
    stream = np.concatenate(b.parts)[data : data + 4 * words].view(np.uint32).copy()
    meta = bitpack.plan_exceptions(values)
    assert meta.exceptions is not None
    assert meta.exceptions.tolist() == [2, 1]
    first, last = int(meta.words[0]), words - 1
    if damage == "order":
        stream[[first, first + 1]] = stream[[first + 1, first]]
    elif damage == "twice":
        stream[first + 1] = stream[first]
    else:
        stream[last] = stream[last] & ~np.uint32(1023) | np.uint32(1500 - 1024)
    b.sources[source]["data"] = b.stream(stream)
    b.op(OpKind.DIRECT, OutKind.U32, 1500, first_source=source)
    with pytest.raises(CorruptSegmentError, match="exceptions do not ascend"):
        decoded(each_library, b.finish())


def test_quantised_floats_widen_exactly(each_library: native.NativeLibrary) -> None:
    halves = np.arange(1 << 16, dtype=np.uint32)
    b = ProgramBuilder(6)
    outs = [b.region(4 << 16) for _ in range(3)]
    scale = np.array([0.037], np.float32)
    for out, out_kind in zip(outs, (7, 8, 9), strict=True):
        b.op(OpKind.DIRECT, OutKind.U32, halves.size, out=out, first_source=b.packed(halves), scale=int(scale.view(np.uint32)[0]))
        b.ops[-1]["out_kind"] = out_kind
    built = b.finish()
    arena = decoded(each_library, built)
    as_f16, as_bf16, as_i8 = (arena[out : out + (4 << 16)].view(np.uint32) for out in outs)
    numbers = halves.astype(np.uint16).view(np.float16)
    finite = ~np.isnan(numbers)
    np.testing.assert_array_equal(as_f16[finite], numbers.astype(np.float32).view(np.uint32)[finite])
    np.testing.assert_array_equal(as_f16[~finite], ((halves & 0x8000) << 16 | 0x7F80_0000 | (halves & 0x3FF) << 13)[~finite])
    np.testing.assert_array_equal(as_bf16, halves << 16)
    np.testing.assert_array_equal(as_i8, (halves.astype(np.uint8).view(np.int8).astype(np.float32) * scale).view(np.uint32))


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
