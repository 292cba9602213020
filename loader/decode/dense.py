"""Open chunks decoded ahead: what is looked up again and again is copied from where it stands rather than unpacked each time.

A decoded region is the same region of a program whose only op copies it, so that every type, every check and both look-ups, native and reference, stay as they
are. It takes as much memory as the decoded columns, where encoded chunks take what they take in the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loader.decode import cpu
from loader.decode.program import NO_OFFSET, PROGRAM_OP, PROGRAM_SOURCE, Program
from loader.decode.rows import OpenChunks
from loader.encodings.leaf import LeafType
from loader.segment.layout import ALIGNMENT, PADDING_BYTES, OpKind, OutKind, Role, SourceKind

Array = np.ndarray[Any, np.dtype[Any]]
_OUT_KINDS = {1: OutKind.U8, 2: OutKind.U16, 4: OutKind.U32, 8: OutKind.U64}


def dense_bytes(chunks: OpenChunks) -> int:
    """About what chunks take in memory once they are decoded."""
    shown = _shown(chunks.program, chunks.leaves)
    return int((_sizes(shown) + ALIGNMENT + PROGRAM_OP.itemsize + PROGRAM_SOURCE.itemsize + 32).sum()) + PADDING_BYTES


def densed(chunks: OpenChunks) -> OpenChunks:
    """The same chunks, decoded; those that are read in parts, or copied already, stay as they are.

    Raises:
        CorruptSegmentError: A stream holds what its op cannot use.
    """
    program = chunks.program
    shown = _shown(program, chunks.leaves)
    is_known = (shown["count"] < 1 << 32).all() and np.isin(shown["item_bytes"], list(_OUT_KINDS)).all()
    if chunks.is_partial or not is_known or (program.ops["kind"] == OpKind.COPY).all():
        return chunks
    arena = np.empty(program.arena_bytes + PADDING_BYTES, np.uint8)
    cpu.execute(program, chunks.slab, arena)
    sizes = _sizes(shown)
    rooms = -(-sizes // ALIGNMENT) * ALIGNMENT
    starts = np.cumsum(rooms) - rooms
    slab = np.empty(int(rooms.sum()) + PADDING_BYTES, np.uint8)
    slab[slab.size - PADDING_BYTES :] = 0
    for start, size, before in zip(starts.tolist(), sizes.tolist(), shown["arena"].tolist(), strict=True):
        slab[start : start + size] = arena[before : before + size]
    shown["arena"] = starts
    return OpenChunks(_copies(shown, program.num_rows, int(rooms.sum())), slab, chunks.leaves, where=chunks.where)


def _shown(program: Program, leaves: tuple[LeafType, ...]) -> Array:
    """The regions that columns are made of: scratch, and dictionaries that several look up, are needed no more."""
    regions = program.regions
    found: Array = regions[(regions["role"] != Role.SCRATCH) & (regions["chunk"] < len(leaves))]
    return found


def _sizes(regions: Array) -> Array:
    return np.asarray(regions["count"] * regions["item_bytes"].astype(np.int64))


def _copies(regions: Array, num_rows: Array, arena_bytes: int) -> Program:
    """A program that copies each region from the place in the slab that it has in the arena."""
    ops, sources = np.zeros(len(regions), PROGRAM_OP), np.zeros(len(regions), PROGRAM_SOURCE)
    ops["kind"], ops["num_sources"] = OpKind.COPY, 1
    ops["out_kind"] = [_OUT_KINDS[size] for size in regions["item_bytes"].tolist()]
    ops["count"], ops["chunk"], ops["out"] = regions["count"], regions["chunk"], regions["arena"]
    ops["first_source"] = np.arange(len(regions))
    for name in ("dict", "anchors", "scan_anchors", "bits0", "bits1", "patches"):
        ops[name] = NO_OFFSET
    sources["kind"], sources["data"], sources["count"] = SourceKind.PLAIN, regions["arena"], regions["count"]
    level_starts = np.array([0, len(regions)] if len(regions) else [0], np.int64)
    return Program(ops=ops, sources=sources, level_starts=level_starts, regions=regions, num_rows=num_rows, arena_bytes=arena_bytes)
