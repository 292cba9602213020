"""Which lists are the same: views counted once, in the order in which rows show them first.

Two rows show the same list if their views are the same view of one window; all empty lists are one. Lists that are equal and were stored twice stay two:
finding those is the writer's work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.batch.gather import LENGTH_SHIFT

Views = npt.NDArray[np.uint64]


def distinct(views: Views) -> tuple[Views, npt.NDArray[np.int64]]:
    """The distinct views in the order of their first rows, and int64 [rows], the number of every row's."""
    encoded = pa.array(np.ascontiguousarray(views)).dictionary_encode()  # Arrow numbers values as it meets them
    return encoded.dictionary.to_numpy(), encoded.indices.to_numpy().astype(np.int64)


def distinct_views(pieces: Sequence[Views], num_rows: int) -> tuple[list[Views], npt.NDArray[np.int64]]:
    """The distinct lists of a batch.

    Args:
        pieces: The views of each part of the batch, each part of another window; an empty list is 0.
        num_rows: Of the batch; those past the pieces show an empty list.

    Returns:
        For each piece its distinct views, without an empty one where an earlier piece has it, and one more piece for padding; int64 [num_rows], the number of
        every row's list among them all.
    """
    found, inverse, count, empty, at = [], np.zeros(num_rows, np.int64), 0, -1, 0
    for piece in pieces:
        views, codes = distinct(piece)
        numbers = count + np.arange(len(views))
        nothing = np.flatnonzero(views >> LENGTH_SHIFT == 0)
        if nothing.size and empty >= 0:
            numbers[nothing[0] :] -= 1
            numbers[nothing[0]] = empty
            views = np.delete(views, nothing[0])
        elif nothing.size:
            empty = int(numbers[nothing[0]])
        inverse[at : at + len(piece)] = numbers[codes]
        found.append(views)
        count, at = count + len(views), at + len(piece)
    padding = np.zeros(int(at < num_rows and empty < 0), np.uint64)
    inverse[at:] = count if padding.size else max(empty, 0)
    return [*found, padding], inverse
