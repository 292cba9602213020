"""Compressed bytes of a program, inflated into the arena before an executor runs the other ops."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from loader.decode.program import Program
from loader.errors import CorruptSegmentError
from loader.segment.layout import COPY_IS_ZSTD, OUT_ITEM_BYTES, Feature, OpKind

Array = np.ndarray[Any, np.dtype[Any]]


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
    packed = (program.ops["kind"] == OpKind.COPY) & (program.ops["flags"] & COPY_IS_ZSTD != 0)
    for op in program.ops[packed]:
        source = program.sources[int(op["first_source"])]
        start, size = int(source["data"]), int(op["count"]) * int(OUT_ITEM_BYTES[op["out_kind"]])
        if not size:
            continue
        try:
            frame = pa.py_buffer(slab[start : start + int(source["num_words"])])
            items = pa.Codec("zstd").decompress(frame, decompressed_size=size)
        except (OSError, ValueError) as error:
            raise CorruptSegmentError(f"chunk {int(op['chunk'])} of the request is corrupt: compressed bytes do not inflate: {error}") from None
        if items.size != size:
            raise CorruptSegmentError(f"chunk {int(op['chunk'])} of the request is corrupt: compressed bytes inflate to {items.size:,} bytes, not {size:,}")
        arena[int(op["out"]) : int(op["out"]) + size] = np.frombuffer(items, np.uint8)
    left = ~packed
    levels = np.arange(program.level_starts.size)
    level_starts = np.searchsorted(program.ops["level"][left], levels).astype(np.int64)
    features = program.features & ~int(Feature.COMPRESSED_BYTES)
    return dataclasses.replace(program, ops=program.ops[left], level_starts=level_starts, features=features)
