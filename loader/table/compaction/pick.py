"""What to compact: a pure function of a snapshot's segments. Size-tiered inside each (bucket, time partition), as in universal compaction (RocksDB, Paimon)."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from loader.catalog.records import SegmentRef, SnapshotView


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompactionOptions:
    """Limits and thresholds.

    Attributes:
        memory_bytes: About how much decoded data a rewrite holds at once; larger inputs are rewritten piece by piece.
        target_segment_bytes: Encoded size past which a run is left alone, and at which its segments are cut.
        min_segments: Fewer small runs than this in one place are not worth a merge.
        size_ratio: The next larger run joins a merge while it is at most this many times what is merged so far.
        max_overlays: Overlays of a segment past which it is rewritten.
        overlay_fraction: Share of a segment's rows patched or deleted past which it is rewritten.
        threads: Columns encoded at the same time.
    """

    memory_bytes: int = 1 << 30
    target_segment_bytes: int = 128 << 20
    min_segments: int = 4
    size_ratio: float = 4.0
    max_overlays: int = 8
    overlay_fraction: float = 0.1
    threads: int = 2

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "target_segment_bytes", "min_segments", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompactionTask:
    """Segments of one (bucket, partition) to merge into one sorted run."""

    bucket: int
    partition: int
    segments: tuple[SegmentRef, ...]

    @property
    def num_rows(self) -> int:
        return sum(segment.live_rows for segment in self.segments)

    @property
    def num_bytes(self) -> int:
        return sum(total_bytes(segment) for segment in self.segments)


def total_bytes(segment: SegmentRef) -> int:
    """Bytes of a segment with its overlays."""
    return segment.num_bytes + sum(overlay.num_bytes for overlay in segment.overlays)


def pick(view: SnapshotView, options: CompactionOptions, *, full: bool = False) -> list[CompactionTask]:
    """What to merge, smallest first.

    Args:
        view: The snapshot.
        options: Thresholds.
        full: Take every group that is not one sorted run without overlays already.
    """
    groups: dict[tuple[int, int], list[SegmentRef]] = defaultdict(list)
    for segment in view.segments:
        groups[segment.bucket, segment.partition].append(segment)
    tasks = []
    for (bucket, partition), segments in groups.items():
        chosen = _pick_all(segments) if full else _pick_tier(segments, options)
        if chosen:
            tasks.append(CompactionTask(bucket=bucket, partition=partition, segments=tuple(sorted(chosen, key=lambda s: s.segment_id))))
    return sorted(tasks, key=lambda task: (task.num_bytes, task.bucket, task.partition))


def _pick_all(segments: list[SegmentRef]) -> list[SegmentRef]:
    """The whole group, unless it is what a compaction leaves behind: one run without overlays, or one fresh segment."""
    return segments if len(_runs(segments)) > 1 or any(segment.overlays for segment in segments) else []


def _pick_tier(segments: list[SegmentRef], options: CompactionOptions) -> list[SegmentRef]:
    """The smallest runs as far as their sizes are alike, if they are enough; and segments that overlays weigh down."""
    heavy = [segment for segment in segments if _is_heavy(segment, options)]
    chosen: list[SegmentRef] = []
    num_runs, merged = 0, 0
    for run in sorted(_runs(segments), key=lambda run: (sum(map(total_bytes, run)), run[0].segment_id)):
        size = sum(map(total_bytes, run))
        if size >= options.target_segment_bytes or (num_runs and size > options.size_ratio * merged):
            break
        chosen += run
        num_runs += 1
        merged += size
    if num_runs < options.min_segments:
        return heavy
    ids = {segment.segment_id for segment in chosen}
    return chosen + [segment for segment in heavy if segment.segment_id not in ids]


def _runs(segments: list[SegmentRef]) -> list[list[SegmentRef]]:
    """Sorted runs: a fresh segment is one, and all that one compaction wrote, which may be in pieces because of memory, is one."""
    runs: dict[tuple[int, int], list[SegmentRef]] = defaultdict(list)
    for segment in segments:
        runs[(segment.added_in, 0) if segment.level else (segment.added_in, segment.segment_id)].append(segment)
    return list(runs.values())


def _is_heavy(segment: SegmentRef, options: CompactionOptions) -> bool:
    changed = sum(overlay.num_rows for overlay in segment.overlays)
    return len(segment.overlays) > options.max_overlays or (changed > 0 and changed >= options.overlay_fraction * segment.num_rows)
