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
        buffers: By list column, the memory that holds the values of all columns of its dtype, one behind the other, and where its own begin.
        validity: By column, uint8 [rows]; only columns with a null in this batch.
        blocks: uint32 [samples], index in the plan's list of blocks.
        rows: uint32 [samples], row inside the block.
        inverses: By column that comes unexpanded, int64 [rows], the number of the list of every row.
        masked: bool [samples], rows of the plan that cannot be had; None where there is none.
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
    buffers: dict[int, tuple[Array, int]] = dataclasses.field(default_factory=dict)
    masked: npt.NDArray[np.bool_] | None = None

    def with_masked(self, masked: npt.NDArray[np.bool_] | None) -> BatchArrays:
        """The same with some rows masked."""
        return self if masked is None else dataclasses.replace(self, masked=masked)

    def fixed_column(self, index: int, place: tuple[int, int] | None) -> Array:
        """[rows], from row `place[1]` of matrix `place[0]`, or [rows, values a row]."""
        return self.wide[index] if place is None else np.asarray(self.fixed[place[0]][place[1]])

    def list_column(self, index: int) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """(values, offsets, inverse or None)."""
        return (*self.lists[index], self.inverses.get(index))

    def buffer_of(self, index: int) -> tuple[Array, int] | None:
        """(values of all list columns of this one's dtype, where its own begin)."""
        return self.buffers.get(index)

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
    lists, inverses, buffers = _assemble_lists(columns, parts, num_rows, threads, pool)
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
        buffers=buffers,
    )


def _lay(pieces: Sequence[Array], out: Array) -> None:
    at = 0
    for piece in pieces:
        out[:, at : at + piece.shape[1]] = piece
        at += piece.shape[1]


Lists = dict[int, tuple[Array, npt.NDArray[np.int64]]]


def _assemble_lists(
    columns: Columns, parts: Sequence[Part[WindowData]], num_rows: int, threads: int, pool: BufferPool
) -> tuple[Lists, dict[int, npt.NDArray[np.int64]], dict[int, tuple[Array, int]]]:
    """Values and offsets by column, the inverses of unexpanded ones, and the buffers: a keyed jagged tensor of neighbours is a view of one."""
    shown: dict[int, tuple[list[npt.NDArray[np.uint64]], npt.NDArray[np.int64]]] = {}
    inverses = {}
    for column in columns.lists:
        if column in columns.unique:
            pieces, inverses[column] = distinct_views([part.window.lists[column].views[part.rows] for part in parts], num_rows)
            shown[column] = pieces, list_offsets(np.concatenate(pieces))
        else:
            pieces = [np.ascontiguousarray(part.window.lists[column].views[part.rows]) for part in parts]
            shown[column] = pieces, _offsets_of_rows(pieces, num_rows)
    lists: Lists = {}
    buffers: dict[int, tuple[Array, int]] = {}
    for dtype in {columns.leaves[column].dtype for column in columns.lists}:
        members = [column for column in columns.lists if columns.leaves[column].dtype == dtype]
        buffer = pool.empty(sum(int(shown[column][1][-1]) for column in members), dtype)
        begin = 0
        for column in members:
            pieces, offsets = shown[column]
            values = buffer[begin : begin + int(offsets[-1])]
            buffers[column] = buffer, begin
            begin += len(values)
            at = 0
            for part, piece in zip(parts, pieces, strict=False):  # of unexpanded ones the last piece is the list of padding, which no window has
                source = part.window.lists[column]
                gather_lists(source.pool, source.base, piece, values[offsets[at] : offsets[at + len(piece)]], threads=threads)
                at += len(piece)
            lists[column] = values, offsets
    return lists, inverses, buffers


def _offsets_of_rows(pieces: Sequence[npt.NDArray[np.uint64]], num_rows: int) -> npt.NDArray[np.int64]:
    """int64 [rows + 1] of the lists that pieces show, empty ones for padding at the end."""
    views = np.zeros(num_rows, np.uint64)
    at = 0
    for piece in pieces:
        views[at : at + len(piece)] = piece
        at += len(piece)
    return list_offsets(views)
