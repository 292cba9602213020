"""List columns through ctypes: many of them laid end to end, some rows at a time. Owns their C signatures; `NativeLibrary` inherits the methods."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from loader.errors import CorruptSegmentError, ForkedProcessError
from loader.kernels.arrays import Array, address, check_dtype, item_bytes

LIST_POOL = np.dtype(
    [("pool", "<u8"), ("views", "<u8"), ("pool_count", "<u8"), ("base", "<u8"), ("pool_item_bytes", "<u4"), ("out_item_bytes", "<u4"),
     ("starts_group", "<u4"), ("reserved", "<u4")]
)  # fmt: skip
_POINTER, _U64, _U32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32
LIST_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "headrace_list_measure": ([_POINTER, _U64, _U64, _U64, _POINTER, _POINTER, _POINTER], _U64),
    "headrace_list_rows_start": ([_POINTER, _U64, _U64, _U64, _POINTER, _POINTER, _POINTER, _POINTER, _U32], _POINTER),
    "headrace_list_rows_finish": ([_POINTER, _POINTER], _U64),
}
_ALL_ONES = (1 << 64) - 1
LISTS_PER_TILE = 1_024  # what one thread lays out at a time


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


class ListTable:
    """List columns of one number of rows, checked once, as native code reads them.

    Attributes:
        columns: What was checked; kept alive.
        num_rows: Lists of each.
        groups: (dtype, first, stop) of neighbours of one dtype: their items lie end to end, column after column.
        records: LIST_POOL records, addresses into `columns`.
    """

    def __init__(self, columns: Sequence[ListPool]) -> None:
        """
        Args:
            columns: In an order that puts those of one dtype together.

        Raises:
            ValueError: Arrays do not fit, or the columns have different numbers of lists.
        """
        self.columns = tuple(columns)
        self.num_rows = self.columns[0].views.size if self.columns else 0
        firsts = [at for at, column in enumerate(self.columns) if at == 0 or column.dtype != self.columns[at - 1].dtype]
        self.groups = [(self.columns[first].dtype, first, stop) for first, stop in itertools.pairwise([*firsts, len(self.columns)])]
        self.records = np.array([self._record(column, at in firsts) for at, column in enumerate(self.columns)], LIST_POOL)
        self.address = self.records.ctypes.data

    def _record(self, column: ListPool, starts_group: bool) -> tuple[int, ...]:
        check_dtype(column.views, "views", "<u8")
        size = item_bytes(column.pool, "pool")
        if column.dtype.itemsize < size:
            raise ValueError(f"items of {column.dtype} are narrower than the pool's {column.pool.dtype}")
        if column.views.size != self.num_rows:
            raise ValueError(f"columns have {self.num_rows} and {column.views.size} lists")
        places = address(column.pool, "pool"), address(column.views, "views"), column.pool.size, column.base & _ALL_ONES
        return *places, size, column.dtype.itemsize, starts_group, 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ListRows:
    """Some rows of list columns, measured: how their memory is laid out. It holds the offsets, int64 `[columns, rows + 1]`, then the items.

    Attributes:
        table: The columns.
        first: The first of the rows.
        num_rows: How many.
        num_bytes: Of the memory.
        figures: uint64: the items of each tile of each column, of each column, and the byte where each column's items begin.
    """

    table: ListTable
    first: int
    num_rows: int
    num_bytes: int
    figures: Array

    @property
    def counts(self) -> Array:
        """uint64 `[columns]`: items."""
        return self.figures[-2 * len(self.table.columns) : -len(self.table.columns)]

    @property
    def starts(self) -> Array:
        """uint64 `[columns]`: the byte where a column's items begin."""
        return self.figures[-len(self.table.columns) :]

    def offsets(self, memory: Array) -> Array:
        """int64 `[columns, rows + 1]`, a view of the memory."""
        shape = len(self.table.columns), self.num_rows + 1
        return memory[: 8 * shape[0] * shape[1]].view(np.int64).reshape(shape)

    def values(self, memory: Array, first: int, stop: int) -> Array:
        """The items of neighbouring columns of one dtype, a view of the memory."""
        dtype, start = self.table.columns[first].dtype, int(self.starts[first])
        return memory[start : start + int(self.counts[first:stop].sum()) * dtype.itemsize].view(dtype)


class ListMethods:
    """Lists laid end to end, for a class that holds the library as `_library`."""

    _library: Any

    def measure_lists(self, table: ListTable, first: int, num_rows: int) -> ListRows:
        """Find out how much memory some rows take.

        Raises:
            ValueError: The columns do not have those rows.
        """
        if not 0 <= first <= first + num_rows <= table.num_rows:
            raise ValueError(f"rows {first} to {first + num_rows} of {table.num_rows}")
        count = len(table.columns)
        num_sums = count * -(-num_rows // LISTS_PER_TILE)
        figures = np.empty(num_sums + 2 * count, np.uint64)
        at = figures.ctypes.data
        num_bytes = self._library.headrace_list_measure(table.address, count, first, num_rows, at, at + 8 * num_sums, at + 8 * (num_sums + count))
        return ListRows(table=table, first=first, num_rows=num_rows, num_bytes=num_bytes, figures=figures)

    def start_lists(self, rows: ListRows, memory: Array, threads: int = 1) -> StartedLists:
        """Begin to lay lists end to end, with their offsets. With several threads others go on with it while the caller does something else.

        Args:
            rows: From `measure_lists`; the views have not changed since.
            memory: uint8, `rows.num_bytes` at least; written.
            threads: How many share the tiles, the one that finishes it among them.

        Raises:
            ValueError: The memory is too small.
        """
        check_dtype(memory, "memory", "|u1")
        if memory.size < rows.num_bytes:
            raise ValueError(f"memory has {memory.size} bytes, the rows take {rows.num_bytes}")
        return StartedLists(self._library, rows, memory, max(threads, 1))

    def lay_lists(self, rows: ListRows, memory: Array, threads: int = 1) -> None:
        """Lay lists end to end, with their offsets: `start_lists` and its `finish`, arguments and errors as they have them."""
        self.start_lists(rows, memory, threads).finish()


class StartedLists:
    """Lists on their way into memory, which it keeps alive; threads write there until it is finished or dropped."""

    def __init__(self, library: Any, rows: ListRows, memory: Array, threads: int) -> None:
        self._library, self._rows, self._memory, self._process = library, rows, memory, os.getpid()
        count, at = len(rows.table.columns), rows.figures.ctypes.data
        num_sums = rows.figures.size - 2 * count
        self._started = library.headrace_list_rows_start(
            rows.table.address, count, rows.first, rows.num_rows, at, at + 8 * num_sums, at + 8 * (num_sums + count),
            address(memory, "memory", writable=True, alignment=8), threads,
        )  # fmt: skip

    def finish(self) -> None:
        """Lay what is not laid yet, and wait for the rest; a second call does nothing.

        Raises:
            CorruptSegmentError: A view reaches outside of its pool; names the column by its number.
            ForkedProcessError: It was started in another process.
        """
        if self._process != os.getpid():
            raise ForkedProcessError(f"lists laid out in process {self._process} are finished in its fork {os.getpid()}: start workers with spawn")
        started, self._started = self._started, None
        if started is None:
            return
        bad = ctypes.c_uint64()
        column = self._library.headrace_list_rows_finish(started, ctypes.byref(bad))
        if column != len(self._rows.table.columns):
            raise CorruptSegmentError(f"list column {column} of the request is corrupt: list {self._rows.first + bad.value} reaches outside of its pool")

    def __del__(self) -> None:
        # in a fork the threads are gone, and nobody but them wrote there
        if getattr(self, "_started", None) is not None and self._process == os.getpid():
            self._library.headrace_list_rows_finish(self._started, ctypes.byref(ctypes.c_uint64()))
