"""Several blocks' decode programs as one, so that a whole window is a launch a level, however many blocks and columns it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loader.decode.program import NO_OFFSET, PROGRAM_OP, PROGRAM_SOURCE, REGION_ITEM, Program
from loader.segment.layout import OpKind, SourceKind

Array = np.ndarray[Any, np.dtype[Any]]
_SLAB_OFFSETS = ("anchors", "scan_anchors", "bits0", "bits1", "patches")


def join_programs(programs: Sequence[Program], slab_starts: Sequence[int], arena_starts: Sequence[int]) -> Program:
    """One program over one slab and one arena. Chunks, regions and sources are numbered on from one program to the next.

    Args:
        programs: Each over a slab and an arena of its own.
        slab_starts: Where each slab starts in the joined one; a multiple of 8 bytes.
        arena_starts: Where each arena starts in the joined one; a multiple of 64 bytes.

    Raises:
        ValueError: Starts that are not as many as programs, or not aligned.
    """
    if not len(programs) == len(slab_starts) == len(arena_starts):
        raise ValueError(f"{len(programs)} programs have {len(slab_starts)} slab_starts and {len(arena_starts)} arena_starts: one each")
    if any(start % 8 for start in slab_starts) or any(start % 64 for start in arena_starts):
        raise ValueError(f"slab_starts {list(slab_starts)} must be multiples of 8 and arena_starts {list(arena_starts)} of 64")
    ops = [np.zeros(0, PROGRAM_OP)]
    sources, regions, num_rows = [np.zeros(0, PROGRAM_SOURCE)], [np.zeros(0, REGION_ITEM)], [np.zeros(0, np.int64)]
    num_sources = num_chunks = 0
    for program, slab_start, arena_start in zip(programs, slab_starts, arena_starts, strict=True):
        ops.append(_moved_ops(program, slab_start, arena_start, num_sources, num_chunks))
        sources.append(_moved_sources(program, slab_start, arena_start))
        moved = program.regions.copy()
        moved["chunk"] += num_chunks
        moved["arena"] += arena_start
        regions.append(moved)
        num_rows.append(program.num_rows)
        num_sources += program.sources.size
        num_chunks += program.num_rows.size
    table = np.concatenate(ops)
    order = np.argsort(table["level"], kind="stable")
    levels = table["level"][order]
    features = 0
    for program in programs:
        features |= program.features
    return Program(
        ops=table[order],
        sources=np.concatenate(sources),
        level_starts=np.searchsorted(levels, np.arange(int(levels[-1]) + 2 if levels.size else 1)).astype(np.int64),
        regions=np.concatenate(regions),
        num_rows=np.concatenate(num_rows),
        arena_bytes=max((start + program.arena_bytes for program, start in zip(programs, arena_starts, strict=True)), default=0),
        features=features,
    )


def _moved_ops(program: Program, slab_start: int, arena_start: int, num_sources: int, num_chunks: int) -> Array:
    ops = program.ops.copy()
    for name in _SLAB_OFFSETS:
        ops[name] = np.where(ops[name] == NO_OFFSET, ops[name], ops[name] + np.uint64(slab_start))
    ops["dict"] = np.where(ops["dict"] == NO_OFFSET, ops["dict"], ops["dict"] + np.uint64(arena_start))
    ops["out"] += np.uint64(arena_start)
    ops["first_source"] += np.uint32(num_sources)
    ops["chunk"] += np.uint32(num_chunks)
    return ops


def _moved_sources(program: Program, slab_start: int, arena_start: int) -> Array:
    """Packed words, bits and what copies read lie in the slab; other plain sources in the arena."""
    sources = program.sources.copy()
    in_arena = sources["kind"] == SourceKind.PLAIN
    in_arena[program.ops["first_source"][program.ops["kind"] == OpKind.COPY]] = False
    sources["data"] += np.where(in_arena, np.uint64(arena_start), np.uint64(slab_start))
    sources["meta"] += np.uint64(slab_start)
    return sources
