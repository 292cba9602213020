"""Pruning: which segments and blocks can hold a selected row, from what is known without reading them. Pure functions over arrays.

A wrong "maybe" costs a read, a wrong "no" loses rows: anything unclear is a maybe. Where rows lie (time, bucket) never changes; the range of any other
column says nothing once a patch or a column file touches it, nor does that of the attributed label, whose nulls may read as a default.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.column_stats import Kind, Ranges, text_word
from loader.catalog.manifest import Within
from loader.catalog.records import SegmentRef, TableSpec
from loader.catalog.segments import HAS_TIMES, Segments
from loader.scan.columns import ReadColumn
from loader.scan.facts import Fact, Facts, stored
from loader.segment.key_index import bucket_of, keys_of
from loader.segment.layout import STATS_HAS_RANGE

Mask = npt.NDArray[np.bool_]
RangesOf = Callable[[Segments, int], Ranges]  # statistics of a column, by id, over segments
MAX_BUCKET_VALUES = 256  # combinations of literals that are hashed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """What is left after one step of pruning.

    Attributes:
        name: What it looked at.
        segments, blocks, rows: That may hold a selected row; rows are live ones.
    """

    name: str
    segments: int
    blocks: int
    rows: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pruned:
    """The segments that may hold a selected row.

    Attributes:
        segments: They.
        whole: bool[segments]: every live row is selected, nothing needs to be looked at.
        steps: What each step left, beginning with all.
    """

    segments: Segments
    whole: Mask
    steps: tuple[Step, ...]


def within(spec: TableSpec, facts: Facts, last_time: int | None) -> Within:
    """What a plan needs of the catalog, from what is said of the columns that say where rows lie.

    Args:
        spec: The table.
        facts: Of the predicate.
        last_time: Rows after it are not selected (`closed_before`), if any.
    """
    low, high = None, last_time
    time = spec.time_column
    if time is not None and time.name in facts.columns:
        fact = facts.columns[time.name]
        low = _whole(fact.low, math.ceil)
        above = _whole(fact.high, math.floor)
        high = above if high is None else high if above is None else min(above, high)
    return Within(time_min=low, time_max=high, buckets=buckets_of(spec, facts))


def _whole(value: float | None, rounded: Callable[[float], int]) -> int | None:
    """A bound of whole numbers that a catalog can compare; None where it is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    number = rounded(value)
    return number if -(2**63) <= number < 2**63 else None


def buckets_of(spec: TableSpec, facts: Facts) -> tuple[int, ...] | None:
    """The buckets that rows with the values of a predicate lie in; None is any."""
    columns = spec.columns(spec.bucket_by_ids)
    lists = [facts.columns[column.name].values if column.name in facts.columns else None for column in columns]
    if any(values is None for values in lists) or math.prod(len(values or ()) for values in lists) > MAX_BUCKET_VALUES:
        return None
    combined = zip(*itertools.product(*(values or () for values in lists)), strict=True)
    arrays = [pa.array([scalar.as_py() for scalar in values], values[0].type).cast(column.type) for column, values in zip(columns, combined, strict=True)]
    keys = keys_of(arrays) if spec.bucket_by_ids == spec.primary_key_ids else keys_of(arrays, hashed=True)
    return tuple(np.unique(bucket_of(keys, spec.buckets)).tolist())


def prune(spec: TableSpec, segments: Segments, facts: Facts, *, has_predicate: bool, last_time: int | None, ranges_of: RangesOf) -> Pruned:
    """Drop the segments that hold no selected row.

    Args:
        spec: The table, by the schema of the snapshot.
        segments: Of the snapshot.
        facts: Of the predicate.
        has_predicate: Whether there is one.
        last_time: Rows after it are not selected (`closed_before`), if any.
        ranges_of: Loads statistics.
    """
    steps = [_step("the snapshot", segments)]

    def keep(name: str, mask: Mask) -> None:
        nonlocal segments
        segments = segments.where(mask)
        steps.append(_step(name, segments))

    keep("deleted rows", segments.field("live_rows") > 0)
    place = within(spec, facts, last_time)
    if place.time_min is not None or place.time_max is not None:
        keep(f"time ({spec.time_column.name if spec.time_column else ''})", _in_time(segments, place))
    if place.buckets is not None:
        keep(f"bucket ({', '.join(spec.bucket_by)})", place.holds(segments.field("bucket")))
    exact, inside = facts.is_exact, np.ones(len(segments), np.bool_)
    for name, fact in facts.columns.items():
        column = spec.schema.column(name)
        if not len(segments) or (spec.attribution is not None and name == spec.attribution.column):
            exact = False
            continue
        ranges, unclear = ranges_of(segments, column.id), segments.touched(column.id)
        possible = possible_segments(ranges, fact, segments.field("num_rows")) | unclear
        inside = (inside & covered(ranges, fact) & ~unclear)[possible]
        keep(f"statistics of {name}", possible)
    whole = inside if exact else np.full(len(segments), not has_predicate)
    if last_time is not None:
        whole = whole & (segments.field("known") & HAS_TIMES != 0) & (segments.field("time_max") <= last_time)
    return Pruned(segments=segments, whole=whole, steps=tuple(steps))


def _step(name: str, segments: Segments) -> Step:
    return Step(name=name, segments=len(segments), blocks=int(segments.field("num_blocks").sum()), rows=int(segments.field("live_rows").sum()))


def _in_time(segments: Segments, place: Within) -> Mask:
    return np.concatenate([np.zeros(0, np.bool_), *(dataclasses.replace(place, buckets=None).mask(part) for part in segments.parts)])


def possible_segments(ranges: Ranges, fact: Fact, num_rows: npt.NDArray[np.int64]) -> Mask:
    """Which segments can hold a value that fits, by their statistics; the unknown can."""
    possible = np.ones(len(ranges), np.bool_)
    if fact.nulls == "all":
        return np.asarray(~(ranges.known & (ranges.null_count == 0)), np.bool_)
    if fact.nulls == "none":
        possible &= ~(ranges.known & (ranges.null_count >= num_rows))
    if fact.is_range:
        possible &= ~(ranges.known & ~ranges.ranged & ~ranges.of_kind(Kind.TEXT))  # nothing but nulls and NaN
    for kind, view in ((Kind.SIGNED, np.int64), (Kind.UNSIGNED, np.uint64), (Kind.FLOAT, np.float64)):
        own = ranges.of_kind(kind)
        if own.any() and fact.is_range:
            low, high = ranges.min[own].view(view), ranges.max[own].view(view)
            possible[own] &= _overlaps(low, high, fact)
    own = ranges.of_kind(Kind.TEXT)
    if own.any():
        if fact.text_low is not None:
            possible[own] &= ranges.max[own] >= np.uint64(text_word(fact.text_low))
        if fact.text_high is not None:
            possible[own] &= ranges.min[own] <= np.uint64(text_word(fact.text_high))
    return possible


def _overlaps(low: npt.NDArray[Any], high: npt.NDArray[Any], fact: Fact) -> Mask:
    possible = np.ones(len(low), np.bool_)
    if fact.low is not None:
        possible &= high >= fact.low
    if fact.high is not None:
        possible &= low <= fact.high
    numbers = [value for scalar in fact.values or () for value in [stored(scalar)] if value is not None]
    if fact.values and len(numbers) == len(fact.values):
        possible &= np.any([(low <= value) & (high >= value) for value in numbers], axis=0)
    return possible


def covered(ranges: Ranges, fact: Fact) -> Mask:
    """Where every row has a value within the bounds of a range of whole numbers."""
    inside = ranges.known & (ranges.null_count == 0)
    found = np.zeros(len(ranges), np.bool_)
    for kind, view in ((Kind.SIGNED, np.int64), (Kind.UNSIGNED, np.uint64)):
        own = ranges.of_kind(kind)
        if own.any():
            low, high = ranges.min[own].view(view), ranges.max[own].view(view)
            found[own] = (True if fact.low is None else low >= fact.low) & (True if fact.high is None else high <= fact.high)
    return np.asarray(inside & found, np.bool_)


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
