"""The native `program.build`, through ctypes: records of a request's chunks, counted and then filled into arrays of the caller's.

Owns its C signatures; `NativeLibrary` inherits the methods. What is wrong with a chunk is not said here: the NumPy reference does.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from loader.kernels.arrays import Array, address, check_dtype

MAX_LEVELS = 256
MAX_ARENA_BYTES = 1 << 56  # sums of larger regions may not fit 64 bits
_POINTER, _U64 = ctypes.c_void_p, ctypes.c_uint64


class ProgramRequest(ctypes.Structure):
    """`program::Request` of program.h."""

    _fields_ = (
        ("slab", _POINTER), ("slab_bytes", _U64), ("offsets", _POINTER), ("sizes", _POINTER), ("shared", _POINTER), ("num_chunks", _U64),
        ("max_arena_bytes", _U64), ("regions", _POINTER), ("ops", _POINTER), ("sources", _POINTER), ("num_rows", _POINTER), ("level_starts", _POINTER),
        ("num_regions", _U64), ("num_ops", _U64), ("num_sources", _U64), ("arena_bytes", _U64), ("features", _U64), ("num_level_starts", _U64),
    )  # fmt: skip


PROGRAM_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "headrace_program_open": ([ctypes.POINTER(ProgramRequest)], ctypes.c_int),
    "headrace_program_build": ([ctypes.POINTER(ProgramRequest)], ctypes.c_int),
}


class ProgramMethods:
    """Building of programs, for a class that holds the library as `_library`."""

    _library: Any

    def build_program(
        self, slab: Array, slab_bytes: int, offsets: Array, sizes: Array, shared: Array | None, max_arena_bytes: int, records: tuple[np.dtype[Any], ...]
    ) -> dict[str, Any] | None:
        """The fields of a `Program`, or None where the chunks do not hold together.

        Args:
            slab: uint8 on 8 bytes.
            slab_bytes: Of it, without the padding.
            offsets: int64 `[chunks]`.
            sizes: int64 `[chunks]`.
            shared: int64 `[chunks]`, or None.
            max_arena_bytes: Refuse to decode to more than this.
            records: The dtypes REGION_ITEM, PROGRAM_OP and PROGRAM_SOURCE.
        """
        for array, name in ((offsets, "offsets"), (sizes, "sizes"), (offsets if shared is None else shared, "shared")):
            check_dtype(array, name, "<i8")
            if array.size != offsets.size:
                raise ValueError(f"{name} has {array.size} items for {offsets.size} chunks")
        if slab_bytes < 0 or slab.ctypes.data % 8 or not slab.flags.c_contiguous or not 0 <= max_arena_bytes < MAX_ARENA_BYTES:
            return None
        request = ProgramRequest(
            slab=address(slab, "slab", alignment=8), slab_bytes=slab_bytes, offsets=address(offsets, "offsets"), sizes=address(sizes, "sizes"),
            shared=None if shared is None else address(shared, "shared"), num_chunks=offsets.size, max_arena_bytes=max_arena_bytes,
        )  # fmt: skip
        if self._library.headrace_program_open(request):
            return None
        counts = (request.num_regions, request.num_ops, request.num_sources)
        regions, ops, sources = (np.empty(count, record) for count, record in zip(counts, records, strict=True))
        num_rows, level_starts = np.empty(offsets.size, np.int64), np.empty(MAX_LEVELS + 1, np.int64)
        request.regions, request.ops, request.sources = regions.ctypes.data, ops.ctypes.data, sources.ctypes.data
        request.num_rows, request.level_starts = num_rows.ctypes.data, level_starts.ctypes.data
        if self._library.headrace_program_build(request):
            return None
        return {
            "ops": ops, "sources": sources, "level_starts": level_starts[: request.num_level_starts], "regions": regions, "num_rows": num_rows,
            "arena_bytes": request.arena_bytes, "features": request.features,
        }  # fmt: skip
