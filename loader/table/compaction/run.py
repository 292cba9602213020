"""Running compaction: tasks one after the other, each rewritten and swapped in by one commit that carries over what its inputs gained meanwhile."""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from loader import failpoints
from loader.catalog.commit import Stale
from loader.catalog.read import load_head, load_overlays_since, load_view
from loader.catalog.records import ERASED, CommitPlan, NewOverlay, NewSegment, OverlayRef
from loader.schema import take
from loader.segment.layout import ORDER_COLUMN_ID, ROW_COLUMN_ID
from loader.table.compaction.pick import CompactionOptions, CompactionTask, pick, total_bytes
from loader.table.compaction.rewrite import Rewritten, rewrite
from loader.table.context import TableContext
from loader.table.files import Stage, place
from loader.table.segments import encode_overlay, open_segment, operand_orders, operand_rows, read_by_id

logger = logging.getLogger(__name__)
MAX_ROUNDS = 16


Progress = Callable[[int, int], None]  # rows rewritten so far, rows known to need it


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompactionReport:
    """What a compaction did.

    Attributes:
        snapshots: Numbers of its commits.
        num_tasks: Tasks committed.
        num_abandoned: Tasks given up because somebody else rewrote their inputs first.
        segments_before, segments_after: Inputs and outputs of the committed tasks.
        bytes_before, bytes_after: Of the same, overlays included.
        overlays_folded: Overlays of the inputs.
        rows_written: Rows in the outputs.
        seconds: Wall time.
    """

    snapshots: tuple[int, ...]
    num_tasks: int
    num_abandoned: int
    segments_before: int
    segments_after: int
    bytes_before: int
    bytes_after: int
    overlays_folded: int
    rows_written: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Done:
    snapshot: int
    task: CompactionTask
    segments: list[NewSegment]


def compact(context: TableContext, *, full: bool, options: CompactionOptions, progress: Progress | None) -> CompactionReport:
    """Compact until nothing is worth it.

    Stopping it at any point leaves each task either committed or without effect; the next run goes on with what is left.
    """
    started = time.monotonic()
    stage = context.new_stage()
    done: list[_Done] = []
    abandoned, seen = 0, 0
    try:
        for _ in range(MAX_ROUNDS):
            with context.catalog.read() as connection:
                view = load_view(connection, context.spec, load_head(connection, context.spec))
            tasks = pick(view, options, full=full)
            failpoints.hit("compaction.picked")
            total = seen + sum(task.num_rows for task in tasks)
            committed = []
            for task in tasks:
                result = _run_task(context, task, options, stage, _reporter(progress, seen, total))
                seen += task.num_rows
                committed += [] if result is None else [result]
            done += committed
            abandoned += len(tasks) - len(committed)
            if full or not committed:
                break
    finally:
        stage.close()
    return _report(done, abandoned, time.monotonic() - started)


def _reporter(progress: Progress | None, before: int, total: int) -> Callable[[int], None]:
    """A task's own progress as the whole run's."""

    def report(rows_done: int) -> None:
        if progress is not None:
            progress(before + rows_done, total)

    return report


def _run_task(context: TableContext, task: CompactionTask, options: CompactionOptions, stage: Stage, progress: Callable[[int], None]) -> _Done | None:
    progress(0)
    rewritten = rewrite(context, task, options, stage, progress)
    failpoints.hit("compaction.rewritten")
    commit_id = uuid.uuid4().hex

    def attempt() -> CommitPlan | Stale:
        return _plan(context, task, rewritten, stage, commit_id)

    snapshot = context.commit(attempt, stage)
    if snapshot is None:
        logger.info(
            "compaction of table %s bucket %d partition %d abandoned: its segments were rewritten by another", context.spec.name, task.bucket, task.partition
        )
        return None
    with context.lock:
        for segment, index in zip(rewritten.segments, rewritten.indexes, strict=True):
            context.directory.remember(segment.path, segment.offset, index)
    failpoints.hit("compaction.committed")
    return _Done(snapshot.id, task, rewritten.segments)


def _plan(context: TableContext, task: CompactionTask, rewritten: Rewritten, stage: Stage, commit_id: str) -> CommitPlan | Stale:
    """The swap, with every overlay that the inputs gained since they were read."""
    inputs = tuple(segment.segment_id for segment in task.segments)
    with context.catalog.read() as connection:
        head = load_head(connection, context.spec)
        gained = load_overlays_since(connection, context.spec.id, inputs, rewritten.latest_overlay)
    if any(overlay.kind == ERASED for _, overlay in gained):
        return Stale("erased", abandoned=True)  # rows that were erased meanwhile stand in what was rewritten
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


def _report(done: list[_Done], abandoned: int, seconds: float) -> CompactionReport:
    inputs = [segment for item in done for segment in item.task.segments]
    outputs = [segment for item in done for segment in item.segments]
    return CompactionReport(
        snapshots=tuple(item.snapshot for item in done),
        num_tasks=len(done),
        num_abandoned=abandoned,
        segments_before=len(inputs),
        segments_after=len(outputs),
        bytes_before=sum(total_bytes(segment) for segment in inputs),
        bytes_after=sum(segment.num_bytes for segment in outputs),
        overlays_folded=sum(len(segment.overlays) for segment in inputs),
        rows_written=sum(segment.num_rows for segment in outputs),
        seconds=seconds,
    )
