"""Rows by number through the CPU library. Owns the C records of a look-up and the call; what they mean is `loader.decode.rows`'s.

Imports no Arrow: a result is the address of an Arrow C array that the caller imports. The GIL is released for the length of a call.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Any, NamedTuple

import numpy as np

from loader.kernels.arrays import Array, address

_POINTER, _U64 = ctypes.c_void_p, ctypes.c_uint64
ROW_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "headrace_take_rows": ([_POINTER, _POINTER, _U64, _POINTER, _U64, _U64, _U64, _POINTER], None),
    "headrace_free_ranges": ([_POINTER], None),
    "headrace_release_rows": ([_POINTER], None),
}
MAX_LEVELS = 8  # lists around a value
ROW_PROGRAM = np.dtype(
    [("slab", "<u8"), ("slab_bytes", "<u8"), ("present", "<u8"), ("ops", "<u8"), ("num_ops", "<u8"), ("sources", "<u8"), ("num_sources", "<u8"),
     ("regions", "<u8"), ("num_regions", "<u8")]
)  # fmt: skip
ROW_COLUMN = np.dtype([("program", "<u8"), ("chunk", "<u8")])
ROW_GROUP = np.dtype([("rows", "<u8"), ("places", "<u8"), ("num_rows", "<u8")])
ROW_FIELD = np.dtype([("depth", "u1"), ("value_type", "u1"), ("value_bytes", "u1"), ("flags", "u1"), ("levels", "u1", MAX_LEVELS), ("fixed_size", "<u4")])
ROW_RANGE = np.dtype([("program", "<u8"), ("offset", "<u8"), ("num_bytes", "<u8")])
ROW_RESULT = np.dtype([("array", "V80"), ("status", "<u4"), ("reason", "<u4"), ("group", "<u4"), ("field", "<u4"), ("missing", "<u8"), ("num_missing", "<u8")])
FIELD_BITS, FIELD_BYTES, FIELD_FIXED_BINARY, FIELD_TEXT, FIELD_INTEGER, FIELD_WEIGHTS = 1, 2, 4, 8, 16, 32
LEVEL_LIST, LEVEL_LARGE_LIST, LEVEL_LIST_VIEW, LEVEL_LARGE_LIST_VIEW = 0, 1, 2, 3
ROW_REASONS = {
    32: "an item is asked for that its region does not have",
    33: "its regions are not those of its column's type",
    34: "strings do not hold together: invalid UTF-8",
    35: "its lists add up to more than a look-up may make",
}


class RowsStatus(enum.IntEnum):
    """How a look-up ended."""

    DONE = 0
    CORRUPT = 1
    MISSING = 2  # bytes of the slab that have not been read
    DEEP = 3  # a program that is better decoded whole
    MEMORY = 4


class TakenRows(NamedTuple):
    """What a look-up led to; a tuple, because many are made.

    Attributes:
        status: DONE or why not.
        reason: For CORRUPT, a key of `native.REASONS`.
        group: Where that was.
        field: Where in the group.
        missing: For MISSING, ROW_RANGE records: bytes of slabs that must be read first; `program` is the address of a ROW_PROGRAM.
        array: For DONE, the address of an ArrowArray, valid until `release_rows`.
        record: Holds the array.
    """

    status: int
    reason: int
    group: int
    field: int
    missing: Array
    array: int
    record: Array


_NONE_MISSING = np.zeros(0, ROW_RANGE)


class RowMethods:
    """Look-ups of rows, for a class that holds the library as `_library`."""

    _library: Any

    def take_rows(self, columns: Array, groups: Array, fields: Array, num_rows: int, max_bytes: int) -> TakenRows:
        """Look up rows of several programs as one Arrow struct array. Whoever calls keeps everything alive that records point to.

        Args:
            columns: ROW_COLUMN records `[groups, fields]`.
            groups: ROW_GROUP records: rows (uint32) of a program and their places in the result, each place at most once.
            fields: ROW_FIELD records.
            num_rows: Of the result; places that no group names are null.
            max_bytes: The most that a result may take.
        """
        if columns.dtype != ROW_COLUMN or groups.dtype != ROW_GROUP or fields.dtype != ROW_FIELD or columns.size != groups.size * fields.size:
            raise ValueError(f"columns must be ROW_COLUMN records for {groups.size} groups of {fields.size} fields, got {columns.size} of {columns.dtype}")
        result = np.zeros(1, ROW_RESULT)
        at = address(result, "result", alignment=8)
        self._library.headrace_take_rows(
            address(columns, "columns", alignment=8), address(groups, "groups", alignment=8), groups.size, address(fields, "fields", alignment=4), fields.size,
            num_rows, max_bytes, at,
        )  # fmt: skip
        _, status, reason, group, field, missing, num_missing = result.item()
        ranges = _NONE_MISSING
        if status == RowsStatus.MISSING:
            ranges = np.frombuffer(ctypes.string_at(missing, num_missing * ROW_RANGE.itemsize), ROW_RANGE)
            self._library.headrace_free_ranges(missing)
        return TakenRows(status, reason, group, field, ranges, at, result)

    def release_rows(self, taken: TakenRows) -> None:
        """Free a result's arrays unless somebody imported them."""
        self._library.headrace_release_rows(taken.array)
