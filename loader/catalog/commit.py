"""The commit: one short transaction that makes a plan the next snapshot, or says why not. Raw parameterised statements; no object I/O.

Order inside the transaction: the head is read under the write lock; a commit_id that is there returns its snapshot; offsets are compared
and swapped; the key buckets that the plan was resolved in must not have changed since; then everything is inserted and the head advances.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time

import numpy as np

from loader import failpoints
from loader.catalog.read import find_commit, load_bucket_changes, load_head, load_offsets, load_snapshot
from loader.catalog.records import CommitPlan, Snapshot, SourceOffsets, TableSpec
from loader.catalog.sqlite import SqliteCatalog
from loader.errors import ConflictError, FencedError, StorageError

STAGED_LEASE_SECONDS = 3600
GARBAGE_GRACE_SECONDS = 3600
TABLES_WITH_PATHS = ("segments", "overlays", "column_files", "pending")


class LeaseLostError(ConflictError):
    """A writer's lease on its files ran out before it committed."""


@dataclasses.dataclass(frozen=True)
class Stale:
    """The plan was resolved at a snapshot that is no longer good enough.

    Attributes:
        reason: What changed: rows, pending or overlays.
        abandoned: An input of a compaction is no longer live; there is nothing to try again.
    """

    reason: str
    abandoned: bool = False


def now_micros() -> int:
    return time.time_ns() // 1000


def commit(catalog: SqliteCatalog, plan: CommitPlan) -> Snapshot | Stale:
    """Commit `plan` as the next snapshot of its table.

    Returns:
        The snapshot (of the first commit, where this commit_id or these offsets were committed before), or Stale where the plan has to be resolved again.

    Raises:
        ConflictError: Offsets overlap what is committed, the schema changed, or the writer's lease on its files ran out.
        FencedError: A newer epoch of the pipeline has committed.
        CatalogBusyError: Another process held the lock for too long.
    """
    try:
        with catalog.write(durability=plan.spec.durability) as connection:
            failpoints.hit("commit.begun")
            found = answered(connection, plan.spec, plan.commit_id, plan.offsets) or _stale(connection, plan)
            if found is not None:
                return found
            new = _write(connection, plan)
            plan.written = True
            failpoints.hit("commit.written")
    except (OSError, StorageError):
        # The answer was lost: what happened is looked up, never guessed.
        with catalog.read() as connection:
            known = find_commit(connection, plan.spec, plan.commit_id)
        plan.written = plan.written and known is not None
        if known is None:
            raise
        return known
    failpoints.hit("commit.committed")
    with catalog.read() as connection:
        return load_snapshot(connection, plan.spec, new)


def answered(connection: sqlite3.Connection, spec: TableSpec, commit_id: str, offsets: SourceOffsets | None) -> Snapshot | None:
    """The snapshot that an earlier commit of this name, or of these offsets, made; None where there is none.

    Raises:
        TableNotFoundError: The table was dropped.
        FencedError, ConflictError: As `replayed`.
    """
    load_head(connection, spec)
    known = find_commit(connection, spec, commit_id)
    if known is not None or offsets is None:
        return known
    return replayed(connection, spec, offsets)


def replayed(connection: sqlite3.Connection, spec: TableSpec, offsets: SourceOffsets) -> Snapshot | None:
    """The snapshot that holds these offsets already, or None where they come next.

    Raises:
        FencedError: The epoch is older than the committed one.
        ConflictError: They neither continue nor repeat what is committed.
    """
    committed = load_offsets(connection, spec.id, offsets.pipeline, offsets.source)
    ranges = {str(partition): span for partition, span in offsets.ranges.items()}
    newest = max((epoch for _, epoch, _ in committed.values()), default=0)
    if offsets.epoch < newest:
        raise FencedError(
            f"pipeline {offsets.pipeline!r} of table {spec.name!r} runs with epoch {newest}, this writer has {offsets.epoch}: "
            "a newer owner took over, stop this one"
        )
    if not ranges:
        return None
    if all(partition not in committed or start == committed[partition][0] for partition, (start, _) in ranges.items()):
        return None
    if all(partition in committed and end <= committed[partition][0] for partition, (_, end) in ranges.items()):
        return load_snapshot(connection, spec, max(committed[partition][2] for partition in ranges))
    shown = {partition: (span, committed[partition][0] if partition in committed else None) for partition, span in ranges.items()}
    raise ConflictError(
        f"offsets of pipeline {offsets.pipeline!r}, source {offsets.source!r} neither continue nor repeat what table {spec.name!r} holds: "
        f"{{partition: ((start, end), committed next)}} = {shown}: read again from table.offsets(...)"
    )


def _stale(connection: sqlite3.Connection, plan: CommitPlan) -> Stale | None:
    spec = plan.spec
    (schema_id,) = connection.execute("select schema_id from tables where id = ?", (spec.id,)).fetchone()
    if schema_id != spec.schema_id:
        raise ConflictError(f"the schema of table {spec.name!r} changed while this commit was prepared: open the table again and repeat the write")
    if plan.rows_buckets or plan.pending_buckets:
        changed = load_bucket_changes(connection, spec.id)
        if any(changed[bucket][0] > plan.base for bucket in plan.rows_buckets):
            return Stale("rows")
        if any(changed[bucket][1] > plan.base for bucket in plan.pending_buckets):
            return Stale("pending")
    if plan.removed_segments:
        live, latest = _inputs(connection, plan)
        if live != len(plan.removed_segments):
            return Stale("inputs", abandoned=True)
        if latest > plan.latest_overlay:
            return Stale("overlays")
    return None


def _inputs(connection: sqlite3.Connection, plan: CommitPlan) -> tuple[int, int]:
    """How many of a compaction's inputs are live, and the highest overlay id of any."""
    live, latest = 0, 0
    for segment_id in plan.removed_segments:
        live += connection.execute("select count(*) from segments where id = ? and table_id = ? and removed_in is null", (segment_id, plan.spec.id)).fetchone()[
            0
        ]
        highest = connection.execute("select max(id) from overlays where segment_id = ? and removed_in is null", (segment_id,)).fetchone()[0]
        latest = max(latest, highest or 0)
    return live, latest


def _write(connection: sqlite3.Connection, plan: CommitPlan) -> int:
    spec = plan.spec
    head: int
    head, watermark = connection.execute("select head, watermark from tables where id = ?", (spec.id,)).fetchone()
    new = head + 1
    if plan.watermark is not None:
        watermark = plan.watermark if watermark is None else max(watermark, plan.watermark)
    before = connection.execute("select num_rows from snapshots where table_id = ? and id = ?", (spec.id, head)).fetchone()
    num_rows = (int(before[0]) if before else 0) + _row_change(connection, plan)
    connection.execute(
        "insert into snapshots (table_id, id, commit_id, kind, schema_id, watermark, num_rows, created_at, summary) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (spec.id, new, plan.commit_id, plan.kind, spec.schema_id, watermark, num_rows, now_micros(), json.dumps(plan.summary)),
    )
    connection.executemany("insert into inline_data values (?, ?, ?)", [(path, spec.id, data) for path, data in plan.inline.items()])
    segment_ids = _insert_segments(connection, plan, new)
    _insert_overlays(connection, plan, new, segment_ids)
    _insert_pending(connection, plan, new)
    _remove_inputs(connection, plan, new)
    _advance(connection, plan, new)
    connection.execute("update tables set head = ?, watermark = ? where id = ?", (new, watermark, spec.id))
    return new


def _row_change(connection: sqlite3.Connection, plan: CommitPlan) -> int:
    """Live rows added less live rows removed."""
    change = sum(segment.num_rows - segment.num_deleted for segment in plan.segments) - sum(overlay.num_deleted for overlay in plan.overlays)
    for segment_id in plan.removed_segments:
        (alive,) = connection.execute("select live_rows from segments where id = ?", (segment_id,)).fetchone()
        (deleted,) = connection.execute(
            "select coalesce(sum(num_deleted), 0) from overlays where segment_id = ? and removed_in is null", (segment_id,)
        ).fetchone()
        change -= alive - deleted
    return change


def _insert_segments(connection: sqlite3.Connection, plan: CommitPlan, new: int) -> list[int]:
    ids = []
    for segment in plan.segments:
        cursor = connection.execute(
            "insert into segments (table_id, segment_uuid, bucket, time_partition, level, path, section_offset, num_bytes, schema_id, num_rows, live_rows, "
            "sequence_min, sequence_max, key_min, key_max, time_min, time_max, block_rows, added_in) "
            "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                plan.spec.id,
                segment.uuid,
                segment.bucket,
                segment.partition,
                segment.level,
                segment.path,
                segment.offset,
                segment.num_bytes,
                plan.spec.schema_id,
                segment.num_rows,
                segment.num_rows - segment.num_deleted,
                new if segment.sequence_min is None else segment.sequence_min,
                new if segment.sequence_max is None else segment.sequence_max,
                segment.key_min,
                segment.key_max,
                segment.time_min,
                segment.time_max,
                segment.block_rows,
                new,
            ),
        )
        ids.append(int(cursor.lastrowid or 0))
    return ids


def _insert_overlays(connection: sqlite3.Connection, plan: CommitPlan, new: int, segment_ids: list[int]) -> None:
    connection.executemany(
        "insert into overlays (table_id, segment_id, kind, level, sequence, path, section_offset, num_bytes, num_rows, num_deleted, column_ids, added_in) "
        "values (?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                plan.spec.id,
                overlay.segment_id if overlay.new_segment is None else segment_ids[overlay.new_segment],
                overlay.kind,
                new if overlay.sequence is None else overlay.sequence,
                overlay.path,
                overlay.offset,
                overlay.num_bytes,
                overlay.num_rows,
                overlay.num_deleted,
                json.dumps(list(overlay.column_ids)),
                new,
            )
            for overlay in plan.overlays
        ],
    )


def _insert_pending(connection: sqlite3.Connection, plan: CommitPlan, new: int) -> None:
    connection.executemany(
        "insert into pending (table_id, bucket, sequence, path, section_offset, num_bytes, num_held, keys, column_ids, added_in) "
        "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (plan.spec.id, held.bucket, new, held.path, held.offset, held.num_bytes, held.num_held, held.keys, json.dumps(list(held.column_ids)), new)
            for held in plan.pending
        ],
    )
    for pending_id, positions in plan.met.items():
        num_held, met = connection.execute("select num_held, met from pending where id = ?", (pending_id,)).fetchone()
        merged = np.union1d(np.frombuffer(met or b"", "<u4"), np.frombuffer(positions, "<u4")).astype("<u4")
        removed_in = new if len(merged) >= num_held else None
        connection.execute("update pending set met = ?, removed_in = ? where id = ?", (merged.tobytes(), removed_in, pending_id))


def _remove_inputs(connection: sqlite3.Connection, plan: CommitPlan, new: int) -> None:
    for segment_id in plan.removed_segments:
        connection.execute("update segments set removed_in = ? where id = ?", (new, segment_id))
        connection.execute("update overlays set removed_in = ? where segment_id = ? and removed_in is null", (new, segment_id))
        connection.execute("update column_files set removed_in = ? where segment_id = ? and removed_in is null", (new, segment_id))


def _advance(connection: sqlite3.Connection, plan: CommitPlan, new: int) -> None:
    """Bucket counters, offsets, the writer's lease, and garbage."""
    table_id = plan.spec.id
    connection.executemany(
        "update buckets set rows_changed_in = ? where table_id = ? and bucket = ?", [(new, table_id, bucket) for bucket in plan.rows_changed]
    )
    connection.executemany(
        "update buckets set pending_changed_in = ? where table_id = ? and bucket = ?", [(new, table_id, bucket) for bucket in plan.pending_changed]
    )
    if plan.offsets is not None:
        connection.executemany(
            "insert into source_offsets values (?, ?, ?, ?, ?, ?, ?) on conflict (table_id, pipeline, source, source_partition) "
            "do update set next = excluded.next, epoch = excluded.epoch, committed_in = excluded.committed_in",
            [
                (table_id, plan.offsets.pipeline, plan.offsets.source, str(partition), end, plan.offsets.epoch, new)
                for partition, (_, end) in plan.offsets.ranges.items()
            ],
        )
    if plan.staged is not None:
        renew_stage(connection, *plan.staged)
    if plan.garbage:
        throw_away(connection, table_id, plan.garbage, reason=f"not used by commit {plan.commit_id}")


def renew_stage(connection: sqlite3.Connection, prefix: str, next_file: int) -> None:
    """Take all files of a stage below `next_file` as accounted for, and renew its lease.

    Raises:
        LeaseLostError: The lease ran out and was collected, so the files may be gone.
    """
    until = now_micros() + STAGED_LEASE_SECONDS * 1_000_000
    done = connection.execute(
        "update staged set next_file = max(next_file, ?), lease_until = ? where prefix = ? and lease_until > 0", (next_file, until, prefix)
    )
    if done.rowcount != 1:
        raise LeaseLostError(f"this writer's lease on {prefix} ran out before it committed, and its files were collected: repeat the write")


def throw_away(connection: sqlite3.Connection, table_id: int, paths: list[str], *, reason: str) -> None:
    """Put paths into garbage, unless something refers to them after all; their bytes go after the grace period.

    A writer that was interrupted right after its commit takes files for left over that are not: what counts is what the tables say.
    """
    not_before = now_micros() + GARBAGE_GRACE_SECONDS * 1_000_000
    unused = [path for path in paths if not is_referred_to(connection, path)]
    connection.executemany("insert or ignore into garbage values (?, ?, ?, ?)", [(path, table_id, not_before, reason) for path in unused])


def is_referred_to(connection: sqlite3.Connection, path: str) -> bool:
    """Whether any segment, overlay, column file or pending label, live or kept for an earlier snapshot, lies at a path."""
    return any(connection.execute(f"select 1 from {table} where path = ? limit 1", (path,)).fetchone() for table in TABLES_WITH_PATHS)
