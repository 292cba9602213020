"""Which of very many segments compaction has to look at one by one, by arrays over all of them. Leaves out nothing that `pick` would choose.

A table of a million segments is mostly groups (bucket and time partition) that are as they should be: few runs, nothing deleted, nothing beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loader.catalog.records import ALL_BUCKETS, SegmentRef
from loader.catalog.segments import Attached, Segments

I64 = npt.NDArray[np.int64]
Newest = dict[int, int]  # the latest partition of each bucket


def with_overlays(segments: Sequence[SegmentRef]) -> Sequence[SegmentRef]:
    """Those that have an overlay."""
    if not isinstance(segments, Segments):
        return [segment for segment in segments if segment.overlays]
    return [segments[at] for at in _owners(segments, segments.overlays).tolist()]


def in_groups(segments: Sequence[SegmentRef], *, least: int, most_bytes: int, dead_fraction: float, most_files: int) -> tuple[Sequence[SegmentRef], Newest]:
    """The segments of groups in which something may be worth a rewrite, and of each bucket the latest partition of all its segments.

    Args:
        segments: Of a snapshot.
        least: Fewer runs than this make no task by their number.
        most_bytes: Segments from this size on do not count for it.
        dead_fraction: Share of a segment's rows that are deleted from which it may be rewritten.
        most_files: More column files and overlays than this beside a segment may have it rewritten.
    """
    if not isinstance(segments, Segments):
        newest: Newest = {}
        for segment in segments:
            newest[segment.bucket] = max(newest.get(segment.bucket, segment.partition), segment.partition)
        return segments, newest
    if not len(segments):
        return segments, {}
    buckets, partitions = segments.field("bucket"), segments.field("partition")
    order = np.lexsort((partitions, buckets))
    begins = np.flatnonzero(np.append(True, (np.diff(buckets[order]) != 0) | (np.diff(partitions[order]) != 0)))
    group = np.empty(len(order), np.int64)
    group[order] = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(order))))
    firsts = order[begins]
    ends = np.flatnonzero(np.append(np.diff(buckets[firsts]) != 0, True))  # the last group of each bucket has its latest partition
    wanted = _num_runs(segments, group, len(begins), most_bytes) >= least
    wanted[group[_heavy(segments, dead_fraction, most_files)]] = True
    # groups beside rows of all buckets are judged together
    wanted |= np.isin(partitions[firsts], partitions[buckets == ALL_BUCKETS])
    return segments.where(wanted[group]), dict(zip(buckets[firsts[ends]].tolist(), partitions[firsts[ends]].tolist(), strict=True))


def _num_runs(segments: Segments, group: I64, num_groups: int, most_bytes: int) -> I64:
    """Sorted runs of each group, at least those that `pick` counts: a fresh segment is one, and what one compaction wrote is one."""
    small = np.flatnonzero(segments.field("num_bytes") < most_bytes)
    own = np.where(segments.field("level") == 0, segments.field("segment_id"), 0)[small]
    came, of = segments.field("added_in")[small], group[small]
    order = np.lexsort((own, came, of))
    begins = np.append(True, (np.diff(own[order]) != 0) | (np.diff(came[order]) != 0) | (np.diff(of[order]) != 0))[: len(order)]
    return np.bincount(of[order][begins], minlength=num_groups)


def _heavy(segments: Segments, dead_fraction: float, most_files: int) -> npt.NDArray[np.bool_]:
    rows = segments.field("num_rows")
    dead = rows - segments.field("live_rows")
    beside = np.zeros(len(segments), np.int64)
    for attached in (segments.column_files, segments.overlays):
        at = segments.index_of(attached.segment_ids)
        np.add.at(beside, at[at >= 0], 1)
    heavy: npt.NDArray[np.bool_] = ((dead > 0) & (dead >= dead_fraction * rows)) | (beside > most_files)
    return heavy


def _owners(segments: Segments, attached: Attached) -> I64:
    at = segments.index_of(np.unique(attached.segment_ids))
    return at[at >= 0]
