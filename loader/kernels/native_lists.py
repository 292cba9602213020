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
    "headrace_list_rows": ([_POINTER, _U64, _POINTER, _U64, _POINTER, _U64, _POINTER, _POINTER, _POINTER, _U32], _U64),
}
_ALL_ONES = (1 << 64) - 1
TILE_ROWS = 1_024
ALIGNMENT = 64  # of the items of each dtype


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
class ListLayout:
    """List columns of one number of rows, checked and measured: how the memory of each batch of their rows is laid out.

    A batch's memory holds the offsets, int64 `[columns, rows + 1]`, then the items of column after column, those of one dtype without a gap.

    Attributes:
        columns: What is laid out.
        batch_rows: Rows of a batch; the last has what is left.
        num_bytes: Of a batch's memory, the same for all batches.
        starts: int64 `[batches, columns]`, the byte where a column's items begin.
        counts: int64 `[batches, columns]`, its items.
        records: LIST_POOL records, addresses into `columns`.
        bounds: int64 `[tiles + 1]`, rows: what one thread lays out at a time. No tile is in two batches.
        sums: int64 `[columns, tiles]`, items.
        first_tile: The first tile of each batch, and the number of tiles.
    """

    columns: tuple[ListPool, ...]
    batch_rows: int
    num_bytes: int
    starts: Array
    counts: Array
    records: Array
    bounds: Array
    sums: Array
    first_tile: tuple[int, ...]

    def num_rows(self, batch: int) -> int:
        return int(self.bounds[self.first_tile[batch + 1]] - self.bounds[self.first_tile[batch]])

    def offsets(self, batch: int, memory: Array) -> Array:
        """int64 `[columns, rows + 1]`, a view of a batch's memory."""
        shape = len(self.columns), self.num_rows(batch) + 1
        return memory[: 8 * shape[0] * shape[1]].view(np.int64).reshape(shape)

    def values(self, batch: int, memory: Array, column: int) -> Array:
        """A column's items, a view of a batch's memory."""
        dtype, start = self.columns[column].dtype, int(self.starts[batch, column])
        return memory[start : start + int(self.counts[batch, column]) * dtype.itemsize].view(dtype)


class ListMethods:
    """Lists laid end to end, for a class that holds the library as `_library`."""

    _library: Any

    def plan_lists(self, columns: Sequence[ListPool], batch_rows: int, threads: int = 1) -> ListLayout:
        """Check and measure list columns once for all their batches.

        Args:
            columns: One at least, in an order that puts those of one dtype together and wide dtypes first.
            batch_rows: Rows of a batch.
            threads: How many share the columns.

        Raises:
            ValueError: Arrays do not fit, or the columns have no lists, or different numbers of them.
        """
        records = np.array([_record(column, columns[0].views.size) for column in columns], LIST_POOL)
        num_rows = columns[0].views.size
        if not num_rows:
            raise ValueError("columns without a list have nothing to lay out")
        batches, tiles = np.arange(0, num_rows, batch_rows), np.arange(0, batch_rows, TILE_ROWS)
        bounds = (batches[:, None] + tiles).reshape(-1)
        bounds = np.append(bounds[bounds < num_rows], num_rows)
        first_tile = (*range(0, batches.size * tiles.size, tiles.size), bounds.size - 1)
        sums = np.empty((len(columns), bounds.size - 1), np.int64)
        self._library.headrace_list_sums(records.ctypes.data, len(columns), bounds.ctypes.data, bounds.size - 1, sums.ctypes.data, max(threads, 1))
        counts = np.ascontiguousarray(np.add.reduceat(sums, first_tile[:-1], axis=1).T)
        starts, num_bytes = _starts(counts, [column.dtype for column in columns], 8 * len(columns) * (min(batch_rows, num_rows) + 1))
        return ListLayout(
            columns=tuple(columns), batch_rows=batch_rows, num_bytes=num_bytes, starts=starts, counts=counts, records=records, bounds=bounds, sums=sums,
            first_tile=first_tile,
        )  # fmt: skip

    def lay_lists(self, layout: ListLayout, batch: int, memory: Array, threads: int = 1) -> None:
        """Lay the lists of a batch end to end, with their offsets.

        Args:
            layout: From `plan_lists`.
            batch: Its number.
            memory: uint8, `layout.num_bytes` at least; written.
            threads: How many share the tiles.

        Raises:
            ValueError: The memory is too small.
            CorruptSegmentError: A view reaches outside of its pool; names the column by its number.
        """
        check_dtype(memory, "memory", "|u1")
        if memory.size < layout.num_bytes:
            raise ValueError(f"memory has {memory.size} bytes, a batch takes {layout.num_bytes}")
        first, stop = layout.first_tile[batch : batch + 2]
        count, out, bad = len(layout.columns), address(memory, "memory", writable=True, alignment=8), ctypes.c_uint64()
        column = self._library.headrace_list_rows(
            layout.records.ctypes.data, count, layout.bounds.ctypes.data + 8 * first, stop - first, layout.sums.ctypes.data + 8 * first, layout.sums.shape[1],
            layout.starts.ctypes.data + 8 * count * batch, out, ctypes.byref(bad), max(threads, 1),
        )  # fmt: skip
        if column != count:
            row = int(layout.bounds[first]) + bad.value
            raise CorruptSegmentError(f"list column {column} of the request is corrupt: list {row} reaches outside of its pool")


def _record(column: ListPool, num_lists: int) -> tuple[int, ...]:
    check_dtype(column.views, "views", "<u8")
    size = item_bytes(column.pool, "pool")
    if column.dtype.itemsize < size:
        raise ValueError(f"items of {column.dtype} are narrower than the pool's {column.pool.dtype}")
    if column.views.size != num_lists:
        raise ValueError(f"columns have {num_lists} and {column.views.size} lists")
    return address(column.pool, "pool"), address(column.views, "views"), column.pool.size, column.base & _ALL_ONES, size, column.dtype.itemsize


def _starts(counts: Array, dtypes: Sequence[np.dtype[Any]], offset_bytes: int) -> tuple[Array, int]:
    """Where the items of each column begin in each batch, and the bytes of the largest batch."""
    starts, at = np.empty(counts.shape, np.int64), np.full(counts.shape[0], offset_bytes)
    for number, dtype in enumerate(dtypes):
        if number == 0 or dtype != dtypes[number - 1]:
            at = -(-at // ALIGNMENT) * ALIGNMENT
        starts[:, number] = at
        at = at + counts[:, number] * dtype.itemsize
    return starts, int(at.max())
