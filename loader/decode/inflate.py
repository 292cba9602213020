"""Compressed bytes of a program, inflated into the arena before an executor runs the other ops."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from loader.decode.program import PROGRAM_SOURCE, Program
from loader.errors import CorruptSegmentError
from loader.segment.layout import ALIGNMENT, COPY_IS_ZSTD, OUT_ITEM_BYTES, Feature, OpKind, SourceKind

Array = np.ndarray[Any, np.dtype[Any]]


def _compressed(program: Program) -> Array:
    return np.asarray((program.ops["kind"] == OpKind.COPY) & (program.ops["flags"] & COPY_IS_ZSTD != 0))


def _inflated(program: Program, slab: Array, op: Any) -> Array:
    """The items of a compressed op, uint8."""
    source = program.sources[int(op["first_source"])]
    start, size = int(source["data"]), int(op["count"]) * int(OUT_ITEM_BYTES[op["out_kind"]])
    if not size:
        return np.zeros(0, np.uint8)
    try:
        frame = pa.py_buffer(slab[start : start + int(source["num_words"])])
        items = pa.Codec("zstd").decompress(frame, decompressed_size=size)
    except (OSError, ValueError) as error:
        raise CorruptSegmentError(f"chunk {int(op['chunk'])} of the request is corrupt: compressed bytes do not inflate: {error}") from None
    if items.size != size:
        raise CorruptSegmentError(f"chunk {int(op['chunk'])} of the request is corrupt: compressed bytes inflate to {items.size:,} bytes, not {size:,}")
    return np.frombuffer(items, np.uint8)


def inflate(program: Program, slab: Array, arena: Array) -> Program:
    """Inflate what is compressed; returns the program that is left to run.

    Args:
        program: From `program.build` on this slab.
        slab: uint8, the encoded chunks.
        arena: uint8, written in place.

    Raises:
        CorruptSegmentError: A frame does not inflate to its op's items; names the chunk by its position in the request.
    """
    if not program.features & Feature.COMPRESSED_BYTES:
        return program
    packed = _compressed(program)
    for op in program.ops[packed]:
        items = _inflated(program, slab, op)
        arena[int(op["out"]) : int(op["out"]) + items.size] = items
    left = ~packed
    levels = np.arange(program.level_starts.size)
    level_starts = np.searchsorted(program.ops["level"][left], levels).astype(np.int64)
    features = program.features & ~int(Feature.COMPRESSED_BYTES)
    return dataclasses.replace(program, ops=program.ops[left], level_starts=level_starts, features=features)


def inflated_bytes(program: Program) -> int:
    """How many bytes `inflate_into_slab` needs behind the chunks, at most."""
    if not program.features & Feature.COMPRESSED_BYTES:
        return 0
    ops = program.ops[_compressed(program)]
    sizes = ops["count"].astype(np.int64) * OUT_ITEM_BYTES[ops["out_kind"]]
    return int((-(-sizes // ALIGNMENT) * ALIGNMENT).sum()) + ALIGNMENT


def inflate_into_slab(program: Program, slab: Array, used_bytes: int) -> tuple[Program, int]:
    """Inflate what is compressed behind the chunks, so that a device copies it as it does plain bytes.

    Args:
        program: From `program.build` on this slab.
        slab: uint8, the encoded chunks and room for `inflated_bytes(program)` behind them; written in place.
        used_bytes: Of the slab, the chunks.

    Returns:
        The program that is left to run, and how many bytes of the slab it uses.

    Raises:
        CorruptSegmentError: As for `inflate`.
        ValueError: The slab has no room.
    """
    if not program.features & Feature.COMPRESSED_BYTES:
        return program, used_bytes
    if slab.size < used_bytes + inflated_bytes(program):
        raise ValueError(f"the slab has {slab.size:,} bytes, its chunks and what inflates behind them take {used_bytes + inflated_bytes(program):,}")
    ops, sources = program.ops.copy(), [program.sources]
    num_sources = program.sources.size
    for number in np.flatnonzero(_compressed(program)).tolist():
        op = ops[number]
        items = _inflated(program, slab, op)
        used_bytes = -(-used_bytes // ALIGNMENT) * ALIGNMENT
        slab[used_bytes : used_bytes + items.size] = items
        source = np.zeros(1, PROGRAM_SOURCE)
        source["kind"], source["count"], source["data"] = int(SourceKind.PLAIN), op["count"], used_bytes
        # a source of its own: several ops may read one frame
        ops["first_source"][number], ops["flags"][number] = num_sources, 0
        sources.append(source)
        num_sources += 1
        used_bytes += items.size
    features = program.features & ~int(Feature.COMPRESSED_BYTES)
    return dataclasses.replace(program, ops=ops, sources=np.concatenate(sources), features=features), used_bytes
