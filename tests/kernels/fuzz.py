"""Decodes randomly corrupted programs; run in a process of its own, so that a crash is seen. Prints how many were refused.

python tests/kernels/fuzz.py LIBRARY FIRST_SEED NUM_SEEDS
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from loader.errors import CorruptSegmentError
from loader.kernels import native
from loader.segment.layout import PADDING_BYTES
from tests.kernels.programs import Array, random_program

INTERESTING = np.array(
    [0, 1, 31, 32, 33, 255, 1023, 1024, 1025, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF, 1 << 32, (1 << 64) - 8, (1 << 64) - 1], np.uint64
)


def damage_records(records: Array, rng: np.random.Generator) -> None:
    """Put an interesting number, or one near the old, into a random field."""
    name = str(rng.choice(records.dtype.names or ()))
    index, size = int(rng.integers(0, records.size)), records.dtype[name].itemsize
    near = int(records[name][index]) + int(rng.integers(-70, 70))
    value = int(rng.choice(INTERESTING)) if rng.random() < 0.5 else near
    raw = np.array([value % (1 << 64)], np.uint64).view(np.uint8)[:size]
    records[name][index : index + 1] = raw.view(records.dtype[name])


def damage_slab(slab: Array, rng: np.random.Generator) -> None:
    at = int(rng.integers(0, max(slab.size - PADDING_BYTES, 1)))
    if rng.random() < 0.5:
        slab[at] = rng.integers(0, 256)
    else:
        word = slab[at // 4 * 4 : at // 4 * 4 + 4]
        word[:] = np.array([int(rng.choice(INTERESTING)) % (1 << 32)], np.uint32).view(np.uint8)[: word.size]


def attempt(library: native.NativeLibrary, seed: int) -> bool:
    """Whether the damaged program was refused. Buffers end exactly where the padding does, so that a sanitizer sees the next byte."""
    built, rng = random_program(seed, max_count=3000, num_ops=4), np.random.default_rng(seed + 1_000_000)
    slab, ops, sources = built.slab.copy(), built.program.ops.copy(), built.program.sources.copy()
    for _ in range(int(rng.integers(1, 4))):
        choice = rng.random()
        if choice < 0.5:
            damage_slab(slab, rng)
        else:
            damage_records(ops if choice < 0.8 or not sources.size else sources, rng)
    if rng.random() < 0.1:
        slab = slab[: PADDING_BYTES + (slab.size - PADDING_BYTES) // 16 * 8].copy()
    library.force_portable(seed % 2 == 1)
    arena = np.full(built.program.arena_bytes + PADDING_BYTES, 0xA5, np.uint8)
    try:
        library.decode(slab, arena, ops, sources, threads=1 + seed % 3)
        refused = False
    except CorruptSegmentError:
        refused = True
    assert (arena[-PADDING_BYTES:] == 0xA5).all(), f"seed {seed} wrote into the padding"
    return refused


if __name__ == "__main__":
    loaded = native.NativeLibrary(sys.argv[1])
    first, count = int(sys.argv[2]), int(sys.argv[3])
    refused_count = sum(attempt(loaded, seed) for seed in range(first, first + count))
    sys.stdout.write(f"{refused_count} of {count} refused\n")
