"""The CUDA executor on the host runtime: the CPU executor's bytes, in few launches, whatever the schedule, the timing and the bytes."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loader.decode import cpu
from loader.decode.cuda import KNOWN_FEATURES, CudaExecutor, execute
from loader.decode.inflate import inflate_into_slab, inflated_bytes
from loader.decode.join import join_programs
from loader.decode.program import Program, build
from loader.encodings.bits import pack_bits
from loader.encodings.chunk import encode_chunk
from loader.encodings.leaf import leaf_type
from loader.encodings.options import EncodeOptions
from loader.encodings.shred import shred
from loader.encodings.split import class_anchors
from loader.errors import CorruptSegmentError
from loader.kernels import native
from loader.kernels.host_memory import FRESH
from loader.kernels.host_runtime import HostRuntime
from loader.kernels.runtime import open_runtime
from loader.kernels.shim import SCHEDULES
from loader.segment.layout import PADDING_BYTES, Feature, OpKind, OutKind, round_up
from tests.decode.test_program import Slab, cascaded_arrays, sample_arrays, slab_of
from tests.decode.test_shared import ENTRIES, coded_chunk, dictionary_chunk, request
from tests.kernels.fuzz_device import attempt, damaged_program, items_of
from tests.kernels.programs import ProgramBuilder, random_program
from tests.segment.tables import LEAVES, Maker

Array = np.ndarray[Any, np.dtype[Any]]
MAX_LAUNCHES = 6


def cpu_arena(program: Program, slab: Array) -> Array:
    arena = np.zeros(program.arena_bytes + PADDING_BYTES, np.uint8)
    cpu.execute(program, slab, arena)
    return arena[: program.arena_bytes]


def device_arena(executor: CudaExecutor, program: Program, slab: Array) -> Array:
    arena = np.zeros(program.arena_bytes + PADDING_BYTES, np.uint8)
    execute(executor, program, slab, arena)
    return arena[: program.arena_bytes]


def check_equal(executor: CudaExecutor, program: Program, slab: Array) -> None:
    """Every region's bytes; what lies between regions is nobody's."""
    want, found = cpu_arena(program, slab), device_arena(executor, program, slab)
    written = items_of(program)
    np.testing.assert_array_equal(found[written], want[written])
    assert (found[~written] == FRESH).all(), "something was written between regions"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timing", ["lazy", "eager", "random"])
def test_random_programs_give_the_cpus_bytes(schedule: str, timing: str) -> None:
    runtime = HostRuntime(schedule=schedule, timing=timing, seed=7)
    executor = CudaExecutor(runtime)
    first = 10 * list(SCHEDULES).index(schedule)
    for seed in range(first, first + 8):
        built = random_program(seed, max_count=2300, num_ops=14)
        check_equal(executor, built.program, built.slab)
    runtime.finish()


@pytest.mark.parametrize("rows", [1, 31, 1024, 1025, 3000])
def test_every_encoding_of_real_columns(rows: int) -> None:
    executor = CudaExecutor(HostRuntime(schedule="greedy shuffled", seed=rows))
    slab = slab_of([*sample_arrays(rows), *typed_arrays(rows)])
    program = build(slab.data, slab.offsets, slab.sizes)
    check_equal(executor, program, slab.data)
    if rows == 3000:
        kinds, features = {int(kind) for kind in program.ops["kind"]}, Feature(program.features)
        assert kinds == {int(kind) for kind in OpKind}
        elsewhere = Feature.NULLS | Feature.LIST_VIEWS | Feature.DICTIONARY | Feature.QUANTISED
        assert (features | elsewhere) & KNOWN_FEATURES == KNOWN_FEATURES
        assert features & Feature.COMPRESSED_BYTES


def typed_arrays(rows: int) -> list[pa.Array]:
    """Every leaf type, with nulls and without; text that compresses."""
    made = [Maker(np.random.default_rng(number), "narrow", 0.1 * (number % 2)).array(kind, rows) for number, kind in enumerate(LEAVES)]
    return [*made, pa.array([f"the same words in every row, and a number: {row}" for row in range(rows)])]


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int8"])
def test_quantised_columns(kind: str) -> None:
    values = pa.array(np.random.default_rng(1).uniform(-1e-38, 1e-38, 2100).astype(np.float32))
    leaf = leaf_type(values.type, "x")
    chunk = encode_chunk(shred(values, leaf), leaf, len(values), EncodeOptions(quantise=kind)).data
    slab, offsets, sizes = request(chunk)
    program = build(slab, offsets, sizes)
    assert program.features & Feature.QUANTISED
    check_equal(CudaExecutor(HostRuntime()), program, slab)


def test_every_value_of_the_quantised_types() -> None:
    b = ProgramBuilder(1)
    for out_kind, scale in ((OutKind.F32_FROM_F16, 0), (OutKind.F32_FROM_BF16, 0), (OutKind.F32_SCALED_I8, 0x00000123)):
        b.op(OpKind.DIRECT, out_kind, 1 << 16, first_source=b.packed(np.arange(1 << 16, dtype=np.uint32)), scale=scale)
    built = b.finish()
    check_equal(CudaExecutor(HostRuntime()), built.program, built.slab)


def test_shared_dictionaries() -> None:
    rng = np.random.default_rng(3)
    chunks = [coded_chunk(rng.integers(0, ENTRIES.size, count))[0] for count in (2500, 7)]
    slab, offsets, sizes = request(*chunks, dictionary_chunk())
    program = build(slab, offsets, sizes, shared=np.array([2, 2, -1]))
    check_equal(CudaExecutor(HostRuntime(schedule="reverse")), program, slab)


@dataclasses.dataclass
class Window:
    """Blocks side by side in one slab and one arena."""

    slab: Array
    program: Program
    parts: list[Program]
    slabs: list[Slab]
    arena_starts: list[int]


def window_of(slabs: list[Slab], gap: int = 64) -> Window:
    parts = [build(slab.data, slab.offsets, slab.sizes) for slab in slabs]
    slab_starts, arena_starts, used, arena = [], [], gap, gap
    for slab, part in zip(slabs, parts, strict=True):
        slab_starts.append(used)
        arena_starts.append(arena)
        used += round_up(slab.data.size - PADDING_BYTES)
        arena += part.arena_bytes + gap
    joined = np.zeros(used + PADDING_BYTES, np.uint8)
    for slab, start in zip(slabs, slab_starts, strict=True):
        joined[start : start + slab.data.size - PADDING_BYTES] = slab.data[:-PADDING_BYTES]
    return Window(joined, join_programs(parts, slab_starts, arena_starts), parts, slabs, arena_starts)


def test_blocks_joined_into_a_window_decode_as_each_alone() -> None:
    window = window_of([slab_of(sample_arrays(rows)) for rows in (300, 1, 1500, 1024)])
    executor = CudaExecutor(HostRuntime(schedule="shuffled"))
    check_equal(executor, window.program, window.slab)
    found = device_arena(executor, window.program, window.slab)
    for part, slab, start in zip(window.parts, window.slabs, window.arena_starts, strict=True):
        written = items_of(part)
        np.testing.assert_array_equal(found[start : start + part.arena_bytes][written], cpu_arena(part, slab.data)[written])
    chunks = [part.num_rows.size for part in window.parts]
    assert window.program.num_rows.tolist() == [rows for part in window.parts for rows in part.num_rows.tolist()]
    first = int(np.searchsorted(window.program.regions["chunk"], chunks[0]))
    moved, own = window.program.regions[first : first + window.parts[1].regions.size], window.parts[1].regions
    np.testing.assert_array_equal(moved["arena"], own["arena"] + window.arena_starts[1])
    np.testing.assert_array_equal(moved["count"], own["count"])


def test_joining_nothing_and_joining_wrongly() -> None:
    empty = join_programs([], [], [])
    assert (empty.ops.size, empty.level_starts.tolist(), empty.arena_bytes) == (0, [0], 0)
    part = random_program(1).program
    with pytest.raises(ValueError, match="1 programs have 2 slab_starts"):
        join_programs([part], [0, 8], [0])
    with pytest.raises(ValueError, match="multiples of 8"):
        join_programs([part], [4], [0])


def test_1500_columns_of_three_blocks_take_six_launches_at_most() -> None:
    arrays = (cascaded_arrays(40) * 84)[:1500]
    window = window_of([slab_of(arrays), slab_of(arrays[:700]), slab_of(arrays[:20])])
    runtime = HostRuntime()
    executor = CudaExecutor(runtime)
    check_equal(executor, window.program, window.slab)
    assert runtime.launches <= MAX_LAUNCHES
    deep = HostRuntime()
    check_equal(CudaExecutor(deep), *built_of(slab_of([*sample_arrays(3000), *typed_arrays(3000)])))
    assert deep.launches <= MAX_LAUNCHES, "no encoding cascades deeper than the limit"


def built_of(slab: Slab) -> tuple[Program, Array]:
    return build(slab.data, slab.offsets, slab.sizes), slab.data


def test_planes_that_name_a_class_without_a_source_read_nothing() -> None:
    """Shared memory holds what the block before left in it: a class that was not opened there would be read from anywhere."""
    b = ProgramBuilder(1)
    values, classes = b.numbers(2000, 9), b.rng.integers(0, 3, 2000).astype(np.uint8)
    low, high = pack_bits(classes & 1 != 0), pack_bits(classes >> 1 != 0)
    low[30] |= high[30]
    sources = b.neighbours(*(b.packed(values[classes == number]) for number in range(3)))
    anchors = b.stream(class_anchors(classes, 3))
    b.op(OpKind.SPLIT, OutKind.U32, 2000, level=1, first_source=sources, num_sources=3, bits0=b.stream(low), bits1=b.stream(high), anchors=anchors)
    built = b.finish()
    with pytest.raises(CorruptSegmentError, match="rank anchors"):
        device_arena(CudaExecutor(HostRuntime()), built.program, built.slab)


def test_an_error_names_the_chunk_as_the_cpu_does() -> None:
    b = ProgramBuilder(1)
    at = b.dictionary(OutKind.U32, 20)
    for op in range(4):
        codes = b.rng.integers(0, 20, 2500).astype(np.uint32)
        codes[[1500, 2400]] = 20 + (op > 1)
        b.op(OpKind.DIRECT, OutKind.U32, 2500, level=1, first_source=b.packed(codes), dict=at, dict_count=20 + (op < 2))
    built = b.finish()
    with pytest.raises(CorruptSegmentError) as on_cpu:
        cpu.execute(built.program, built.slab, built.arena())
    with pytest.raises(CorruptSegmentError) as on_device:
        device_arena(CudaExecutor(HostRuntime()), built.program, built.slab)
    assert str(on_device.value) == str(on_cpu.value)
    assert "chunk 3 of the request is corrupt: a code is not below" in str(on_device.value)


def test_damaged_programs_are_reported_as_on_the_cpu_and_write_their_own_regions_only() -> None:
    runtime, library = HostRuntime(schedule="greedy reverse", timing="random", seed=1), native.load()
    assert library is not None
    executor, refused = CudaExecutor(runtime), 0
    for seed in range(300):
        damaged = damaged_program(seed)
        said, expected = attempt(executor, damaged), ""
        try:
            library.decode(damaged.slab, np.zeros(damaged.arena_bytes + PADDING_BYTES, np.uint8), damaged.program.ops, damaged.program.sources)
        except CorruptSegmentError as error:
            expected = str(error)
        assert bool(said) == bool(expected), (seed, said, expected)
        refused += bool(said)
    assert 100 < refused < 280
    runtime.finish()


def test_many_decodes_on_their_way_share_few_tables_and_nothing_is_allocated() -> None:
    runtime = HostRuntime(timing="random", seed=5)
    executor = CudaExecutor(runtime, table_bytes=1 << 16, num_tables=2)
    programs = [random_program(seed, max_count=1200, num_ops=6) for seed in range(12)]
    slabs, arenas, stream, copies = [], [], runtime.stream("decode"), runtime.stream("copy")
    for built in programs:
        pinned = runtime.empty_pinned(built.slab.size)
        pinned[:] = built.slab
        slabs.append((pinned, runtime.empty_device(built.slab.size)))
        arenas.append((runtime.empty_pinned(built.program.arena_bytes), runtime.empty_device(built.program.arena_bytes + PADDING_BYTES)))
    before = runtime.allocations
    decodings, copied = [], runtime.event()
    for built, (pinned, slab), (back, arena) in zip(programs, slabs, arenas, strict=True):
        runtime.copy_to_device(slab.address, pinned, copies)
        runtime.record(copied, copies)
        runtime.wait(stream, copied)
        sizes = {"slab_bytes": built.slab.size - PADDING_BYTES, "arena_bytes": built.program.arena_bytes}
        decodings.append(executor.decode(built.program, slab=slab.address, arena=arena.address, stream=stream, copy_stream=copies, **sizes))
        runtime.copy_to_host(back, arena.address, back.size, stream)
    done = runtime.event()
    runtime.record(done, stream)
    runtime.synchronize(done)
    assert runtime.allocations == before
    for built, decoding, (back, _) in zip(programs, decodings, arenas, strict=True):
        decoding.check()
        assert decoding.is_done()
        written = items_of(built.program)
        np.testing.assert_array_equal(back[written], cpu_arena(built.program, built.slab)[written])
    runtime.finish()


def test_a_program_larger_than_its_table_grows_it_loudly_and_once(caplog: pytest.LogCaptureFixture) -> None:
    executor = CudaExecutor(HostRuntime(), table_bytes=1 << 10, num_tables=1)
    built = random_program(3, max_count=1200, num_ops=30)
    with caplog.at_level(logging.WARNING):
        check_equal(executor, built.program, built.slab)
    assert "more than the 1,024 of table_bytes" in caplog.text
    caplog.clear()
    check_equal(executor, built.program, built.slab)
    assert not caplog.text


def test_a_program_without_items_is_done_at_once() -> None:
    runtime = HostRuntime()
    decoding = CudaExecutor(runtime).decode(join_programs([], [], []), slab=0, slab_bytes=0, arena=0, arena_bytes=0, stream=runtime.stream("decode"))
    decoding.check()
    assert (decoding.is_done(), runtime.launches) == (True, 0)


def test_compressed_bytes_are_inflated_behind_the_chunks_and_refused_otherwise() -> None:
    slab = slab_of([typed_arrays(900)[-1], pa.array(np.arange(900))])
    program = build(slab.data, slab.offsets, slab.sizes)
    assert program.features & Feature.COMPRESSED_BYTES
    runtime = HostRuntime()
    with pytest.raises(ValueError, match="inflate compressed bytes"):
        CudaExecutor(runtime).decode(program, slab=0, slab_bytes=0, arena=0, arena_bytes=0, stream=runtime.stream("decode"))
    used = slab.data.size - PADDING_BYTES
    with pytest.raises(ValueError, match="its chunks and what inflates"):
        inflate_into_slab(program, slab.data[:used].copy(), used)
    room = np.concatenate([slab.data[:used], np.zeros(inflated_bytes(program) + PADDING_BYTES, np.uint8)])
    plain, end = inflate_into_slab(program, room, used)
    assert not plain.features & Feature.COMPRESSED_BYTES
    assert used < end <= used + inflated_bytes(program)
    np.testing.assert_array_equal(room[:used], slab.data[:used])
    np.testing.assert_array_equal(cpu_arena(plain, room), cpu_arena(program, slab.data))


def test_the_features_are_the_kernels() -> None:
    library = native.load()
    if library is None:
        pytest.skip("no native library")
    assert int(KNOWN_FEATURES) == library.known_features


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_bytes() -> None:
    """The same claim on the real thing, where there is one."""
    runtime = open_runtime("auto")
    if runtime is None:
        pytest.skip("no usable NVIDIA GPU")
    executor = CudaExecutor(runtime)
    window = window_of([slab_of([*sample_arrays(rows), *typed_arrays(rows)]) for rows in (3000, 1, 1024)])
    for program, slab in [(window.program, window.slab), *((built.program, built.slab) for built in map(random_program, range(200)))]:
        written = items_of(program)
        np.testing.assert_array_equal(device_arena(executor, program, slab)[written], cpu_arena(program, slab)[written])
    damaged = [damaged_program(seed) for seed in range(50)]
    assert any(attempt(executor, one, poisoned=False) for one in damaged)
