"""A decoded block as plain arrays in row order, lists laid end to end: what a scan hands to torch or NumPy without a shuffle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.batch.buffers import BufferPool
from loader.batch.gather import LENGTH_SHIFT, START_MASK, gather_lists, list_offsets
from loader.decode.arrow import take, widened
from loader.decode.result import DecodedColumn, ListColumn
from loader.encodings.leaf import LeafType
from loader.kernels import native

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlainColumn:
    """One column of a block.

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


def plain_batches(
    block: Sequence[DecodedColumn], leaves: Sequence[LeafType], num_rows: int, batch_rows: int, pool: BufferPool, *, threads: int = 1
) -> Iterator[list[PlainColumn]]:
    """A block laid out some rows at a time: lists of few enough rows are laid out where the processor's cache still has the batch before.

    Args:
        block: Its columns.
        leaves: Their physical types.
        num_rows: Rows of the block.
        batch_rows: Rows of a batch; the last may have fewer.
        pool: Where the memory of lists comes from.
        threads: For the native list copies.
    """
    columns = list(block)
    for start in range(0, num_rows, batch_rows):
        rows = slice(start, min(start + batch_rows, num_rows))
        yield plain_columns([take(column, rows) for column in columns], leaves, pool, threads=threads)


def plain_columns(block: Sequence[DecodedColumn], leaves: Sequence[LeafType], pool: BufferPool, *, threads: int = 1) -> list[PlainColumn]:
    """All columns of a block laid out; lists of plain values in one native call. Arguments and errors as for `plain_column`.

    Args:
        threads: How many share the lists of all columns.
    """
    library = native.load()
    columns = list(block)
    made: list[PlainColumn | None] = [None] * len(columns)
    lists = [] if library is None else [number for number, column in enumerate(columns) if _is_flat(column)]
    if library is not None and lists:
        expanded = library.expand_lists([_list_pool(columns[number], leaves[number]) for number in lists], pool.empty, threads)
        for number, (values, offsets) in zip(lists, expanded, strict=True):
            made[number] = PlainColumn(values=values, offsets=(offsets,), validity=columns[number].validity)
    return [plain_column(column, leaf, pool, threads=threads) if plain is None else plain for plain, column, leaf in zip(made, columns, leaves, strict=True)]


def _is_flat(column: DecodedColumn) -> bool:
    """Whether it is a list of values without more levels, weights or a fixed size."""
    return isinstance(column, ListColumn) and column.weights is None and not isinstance(column.child, ListColumn) and column.child.values.ndim == 1


def _list_pool(column: DecodedColumn, leaf: LeafType) -> native.ListPool:
    assert isinstance(column, ListColumn)
    assert not isinstance(column.child, ListColumn)
    items = column.child.values
    narrow = items.itemsize < leaf.dtype.itemsize
    return native.ListPool(pool=items, base=column.child.base if narrow else 0, views=column.views, dtype=leaf.dtype)


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
            values = pool.empty(int(ends[-1]), leaf.dtype)
            gather_lists(child.values, child.base, column.views, values, threads=threads)
        else:
            values = widened(child.values[_positions(column.views, ends)], child.base, leaf.dtype)
        return PlainColumn(values=values, offsets=tuple(offsets), validity=validity)
    return PlainColumn(values=widened(column.values, column.base, leaf.dtype), offsets=(), validity=validity)


def _inner(child: ListColumn, views: npt.NDArray[np.uint64]) -> ListColumn:
    """The inner lists that outer views show, end to end."""
    inner = np.empty(int((views >> LENGTH_SHIFT).sum()), np.uint64)
    gather_lists(child.views, 0, views, inner)
    return ListColumn(views=inner, validity=None, child=child.child, base=child.base)


def _positions(views: npt.NDArray[np.uint64], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    lengths = (views >> LENGTH_SHIFT).astype(np.int64)
    return np.arange(int(offsets[-1])) + np.repeat((views & START_MASK).astype(np.int64) - offsets[:-1], lengths)
