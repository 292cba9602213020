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
    owner, ops = _ops_by_level(programs)
    source_owner = np.repeat(np.arange(len(programs)), [program.sources.size for program in programs])
    region_owner = np.repeat(np.arange(len(programs)), [program.regions.size for program in programs])
    slabs, arenas = np.array(slab_starts, np.uint64), np.array(arena_starts, np.uint64)
    sources = _end_to_end([program.sources for program in programs], PROGRAM_SOURCE)
    regions = _end_to_end([program.regions for program in programs], REGION_ITEM)
    num_rows = np.concatenate([np.zeros(0, np.int64), *(program.num_rows for program in programs)])
    first_chunks = _before([program.num_rows.size for program in programs])
    _move_ops(ops, slabs[owner], arenas[owner])
    ops["first_source"] += _before([program.sources.size for program in programs])[owner]
    ops["chunk"] += first_chunks[owner]
    _move_sources(sources, ops, slabs[source_owner], arenas[source_owner])
    regions["chunk"] += first_chunks[region_owner]
    regions["arena"] += arenas[region_owner].astype(np.int64)
    levels = np.arange(max((program.level_starts.size for program in programs), default=1))
    features = 0
    for program in programs:
        features |= program.features
    return Program(
        ops=ops, sources=sources, level_starts=np.searchsorted(np.ascontiguousarray(ops["level"]), levels).astype(np.int64), regions=regions, num_rows=num_rows,
        arena_bytes=max((start + program.arena_bytes for program, start in zip(programs, arena_starts, strict=True)), default=0), features=features,
    )  # fmt: skip


def _end_to_end(parts: Sequence[Array], record: np.dtype[Any]) -> Array:
    """Records as bytes: NumPy joins structured arrays field by field, at a tenth of the speed."""
    return np.concatenate([np.zeros(0, np.uint8), *(np.ascontiguousarray(part).view(np.uint8) for part in parts)]).view(record)


def _before(sizes: Sequence[int]) -> Array:
    """What is before each program; uint32."""
    return (np.cumsum(sizes) - sizes).astype(np.uint32)


def _ops_by_level(programs: Sequence[Program]) -> tuple[Array, Array]:
    """The program that each op is of, and the ops: level by level, as they stand in each program."""
    owners: list[Array] = [np.zeros(0, np.int64)]
    parts: list[Array] = []
    for level in range(max((program.level_starts.size - 1 for program in programs), default=0)):
        for number, program in enumerate(programs):
            if level + 1 < program.level_starts.size:
                first, end = program.level_starts[level : level + 2].tolist()
                parts.append(program.ops[first:end])
                owners.append(np.full(end - first, number))
    return np.concatenate(owners), _end_to_end(parts, PROGRAM_OP)


def _move_ops(ops: Array, slab: Array, arena: Array) -> None:
    """Add each op's starts to its offsets, those that it has."""
    words = ops.view(np.uint64).reshape(ops.size, PROGRAM_OP.itemsize // 8)
    for name, start in (("dict", arena), *((name, slab) for name in _SLAB_OFFSETS)):
        column = words[:, PROGRAM_OP.fields[name][1] // 8]  # type: ignore[index]
        column += np.where(column == NO_OFFSET, np.uint64(0), start)
    ops["out"] += arena


def _move_sources(sources: Array, ops: Array, slab: Array, arena: Array) -> None:
    """Packed words, bits and what copies read lie in the slab; other plain sources in the arena."""
    in_arena = sources["kind"] == SourceKind.PLAIN
    in_arena[ops["first_source"][ops["kind"] == OpKind.COPY]] = False
    sources["data"] += np.where(in_arena, arena, slab)
    sources["meta"] += slab
