"""A decoded block as plain arrays in row order, lists laid end to end: what a scan hands to torch or NumPy without a shuffle.

A batch is two native calls and a few tensor splits whatever the number of columns: all lists of a batch lie in one buffer, grouped by dtype. Batches are best
kept small enough for the processor's cache: then what is written is still there when it is read, and when the buffer is used again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.batch.buffers import BufferPool
from loader.batch.gather import LENGTH_SHIFT, START_MASK, TRUSTED_BYTES, check_views, gather_lists, list_offsets
from loader.decode.arrow import take, widened
from loader.decode.result import DecodedColumn, FixedColumn, ListColumn
from loader.encodings.leaf import LeafType
from loader.extras import require
from loader.kernels import native
from loader.kernels.native_lists import ListPool, ListRows, ListTable, StartedLists

Array = npt.NDArray[Any]
_NOTHING = np.empty(0, np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlainColumn:
    """One column of a batch.

    Attributes:
        values: Leaf values in the leaf's dtype, `[rows]`, `[rows, fixed_size]`, or `[total]` for lists.
        offsets: int64 `[entries + 1]`, one array a level of lists, outermost first.
        validity: uint8 `[rows]`, None where no row is null. A null's value is 0, a null list is empty.
        weights: The second list of a map, whose first offsets are those of the keys; None for what is no map.
    """

    values: Array
    offsets: tuple[npt.NDArray[np.int64], ...]
    validity: npt.NDArray[np.uint8] | None
    weights: PlainColumn | None = None


class PlainBatch(Sequence[PlainColumn]):
    """Some rows of a block, all columns laid out. Columns are made when they are asked for, `tensors` makes all of them at once.

    It owns its memory: nothing is recycled while a column, or a tensor, of it is alive.
    """

    def __init__(self, plan: _Plan, number: int, lists: ListRows | None, memory: npt.NDArray[np.uint8]) -> None:
        self._plan, self._number, self._lists, self._memory = plan, number, lists, memory

    @property
    def num_rows(self) -> int:
        start, stop = self._plan.rows(self._number)
        return stop - start

    @property
    def list_bytes(self) -> int:
        """Bytes of the lists that were laid out with their offsets; fixed-width columns stand in the block's memory."""
        return 0 if self._lists is None else self._lists.num_bytes

    def __len__(self) -> int:
        return len(self._plan.leaves)

    def __getitem__(self, index: int) -> PlainColumn:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        plan = self._plan
        start, stop = plan.rows(self._number)
        place = plan.list_of.get(index)
        if place is None or self._lists is None:
            return plain_column(take(plan.columns[index], slice(start, stop)), plan.leaves[index], plan.pool, threads=plan.threads)
        validity = plan.columns[index].validity
        values, offsets = self._lists.values(self._memory, place, place + 1), self._lists.offsets(self._memory)
        return PlainColumn(values=values, offsets=(offsets[place],), validity=None if validity is None else validity[start:stop])

    def tensors(self) -> list[tuple[Any, ...]]:
        """(values, offsets, validity as bool) of each column as torch tensors over this batch's memory; a tuple of a map has that of its weights behind."""
        torch = require("torch", extra="torch")
        plan = self._plan
        values, validity = plan.fixed_tensors(torch, self._number)
        offsets: list[tuple[Any, ...]] = [()] * len(self)
        if self._lists is not None:
            for index, items, ends in zip(plan.lists, *_list_tensors(torch, self._lists, self._memory), strict=True):
                values[index], offsets[index] = items, (ends,)
        found: list[tuple[Any, ...]] = list(zip(values, offsets, validity, strict=True))
        for index in plan.others:
            found[index] = _tensors_of(self[index], torch)
        return found


class _Plan:
    """What the batches of a block share.

    Attributes:
        lists: Columns whose lists are laid out natively, sorted by dtype.
        others: Columns that are laid out one by one: lists of lists, of fixed-size entries, or any where no library is compiled.
    """

    def __init__(self, columns: Sequence[DecodedColumn], leaves: Sequence[LeafType], num_rows: int, batch_rows: int, pool: BufferPool, threads: int) -> None:
        self.columns, self.leaves, self.pool, self.threads = list(columns), list(leaves), pool, threads
        self._num_rows, self._batch_rows = num_rows, batch_rows
        self._library = native.load()
        flat = [index for index, column in enumerate(self.columns) if _is_flat(column)] if self._library is not None else []
        self.lists = sorted(flat, key=lambda index: (-self.leaves[index].dtype.itemsize, self.leaves[index].dtype.str))
        self.list_of = {index: place for place, index in enumerate(self.lists)}
        self.fixed = [index for index, column in enumerate(self.columns) if isinstance(column, FixedColumn) and self._is_plain(index, column)]
        self.others = sorted(set(range(len(self.columns))) - set(flat) - set(self.fixed))
        self._memory_bytes = 8
        self._tensors: list[tuple[int, bool, tuple[Any, ...]]] | None = None
        self._table = ListTable([_list_pool(self.columns[index], self.leaves[index]) for index in self.lists])

    def _is_plain(self, index: int, column: FixedColumn) -> bool:
        return column.values.dtype == self.leaves[index].dtype and column.values.flags.c_contiguous

    @property
    def num_batches(self) -> int:
        return -(-self._num_rows // self._batch_rows)

    def rows(self, number: int) -> tuple[int, int]:
        return number * self._batch_rows, min((number + 1) * self._batch_rows, self._num_rows)

    def batch(self, number: int) -> PlainBatch:
        """Lay out the lists of a batch.

        Raises:
            CorruptSegmentError: A view leaves its pool.
        """
        batch, started = self.start(number)
        if started is not None:
            started.finish()
        return batch

    def start(self, number: int) -> tuple[PlainBatch, StartedLists | None]:
        """A batch and its lists, which must be finished before anybody looks at it; None where there is nothing to finish.

        Raises:
            CorruptSegmentError: A view leaves its pool.
        """
        if self._library is None or not self.lists:
            return PlainBatch(self, number, None, _NOTHING), None
        start, stop = self.rows(number)
        rows = self._library.measure_lists(self._table, start, stop - start)
        if rows.num_bytes > TRUSTED_BYTES:
            for column in self._table.columns:
                check_views(column.views[start:stop], len(column.pool), rows.num_bytes)
        if rows.num_bytes > self._memory_bytes:
            # the batches to come take as much, so that they get the memory, still in the cache, that one before let go
            self._memory_bytes = rows.num_bytes + rows.num_bytes // 8
        memory = self.pool.empty(self._memory_bytes, np.uint8)
        return PlainBatch(self, number, rows, memory), self._library.start_lists(rows, memory, self.threads)

    def fixed_tensors(self, torch: Any, number: int) -> tuple[list[Any], list[Any]]:
        """Values and validity of a batch by column, None where the column has none of that kind; the tensors of all batches are cut in one go a column."""
        if self._tensors is None:
            sizes = [stop - start for start, stop in map(self.rows, range(self.num_batches))]
            arrays = [(index, False, self.columns[index].values) for index in self.fixed]  # type: ignore[union-attr]
            arrays += [(index, True, column.validity.view(np.bool_)) for index, column in enumerate(self.columns) if column.validity is not None]
            self._tensors = [(index, is_validity, torch.unsafe_split_with_sizes(torch.from_numpy(array), sizes)) for index, is_validity, array in arrays]
        values: list[Any] = [None] * len(self.columns)
        validity: list[Any] = [None] * len(self.columns)
        for index, is_validity, pieces in self._tensors:
            (validity if is_validity else values)[index] = pieces[number]
        return values, validity


def plain_batches(
    block: Sequence[DecodedColumn], leaves: Sequence[LeafType], num_rows: int, batch_rows: int, pool: BufferPool, *, threads: int = 1
) -> Iterator[PlainBatch]:
    """A block laid out some rows at a time. The memory of a batch is used again once nobody holds on to the batch, its columns or their tensors.

    Args:
        block: Its columns.
        leaves: Their physical types.
        num_rows: Rows of the block.
        batch_rows: Rows of a batch; the last may have fewer.
        pool: Where the memory of lists comes from.
        threads: For the native list copies. With several, one batch is laid out ahead while the caller looks at another.

    Raises:
        CorruptSegmentError: A view leaves its pool.
    """
    plan = _Plan(block, leaves, num_rows, batch_rows, pool, threads)
    if threads == 1:
        for number in range(plan.num_batches):
            yield plan.batch(number)
        return
    ahead = plan.start(0) if plan.num_batches else None
    for number in range(1, plan.num_batches + 1):
        assert ahead is not None
        batch, started = ahead
        if started is not None:
            started.finish()
        ahead = plan.start(number) if number < plan.num_batches else None
        yield batch
        del batch


def plain_columns(block: Sequence[DecodedColumn], leaves: Sequence[LeafType], pool: BufferPool, *, threads: int = 1) -> list[PlainColumn]:
    """All columns of a block laid out as one batch. Arguments and errors as for `plain_batches`."""
    columns = list(block)
    num_rows = len(columns[0].views if isinstance(columns[0], ListColumn) else columns[0].values) if columns else 0
    if not num_rows:
        return [plain_column(column, leaf, pool) for column, leaf in zip(columns, leaves, strict=True)]
    return list(_Plan(columns, leaves, num_rows, num_rows, pool, threads).batch(0))


def _list_tensors(torch: Any, rows: ListRows, memory: npt.NDArray[np.uint8]) -> tuple[list[Any], list[Any]]:
    """Items and offsets by column. They are data, not variables: nothing for autograd to watch."""
    offsets, counts = rows.offsets(memory), rows.counts.tolist()
    ends = torch.unsafe_split_with_sizes(torch.from_numpy(offsets.reshape(-1)), [offsets.shape[1]] * len(offsets))
    items: list[Any] = []
    for _, first, stop in rows.table.groups:
        items += torch.unsafe_split_with_sizes(torch.from_numpy(rows.values(memory, first, stop)), counts[first:stop])
    return items, list(ends)


def _tensors_of(column: PlainColumn, torch: Any) -> tuple[Any, ...]:
    validity = None if column.validity is None else torch.from_numpy(column.validity.view(np.bool_))
    found = (torch.from_numpy(column.values), tuple(torch.from_numpy(ends) for ends in column.offsets), validity)
    return found if column.weights is None else (*found, _tensors_of(column.weights, torch))


def _is_flat(column: DecodedColumn) -> bool:
    """Whether it is a list of values without more levels, weights or a fixed size."""
    return isinstance(column, ListColumn) and column.weights is None and not isinstance(column.child, ListColumn) and column.child.values.ndim == 1


def _list_pool(column: DecodedColumn, leaf: LeafType) -> ListPool:
    assert isinstance(column, ListColumn)
    assert not isinstance(column.child, ListColumn)
    items = column.child.values
    narrow = items.itemsize < leaf.dtype.itemsize
    return ListPool(pool=items, base=column.child.base if narrow else 0, views=column.views, dtype=leaf.dtype)


def plain_column(column: DecodedColumn, leaf: LeafType, pool: BufferPool, *, threads: int = 1) -> PlainColumn:
    """Lay a column out; fixed-width values share the arena's memory.

    Args:
        column: From a DecodedBlock.
        leaf: Its physical type.
        pool: Where the memory of lists comes from.
        threads: For the native list copies.

    Raises:
        CorruptSegmentError: A view leaves its pool.
    """
    if leaf.weights is not None:
        assert isinstance(column, ListColumn)
        assert column.weights is not None
        weights = plain_column(column.weights, leaf.weights, pool, threads=threads)
        keys = dataclasses.replace(column, weights=None)
        return dataclasses.replace(plain_column(keys, dataclasses.replace(leaf, weights=None), pool, threads=threads), weights=weights)
    validity, offsets = column.validity, []
    while isinstance(column, ListColumn):
        ends = list_offsets(column.views)
        offsets.append(ends)
        child = column.child
        if isinstance(child, ListColumn):
            column = _inner(child, column.views)
            continue
        if child.values.ndim == 1:
            check_views(column.views, len(child.values), int(ends[-1]) * leaf.dtype.itemsize)
            values = pool.empty(int(ends[-1]), leaf.dtype)
            gather_lists(child.values, child.base, column.views, values, threads=threads)
        else:
            check_views(column.views, len(child.values))
            values = widened(child.values[_positions(column.views, ends)], child.base, leaf.dtype)
        return PlainColumn(values=values, offsets=tuple(offsets), validity=validity)
    return PlainColumn(values=widened(column.values, column.base, leaf.dtype), offsets=(), validity=validity)


def _inner(child: ListColumn, views: npt.NDArray[np.uint64]) -> ListColumn:
    """The inner lists that outer views show, end to end."""
    count = int((views >> LENGTH_SHIFT).sum())
    check_views(views, len(child.views), 8 * count)
    inner = np.empty(count, np.uint64)
    gather_lists(child.views, 0, views, inner)
    return ListColumn(views=inner, validity=None, child=child.child, base=child.base)


def _positions(views: npt.NDArray[np.uint64], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    lengths = (views >> LENGTH_SHIFT).astype(np.int64)
    return np.arange(int(offsets[-1])) + np.repeat((views & START_MASK).astype(np.int64) - offsets[:-1], lengths)
