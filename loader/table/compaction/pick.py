"""What to compact and what to fold: pure functions of a snapshot's segments. No I/O.

Inside each (bucket, time partition) segments make up sorted runs, and runs are merged, as in universal compaction (RocksDB, Paimon). Where rows still
come, the runs of the lowest levels are merged once there are `max_segments` of them, so that a row is written again as seldom as a bounded number of runs
allows: the binomial schedule of Bigtable's merge compaction (Mathieu, Staelin, Young and Yousefi, 2014). A partition that time has left behind is merged by
size down to a few runs. Overlays are folded beside their segment (`fold`); only what deletions have hollowed out is rewritten alone.

Small segments with rows of all buckets count as runs of each bucket; they are merged before any of these is, into a run of each bucket whose rows they hold.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection

from loader.catalog.records import ALL_BUCKETS, DELETES, OverlayRef, SegmentRef, SnapshotView
from loader.table.compaction.candidates import in_groups, with_overlays
from loader.table.segments import data_files

PATCH = "patch"
MAX_COLUMN_FILES = 8  # beside a segment, before it is rewritten with them
MAX_TASK_ROWS = 1 << 30
MAX_INPUTS = 1_000  # segments that one task reads


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompactionOptions:
    """Limits and thresholds.

    Attributes:
        memory_bytes: About how much decoded data a rewrite holds at once; larger inputs are rewritten piece by piece.
        target_segment_bytes: Encoded size past which a run is left alone, and at which its segments are cut.
        task_bytes: Encoded bytes that one task merges at most: what a stop loses, and the space that it takes beside its inputs.
        task_rows: Rows that one task merges at most; it holds 8 bytes of memory for each.
        max_segments: Runs of a bucket and partition, those past the target size not counted, at which some are merged.
        min_segments: Fewer runs than this in a partition that time has left behind are not worth a merge.
        size_ratio: There, the next larger run joins a merge while it is at most this many times what is merged so far.
        max_overlays: Patches (or deletion vectors) of a segment past which they are folded into one.
        overlay_fraction: Share of a segment's rows from which folding writes its patched columns anew instead of one patch.
        fold_rows: Segments with fewer rows are folded for the number of their patches only, however many rows those touch.
        dead_fraction: Share of a segment's rows that are deleted from which it is rewritten without them.
        threads: Columns encoded at the same time.
    """

    memory_bytes: int = 1 << 30
    target_segment_bytes: int = 128 << 20
    task_bytes: int = 4 << 30
    task_rows: int = 32 << 20
    max_segments: int = 14
    min_segments: int = 4
    size_ratio: float = 4.0
    max_overlays: int = 4
    overlay_fraction: float = 0.1
    fold_rows: int = 16_384
    dead_fraction: float = 0.125
    threads: int = 2

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "target_segment_bytes", "task_bytes", "task_rows", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.task_rows > MAX_TASK_ROWS:
            raise ValueError(f"task_rows must be at most {MAX_TASK_ROWS:,}, not {self.task_rows:,}")
        for name in ("max_segments", "min_segments"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, not {getattr(self, name)}: one run is merged with nothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompactionTask:
    """Segments of one (bucket, partition) to merge into one sorted run; of ALL_BUCKETS, into one of each bucket."""

    bucket: int
    partition: int
    segments: tuple[SegmentRef, ...]

    @property
    def num_rows(self) -> int:
        return sum(segment.live_rows for segment in self.segments)

    @property
    def num_bytes(self) -> int:
        return sum(total_bytes(segment) for segment in self.segments)

    @property
    def level(self) -> int:
        """Of what is written: how often its rows were merged at most."""
        return max(1, max(segment.level for segment in self.segments) + (len(_runs(self.segments)) > 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldTask:
    """Overlays of one segment to fold.

    Attributes:
        segment: It stays as it is.
        patches: To make one of; may be none.
        to_columns: Write the patched columns anew beside the segment instead of one patch.
        deletes: Deletion vectors to make one of; may be none.
    """

    segment: SegmentRef
    patches: tuple[OverlayRef, ...] = ()
    to_columns: bool = False
    deletes: tuple[OverlayRef, ...] = ()


def total_bytes(segment: SegmentRef) -> int:
    """Bytes of a segment with its overlays and column files."""
    return segment.num_bytes + sum(overlay.num_bytes for overlay in segment.overlays) + sum(file.num_bytes for file in data_files(segment))


def pick(view: SnapshotView, options: CompactionOptions, *, full: bool = False, buckets: Collection[int] | None = None) -> list[CompactionTask]:
    """What to merge, smallest first.

    Args:
        view: The snapshot.
        options: Thresholds.
        full: Take every group that is not one sorted run without overlays already; what ALL_BUCKETS leaves behind is to be picked again.
        buckets: Only of these; default all.
    """
    groups: dict[tuple[int, int], list[SegmentRef]] = defaultdict(list)
    least = 2 if full else min(options.max_segments, options.min_segments)
    most_bytes, most_files = (1 << 62, 0) if full else (options.target_segment_bytes, MAX_COLUMN_FILES)
    candidates, newest = in_groups(view.segments, least=least, most_bytes=most_bytes, dead_fraction=options.dead_fraction, most_files=most_files)
    for segment in candidates:
        groups[segment.bucket, segment.partition].append(segment)
    beside = _runs_beside(groups, options)
    tasks = []
    for (bucket, partition), segments in groups.items():
        if buckets is not None and bucket not in buckets:
            continue
        is_settled = partition < newest[bucket] - 1
        for chosen in (
            _pick_all(segments, options, is_mixed=bucket == ALL_BUCKETS)
            if full
            else [_pick_some(segments, options, is_settled=is_settled, num_beside=beside[bucket, partition])]
        ):
            if chosen:
                tasks.append(CompactionTask(bucket=bucket, partition=partition, segments=tuple(sorted(chosen, key=lambda s: s.segment_id))))
    return sorted(tasks, key=lambda task: (task.num_bytes, task.bucket, task.partition))


def _runs_beside(groups: dict[tuple[int, int], list[SegmentRef]], options: CompactionOptions) -> dict[tuple[int, int], int]:
    """For each group, the runs that a look for a row of it passes besides: those of all buckets; for these, those of the bucket with the most."""
    mixed = {partition: len(segments) for (bucket, partition), segments in groups.items() if bucket == ALL_BUCKETS}
    beside = {(bucket, partition): mixed.get(partition, 0) for bucket, partition in groups if bucket != ALL_BUCKETS}
    for partition in mixed:
        own = [segments for (bucket, at), segments in groups.items() if at == partition and bucket != ALL_BUCKETS]
        beside[ALL_BUCKETS, partition] = max((len(_small_runs(segments, options)) for segments in own), default=0)
    return beside


def pick_folds(view: SnapshotView, options: CompactionOptions, *, besides: Collection[int] = (), buckets: Collection[int] | None = None) -> list[FoldTask]:
    """Segments with more overlays than they should have, by number.

    Args:
        view: The snapshot.
        options: Thresholds.
        besides: Numbers of segments that are rewritten anyhow.
        buckets: Only of these; default all.
    """
    tasks = []
    for segment in with_overlays(view.segments):
        if segment.segment_id in besides or (buckets is not None and segment.bucket not in buckets):
            continue
        patches = tuple(overlay for overlay in segment.overlays if overlay.kind == PATCH)
        deletes = tuple(overlay for overlay in segment.overlays if overlay.kind == DELETES)
        much = sum(overlay.num_rows for overlay in patches) >= options.overlay_fraction * segment.num_rows
        fold_patches = _are_many(patches, options) or (much and bool(patches) and segment.num_rows >= options.fold_rows)
        fold_deletes = _are_many(deletes, options)
        if fold_patches or fold_deletes:
            tasks.append(
                FoldTask(segment=segment, patches=patches if fold_patches else (), to_columns=fold_patches and much, deletes=deletes if fold_deletes else ())
            )
    return tasks


def _are_many(overlays: Collection[OverlayRef], options: CompactionOptions) -> bool:
    return sum(overlay.level == 0 for overlay in overlays) > options.max_overlays


def _pick_all(segments: list[SegmentRef], options: CompactionOptions, *, is_mixed: bool = False) -> list[list[SegmentRef]]:
    """The whole group, unless it is what a compaction leaves behind; cut into tasks where it is more than one may merge."""
    tasks: list[list[SegmentRef]] = []
    alone = []
    for run in sorted(_runs(segments), key=_run_bytes):
        if tasks and _fits([*tasks[-1], *run], options):
            tasks[-1] += run
        elif _fits(run, options):
            tasks.append(run)
        else:  # larger than a task by itself: what has to be rewritten of it is, segment by segment
            alone += [[segment] for segment in run]
    return [task for task in tasks + alone if is_mixed or len(_runs(task)) > 1 or any(segment.overlays or data_files(segment) for segment in task)]


def _pick_some(segments: list[SegmentRef], options: CompactionOptions, *, is_settled: bool, num_beside: int) -> list[SegmentRef]:
    """What is worth it by number and size; and segments that deletions and column files weigh down."""
    runs = _small_runs(segments, options)
    chosen = _by_size(runs, options) if is_settled else _by_level(runs, options, num_beside)
    ids = {segment.segment_id for segment in chosen}
    heavy = [segment for segment in segments if segment.segment_id not in ids and _is_heavy(segment, options)]
    return _within(chosen, options) or _within(heavy, options)


def _small_runs(segments: list[SegmentRef], options: CompactionOptions) -> list[list[SegmentRef]]:
    return [run for run in _runs(segments) if _run_bytes(run) < options.target_segment_bytes]


def _by_level(runs: list[list[SegmentRef]], options: CompactionOptions, num_beside: int) -> list[SegmentRef]:
    """Once the runs are as many as there may be: those of the lowest level, with the next ones as long as they are a single run."""
    if len(runs) + num_beside < options.max_segments or len(runs) < 2:
        return []
    runs = sorted(runs, key=lambda run: (_level(run), _run_bytes(run)))
    level = _level(runs[1])  # the lowest that makes two
    chosen = [run for run in runs if _level(run) <= level]
    size = sum(map(_run_bytes, chosen))
    chosen += [run for run in runs if _level(run) > level and _run_bytes(run) <= size / 4]  # so small that it costs next to nothing
    return [segment for run in chosen for segment in run]


def _by_size(runs: list[list[SegmentRef]], options: CompactionOptions) -> list[SegmentRef]:
    """The smallest runs as far as their sizes are alike, if they are enough."""
    chosen: list[SegmentRef] = []
    num_runs, merged = 0, 0
    for run in sorted(runs, key=lambda run: (_run_bytes(run), run[0].segment_id)):
        if num_runs and _run_bytes(run) > options.size_ratio * merged:
            break
        chosen += run
        num_runs += 1
        merged += _run_bytes(run)
    return chosen if num_runs >= options.min_segments else []


def _within(chosen: list[SegmentRef], options: CompactionOptions) -> list[SegmentRef]:
    """As many of them, smallest first, as one task may merge."""
    taken: list[SegmentRef] = []
    for segment in sorted(chosen, key=lambda segment: (total_bytes(segment), segment.segment_id)):
        if taken and not _fits([*taken, segment], options):
            break
        taken.append(segment)
    return taken


def _fits(segments: Collection[SegmentRef], options: CompactionOptions) -> bool:
    num_bytes, num_rows = sum(map(total_bytes, segments)), sum(segment.num_rows for segment in segments)
    return num_bytes <= options.task_bytes and num_rows <= options.task_rows and len(segments) <= MAX_INPUTS


def _runs(segments: Collection[SegmentRef]) -> list[list[SegmentRef]]:
    """Sorted runs: a fresh segment is one, and all that one compaction wrote, which may be in pieces because of memory, is one."""
    runs: dict[tuple[int, int], list[SegmentRef]] = defaultdict(list)
    for segment in segments:
        runs[(segment.added_in, 0) if segment.level else (segment.added_in, segment.segment_id)].append(segment)
    return list(runs.values())


def _run_bytes(run: list[SegmentRef]) -> int:
    return sum(map(total_bytes, run))


def _level(run: list[SegmentRef]) -> int:
    return max(segment.level for segment in run)


def _is_heavy(segment: SegmentRef, options: CompactionOptions) -> bool:
    dead = segment.num_rows - segment.live_rows
    return (dead > 0 and dead >= options.dead_fraction * segment.num_rows) or len(data_files(segment)) > MAX_COLUMN_FILES
