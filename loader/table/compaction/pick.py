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
        target_segment_bytes: Encoded size past which a segment is left alone, and at which outputs are cut.
        min_segments: Fewer small segments than this in one place are not worth a merge.
        size_ratio: The next larger segment joins a merge while it is at most this many times what is merged so far.
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
        chosen = _pick_all(segments, options) if full else _pick_tier(segments, options)
        if chosen:
            tasks.append(CompactionTask(bucket=bucket, partition=partition, segments=tuple(sorted(chosen, key=lambda s: s.segment_id))))
    return sorted(tasks, key=lambda task: (task.num_bytes, task.bucket, task.partition))


def _pick_all(segments: list[SegmentRef], options: CompactionOptions) -> list[SegmentRef]:
    """The whole group, unless it is what a compaction leaves behind."""
    fresh = [segment for segment in segments if segment.level == 0]
    overlaid = [segment for segment in segments if segment.overlays]
    small = [segment for segment in segments if segment.num_bytes < options.target_segment_bytes // 4]
    if len(segments) > 1 and (fresh or len(small) > 1):
        return segments
    return segments if overlaid and len(segments) > 1 and len(overlaid) == len(segments) else overlaid


def _pick_tier(segments: list[SegmentRef], options: CompactionOptions) -> list[SegmentRef]:
    """The smallest segments as far as their sizes are alike, if they are enough; and those that overlays weigh down."""
    heavy = [segment for segment in segments if _is_heavy(segment, options)]
    chosen: list[SegmentRef] = []
    merged = 0
    for segment in sorted(segments, key=lambda s: (total_bytes(s), s.segment_id)):
        size = total_bytes(segment)
        if size >= options.target_segment_bytes or (chosen and size > options.size_ratio * merged):
            break
        chosen.append(segment)
        merged += size
    if len(chosen) < options.min_segments:
        return heavy
    ids = {segment.segment_id for segment in chosen}
    return chosen + [segment for segment in heavy if segment.segment_id not in ids]


def _is_heavy(segment: SegmentRef, options: CompactionOptions) -> bool:
    changed = sum(overlay.num_rows for overlay in segment.overlays)
    return len(segment.overlays) > options.max_overlays or (changed > 0 and changed >= options.overlay_fraction * segment.num_rows)
