"""Laying out segments natively: headers, chunks in file order, footers, key indexes. Owns the C records; what they mean is FORMAT.md's."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from loader.kernels.arrays import Array, address

_POINTER, _U64 = ctypes.c_void_p, ctypes.c_uint64
SEGMENT_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "headrace_lay_segments": ([_POINTER, _POINTER, _U64], _POINTER),
    "headrace_write_segments": ([_POINTER, _POINTER, _POINTER], None),
    "headrace_build_key_indexes": ([_POINTER, _POINTER, _POINTER, _POINTER, _U64, _POINTER, _POINTER], None),
}
SECTION = np.dtype([("kind", "<u4"), ("record_bytes", "<u4"), ("count", "<u8"), ("bytes", "<u8"), ("num_bytes", "<u8")])
SEGMENT_PLAN = np.dtype(
    [("sections", "<u8"), ("num_sections", "<u8"), ("column_ids", "<u8"), ("file_order", "<u8"), ("num_columns", "<u8"), ("num_blocks", "<u8"),
     ("properties", "<u8"), ("properties_bytes", "<u8"), ("features", "<u8"), ("pointers", "<u8"), ("made", "<u8"), ("notes", "<u8"), ("note_ends", "<u8"),
     ("block_rows", "<u8"), ("reserved", "<u8")]
)  # fmt: skip
SEGMENT_PART = np.dtype(
    [("first_block", "<u8"), ("num_blocks", "<u8"), ("key_index", "<u8"), ("key_index_bytes", "<u8"), ("offset", "<u8"), ("num_bytes", "<u8"),
     ("segment_id", "V16")]
)  # fmt: skip


class SegmentMethods:
    """Segment layout, for a class that holds the library as `_library`."""

    _library: Any

    def write_segments(self, plan: Array, parts: Array) -> Array:
        """Lay out segments one after the other, each on 64 bytes.

        Args:
            plan: One SEGMENT_PLAN record; what its addresses name outlives the call.
            parts: SEGMENT_PART records; their offset and num_bytes are set.

        Returns:
            The bytes of all of them, uint8.
        """
        at = address(parts, "parts", writable=True, alignment=8)
        writers = self._library.headrace_lay_segments(address(plan, "plan", alignment=8), at, parts.size)
        out = np.zeros(int(parts["offset"][-1] + parts["num_bytes"][-1]) if parts.size else 0, np.uint8)
        self._library.headrace_write_segments(writers, at, out.ctypes.data)
        return out

    def build_key_indexes(self, low: Array, high: Array | None, bounds: Array, blocks: Array, offsets: Array, num_bytes: int) -> Array:
        """KEY_INDEX sections, as `segment.key_index.build` makes them.

        Args:
            low: uint64, low words of the keys of all sections.
            high: uint64, their high words, None for keys of one word.
            bounds: uint64, the first key of each section, and behind them the number of keys.
            blocks: int64, blocks of each section's filter.
            offsets: int64, where each section goes.
            num_bytes: Of all sections.

        Returns:
            uint8 `[num_bytes]`.
        """
        if bounds.size != blocks.size + 1 or (np.diff(bounds.astype(np.int64)) < 0).any() or int(bounds[-1]) > low.size:
            raise ValueError(f"bounds must rise up to {low.size} keys and be one more than {blocks.size} sections, got {bounds[:20].tolist()}")
        low = np.ascontiguousarray(low, np.uint64)
        high = None if high is None else np.ascontiguousarray(high, np.uint64)
        out = np.zeros(num_bytes, np.uint8)
        self._library.headrace_build_key_indexes(
            low.ctypes.data, None if high is None else high.ctypes.data, address(bounds, "bounds"), address(blocks, "blocks"), blocks.size,
            address(offsets, "offsets"), out.ctypes.data,
        )  # fmt: skip
        return out
