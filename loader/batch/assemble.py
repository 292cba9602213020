"""Batch assembly: slices of a rank's windows into fresh arrays. One copy a dtype, one run of list copies a list column.

Every array belongs to its batch alone, so a batch stays what it is for as long as somebody holds it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.batch.buffers import BufferPool
from loader.batch.gather import gather_lists, list_offsets
from loader.batch.window import Columns, WindowData

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Rows start, start + step, … below stop of one window."""

    window: WindowData
    start: int
    stop: int
    step: int = 1

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop, self.step)

    @property
    def num_rows(self) -> int:
        return len(range(self.start, self.stop, self.step))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BatchArrays:
    """A batch as NumPy arrays.

    Attributes:
        num_rows: Rows of every array, padding included.
        num_samples: Rows that are samples; they come first.
        fixed: For each group of fixed-width columns a matrix [columns, rows].
        wide: By column, [rows, values a row].
        lists: By column, (values [total], offsets int64 [rows + 1]); the weights of maps under their own index.
        validity: By column, uint8 [rows]; only columns with a null in this batch.
        blocks: uint32 [samples], index in the plan's list of blocks.
        rows: uint32 [samples], row inside the block.
    """

    num_rows: int
    num_samples: int
    fixed: tuple[Array, ...]
    wide: dict[int, Array]
    lists: dict[int, tuple[Array, npt.NDArray[np.int64]]]
    validity: dict[int, npt.NDArray[np.uint8]]
    blocks: npt.NDArray[np.uint32]
    rows: npt.NDArray[np.uint32]


def assemble(columns: Columns, parts: Sequence[Part], *, pad_to: int = 0, threads: int = 1, pool: BufferPool | None = None) -> BatchArrays:
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
    lists = {column: _assemble_lists(columns, column, parts, num_rows, threads, pool) for column in columns.lists}
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
    )


def _lay(pieces: Sequence[Array], out: Array) -> None:
    at = 0
    for piece in pieces:
        out[:, at : at + piece.shape[1]] = piece
        at += piece.shape[1]


def _assemble_lists(columns: Columns, column: int, parts: Sequence[Part], num_rows: int, threads: int, pool: BufferPool) -> tuple[Array, npt.NDArray[np.int64]]:
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
