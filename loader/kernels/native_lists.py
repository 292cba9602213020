"""List columns through ctypes: many of them laid end to end, some rows at a time. Owns their C signatures; `NativeLibrary` inherits the methods."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from loader.errors import CorruptSegmentError
from loader.kernels.arrays import Array, address, check_dtype, item_bytes

LIST_POOL = np.dtype(
    [("pool", "<u8"), ("views", "<u8"), ("pool_count", "<u8"), ("base", "<u8"), ("pool_item_bytes", "<u4"), ("out_item_bytes", "<u4")]
)  # fmt: skip
_POINTER, _U64, _U32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32
LIST_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "headrace_list_sums": ([_POINTER, _U64, _POINTER, _U64, _POINTER, _U32], None),
    "headrace_list_rows": ([_POINTER, _U64, _POINTER, _U64, _POINTER, _U64, _POINTER, _POINTER, _POINTER, _U32], None),
}
_ALL_ONES = (1 << 64) - 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ListPool:
    """A list column as it was decoded.

    Attributes:
        pool: Items of 1, 2, 4 or 8 bytes.
        base: Added to each item (zero-extended, modulo 2^bits of `dtype`).
        views: uint64 `[lists]`, start in the low half, length in the high.
        dtype: Of the values, not narrower than the pool's.
    """

    pool: Array
    base: int
    views: Array
    dtype: np.dtype[Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ListTable:
    """List columns of one number of rows, checked, as native code reads them.

    Attributes:
        records: LIST_POOL records, addresses into `columns`.
        columns: What they were made of, which they keep alive.
    """

    records: Array
    columns: tuple[ListPool, ...]


class ListMethods:
    """Lists laid end to end, for a class that holds the library as `_library`."""

    _library: Any

    @staticmethod
    def list_table(columns: Sequence[ListPool]) -> ListTable:
        """Check list columns once for all calls.

        Raises:
            ValueError: Arrays do not fit, or the columns have different numbers of lists.
        """
        records = []
        for column in columns:
            check_dtype(column.views, "views", "<u8")
            size = item_bytes(column.pool, "pool")
            if column.dtype.itemsize < size:
                raise ValueError(f"items of {column.dtype} are narrower than the pool's {column.pool.dtype}")
            if column.views.size != columns[0].views.size:
                raise ValueError(f"columns have {columns[0].views.size} and {column.views.size} lists")
            records.append(
                (address(column.pool, "pool"), address(column.views, "views"), column.pool.size, column.base & _ALL_ONES, size, column.dtype.itemsize)
            )
        return ListTable(records=np.array(records, LIST_POOL), columns=tuple(columns))

    def list_sums(self, table: ListTable, bounds: Array, threads: int = 1) -> Array:
        """int64 `[columns, tiles]`: the items of lists `bounds[t]` to `bounds[t + 1]` of each column.

        Args:
            table: The columns.
            bounds: int64 `[tiles + 1]`, ascending from 0 to at most the number of lists.
            threads: How many share the columns.
        """
        self._check_bounds(table, bounds)
        sums = np.empty((table.records.size, bounds.size - 1), np.int64)
        self._library.headrace_list_sums(table.records.ctypes.data, table.records.size, bounds.ctypes.data, bounds.size - 1, sums.ctypes.data, max(threads, 1))
        return sums

    def list_rows(self, table: ListTable, bounds: Array, sums: Array, offsets: Array, out: Array, starts: Array, threads: int = 1) -> None:
        """Lay lists `bounds[0]` to `bounds[-1]` of all columns end to end.

        Args:
            table: The columns.
            bounds: int64 `[tiles + 1]`, ascending: the pieces that threads share.
            sums: int64 `[columns, tiles]`, those of `list_sums`; a slice of its tiles will do.
            offsets: int64 `[columns, rows + 1]`, written: where each list begins in its column.
            out: uint8, written: the items.
            starts: int64 `[columns]`, the byte of `out` where each column's items begin, as many as its sums.
            threads: How many share the pieces.

        Raises:
            ValueError: Arrays do not fit.
            CorruptSegmentError: A view reaches outside of its pool; names the column by its number.
        """
        self._check_bounds(table, bounds)
        count, num_rows = table.records.size, int(bounds[-1] - bounds[0])
        check_dtype(sums, "sums", "<i8")
        if sums.shape != (count, bounds.size - 1) or sums.strides[1] != 8:
            raise ValueError(f"sums of shape {sums.shape} and strides {sums.strides} do not fit {count} columns and {bounds.size - 1} tiles")
        check_dtype(starts, "starts", "<i8")
        check_dtype(offsets, "offsets", "<i8")
        if offsets.shape != (count, num_rows + 1) or starts.size != count:
            raise ValueError(f"offsets of shape {offsets.shape} and {starts.size} starts do not fit {count} columns of {num_rows} lists")
        size = table.records["out_item_bytes"].astype(np.int64)
        if count and ((starts < 0) | (starts % size != 0) | (starts + sums.sum(axis=1) * size > out.size)).any():
            raise ValueError(f"out has {out.size} bytes, the columns do not fit into it at {starts}")
        check_dtype(out, "out", "|u1")
        outs, bad = address(out, "out", writable=True, alignment=8) + starts, np.empty(count, np.int64)
        self._library.headrace_list_rows(
            table.records.ctypes.data, count, bounds.ctypes.data, bounds.size - 1, sums.ctypes.data, sums.strides[0] // 8,
            address(offsets, "offsets", writable=True), outs.ctypes.data, bad.ctypes.data, max(threads, 1),
        )  # fmt: skip
        wrong = np.flatnonzero(bad != num_rows)
        if wrong.size:
            number, row = int(wrong[0]), int(bounds[0] + bad[wrong[0]])
            raise CorruptSegmentError(f"list column {number} of the request is corrupt: list {row} reaches outside of its pool")

    @staticmethod
    def _check_bounds(table: ListTable, bounds: Array) -> None:
        check_dtype(bounds, "bounds", "<i8")
        most = table.columns[0].views.size if table.columns else 0
        if bounds.ndim != 1 or not bounds.flags.c_contiguous or bounds.size < 2 or int(bounds[0]) < 0 or int(bounds[-1]) > most or (np.diff(bounds) < 0).any():
            raise ValueError(f"bounds must ascend from 0 to at most {most} lists, got {bounds}")
