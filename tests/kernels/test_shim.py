"""The GPU branch of the kernels, run on the CPU under schedules that find missing barriers, gives the reference's bytes."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from loader.decode import reference
from loader.decode.program import Program
from loader.kernels import native
from loader.segment.layout import VECTOR, OpKind, OutKind
from tests.kernels.programs import Array, Built, ProgramBuilder, random_program
from tests.kernels.shim import SCHEDULES, Shim
from tests.kernels.test_native import random_lists

FIXED_COLUMN = np.dtype([("values", "<u8"), ("out", "<u8"), ("item_bytes", "<u4"), ("num_values", "<u4")])
LIST_COLUMN = np.dtype([("views", "<u8"), ("pool", "<u8"), ("base", "<i8"), ("pool_item_bytes", "<u4"), ("pool_count", "<u4")])


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run_levels(shim: Shim, program: Program, slab: Array, arena: Array) -> int:
    """Launches decode_stage once a level, as a GPU executor does; returns the error word."""
    error = np.array([native.NO_ERROR], np.uint64)
    for first, end in zip(program.level_starts[:-1].tolist(), program.level_starts[1:].tolist(), strict=True):
        ops = np.ascontiguousarray(program.ops[first:end])
        items = np.concatenate([[0], np.cumsum(-(-ops["count"].astype(np.int64) // VECTOR))]).astype(np.uint32)
        grid = (max(-(-int(items[-1]) // 8), 1), 1)
        shim.launch("decode_stage", grid, slab, arena, ops, program.sources, items, np.uint32(first), np.uint32(ops.size), error)
    return int(error[0])


@pytest.mark.parametrize("seed", range(12))
def test_decode_stage_equals_the_reference(build_folder: pathlib.Path, schedule: str, seed: int) -> None:
    built = random_program(seed, max_count=1300, num_ops=16)
    want, arena = built.arena(), built.arena()
    reference.execute(built.program, built.slab, want)
    assert run_levels(Shim(build_folder, "decode.cu", schedule), built.program, built.slab, arena) == native.NO_ERROR
    np.testing.assert_array_equal(arena, want)


def bad_codes() -> Built:
    b = ProgramBuilder(1)
    at = b.dictionary(OutKind.U32, 20)
    for op in range(4):
        codes = b.rng.integers(0, 20, 2500).astype(np.uint32)
        codes[[1500, 2400]] = 20 + (op > 1)
        b.op(OpKind.DIRECT, OutKind.U32, 2500, level=1, first_source=b.packed(codes), dict=at, dict_count=20 + (op < 2))
    return b.finish()


def test_the_first_error_is_reported_whatever_the_schedule(build_folder: pathlib.Path, schedule: str) -> None:
    built = bad_codes()
    word = run_levels(Shim(build_folder, "decode.cu", schedule), built.program, built.slab, built.arena())
    op, vector, reason = native.describe_error(word)
    assert (op, vector) == (3, 1)
    assert "dictionary" in reason


def addresses(dtype: np.dtype, **columns: list[object]) -> Array:
    records = np.zeros(len(next(iter(columns.values()))), dtype)
    for name, values in columns.items():
        records[name] = [value.ctypes.data if isinstance(value, np.ndarray) else value for value in values]
    return records


def test_gather_columns_equals_numpy_and_reports_rows_outside(build_folder: pathlib.Path, schedule: str) -> None:
    rng, n = np.random.default_rng(1), 2100
    values = [rng.integers(0, 200, 900).astype(f"<u{size}") for size in (1, 2, 4, 8)]
    rows = rng.integers(0, 900, n).astype(np.uint32)
    outs = [np.zeros(n, column.dtype) for column in values]
    table = addresses(FIXED_COLUMN, values=values, out=outs, item_bytes=[1, 2, 4, 8], num_values=[900] * 4)
    error, shim = np.array([native.NO_ERROR], np.uint64), Shim(build_folder, "assemble.cu", schedule)
    shim.launch("gather_columns", (1, 4), table, rows, np.uint32(n), error)
    assert int(error[0]) == native.NO_ERROR
    for column, out in zip(values, outs, strict=True):
        np.testing.assert_array_equal(out, column[rows])
    rows[1500] = 900
    shim.launch("gather_columns", (1, 4), table, rows, np.uint32(n), error)
    assert int(error[0]) == 0 << 32 | 1 << 8 | 4


@pytest.mark.parametrize("wide", [False, True])
def test_lists_are_laid_out_as_the_native_library_does(build_folder: pathlib.Path, library: native.NativeLibrary, schedule: str, wide: bool) -> None:
    rng, n = np.random.default_rng(2), 1500
    pools = [rng.integers(0, 200, 700).astype(kind) for kind in ("<u1", "<u4", "<u2")]
    bases, views = [0, -5, 1 << 20], [random_lists(seed, n, 700) for seed in range(3)]
    views[1][:1400] &= np.uint64(0xFFFF_FFFF)  # a run of empty lists longer than a tile
    out_type = np.uint64 if wide else np.uint32
    lengths = np.concatenate([v >> np.uint64(32) for v in views])
    want_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total, tiles = int(want_offsets[-1]), -(-n // 1024)
    want = np.empty(total, out_type)
    for column in range(3):
        part = want[want_offsets[column * n] : want_offsets[(column + 1) * n]]
        if pools[column].itemsize <= part.itemsize:
            library.gather_lists(pools[column], bases[column], views[column], part)
    table = addresses(LIST_COLUMN, views=views, pool=pools, base=bases, pool_item_bytes=[1, 4, 2], pool_count=[700] * 3)
    sums, tile_bases, offsets = np.zeros(3 * tiles, np.uint32), np.zeros(3 * tiles + 1, np.uint64), np.zeros(3 * n + 1, np.int64)
    capacity, values = total + 100, np.zeros(total + 100, out_type)
    first_list, error, shim = np.zeros(-(-capacity // 2048) + 1, np.uint32), np.array([native.NO_ERROR], np.uint64), Shim(build_folder, "assemble.cu", schedule)
    shim.launch("list_tile_sums", (tiles, 3), table, np.uint32(n), sums, error)
    shim.launch("scan_tiles", (1, 1), sums, np.uint32(sums.size), tile_bases)
    shim.launch("list_offsets", (tiles, 3), table, np.uint32(n), tile_bases, offsets, first_list, np.uint64(capacity))
    np.testing.assert_array_equal(offsets, want_offsets)
    kernel, grid = "list_values_i64" if wide else "list_values_i32", (-(-capacity // 2048), 1)
    shim.launch(kernel, grid, table, np.uint32(n), np.uint32(3), offsets, first_list, values, np.uint64(capacity), error)
    np.testing.assert_array_equal(values[:total], want)
    assert int(error[0]) == native.NO_ERROR
    assert not values[total:].any()
    shim.launch(kernel, grid, table, np.uint32(n), np.uint32(3), offsets, first_list, values, np.uint64(total - 1), error)
    assert native.describe_error(int(error[0]))[2] == native.describe_error(6)[2]


def test_views_outside_of_their_pool_count_as_empty_and_are_reported(build_folder: pathlib.Path, schedule: str) -> None:
    pool, views = np.arange(10, dtype=np.uint32), np.array([2 | 3 << 32, 8 | 5 << 32, 9 | 1 << 32], np.uint64)
    table = addresses(LIST_COLUMN, views=[views], pool=[pool], base=[0], pool_item_bytes=[4], pool_count=[10])
    sums, error = np.zeros(1, np.uint32), np.array([native.NO_ERROR], np.uint64)
    Shim(build_folder, "assemble.cu", schedule).launch("list_tile_sums", (1, 1), table, np.uint32(3), sums, error)
    assert (int(sums[0]), int(error[0])) == (4, 5)


def test_shim_finds_misused_barriers_and_lets_warps_vote(tmp_path: pathlib.Path, build_folder: pathlib.Path) -> None:
    source = (
        '#include "lanes.cuh"\nextern "C" __global__ void half(u32* out) { if (threadIdx.x < 128) __syncthreads(); out[threadIdx.x] = 1; }\n'
        'extern "C" __global__ void votes(u32* out) {\n'
        "    const u32 lane = threadIdx.x, even = __ballot_sync(0xffffffffu, lane % 2 == 0), other = __shfl_xor_sync(0xffffffffu, lane, 1);\n"
        "    const u32 any = __any_sync(0xffffffffu, lane == 40), all = __all_sync(0xffffffffu, lane < 200), below = __shfl_down_sync(0xffffffffu, lane, 2);\n"
        "    out[lane] = even + other + any * 1000 + all * 50 + below;\n}\n"
        'extern "C" __global__ void unguarded(u32* out) { __shared__ u32 x[256]; x[threadIdx.x] = threadIdx.x; out[threadIdx.x] = x[255 - threadIdx.x]; }\n'
        "SHIM_KERNEL(half)\nSHIM_KERNEL(unguarded)\nSHIM_KERNEL(votes)\n"
    )
    (tmp_path / "planted.cu").write_text(source.replace("lanes.cuh", str(pathlib.Path(native.build.FOLDER, "lanes.cuh"))))
    out = np.zeros(256, np.uint32)
    with pytest.raises(RuntimeError, match="__syncthreads not reached by every thread"):
        Shim(tmp_path, str(tmp_path / "planted.cu"), "forward").launch("half", (1, 1), out)
    for name in SCHEDULES:
        Shim(tmp_path, str(tmp_path / "planted.cu"), name).launch("unguarded", (1, 1), out)
        assert not np.array_equal(out, np.arange(256)[::-1])
        Shim(tmp_path, str(tmp_path / "planted.cu"), name).launch("votes", (1, 1), out)
        lane = np.arange(256)
        below = np.where(lane % 32 < 30, lane + 2, lane)
        np.testing.assert_array_equal(out, 0x55555555 + (lane ^ 1) + 1000 * (lane // 32 == 1) + 50 * (lane < 192) + below)
