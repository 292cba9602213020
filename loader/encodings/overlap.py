"""Where list rows repeat: rows equal to the row before, and rows that continue it (a window sliding over a history).

Vectorised over rows; a comparison of all items happens only for rows whose ends already agree. The native twins compare in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loader.kernels import native

Array = np.ndarray[Any, np.dtype[Any]]


def ranges(starts: Array, lengths: Array) -> Array:
    """The positions of ragged ranges laid end to end: `starts[i], starts[i] + 1 … starts[i] + lengths[i] − 1` for each i."""
    lengths = lengths.astype(np.int64, copy=False)
    library = native.load()
    if library is not None:
        return library.ranges(np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(lengths))
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    return np.asarray(np.arange(total, dtype=np.int64) + np.repeat(starts.astype(np.int64, copy=False) - (ends - lengths), lengths))


def _equal_ranges(planes: Sequence[Array], first: Array, second: Array, lengths: Array) -> Array:
    """bool `[rows]`: whether items `first + j` and `second + j` agree for all j below the length."""
    if not lengths.size:
        return np.ones(0, np.bool_)
    # the distance between the two ranges is constant in a row: one position array serves both sides
    at = ranges(first, lengths)
    other = at + np.repeat(second - first, lengths)
    differs = np.zeros(at.size, np.bool_)
    for plane in planes:
        differs |= plane[at] != plane[other]
    seen = np.zeros(at.size + 1, np.int32 if at.size < 1 << 31 else np.int64)
    np.cumsum(differs, out=seen[1:])
    ends = np.cumsum(lengths)
    return np.asarray(seen[ends] == seen[ends - lengths])


def _agree(planes: Sequence[Array], first: Array, second: Array) -> Array:
    same = np.ones(first.size, np.bool_)
    for plane in planes:
        same &= plane[first] == plane[second]
    return same


def fresh_rows(planes: Sequence[Array], offsets: Array) -> Array:
    """Which rows differ from the row before; the first row always does.

    Args:
        planes: Arrays over all items that must agree for items to be equal (values, and validity if items may be null).
        offsets: int64 `[rows + 1]`.

    Returns:
        bool `[rows]`.
    """
    library = native.load()
    if library is not None and offsets.size > 1:
        return library.fresh_rows([np.ascontiguousarray(plane) for plane in planes], offsets)
    lengths = np.diff(offsets)
    fresh = np.ones(lengths.size, np.bool_)
    if lengths.size < 2:
        return fresh
    rows = np.flatnonzero(lengths[1:] == lengths[:-1]) + 1
    fresh[rows[lengths[rows] == 0]] = False
    rows = rows[lengths[rows] > 0]
    for part in (0.0, 1.0, 0.5):
        at = ((lengths[rows] - 1) * part).astype(np.int64)
        rows = rows[_agree(planes, offsets[rows] + at, offsets[rows - 1] + at)]
    same = _equal_ranges(planes, offsets[rows], offsets[rows - 1], lengths[rows])
    fresh[rows[same]] = False
    return fresh


def slide_overlaps(planes: Sequence[Array], offsets: Array, max_slide_items: int) -> Array:
    """How many items each row takes over from the end of the row before.

    Row i overlaps by k when its first k items are the last k of row i − 1, k is at least half of row i, and row i − 1 loses at most
    `max_slide_items` items. The largest such k is taken.

    Args:
        planes: As in `fresh_rows`.
        offsets: int64 `[rows + 1]`.
        max_slide_items: Items that may fall out of the window from row to row.

    Returns:
        int64 `[rows]`, 0 where nothing is taken over.
    """
    lengths = np.diff(offsets)
    overlap = np.zeros(lengths.size, np.int64)
    open_rows = np.arange(1, lengths.size)
    for dropped in range(max_slide_items + 1):
        if not open_rows.size:
            break
        shared = lengths[open_rows - 1] - dropped
        fits = (shared > 0) & (shared <= lengths[open_rows]) & (2 * shared >= lengths[open_rows])
        rows, count = open_rows[fits], shared[fits]
        mine, theirs = offsets[rows], offsets[rows] - count
        ends_agree = _agree(planes, mine, theirs) & _agree(planes, mine + count - 1, theirs + count - 1)
        rows, count, mine, theirs = rows[ends_agree], count[ends_agree], mine[ends_agree], theirs[ends_agree]
        same = _equal_ranges(planes, mine, theirs, count)
        overlap[rows[same]] = count[same]
        open_rows = open_rows[overlap[open_rows] == 0]
    return overlap


def neighbour_overlaps(planes: Sequence[Array], offsets: Array, rows: Array, max_slide_items: int) -> Array:
    """`slide_overlaps` of some rows, each against the one named before it.

    Args:
        planes, offsets, max_slide_items: As in `slide_overlaps`.
        rows: int64, in the order in which the window slides.

    Returns:
        int64 `[rows]`.
    """
    library = native.load()
    if library is not None:
        return library.slide_overlaps([np.ascontiguousarray(plane) for plane in planes], offsets, np.ascontiguousarray(rows), max_slide_items)
    lengths = np.diff(offsets)[rows]
    gathered = ranges(offsets[rows], lengths)
    local = np.zeros(rows.size + 1, np.int64)
    np.cumsum(lengths, out=local[1:])
    return slide_overlaps([plane[gathered] for plane in planes], local, max_slide_items)
