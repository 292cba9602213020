"""Batch assembly: slices of a rank's windows into fresh arrays. One copy a dtype, one run of list copies a list column.

Every array belongs to its batch alone, so a batch stays what it is for as long as somebody holds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.batch.buffers import BufferPool
from loader.batch.gather import gather_lists, list_offsets
from loader.batch.parts import Part as Part
from loader.batch.unique import distinct_views
from loader.batch.window import Columns, WindowData

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BatchArrays:
    """A batch as NumPy arrays.

    Attributes:
        num_rows: Rows of every array, padding included.
        num_samples: Rows that are samples; they come first.
        fixed: For each group of fixed-width columns a matrix [columns, rows].
        wide: By column, [rows, values a row].
        lists: By column, (values [total], offsets int64 [rows + 1]), of unexpanded ones [distinct lists + 1]; the weights of maps under their own index.
        validity: By column, uint8 [rows]; only columns with a null in this batch.
        blocks: uint32 [samples], index in the plan's list of blocks.
        rows: uint32 [samples], row inside the block.
        inverses: By column that comes unexpanded, int64 [rows], the number of the list of every row.
    """

    num_rows: int
    num_samples: int
    fixed: tuple[Array, ...]
    wide: dict[int, Array]
    lists: dict[int, tuple[Array, npt.NDArray[np.int64]]]
    validity: dict[int, npt.NDArray[np.uint8]]
    blocks: npt.NDArray[np.uint32]
    rows: npt.NDArray[np.uint32]
    inverses: dict[int, npt.NDArray[np.int64]] = dataclasses.field(default_factory=dict)

    def fixed_column(self, index: int, place: tuple[int, int] | None) -> Array:
        """[rows], from row `place[1]` of matrix `place[0]`, or [rows, values a row]."""
        return self.wide[index] if place is None else np.asarray(self.fixed[place[0]][place[1]])

    def list_column(self, index: int) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """(values, offsets, inverse or None)."""
        return (*self.lists[index], self.inverses.get(index))

    def validity_of(self, index: int) -> npt.NDArray[np.uint8] | None:
        """uint8 [rows], or None where every sample of the column is there."""
        return self.validity.get(index)

    def placed(self, array: Array) -> Array:
        """An array of the host where the batch lies."""
        return array

    def record_stream(self, stream: Any) -> None:
        """The arrays lie on the host, where no stream reads them."""

    def transforming(self) -> contextlib.AbstractContextManager[None]:
        """Transforms run inside."""
        return contextlib.nullcontext()

    def hand_over(self, batch: Any = None) -> None:
        """The arrays are written: there is nothing to wait for."""


def assemble(columns: Columns, parts: Sequence[Part[WindowData]], *, pad_to: int = 0, threads: int = 1, pool: BufferPool | None = None) -> BatchArrays:
    """Lay parts of windows end to end.

    Args:
        columns: How they are stored.
        parts: In the order of the batch.
        pad_to: Least number of rows; missing ones are zeros and empty lists.
        threads: For the native gathers.
        pool: Where memory comes from; default fresh memory.
    """
    pool = pool or BufferPool()
    num_samples = sum(part.num_rows for part in parts)
    num_rows = max(num_samples, pad_to)
    fixed = []
    for number, group in enumerate(columns.groups):
        matrix = pool.empty((len(group.columns), num_rows), group.dtype)
        matrix[:, num_samples:] = 0
        _lay([part.window.fixed[number][:, part.rows] for part in parts], matrix)
        fixed.append(matrix)
    wide = {}
    for column in columns.wide:
        leaf = columns.leaves[column]
        wide[column] = pool.empty((num_rows, leaf.values_per_entry), leaf.dtype)
        wide[column][num_samples:] = 0
        _lay([part.window.wide[column][part.rows].T for part in parts], wide[column].T)
    lists, inverses = {}, {}
    for column in columns.lists:
        if column in columns.unique:
            values, offsets, inverses[column] = _assemble_unique(columns, column, parts, num_rows, threads, pool)
            lists[column] = (values, offsets)
        else:
            lists[column] = _assemble_lists(columns, column, parts, num_rows, threads, pool)
    validity = {}
    for column in sorted({column for part in parts for column in part.window.validity}):
        present = np.ones(num_rows, np.uint8)
        present[num_samples:] = 0
        at = 0
        for part in parts:
            if column in part.window.validity:
                present[at : at + part.num_rows] = part.window.validity[column][part.rows]
            at += part.num_rows
        if not present[:num_samples].all():
            validity[column] = present
    none = np.zeros(0, np.uint32)
    return BatchArrays(
        num_rows=num_rows,
        num_samples=num_samples,
        fixed=tuple(fixed),
        wide=wide,
        lists=lists,
        validity=validity,
        blocks=np.concatenate([none, *(part.window.blocks[part.rows] for part in parts)]),
        rows=np.concatenate([none, *(part.window.rows[part.rows] for part in parts)]),
        inverses=inverses,
    )


def _lay(pieces: Sequence[Array], out: Array) -> None:
    at = 0
    for piece in pieces:
        out[:, at : at + piece.shape[1]] = piece
        at += piece.shape[1]


def _assemble_lists(
    columns: Columns, column: int, parts: Sequence[Part[WindowData]], num_rows: int, threads: int, pool: BufferPool
) -> tuple[Array, npt.NDArray[np.int64]]:
    views = np.zeros(num_rows, np.uint64)
    pieces = [np.ascontiguousarray(part.window.lists[column].views[part.rows]) for part in parts]
    at = 0
    for piece in pieces:
        views[at : at + len(piece)] = piece
        at += len(piece)
    offsets = list_offsets(views)
    values = pool.empty(int(offsets[-1]), columns.leaves[column].dtype)
    at = 0
    for part, piece in zip(parts, pieces, strict=True):
        source = part.window.lists[column]
        gather_lists(source.pool, source.base, piece, values[offsets[at] : offsets[at + len(piece)]], threads=threads)
        at += len(piece)
    return values, offsets


def _assemble_unique(
    columns: Columns, column: int, parts: Sequence[Part[WindowData]], num_rows: int, threads: int, pool: BufferPool
) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each list once, in the order of the rows that show it first, and the number of every row's list."""
    pieces, inverse = distinct_views([part.window.lists[column].views[part.rows] for part in parts], num_rows)
    offsets = list_offsets(np.concatenate(pieces))
    values = pool.empty(int(offsets[-1]), columns.leaves[column].dtype)
    at = 0
    for part, piece in zip(parts, pieces, strict=False):  # the last piece is the list of padding, which no window has
        source = part.window.lists[column]
        gather_lists(source.pool, source.base, piece, values[offsets[at] : offsets[at + len(piece)]], threads=threads)
        at += len(piece)
    return values, offsets, inverse
