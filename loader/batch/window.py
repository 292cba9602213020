"""Window fill: decoded blocks become one shuffled window, column by column.

Blocks arrive one by one in memory that is reused, so what a window needs of each is copied out at once: rows of fixed-width columns, validity, list
views, and pools. When the last has come, every column is permuted with one gather. Fixed-width columns of one dtype lie in one matrix [columns, rows], so
that a batch is one slice a dtype; lists stay (start, length) views over the pools of all blocks laid end to end, so repetition stays shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.batch.buffers import BufferPool
from loader.batch.gather import LENGTH_SHIFT, check_views, gather_fixed, gather_lists, list_offsets
from loader.batch.unique import distinct
from loader.decode.arrow import widened
from loader.decode.result import DecodedColumn, FixedColumn, ListColumn
from loader.encodings.leaf import LeafType, is_bytes
from loader.errors import ColumnNotFoundError, SchemaError, did_you_mean
from loader.scan.columns import ReadColumn

Array = npt.NDArray[Any]
SPARSE_SHARE = 2  # take rows one by one where a piece selects less than 1 / SPARSE_SHARE of the rows it spans
MAX_POOL_VALUES = 2**32
NULL_ITEMS = "batches have no place for them; leave the column out of columns=[…], or fill them when writing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedGroup:
    """The fixed-width columns of one dtype: `columns[k]` is row k of every matrix of this group."""

    dtype: np.dtype[Any]
    columns: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """How the columns of a scan are stored in windows and batches.

    A map is stored as two lists: its keys under the column's own index, its weights under an index past all columns.

    Attributes:
        read: The columns, in the order of decoding.
        groups: Fixed-width columns with one value a row, by dtype.
        wide: Indices of columns with a fixed number of values a row.
        lists: Indices of list columns (strings and binaries too), then of the weights of maps.
        leaves: Physical types by index, of the columns and then of the weights of maps.
        weights: Index of its weights, by index of the map.
        unique: Those of `lists` whose batches show each list once, with the number of every row's list beside it.
    """

    read: tuple[ReadColumn, ...]
    groups: tuple[FixedGroup, ...]
    wide: tuple[int, ...]
    lists: tuple[int, ...]
    leaves: tuple[LeafType, ...]
    weights: dict[int, int]
    unique: tuple[int, ...] = ()

    @classmethod
    def of(cls, read: Sequence[ReadColumn], unique: Collection[str] = ()) -> Columns:
        """Sort columns into groups.

        Args:
            read: The columns.
            unique: Names of list columns that are to come unexpanded.

        Raises:
            SchemaError: A column has lists inside lists, or one of `unique` has none.
            ColumnNotFoundError: A name of `unique` is not among the columns.
        """
        by_dtype: dict[np.dtype[Any], list[int]] = {}
        wide, lists = [], []
        maps = [index for index, column in enumerate(read) if column.leaf.weights is not None]
        for index, column in enumerate(read):
            second = column.leaf.weights
            if second is not None and (column.leaf.depth > 1 or column.leaf.fixed_size or second.depth > 1):
                raise SchemaError(f"column {column.name!r} is {column.type}: batches hold maps of numbers to numbers; leave it out of columns=[…]")
            if column.leaf.depth > 1 or (column.leaf.depth and column.leaf.fixed_size):
                raise SchemaError(f"column {column.name!r} is {column.type}: batches hold lists of numbers, not lists of lists; leave it out of columns=[…]")
            if column.leaf.depth:
                lists.append(index)
            elif column.leaf.fixed_size:
                wide.append(index)
            else:
                by_dtype.setdefault(column.leaf.dtype, []).append(index)
        groups = tuple(FixedGroup(dtype=dtype, columns=tuple(members)) for dtype, members in by_dtype.items())
        number = {column.name: index for index, column in enumerate(read)}
        for name in unique:
            if name not in number:
                raise ColumnNotFoundError(f"unique names {name!r}, which is not read: {did_you_mean(name, number)}")
            if number[name] not in lists or number[name] in maps or is_bytes(read[number[name]].type):
                raise SchemaError(f"unique names {name!r}, which is {read[number[name]].type}: only lists of numbers come unexpanded")
        weights = {index: len(read) + number for number, index in enumerate(maps)}
        leaves = (*(column.leaf for column in read), *(leaf for index in maps if (leaf := read[index].leaf.weights) is not None))
        chosen = tuple(sorted(number[name] for name in set(unique)))
        return cls(read=tuple(read), groups=groups, wide=tuple(wide), lists=(*lists, *weights.values()), leaves=leaves, weights=weights, unique=chosen)

    def parts(self, decoded: Sequence[DecodedColumn]) -> list[DecodedColumn]:
        """Decoded columns by index, the weights of maps too."""
        found = list(decoded)
        for index in self.weights:
            column = found[index]
            assert isinstance(column, ListColumn)
            assert column.weights is not None
            found.append(column.weights)
        return found

    def name(self, index: int) -> str:
        """The name of the column at an index, or of the map whose weights are there."""
        owners = {slot: column for column, slot in self.weights.items()}
        return self.read[owners.get(index, index)].name


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ListWindow:
    """A list column of a window: uint64 views [rows] over one pool; a narrow pool's value is base + item."""

    views: npt.NDArray[np.uint64]
    pool: Array
    base: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WindowData:
    """A decoded, permuted window. Nothing in it is written again.

    Attributes:
        num_rows: Rows.
        fixed: For each group of fixed-width columns a matrix [columns, rows].
        wide: By column, [rows, values a row].
        lists: By column.
        validity: By column, uint8 [rows]; only columns that have a null in this window.
        blocks: uint32 [rows], index in the plan's list of blocks.
        rows: uint32 [rows], row inside the block.
    """

    num_rows: int
    fixed: tuple[Array, ...]
    wide: dict[int, Array]
    lists: dict[int, ListWindow]
    validity: dict[int, npt.NDArray[np.uint8]]
    blocks: npt.NDArray[np.uint32]
    rows: npt.NDArray[np.uint32]

    @property
    def num_bytes(self) -> int:
        arrays = [*self.fixed, *self.wide.values(), *self.validity.values(), self.blocks, self.rows]
        return sum(array.nbytes for array in arrays) + sum(column.views.nbytes + column.pool.nbytes for column in self.lists.values())


class WindowFill:
    """Collects the pieces of one window, then permutes them.

    Args:
        columns: What the blocks decode to.
        piece: int64 [rows], for each row of the window, in the order of yielding, which piece it comes from.
        ordinal: int64 [rows], and its ordinal among the selected rows of that piece's block.
        num_pieces: Pieces to come.
        threads: For the native gathers.
        pool: Where memory comes from; default fresh memory.
    """

    def __init__(
        self,
        columns: Columns,
        piece: npt.NDArray[np.int64],
        ordinal: npt.NDArray[np.int64],
        num_pieces: int,
        *,
        threads: int = 1,
        pool: BufferPool | None = None,
    ) -> None:
        self._columns = columns
        self._memory = pool or BufferPool()
        self._piece = piece
        self._ordinal = ordinal
        self._threads = threads
        self._num_pieces = num_pieces
        self._blocks = np.zeros(num_pieces, np.uint32)
        self._shift = np.zeros(num_pieces, np.int64)  # staged row = ordinal or row of the block, plus this
        self._by_ordinal = np.zeros(num_pieces, np.bool_)
        self._selected: list[npt.NDArray[np.int64] | None] = []
        self._staged_rows: list[int] = []
        self._staged: list[list[Array]] = [[] for _ in columns.leaves]
        self._validity: list[list[npt.NDArray[np.uint8] | None]] = [[] for _ in columns.leaves]
        self._pools: dict[int, list[tuple[Array, int]]] = {index: [] for index in columns.lists}
        self._pool_values = dict.fromkeys(columns.lists, 0)

    def add(self, block: int, selected: npt.NDArray[np.int64] | None, decoded: Sequence[DecodedColumn], head: int, tail: int) -> None:
        """Copy one piece out of a decoded block.

        Args:
            block: Index in the plan's list.
            selected: Rows of the block by ordinal, or None when ordinals are rows.
            decoded: Its columns.
            head: First ordinal of the piece.
            tail: One past its last ordinal.
        """
        number = len(self._staged_rows)
        before = sum(self._staged_rows)
        rows = None if selected is None else selected[head:tail]
        low, high = (head, tail) if rows is None else (int(rows[0]), int(rows[-1]) + 1)
        sparse = rows is not None and (high - low) > SPARSE_SHARE * (tail - head)
        take: slice | npt.NDArray[np.int64] = rows if sparse and rows is not None else slice(low, high)
        self._blocks[number] = block
        self._selected.append(selected)
        self._by_ordinal[number] = sparse
        self._shift[number] = before - (head if sparse else low)
        self._staged_rows.append(tail - head if sparse else high - low)
        for index, column in enumerate(self._columns.parts(decoded)):
            validity = None if column.validity is None else column.validity[take].copy()
            self._validity[index].append(validity)
            if index in self._pools:
                self._add_lists(index, column, take)
            elif isinstance(column, FixedColumn):
                self._check_items(index, column)
                self._staged[index].append(column.values[take] if sparse else self._copy(column.values[take]))

    def _check_items(self, index: int, column: FixedColumn) -> None:
        """Refuse nulls inside fixed-size lists; those of a list that is null itself are not seen."""
        if column.item_validity is None:
            return
        holes = (column.item_validity == 0).any(axis=1)
        if (holes if column.validity is None else holes & (column.validity != 0)).any():
            raise SchemaError(f"column {self._columns.name(index)!r} has nulls inside its lists: {NULL_ITEMS}")

    def _add_lists(self, index: int, column: Any, take: slice | npt.NDArray[np.int64]) -> None:
        """Stage the views of a piece and its pool; the pool shrinks to the lists it shows where those are fewer."""
        views, pool, base = column.views[take], column.child.values, int(column.child.base)
        if column.child.validity is not None:
            raise SchemaError(f"column {self._columns.name(index)!r} has nulls inside its lists: {NULL_ITEMS}")
        lists, codes = distinct(views) if index in self._columns.unique else (views, slice(None))
        shown = int((lists >> LENGTH_SHIFT).sum())
        check_views(lists, len(pool), shown * pool.itemsize)
        if shown < len(pool):
            offsets = list_offsets(lists)
            smaller = np.empty(shown, pool.dtype)
            gather_lists(pool, 0, lists, smaller, threads=self._threads)
            views = ((lists >> LENGTH_SHIFT << LENGTH_SHIFT) | offsets[:-1].astype(np.uint64))[codes]
            pool = smaller
        else:
            pool = self._copy(pool)
        at = self._pool_values[index]
        self._pool_values[index] = at + len(pool)
        if self._pool_values[index] > MAX_POOL_VALUES:
            raise ValueError(f"column {self._columns.name(index)!r} has over 2**32 list values in one window: lower window_rows")
        self._staged[index].append(np.where(views >> LENGTH_SHIFT > 0, views + np.uint64(at), np.uint64(0)))
        self._pools[index].append((pool, base))

    def _copy(self, values: Array) -> Array:
        copied = self._memory.empty(values.shape, values.dtype)
        copied[...] = values
        return copied

    def finish(self) -> WindowData:
        """Permute the staged pieces."""
        columns, num_rows = self._columns, len(self._piece)
        index, rows = self._index()
        fixed = []
        for group in columns.groups:
            matrix = self._memory.empty((len(group.columns), num_rows), group.dtype)
            for k, column in enumerate(group.columns):
                gather_fixed(self._take_staged(column), index, matrix[k], threads=self._threads)
            fixed.append(matrix)
        wide, lists = {}, {}
        for column in columns.wide:
            staged = self._take_staged(column)
            wide[column] = np.empty((num_rows, staged.shape[1]), staged.dtype)
            gather_fixed(staged, index, wide[column], threads=self._threads)
        for column in columns.lists:
            views = self._memory.empty(num_rows, np.uint64)
            gather_fixed(self._take_staged(column), index, views, threads=self._threads)
            pool, base = join_pools(self._pools.pop(column), columns.leaves[column].dtype)
            lists[column] = ListWindow(views=views, pool=pool, base=base)
        return WindowData(
            num_rows=num_rows,
            fixed=tuple(fixed),
            wide=wide,
            lists=lists,
            validity=self._finish_validity(index),
            blocks=self._blocks[self._piece],
            rows=rows,
        )

    def _index(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """For each row of the window: where it is staged, and its row in its block."""
        rows = window_rows(self._piece, self._ordinal, self._selected)
        staged = np.where(self._by_ordinal[self._piece], self._ordinal, rows.astype(np.int64)) + self._shift[self._piece]
        return staged.astype(np.uint32), rows

    def _take_staged(self, column: int) -> Array:
        pieces, self._staged[column] = self._staged[column], []
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces, out=self._memory.empty((sum(map(len, pieces)), *pieces[0].shape[1:]), pieces[0].dtype))

    def _finish_validity(self, index: npt.NDArray[np.uint32]) -> dict[int, npt.NDArray[np.uint8]]:
        validity = {}
        for column, pieces in enumerate(self._validity):
            if all(piece is None for piece in pieces):
                continue
            whole = np.concatenate([np.ones(n, np.uint8) if piece is None else piece for piece, n in zip(pieces, self._staged_rows, strict=True)])
            out = np.empty(len(index), np.uint8)
            gather_fixed(whole, index, out, threads=self._threads)
            if not out.all():
                validity[column] = out
        return validity


def window_rows(piece: npt.NDArray[np.int64], ordinal: npt.NDArray[np.int64], selected: Sequence[npt.NDArray[np.int64] | None]) -> npt.NDArray[np.uint32]:
    """Row in its block of every row of a window; `selected` has the rows of each piece's block by ordinal, or None where ordinals are rows."""
    rows = ordinal.astype(np.uint32)
    for number, chosen in enumerate(selected):
        if chosen is not None:
            here = piece == number
            rows[here] = chosen[ordinal[here]]
    return rows


def join_pools(pools: Sequence[tuple[Array, int]], dtype: np.dtype[Any]) -> tuple[Array, int]:
    """Pools of several blocks end to end, as narrow as they all agree to be."""
    narrow = {(pool.dtype.itemsize, base) for pool, base in pools if len(pool)}
    if len(narrow) <= 1:
        arrays = [pool for pool, _ in pools if len(pool)]
        base = next(iter(narrow))[1] if narrow else 0
        return (arrays[0] if len(arrays) == 1 else np.concatenate(arrays) if arrays else np.zeros(0, dtype)), base
    return np.concatenate([widened(pool, base, dtype) for pool, base in pools]), 0
