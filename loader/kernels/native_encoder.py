"""The encoders of the CPU library: what `loader.encodings` computes with NumPy, faster and the same to the last bit.

Owns their C signatures and the checks of their arrays; `NativeLibrary` inherits them. The GIL is released for the length of every call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from loader.kernels.arrays import VECTOR, VECTOR_META, Array, address, check_dtype

_POINTER, _U64, _U32, _I64, _INT = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int64, ctypes.c_int
ENCODER_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "headrace_pack": ([_POINTER, _U64, _POINTER, _POINTER], _U64),
    "headrace_plan": ([_POINTER, _U64, _INT, _POINTER, _POINTER, _POINTER, _POINTER], None),
    "headrace_pack_planned": ([_POINTER, _U64, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER], _U64),
    "headrace_differences": ([_POINTER, _U64, _INT, _POINTER, _POINTER], None),
    "headrace_split_search": ([_POINTER, _U64, _U32, _POINTER, _POINTER], _U32),
    "headrace_class_sizes": ([_POINTER, _U64, _POINTER, _U32, _POINTER], None),
    "headrace_partition": ([_POINTER, _U64, _POINTER, _U32, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER], None),
    "headrace_distinct": ([_POINTER, _U64, _U32, _U64, _POINTER, _POINTER, _POINTER], _U64),
    "headrace_order_entries": ([_POINTER, _POINTER, _U64, _INT, _POINTER, _POINTER, _POINTER, _U64, _POINTER], _U32),
    "headrace_try_scale": ([_POINTER, _U64, _U32, _U32, _POINTER, _POINTER], None),
    "headrace_fresh_rows": ([_POINTER, _U64, _POINTER, _U64, _POINTER], None),
    "headrace_slide_overlaps": ([_POINTER, _U64, _POINTER, _POINTER, _U64, _I64, _POINTER], None),
    "headrace_distinct_rows": ([_POINTER, _POINTER, _POINTER, _U64, _POINTER, _POINTER], _U64),
}
_PLANE = np.dtype([("items", "<u8"), ("item_bytes", "<u8")])


def _stream(values: Array) -> int:
    check_dtype(values, "values", "<u4")
    return address(values, "values")


def _check_rows(rows: Array, offsets: Array) -> None:
    check_dtype(rows, "rows", "<i8")
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < offsets.size - 1:
        raise ValueError(f"rows from {rows.min()} to {rows.max()} are not all among {offsets.size - 1} rows")


class EncoderMethods:
    """Encoders, for a class that holds the library as `_library`. Streams are contiguous uint32 arrays."""

    _library: Any

    def pack(self, values: Array) -> tuple[Array, Array]:
        """Frame of reference + bit packing of a stream: (words, one VECTOR_META record a vector), as FORMAT.md's PACKED source."""
        at = _stream(values)
        metas = np.empty(-(-values.size // VECTOR), VECTOR_META)
        words = np.empty(metas.size * VECTOR, np.uint32)
        used = self._library.headrace_pack(at, values.size, words.ctypes.data, metas.ctypes.data)
        return words[:used], metas

    def plan(self, values: Array, *, exceptions: bool = False) -> tuple[Array, Array, Array, Array]:
        """Bases (uint32), widths (uint8), words (int64, without exceptions) and numbers of exceptions (int64) of a stream's vectors."""
        at, vectors = _stream(values), -(-values.size // VECTOR)
        bases, widths = np.empty(vectors, np.uint32), np.empty(vectors, np.uint8)
        words, wider = np.empty(vectors, np.int64), np.empty(vectors, np.int64)
        self._library.headrace_plan(
            at, values.size, int(exceptions), bases.ctypes.data, widths.ctypes.data, words.ctypes.data, wider.ctypes.data
        )  # fmt: skip
        return bases, widths, words, wider

    def pack_planned(self, values: Array, bases: Array, widths: Array, words: Array, exceptions: Array) -> tuple[Array, Array]:
        """Words and VECTOR_META records of a stream, packed by what `plan` returned for it."""
        at = _stream(values)
        out, metas = np.empty(int(words.sum() + exceptions.sum()), np.uint32), np.empty(bases.size, VECTOR_META)
        self._library.headrace_pack_planned(
            at, values.size, address(bases, "bases"), address(widths, "widths"), address(words, "words"), address(exceptions, "exceptions"),
            out.ctypes.data, metas.ctypes.data,
        )  # fmt: skip
        return out, metas

    def differences(self, values: Array, *, zigzag: bool = False) -> tuple[Array, Array]:
        """Differences and the anchor of each vector, as `encodings.delta.differences`; zigzagged if asked for."""
        at = _stream(values)
        steps, anchors = np.empty(values.size, np.uint32), np.empty(-(-values.size // VECTOR), np.uint32)
        self._library.headrace_differences(at, values.size, int(zigzag), steps.ctypes.data, anchors.ctypes.data)
        return steps, anchors

    def split_search(self, values: Array, num_classes: int) -> tuple[Array, float]:
        """Thresholds (uint32, at most `num_classes` − 1) and bits a value, as `encodings.split.search`; `values` has at least one."""
        thresholds, bits = np.empty(3, np.uint32), ctypes.c_double()
        found = self._library.headrace_split_search(_stream(values), values.size, num_classes, thresholds.ctypes.data, ctypes.byref(bits))
        return thresholds[:found], bits.value

    def partition(self, values: Array, thresholds: Array) -> tuple[Array, Array | None, Array, list[Array]]:
        """First plane, second (None for two classes), anchors, and the values of each class, as `encodings.split.partition`."""
        at, limits = _stream(values), thresholds.astype(np.uint32)
        if not 1 <= limits.size <= 3:
            raise ValueError(f"a split has 2 to 4 classes, so 1 to 3 thresholds, got {limits.size}")
        if (limits[1:] < limits[:-1]).any():
            raise ValueError(f"thresholds must ascend, got {limits.tolist()}")
        above = np.zeros(3, np.uint64)
        self._library.headrace_class_sizes(at, values.size, limits.ctypes.data, limits.size, above.ctypes.data)
        # values at or above threshold k are in classes after k: what is left is in the classes up to k
        cuts = [0, *(values.size - above[: limits.size].astype(np.int64)).tolist(), values.size]
        # the native code writes up to eight values past the end of a class
        starts = np.array([cut + 8 * number for number, cut in enumerate(cuts)] + [0] * 3, np.uint64)
        vectors = -(-values.size // VECTOR)
        first, second = np.empty(vectors * 32, np.uint32), np.empty(vectors * 32, np.uint32)
        anchors, streams = np.empty(vectors * limits.size, np.uint32), np.empty(values.size + 40, np.uint32)
        self._library.headrace_partition(
            at, values.size, limits.ctypes.data, limits.size, first.ctypes.data, second.ctypes.data, anchors.ctypes.data, streams.ctypes.data,
            starts.ctypes.data,
        )  # fmt: skip
        parts = [streams[start + 8 * number : end + 8 * number] for number, (start, end) in enumerate(zip(cuts[:-1], cuts[1:], strict=True))]
        return first, second if limits.size > 1 else None, anchors, parts

    def distinct(self, values: Array, most: int | None = None) -> tuple[Array, Array, Array] | None:
        """Entries in the order of their first occurrence, codes (uint32) and counts (int64); None if there are more than `most` entries.

        Args:
            values: Integers of 2, 4 or 8 bytes.
            most: Entries at which to give up; default as many as there are values.
        """
        if values.dtype.kind not in "iu" or values.dtype.itemsize == 1:
            raise ValueError(f"values must be integers of 2, 4 or 8 bytes, got {values.dtype}")
        most = values.size if most is None else min(most, values.size)
        entries, codes, counts = np.empty(most, values.dtype), np.empty(values.size, np.uint32), np.empty(most, np.int64)
        found = self._library.headrace_distinct(
            address(values, "values"), values.size, values.dtype.itemsize, most, entries.ctypes.data, codes.ctypes.data, counts.ctypes.data
        )  # fmt: skip
        return None if found == (1 << 64) - 1 else (entries[:found], codes, counts[:found])

    def by_frequency(self, entries: Array, codes: Array, counts: Array, *, split_codes: bool = True) -> tuple[Array, Array, Array]:
        """Entries by class of frequency and value, codes after them, and the first codes of classes 1, 2…: `encodings.dictionary.by_frequency`.

        Args:
            entries: Distinct integers, at least one.
            codes: uint32, below the number of entries.
            counts: int64, how often each entry occurs.
            split_codes: False for one class.
        """
        check_dtype(codes, "codes", "<u4")
        check_dtype(counts, "counts", "<i8")
        unsigned = np.dtype(entries.dtype.str.replace("i", "u"))
        low = np.array(entries.min(), entries.dtype).view(unsigned)
        keys = (entries.view(unsigned) - low).astype(np.uint64)
        order, limits, renumbered = np.empty(entries.size, np.uint32), np.empty(3, np.uint32), np.empty(codes.size, np.uint32)
        if counts.size != entries.size or (codes.size and int(codes.max()) >= entries.size):
            raise ValueError(f"{counts.size} counts and codes up to {int(codes.max())} do not belong to {entries.size} entries")
        found = self._library.headrace_order_entries(
            keys.ctypes.data, address(counts, "counts"), entries.size, int(split_codes), order.ctypes.data, limits.ctypes.data,
            address(codes, "codes"), codes.size, renumbered.ctypes.data,
        )  # fmt: skip
        return entries[order], renumbered, limits[:found]

    def try_scale(self, values: Array, scale: int) -> tuple[Array, Array]:
        """`value × scale` as int64, and whether dividing gives the value's bits again (bool): `encodings.decimals.try_scale`."""
        check_dtype(values, "values", "<f4", "<f8")
        integers, exact = np.empty(values.size, np.int64), np.empty(values.size, np.uint8)
        self._library.headrace_try_scale(address(values, "values"), values.size, values.dtype.itemsize, scale, integers.ctypes.data, exact.ctypes.data)
        return integers, exact.view(np.bool_)

    def fresh_rows(self, planes: Sequence[Array], offsets: Array) -> Array:
        """Which rows differ from the row before, bool: `encodings.overlap.fresh_rows`."""
        table = self._planes(planes, offsets)
        fresh = np.empty(offsets.size - 1, np.uint8)
        self._library.headrace_fresh_rows(table.ctypes.data, table.size, address(offsets, "offsets"), fresh.size, fresh.ctypes.data)
        return fresh.view(np.bool_)

    def slide_overlaps(self, planes: Sequence[Array], offsets: Array, rows: Array, max_slide_items: int) -> Array:
        """How many items each of `rows` (int64) takes over from the end of the one named before it: `encodings.overlap.slide_overlaps`."""
        table = self._planes(planes, offsets)
        _check_rows(rows, offsets)
        overlaps = np.empty(rows.size, np.int64)
        self._library.headrace_slide_overlaps(
            table.ctypes.data, table.size, address(offsets, "offsets"), address(rows, "rows"), rows.size, max_slide_items, overlaps.ctypes.data
        )  # fmt: skip
        return overlaps

    def distinct_rows(self, plane: Array, offsets: Array, rows: Array) -> tuple[Array, Array]:
        """Codes (uint32) of lists by their items' bytes, and where each code first occurs among `rows` (int64).

        Args:
            plane: Items.
            offsets: int64 `[lists + 1]`.
            rows: int64, which lists.
        """
        table = self._planes([plane], offsets)
        _check_rows(rows, offsets)
        codes, first = np.empty(rows.size, np.uint32), np.empty(rows.size, np.int64)
        found = self._library.headrace_distinct_rows(
            table.ctypes.data, address(offsets, "offsets"), address(rows, "rows"), rows.size, codes.ctypes.data, first.ctypes.data
        )  # fmt: skip
        return codes, first[:found]

    def _planes(self, planes: Sequence[Array], offsets: Array) -> Array:
        check_dtype(offsets, "offsets", "<i8")
        lengths = np.diff(offsets)
        if not offsets.size or int(offsets[0]) < 0 or (lengths < 0).any():
            raise ValueError("offsets must start at 0 or above and not fall")
        table = np.zeros(len(planes), _PLANE)
        for record, plane in zip(table, planes, strict=True):
            if plane.size < int(offsets[-1]):
                raise ValueError(f"a plane has {plane.size} items, the offsets end at {int(offsets[-1])}")
            record["items"], record["item_bytes"] = address(plane, "plane"), plane.dtype.itemsize
        return table
