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
