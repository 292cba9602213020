"""Running compaction: what is worth it is rewritten, or its overlays are folded, and each swapped in by one commit that carries over what came meanwhile.

Buckets are leased while they are worked on, so that several compactors do not do the same work; a commit of one that lost its lease is refused. Stopping
it at any point leaves each task committed or without effect, and the next run goes on with what is left.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection

import numpy as np
import pyarrow as pa

from loader import failpoints
from loader.catalog.commit import LeaseLostError, SchemaChangedError, Stale
from loader.catalog.read import load_head, load_overlays_since, load_spec_by_id, load_view
from loader.catalog.records import ALL_BUCKETS, ERASED, BucketLease, CommitPlan, NewOverlay, NewSegment, OverlayRef, SnapshotView
from loader.schema import take
from loader.segment.layout import ORDER_COLUMN_ID, ROW_COLUMN_ID
from loader.table.compaction.fold import FoldedOverlays, fold_batches
from loader.table.compaction.lease import holding, new_owner
from loader.table.compaction.pick import CompactionOptions, CompactionTask, FoldTask, pick, pick_folds, total_bytes
from loader.table.compaction.rewrite import Rewritten, rewrite
from loader.table.context import TableContext
from loader.table.files import Stage, place
from loader.table.row_groups import build_row_groups
from loader.table.segments import encode_overlay, open_segment, operand_orders, operand_rows, read_by_id

logger = logging.getLogger(__name__)
MAX_ROUNDS = 16  # of a bucket: merges that call for merges
FOLD_BATCH_BYTES = 64 << 20  # of one commit that folds


Progress = Callable[[int, int], None]  # rows rewritten so far, rows known to need it


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompactionReport:
    """What a compaction did.

    Attributes:
        snapshots: Numbers of its commits.
        num_tasks: Tasks committed.
        num_abandoned: Tasks given up because somebody else rewrote their inputs first, took over their bucket, or changed the schema.
        num_busy: Buckets left alone because another compactor was at work there.
        segments_before, segments_after: Inputs and outputs of the committed tasks.
        bytes_before, bytes_after: Of the same, overlays included.
        overlays_folded: Overlays of the inputs.
        segments_folded: Segments whose overlays were folded beside them.
        bytes_folded: Written for that.
        rows_written: Rows in the outputs.
        seconds: Wall time.
    """

    snapshots: tuple[int, ...]
    num_tasks: int
    num_abandoned: int
    num_busy: int = 0
    segments_before: int
    segments_after: int
    bytes_before: int
    bytes_after: int
    overlays_folded: int
    segments_folded: int = 0
    bytes_folded: int = 0
    rows_written: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Done:
    snapshot: int
    task: CompactionTask
    segments: list[NewSegment]


@dataclasses.dataclass(kw_only=True)
class _Run:
    """One compaction: what it was asked for and how far it came."""

    context: TableContext
    full: bool
    options: CompactionOptions
    progress: Progress | None
    stage: Stage
    owner: str
    done: list[_Done] = dataclasses.field(default_factory=list)
    folds: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)  # snapshot, overlays that went, bytes
    segments_folded: int = 0
    abandoned: int = 0
    busy: set[int] = dataclasses.field(default_factory=set)
    rows_seen: int = 0
    rows_known: int = 0

    def look(self) -> SnapshotView:
        """The table as it is now, by its present schema."""
        with self.context.catalog.read() as connection:
            spec = load_spec_by_id(connection, self.context.spec.id)
            if spec.schema_id != self.context.spec.schema_id:
                self.context = dataclasses.replace(self.context, spec=spec)
            return load_view(connection, spec, load_head(connection, spec))

    def report_rows(self, rows: int) -> None:
        """A task's own progress as the whole run's."""
        if self.progress is not None:
            self.progress(self.rows_seen + rows, max(self.rows_known, self.rows_seen + rows))


def compact(
    context: TableContext, *, full: bool, options: CompactionOptions, progress: Progress | None, buckets: Collection[int] | None = None
) -> CompactionReport:
    """Compact until nothing is worth it.

    Args:
        context: The table.
        full: Everything that is not one clean, sorted run.
        options: Limits.
        progress: Called with (rows rewritten, rows known to need it); what it raises ends the compaction in good order.
        buckets: Only these; default all.
    """
    started = time.monotonic()
    owner = new_owner()
    run = _Run(context=context, full=full, options=options, progress=progress, stage=context.new_stage(owner), owner=owner)
    try:
        tasks = pick(run.look(), options, full=full, buckets=buckets)
        failpoints.hit("compaction.picked")
        run.rows_known = sum(task.num_rows for task in tasks)
        _fold(run, buckets)
        if any(task.bucket == ALL_BUCKETS for task in tasks):
            _compact_bucket(run, ALL_BUCKETS)
            tasks = pick(run.look(), options, full=full, buckets=buckets)  # with what the buckets got from it
            run.rows_known = run.rows_seen + sum(task.num_rows for task in tasks)
        for bucket in dict.fromkeys(task.bucket for task in tasks if task.bucket != ALL_BUCKETS):
            _compact_bucket(run, bucket)
    finally:
        run.stage.close()
    if run.context.spec.lookup_column_ids:
        build_row_groups(run.context, buckets=buckets)
    return _report(run, time.monotonic() - started)


def buckets_to_compact(view: SnapshotView, options: CompactionOptions, *, full: bool) -> dict[int, int]:
    """Buckets where there is something to do, those with the most rows to rewrite first, and how many those are; ALL_BUCKETS alone, whose rows go to others."""
    tasks = pick(view, options, full=full)
    mixed = sum(task.num_rows for task in tasks if task.bucket == ALL_BUCKETS)
    if mixed:
        return {ALL_BUCKETS: mixed}
    rows = Counter(dict.fromkeys((fold.segment.bucket for fold in pick_folds(view, options, besides=_inputs(tasks))), 0))
    for task in tasks:
        rows[task.bucket] += task.num_rows
    return dict(rows.most_common())


def _inputs(tasks: Collection[CompactionTask]) -> set[int]:
    """Numbers of the segments that are rewritten."""
    return {segment.segment_id for task in tasks for segment in task.segments}


def _compact_bucket(run: _Run, bucket: int) -> None:
    """All that is worth it in one bucket, under its lease."""
    with holding(run.context.catalog, run.context.spec.id, run.owner, [bucket]) as lease:
        if not lease.buckets:
            logger.info("bucket %d of table %s is another compactor's: left alone", bucket, run.context.spec.name)
            run.busy.add(bucket)
            return
        for number in range(MAX_ROUNDS):
            tasks = pick(run.look(), run.options, full=run.full, buckets=[bucket])  # again: it may have been another's until now
            run.rows_known += sum(task.num_rows for task in tasks) if number else 0
            committed = sum(_run_task(run, task, lease) for task in tasks)
            if run.full or not committed:
                return


def _run_task(run: _Run, task: CompactionTask, lease: BucketLease) -> bool:
    """Rewrite and swap in; whether it was committed."""
    run.report_rows(0)
    rewritten = rewrite(run.context, task, run.options, run.stage, run.report_rows)
    failpoints.hit("compaction.rewritten")
    commit_id = uuid.uuid4().hex

    def attempt() -> CommitPlan | Stale:
        return _plan(run.context, task, rewritten, run.stage, commit_id, lease)

    snapshot = _commit(run, attempt)
    run.rows_seen += task.num_rows
    if snapshot is None:
        logger.info("compaction of table %s bucket %d partition %d abandoned: another was first", run.context.spec.name, task.bucket, task.partition)
        return False
    with run.context.lock:
        for segment, index in zip(rewritten.segments, rewritten.indexes, strict=False):  # of what was kept in memory
            run.context.directory.remember(segment.path, segment.offset, index)
    failpoints.hit("compaction.committed")
    run.done.append(_Done(snapshot, task, rewritten.segments))
    return True


def _fold(run: _Run, buckets: Collection[int] | None) -> None:
    """Fold the overlays of all segments that have too many and are not rewritten, a few commits for all of them."""
    wanted = {fold.segment.bucket for fold in _folds(run, buckets)}
    if not wanted:
        return
    with holding(run.context.catalog, run.context.spec.id, run.owner, wanted) as lease:
        run.busy |= wanted - set(lease.buckets)
        folds = _folds(run, lease.buckets)
        batches = fold_batches(run.context.spec, folds, run.context.storage, run.stage, batch_bytes=FOLD_BATCH_BYTES, threads=run.options.threads)
        for folded in batches:
            failpoints.hit("fold.staged")
            snapshot = _commit(run, _fold_plan(run.context, folded, lease))
            if snapshot is not None:
                failpoints.hit("fold.committed")
                run.folds.append((snapshot, len(folded.removed_overlays), folded.num_bytes))
                run.segments_folded += len(folded.segments)


def _folds(run: _Run, buckets: Collection[int] | None) -> list[FoldTask]:
    view = run.look()
    return pick_folds(view, run.options, besides=_inputs(pick(view, run.options, full=run.full, buckets=buckets)), buckets=buckets)


def _fold_plan(context: TableContext, folded: FoldedOverlays, lease: BucketLease) -> Callable[[], CommitPlan]:
    commit_id = uuid.uuid4().hex

    def attempt() -> CommitPlan:
        with context.catalog.read() as connection:
            head = load_head(connection, context.spec)
        return CommitPlan(
            spec=context.spec,
            kind="fold",
            commit_id=commit_id,
            base=head,
            overlays=folded.overlays,
            column_files=folded.column_files,
            inline=dict(folded.inline),
            removed_overlays=folded.removed_overlays,
            folded_segments=folded.segments,
            latest_overlay=folded.latest_overlay,
            removed_column_files=folded.removed_column_files,
            lease=lease,
            summary={
                "overlays_folded": len(folded.removed_overlays),
                "overlays_written": len(folded.overlays),
                "column_files_written": len(folded.column_files),
            },
        )

    return attempt


def _commit(run: _Run, attempt: Callable[[], CommitPlan | Stale]) -> int | None:
    """The number of the snapshot; None where the plan came too late, which the next look at the table makes good."""
    try:
        snapshot = run.context.commit(attempt, run.stage)
    except (SchemaChangedError, LeaseLostError) as error:
        logger.info("%s", error)
        snapshot = None
    run.abandoned += snapshot is None
    return None if snapshot is None else snapshot.id


def _plan(context: TableContext, task: CompactionTask, rewritten: Rewritten, stage: Stage, commit_id: str, lease: BucketLease) -> CommitPlan | Stale:
    """The swap, with every overlay that the inputs gained since they were read."""
    inputs = tuple(segment.segment_id for segment in task.segments)
    with context.catalog.read() as connection:
        head = load_head(connection, context.spec)
        gained = load_overlays_since(connection, context.spec.id, inputs, rewritten.latest_overlay)
    if any(overlay.kind == ERASED for _, overlay in gained):
        return Stale(ERASED, abandoned=True)  # the inputs were read with the row that was erased since
    inline = dict(rewritten.inline)
    overlays = _carry_over(context, rewritten, gained, stage, inline)
    failpoints.hit("compaction.before_commit")
    return CommitPlan(
        spec=context.spec,
        kind="compact",
        commit_id=commit_id,
        base=head,
        rows_changed=rewritten.key_buckets,
        segments=rewritten.segments,
        overlays=overlays,
        inline=inline,
        removed_segments=inputs,
        num_column_files=rewritten.num_column_files,
        num_overlays=sum(len(segment.overlays) for segment in task.segments) + len(gained),
        lease=lease,
        latest_overlay=max([rewritten.latest_overlay, *(overlay.overlay_id for _, overlay in gained)]),
        summary={
            "segments_removed": len(inputs),
            "segments_added": len(rewritten.segments),
            "rows_rewritten": int(rewritten.starts[-1]),
            "overlays_carried_over": len(gained),
        },
    )


def _carry_over(context: TableContext, rewritten: Rewritten, gained: list[tuple[int, OverlayRef]], stage: Stage, inline: dict[str, bytes]) -> list[NewOverlay]:
    """The gained overlays by position in the run, each with the sequence of its own commit."""
    targets: list[tuple[int, OverlayRef, int]] = []
    sections = []
    for segment_id, overlay in gained:
        for at, section, num_rows in _moved(context, rewritten, rewritten.places[segment_id], overlay):
            targets.append((at, overlay, num_rows))
            sections.append(section)
    if not sections:
        return []
    placed = place(sections, stage, inline)
    return [
        NewOverlay(
            new_segment=at,
            kind=overlay.kind,
            path=placed.path,
            offset=offset,
            num_bytes=num_bytes,
            num_rows=num_rows,
            num_deleted=num_rows if overlay.num_deleted else 0,
            column_ids=overlay.column_ids,
            sequence=overlay.sequence,
            level=overlay.level,
        )
        for (at, overlay, num_rows), (offset, num_bytes) in zip(targets, placed.sections, strict=True)
    ]


def _moved(context: TableContext, rewritten: Rewritten, place_of: np.ndarray, overlay: OverlayRef) -> list[tuple[int, memoryview, int]]:
    """An overlay cut by output segment: (segment of the run, section, rows)."""
    reader = open_segment(context.storage, overlay)
    read = read_by_id(reader, [ROW_COLUMN_ID, ORDER_COLUMN_ID, *overlay.column_ids])
    rows = place_of[operand_rows(read)]
    order = np.argsort(rows, kind="stable")
    order = order[rows[order] >= 0]
    rows = rows[order]
    orders = operand_orders(read, len(place_of))[order] if ORDER_COLUMN_ID in read else None
    columns = pa.table({reader.column_name(reader.column_index(column_id)): take(read[column_id], order) for column_id in overlay.column_ids})
    cuts = np.searchsorted(rows, rewritten.starts)
    found = []
    for at, (first, last) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)):
        if first < last:
            part = encode_overlay(
                columns.slice(first, last - first), overlay.column_ids, rows[first:last] - rewritten.starts[at], None if orders is None else orders[first:last]
            )
            found.append((at, part, last - first))
    return found


def _report(run: _Run, seconds: float) -> CompactionReport:
    inputs = [segment for item in run.done for segment in item.task.segments]
    outputs = [segment for item in run.done for segment in item.segments]
    return CompactionReport(
        snapshots=tuple(sorted([*(item.snapshot for item in run.done), *(snapshot for snapshot, _, _ in run.folds)])),
        num_tasks=len(run.done),
        num_abandoned=run.abandoned,
        num_busy=len(run.busy),
        segments_before=len(inputs),
        segments_after=len(outputs),
        bytes_before=sum(total_bytes(segment) for segment in inputs),
        bytes_after=sum(segment.num_bytes for segment in outputs),
        overlays_folded=sum(len(segment.overlays) for segment in inputs) + sum(count for _, count, _ in run.folds),
        segments_folded=run.segments_folded,
        bytes_folded=sum(num_bytes for _, _, num_bytes in run.folds),
        rows_written=sum(segment.num_rows for segment in outputs),
        seconds=seconds,
    )
