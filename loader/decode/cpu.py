"""The CPU executor: the native kernels where the library is compiled and knows a program's features, else the NumPy reference; equal bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from loader.decode import reference
from loader.decode.inflate import inflate
from loader.decode.program import Program
from loader.kernels import native
from loader.segment.layout import Feature

Array = np.ndarray[Any, np.dtype[Any]]
_THIN = int(Feature.NULLS | Feature.LIST_VIEWS | Feature.DICTIONARY)  # what a library without a word of its own can run


def execute(program: Program, slab: Array, arena: Array, threads: int = 1) -> None:
    """Run all ops of a program.

    Args:
        program: From `program.build` on this slab.
        slab: uint8 on 8 bytes, the encoded chunks and PADDING_BYTES of padding.
        arena: uint8 on 8 bytes, at least `program.arena_bytes` and PADDING_BYTES of padding; written in place.
        threads: How many share the vectors of a level; the reference uses one.

    Raises:
        CorruptSegmentError: A stream holds what its op cannot use; names the chunk by its position in the request.
    """
    program = inflate(program, slab, arena)
    library = native.load()
    if library is None or program.features & ~getattr(library, "known_features", _THIN):
        reference.execute(program, slab, arena)
    else:
        library.decode(slab, arena, program.ops, program.sources, threads)
