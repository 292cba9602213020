"""Runs sound and damaged programs through the CUDA executor on the host runtime; in a process of its own, under sanitizers.

python tests/kernels/fuzz_device.py FOLDER_OF_SHIMS SCHEDULE FIRST_SEED NUM_SEEDS
"""

from __future__ import annotations

import ctypes
import dataclasses
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from loader.decode.cuda import CudaExecutor
from loader.decode.program import Program
from loader.errors import CorruptSegmentError
from loader.kernels import host_memory
from loader.kernels.host_memory import FRESH, HostMemory, Space
from loader.kernels.host_runtime import HostRuntime
from loader.segment.layout import OUT_ITEM_BYTES, PADDING_BYTES
from tests.kernels.fuzz import damage_records, damage_slab
from tests.kernels.programs import Array, random_program


@dataclasses.dataclass
class Damaged:
    """A program with its slab, some of it wrong.

    Attributes:
        arena_bytes: What the sound program writes into.
    """

    program: Program
    slab: Array
    arena_bytes: int


def damaged_program(seed: int, times: int | None = None) -> Damaged:
    """A random program with one to three things wrong in its slab or tables. Levels stay: they are a builder's promise."""
    built, rng = random_program(seed, max_count=1500, num_ops=4), np.random.default_rng(seed + 1_000_000)
    slab, ops, sources = built.slab.copy(), built.program.ops.copy(), built.program.sources.copy()
    for _ in range(int(rng.integers(1, 4)) if times is None else times):
        if rng.random() < 0.6:
            damage_slab(slab, rng)
        else:
            damage_records(ops if rng.random() < 0.6 or not sources.size else sources, rng)
    ops["level"] = built.program.ops["level"]
    return Damaged(dataclasses.replace(built.program, ops=ops, sources=sources), slab, built.program.arena_bytes)


def items_of(program: Program) -> Array:
    """Which bytes of the arena some op writes."""
    written = np.zeros(program.arena_bytes, np.bool_)
    for op in program.ops:
        start = int(op["out"])
        written[start : start + int(op["count"]) * int(OUT_ITEM_BYTES[op["out_kind"]])] = True
    return written


def attempt(executor: CudaExecutor, damaged: Damaged, *, poisoned: bool = True) -> str:
    """What is said of a program, empty if nothing; fails if anything but its ops' own items was written. Buffers end where the padding does.

    Args:
        executor: Of any runtime.
        damaged: The program.
        poisoned: Whether fresh device memory holds the host runtime's pattern: only there can strange writes be seen.
    """
    runtime, slab, arena_bytes = executor.runtime, damaged.slab, damaged.arena_bytes
    pinned, back = runtime.empty_pinned(slab.size), runtime.empty_pinned(arena_bytes + PADDING_BYTES)
    pinned[:] = slab
    on_device, arena, stream, done = runtime.empty_device(slab.size), runtime.empty_device(back.size), runtime.stream("decode"), runtime.event()
    runtime.copy_to_device(on_device.address, pinned, stream)
    sizes = {"slab_bytes": slab.size - PADDING_BYTES, "arena_bytes": arena_bytes}
    try:
        decoding = executor.decode(damaged.program, slab=on_device.address, arena=arena.address, stream=stream, **sizes)
    except CorruptSegmentError as error:
        runtime.record(done, stream)
        runtime.synchronize(done)
        return str(error)
    runtime.copy_to_host(back, arena.address, back.size, stream)
    runtime.record(done, stream)
    runtime.synchronize(done)
    if poisoned:
        assert (back[:arena_bytes][~items_of(damaged.program)] == FRESH).all()
        assert (back[arena_bytes:] == FRESH).all()
    failure = decoding.failure()
    return "" if failure is None else str(failure.error)


def poison_guards() -> None:
    """Make AddressSanitizer refuse the bytes around every allocation, for reads too."""
    host_memory.GUARD_BYTES = 1 << 16
    poison, born = ctypes.CDLL(None).__asan_poison_memory_region, Space._born
    poison.argtypes, poison.restype = (ctypes.c_void_p, ctypes.c_size_t), None

    def born_with_guards(space: Space, memory: HostMemory) -> None:
        born(space, memory)
        for guard in (memory._before, memory._after):
            poison(guard.ctypes.data, guard.size)

    Space._born = born_with_guards  # type: ignore[method-assign]


if __name__ == "__main__":
    poison_guards()
    folder, schedule, first, count = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    device = CudaExecutor(HostRuntime(schedule=schedule, timing="random", seed=first, folder=folder))
    said = [attempt(device, damaged_program(seed, 0 if seed % 4 == 0 else None)) for seed in range(first, first + count)]
    assert not any(said[-first % 4 :: 4]), "a sound program was refused"
    sys.stdout.write(f"{sum(map(bool, said))} of {count} refused\n")
