"""Pruning: which segments and blocks can hold a selected row, from what is known without reading them. Pure functions.

A wrong "maybe" costs a read, a wrong "no" loses rows: anything unclear is a maybe. Ranges of a column that patches touch say nothing.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.catalog.records import SegmentRef
from loader.scan.columns import ReadColumn
from loader.scan.predicate import Predicate
from loader.segment.layout import STATS_HAS_RANGE


class Verdict(enum.Enum):
    """What a segment's known ranges say of a selection."""

    NONE = "no row is selected"
    ALL = "every live row is selected"
    COUNT = "rows must be looked at"


def judge_segment(ref: SegmentRef, predicate: Predicate | None, time: ReadColumn | None, last_time: int | None) -> Verdict:
    """Judge a segment by the range of its time column.

    Args:
        ref: The segment.
        predicate: The `where`, if any.
        time: The table's time column, if any.
        last_time: Rows after it are not selected (`closed_before`), if any.
    """
    if not ref.live_rows:
        return Verdict.NONE
    known = time is not None and ref.time_min is not None and ref.time_max is not None and not patched(ref, time.id)
    if known and last_time is not None and ref.time_min is not None and ref.time_min > last_time:
        return Verdict.NONE
    if known and predicate is not None and time is not None:
        low, high = predicate.bounds.get(time.name, (None, None))
        if (low is not None and ref.time_max is not None and ref.time_max < low) or (high is not None and ref.time_min is not None and ref.time_min > high):
            return Verdict.NONE
    if predicate is not None:
        return Verdict.COUNT
    if last_time is None or (known and ref.time_max is not None and ref.time_max <= last_time and time is not None and not time.nullable):
        return Verdict.ALL
    return Verdict.COUNT


def patched(ref: SegmentRef, column_id: int) -> bool:
    """Whether values of the column may differ from what the segment's statistics say."""
    return any(column_id in overlay.column_ids for overlay in ref.overlays) or any(column_id in file.column_ids for file in ref.column_files)


def possible_blocks(stats: npt.NDArray[Any], column: ReadColumn, low: float | None, high: float | None) -> npt.NDArray[np.bool_]:
    """Which blocks can hold a value in [low, high].

    Args:
        stats: STATS records [blocks] of the column.
        column: Its type says how min and max read.
        low: Inclusive; None is open.
        high: Inclusive; None is open.
    """
    known = (stats["flags"] & STATS_HAS_RANGE) != 0
    kind = column.leaf.dtype.kind
    view = "<f8" if kind == "f" else "<u8" if kind == "u" else "<i8"
    least, most = (np.ascontiguousarray(stats[name]).view(view) for name in ("min", "max"))
    possible = np.ones(len(stats), np.bool_)
    if low is not None:
        possible &= most >= low
    if high is not None:
        possible &= least <= high
    return np.asarray(possible | ~known, np.bool_)
