"""Sorted key runs natively: probes and merges. Owns the C record and the checks of arrays; what they mean is `segment.key_run`'s."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from loader.kernels.arrays import Array, address, check_dtype

_POINTER, _U64 = ctypes.c_void_p, ctypes.c_uint64
KEY_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "headrace_probe_keys": ([_POINTER, _POINTER, _POINTER, _U64, _POINTER, _POINTER, ctypes.c_uint32], None),
    "headrace_merge_keys": ([_POINTER, _U64, _POINTER, _POINTER, _POINTER], _U64),
    "headrace_key_bloom": ([_POINTER, _U64, _POINTER, _U64], None),
}
KEY_RUN = np.dtype(
    [("low", "<u8"), ("high", "<u8"), ("places", "<u8"), ("count", "<u8"), ("bloom", "<u8"), ("bloom_blocks", "<u8"), ("bases", "<u8"), ("accept", "<u8"),
     ("dead", "<u8"), ("shifts", "<u8"), ("num_segments", "<u8"), ("names", "<u8")]
)  # fmt: skip


class KeyMethods:
    """Probes and merges of key runs, for a class that holds the library as `_library`."""

    _library: Any

    def probe_keys(self, run: Array, low: Array, high: Array | None, segments: Array, rows: Array, threads: int = 1) -> None:
        """Find keys in a run.

        Args:
            run: One KEY_RUN record; what its addresses name outlives the call.
            low: uint64 [n], low words of the keys.
            high: uint64 [n], their high words; None for keys of one word, as in the run.
            segments: int64 [n], set where it is negative and the key is found: the segment as the run names it.
            rows: int64 [n], set with it: the row in the segment.
            threads: How many share the keys, if they are thousands.
        """
        check_dtype(low, "low", "<u8")
        check_dtype(segments, "segments", "<i8")
        check_dtype(rows, "rows", "<i8")
        if low.size >= 1 << 32 or segments.size != low.size or rows.size != low.size or (high is not None and high.size != low.size):
            raise ValueError(f"segments and rows must be as many as the {low.size} keys, fewer than 2^32; got {segments.size} and {rows.size}")
        self._library.headrace_probe_keys(
            address(run, "run", alignment=8), address(low, "low"), None if high is None else address(high, "high"), low.size,
            address(segments, "segments", writable=True), address(rows, "rows", writable=True), threads,
        )  # fmt: skip

    def merge_keys(self, runs: Array, low: Array, high: Array | None, places: Array) -> int:
        """Merge runs: their entries that count, sorted, with `shifts` added to their places.

        Args:
            runs: KEY_RUN records.
            low: uint64, room for the entries of all runs.
            high: uint64, the same; None for keys of one word.
            places: uint32, the same.

        Returns:
            How many entries there are.
        """
        needed = int(runs["count"].sum())
        if min(low.size, places.size, needed if high is None else high.size) < needed:
            raise ValueError(f"low, high and places need room for {needed} entries, got {low.size} and {places.size}")
        check_dtype(places, "places", "<u4")
        count: int = self._library.headrace_merge_keys(
            address(runs, "runs", alignment=8), runs.size, address(low, "low", writable=True),
            None if high is None else address(high, "high", writable=True), address(places, "places", writable=True),
        )  # fmt: skip
        return count

    def key_bloom(self, low: Array, blocks: int) -> Array:
        """The filter of keys, uint32 [8 · blocks], as `segment.key_index` lays it out."""
        check_dtype(low, "low", "<u8")
        bloom = np.zeros(8 * blocks, np.uint32)
        self._library.headrace_key_bloom(address(low, "low"), low.size, address(bloom, "bloom", writable=True), blocks)
        return bloom
