"""The commit: one short transaction that makes a plan the next snapshot, or says why not. Raw parameterised statements; no object I/O.

Order inside the transaction: the head is read under the table's lock; a commit_id that is there returns its snapshot; offsets are compared
and swapped; the key buckets that the plan was resolved in must not have changed since; then everything is inserted and the head advances.
All questions are asked before the first answer is read, and nothing that is written is asked about: two round trips to a server.
"""

from __future__ import annotations

import dataclasses
import json
import time

import numpy as np

from loader import failpoints
from loader.catalog.connection import Connection, Cursor, Database
from loader.catalog.read import BUCKETS, OFFSETS, SNAPSHOT, attribution_json, find_commit, load_head, load_offsets, load_snapshot, make_snapshot
from loader.catalog.records import CommitPlan, Snapshot, SourceOffsets, TableSpec
from loader.errors import CatalogUnavailableError, ConflictError, FencedError, HeadraceError, StorageError, TableNotFoundError, UnknownOutcomeError

STAGED_LEASE_SECONDS = 3600
GARBAGE_GRACE_SECONDS = 3600
TABLES_WITH_PATHS = ("segments", "overlays", "column_files", "pending")
MAX_PARAMETERS = 1000  # of one statement


class LeaseLostError(ConflictError):
    """A writer's lease on its files ran out before it committed."""


@dataclasses.dataclass(frozen=True)
class Stale:
    """The plan was resolved at a snapshot that is no longer good enough.

    Attributes:
        reason: What changed: head, rows, pending, overlays, columns or inputs; or connection: nothing did, but the commit did not arrive.
        abandoned: An input of a compaction is no longer live; there is nothing to try again.
    """

    reason: str
    abandoned: bool = False


def now_micros() -> int:
    return time.time_ns() // 1000


def commit(catalog: Database, plan: CommitPlan) -> Snapshot | Stale:
    """Commit `plan` as the next snapshot of its table.

    Returns:
        The snapshot (of the first commit, where this commit_id or these offsets were committed before), or Stale where the plan has to be resolved again.

    Raises:
        ConflictError: Offsets overlap what is committed, the schema changed, or the writer's lease on its files ran out.
        FencedError: A newer epoch of the pipeline has committed.
        CatalogBusyError: Another process held the lock for too long.
        UnknownOutcomeError: The answer was lost, and the catalog cannot be asked for what happened.
    """
    try:
        with catalog.write(plan.spec.id, durability=plan.spec.durability) as connection:
            failpoints.hit("commit.begun")
            answers = _ask(connection, plan)
            before = _table_before(plan, answers)
            found = _answered(connection, plan, answers) or _stale(plan, answers, before)
            if found is not None:
                return found
            snapshot = _write(connection, plan, before, {pending_id: cursor.fetchone() for pending_id, cursor in answers.met.items()})
            plan.written = True
            failpoints.hit("commit.written")
    except (OSError, StorageError) as error:
        known = _look_up(catalog, plan, error)
        plan.written = plan.written and known is not None
        if known is not None:
            return known
        if isinstance(error, CatalogUnavailableError):
            return Stale("connection")  # it did not happen, and the catalog answers again
        raise
    failpoints.hit("commit.committed")
    return snapshot


def _look_up(catalog: Database, plan: CommitPlan, error: Exception) -> Snapshot | None:
    """The answer was lost: what happened is looked up, never guessed."""
    try:
        with catalog.outcome(plan.spec.id) as connection:
            return find_commit(connection, plan.spec, plan.commit_id)
    except HeadraceError:
        if not isinstance(error, CatalogUnavailableError):
            raise
        raise UnknownOutcomeError(
            f"the answer to commit {plan.commit_id!r} of table {plan.spec.name!r} was lost, and the catalog cannot be asked what became of it ({error}): "
            "once it answers, repeat the same write with this commit_id; it is committed once"
        ) from error


def answered(connection: Connection, spec: TableSpec, commit_id: str, offsets: SourceOffsets | None) -> Snapshot | None:
    """The snapshot that an earlier commit of this name, or of these offsets, made; None where there is none.

    Raises:
        TableNotFoundError: The table was dropped.
        FencedError, ConflictError: As `replayed`.
    """
    load_head(connection, spec)
    known = find_commit(connection, spec, commit_id)
    if known is not None or offsets is None:
        return known
    return replayed(connection, spec, offsets, load_offsets(connection, spec.id, offsets.pipeline, offsets.source))


def replayed(connection: Connection, spec: TableSpec, offsets: SourceOffsets, committed: dict[str, tuple[int, int, int]]) -> Snapshot | None:
    """The snapshot that holds these offsets already, or None where they come next; `committed` as `load_offsets` gives it.

    Raises:
        FencedError: The epoch is older than the committed one.
        ConflictError: They neither continue nor repeat what is committed.
    """
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Answers:
    """What a commit asks of the catalog under the table's lock."""

    table: Cursor
    known: Cursor
    before: Cursor
    offsets: Cursor | None
    buckets: Cursor | None
    inputs: list[Cursor]
    input_overlays: list[Cursor]
    input_files: list[Cursor]
    lease: Cursor | None
    met: dict[int, Cursor]


def _ask(connection: Connection, plan: CommitPlan) -> _Answers:
    table_id, offsets = plan.spec.id, plan.offsets
    inputs, overlays, files = [], [], []
    read = plan.removed_segments or plan.read_segments
    for start in range(0, len(read), MAX_PARAMETERS):
        part = read[start : start + MAX_PARAMETERS]
        listed = f"({', '.join('?' * len(part))})"
        files.append(connection.execute(f"select count(*) from column_files where segment_id in {listed} and removed_in is null", part))
        inputs.append(connection.execute(f"select live_rows from segments where id in {listed} and table_id = ? and removed_in is null", (*part, table_id)))
        overlays.append(
            connection.execute(
                f"select coalesce(max(id), 0), coalesce(sum(num_deleted), 0) from overlays where segment_id in {listed} and removed_in is null", part
            )
        )
    return _Answers(
        input_files=files,
        table=connection.execute("select head, watermark, schema_id from tables where id = ? and dropped_at is null", (table_id,)),
        known=connection.execute(SNAPSHOT + " and commit_id = ?", (table_id, plan.commit_id)),
        before=connection.execute("select num_rows from snapshots where table_id = ? and id = (select head from tables where id = ?)", (table_id, table_id)),
        offsets=None if offsets is None else connection.execute(OFFSETS, (table_id, offsets.pipeline, offsets.source)),
        buckets=connection.execute(BUCKETS, (table_id,)) if plan.rows_buckets or plan.pending_buckets else None,
        inputs=inputs,
        input_overlays=overlays,
        lease=None if plan.staged is None else connection.execute("select 1 from staged where prefix = ? and lease_until > 0", plan.staged[:1]),
        met={pending_id: connection.execute("select num_held, met from pending where id = ?", (pending_id,)) for pending_id in plan.met},
    )


def _answered(connection: Connection, plan: CommitPlan, answers: _Answers) -> Snapshot | None:
    known = answers.known.fetchone()
    if known is not None:
        return make_snapshot(plan.spec, known)
    if plan.offsets is None or answers.offsets is None:
        return None
    committed = {partition: (following, epoch, committed_in) for partition, following, epoch, committed_in in answers.offsets}
    return replayed(connection, plan.spec, plan.offsets, committed)


@dataclasses.dataclass(kw_only=True)
class _Before:
    """The table as the commit finds it."""

    head: int
    watermark: int | None
    schema_id: int
    num_rows: int


def _table_before(plan: CommitPlan, answers: _Answers) -> _Before:
    row, rows_before = answers.table.fetchone(), answers.before.fetchone()
    if row is None:
        raise TableNotFoundError(f"table {plan.spec.name!r} was dropped")
    return _Before(head=int(row[0]), watermark=row[1], schema_id=int(row[2]), num_rows=int(rows_before[0]) if rows_before else 0)


def _stale(plan: CommitPlan, answers: _Answers, before: _Before) -> Stale | None:
    """What does not hold any more. The rows of a compaction's inputs are taken off `before` on the way."""
    if before.schema_id != plan.spec.schema_id:
        raise ConflictError(f"the schema of table {plan.spec.name!r} changed while this commit was prepared: open the table again and repeat the write")
    if answers.lease is not None and plan.staged is not None and answers.lease.fetchone() is None:
        raise _lease_lost(plan.staged[0])
    if plan.is_exact and before.head != plan.base:
        return Stale("head")
    if answers.buckets is not None:
        changed = {bucket: (rows, pending) for bucket, rows, pending in answers.buckets}
        if any(changed[bucket][0] > plan.base for bucket in plan.rows_buckets):
            return Stale("rows")
        if any(changed[bucket][1] > plan.base for bucket in plan.pending_buckets):
            return Stale("pending")
    read = plan.removed_segments or plan.read_segments
    if read:
        live = [int(rows) for cursor in answers.inputs for (rows,) in cursor]
        overlays = [cursor.fetchone() for cursor in answers.input_overlays]
        if len(live) != len(read):
            return Stale("inputs", abandoned=bool(plan.removed_segments))
        if sum(int(cursor.fetchone()[0]) for cursor in answers.input_files) != plan.num_column_files:
            return Stale("columns", abandoned=bool(plan.removed_segments))
        if max(latest for latest, _ in overlays) > plan.latest_overlay:
            return Stale("overlays")
        if plan.removed_segments:
            before.num_rows -= sum(live) - sum(int(deleted) for _, deleted in overlays)
    return None


def _write(connection: Connection, plan: CommitPlan, before: _Before, met: dict[int, tuple[int, bytes | None]]) -> Snapshot:
    spec, new, created_at = plan.spec if plan.evolved is None else plan.evolved, before.head + 1, now_micros()
    schema_id = spec.schema_id if plan.evolved is None else _evolve(connection, plan.evolved, new)
    watermark = before.watermark
    if plan.watermark is not None:
        watermark = plan.watermark if watermark is None else max(watermark, plan.watermark)
    added = sum(segment.num_rows - segment.num_deleted for segment in plan.segments)
    num_rows = before.num_rows + added - sum(overlay.num_deleted for overlay in plan.overlays)
    summary = json.dumps(plan.summary)
    connection.execute(
        "insert into snapshots (table_id, id, commit_id, kind, schema_id, watermark, num_rows, created_at, summary) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (spec.id, new, plan.commit_id, plan.kind, schema_id, watermark, num_rows, created_at, summary),
    )
    connection.executemany("insert into inline_data values (?, ?, ?)", [(path, spec.id, data) for path, data in plan.inline.items()])
    _insert_segments(connection, plan, new)
    _insert_overlays(connection, plan, new)
    connection.executemany(
        "insert into column_files (table_id, segment_id, column_ids, sequence, path, section_offset, num_bytes, added_in) values (?, ?, ?, ?, ?, ?, ?, ?)",
        [(spec.id, file.segment_id, json.dumps(list(file.column_ids)), new, file.path, file.offset, file.num_bytes, new) for file in plan.column_files],
    )
    _insert_pending(connection, plan, new, met)
    _remove_inputs(connection, plan, new)
    _advance(connection, plan, new)
    connection.execute("update tables set head = ?, watermark = ? where id = ?", (new, watermark, spec.id))
    return make_snapshot(spec, (new, plan.kind, plan.commit_id, created_at, watermark, num_rows, summary))


def _evolve(connection: Connection, spec: TableSpec, new: int) -> int:
    """Make a new schema the table's own; returns its number. `spec` has the number of the one before, which the commit has checked."""
    schema_id = spec.schema_id + 1
    connection.execute("insert into schemas values (?, ?, ?, ?)", (spec.id, schema_id, json.dumps(spec.schema.to_json()), new))
    connection.execute(
        "update tables set schema_id = ?, merge = ?, attribution = ? where id = ?",
        (schema_id, json.dumps(dict(spec.merge_by_id)), attribution_json(spec), spec.id),
    )
    return schema_id


def _insert_segments(connection: Connection, plan: CommitPlan, new: int) -> None:
    connection.executemany(
        "insert into segments (table_id, segment_uuid, bucket, time_partition, level, path, section_offset, num_bytes, schema_id, num_rows, live_rows, "
        "sequence_min, sequence_max, key_min, key_max, time_min, time_max, block_rows, added_in, stats) "
        "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
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
                segment.stats,
            )
            for segment in plan.segments
        ],
    )


def _insert_overlays(connection: Connection, plan: CommitPlan, new: int) -> None:
    """Of committed segments by number; of this commit's own, which have none yet, by their uuid."""
    for of_new, segment in ((False, "?"), (True, "(select id from segments where table_id = ? and added_in = ? and segment_uuid = ?)")):
        connection.executemany(
            "insert into overlays (table_id, segment_id, kind, level, sequence, path, section_offset, num_bytes, num_rows, num_deleted, column_ids, added_in) "
            f"values (?, {segment}, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    plan.spec.id,
                    *((overlay.segment_id,) if overlay.new_segment is None else (plan.spec.id, new, plan.segments[overlay.new_segment].uuid)),
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
                if (overlay.new_segment is not None) == of_new
            ],
        )


def _insert_pending(connection: Connection, plan: CommitPlan, new: int, met_before: dict[int, tuple[int, bytes | None]]) -> None:
    connection.executemany(
        "insert into pending (table_id, bucket, sequence, path, section_offset, num_bytes, num_held, keys, column_ids, added_in) "
        "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (plan.spec.id, held.bucket, new, held.path, held.offset, held.num_bytes, held.num_held, held.keys, json.dumps(list(held.column_ids)), new)
            for held in plan.pending
        ],
    )
    for pending_id, positions in plan.met.items():
        num_held, met = met_before[pending_id]
        merged = np.union1d(np.frombuffer(met or b"", "<u4"), np.frombuffer(positions, "<u4")).astype("<u4")
        removed_in = new if len(merged) >= num_held else None
        connection.execute("update pending set met = ?, removed_in = ? where id = ?", (merged.tobytes(), removed_in, pending_id))


def _remove_inputs(connection: Connection, plan: CommitPlan, new: int) -> None:
    for segment_id in plan.removed_segments:
        connection.execute("update segments set removed_in = ? where id = ?", (new, segment_id))
        connection.execute("update overlays set removed_in = ? where segment_id = ? and removed_in is null", (new, segment_id))
        connection.execute("update column_files set removed_in = ? where segment_id = ? and removed_in is null", (new, segment_id))


def _advance(connection: Connection, plan: CommitPlan, new: int) -> None:
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
        connection.execute(_RENEW, _renewal(*plan.staged))
    if plan.garbage:
        throw_away(connection, table_id, plan.garbage, reason=f"not used by commit {plan.commit_id}")


_RENEW = "update staged set next_file = case when next_file > ? then next_file else ? end, lease_until = ? where prefix = ? and lease_until > 0"


def _renewal(prefix: str, next_file: int) -> tuple[int, int, int, str]:
    return next_file, next_file, now_micros() + STAGED_LEASE_SECONDS * 1_000_000, prefix


def renew_stage(connection: Connection, prefix: str, next_file: int) -> None:
    """Take all files of a stage below `next_file` as accounted for, and renew its lease.

    Raises:
        LeaseLostError: The lease ran out and was collected, so the files may be gone.
    """
    if connection.execute(_RENEW, _renewal(prefix, next_file)).rowcount != 1:
        raise _lease_lost(prefix)


def _lease_lost(prefix: str) -> LeaseLostError:
    return LeaseLostError(f"this writer's lease on {prefix} ran out before it committed, and its files were collected: repeat the write")


def throw_away(connection: Connection, table_id: int, paths: list[str], *, reason: str, grace_seconds: float = GARBAGE_GRACE_SECONDS) -> None:
    """Put paths into garbage, unless something refers to them after all; their bytes go after the grace period.

    A writer that was interrupted right after its commit takes files for left over that are not: what counts is what the tables say.
    """
    not_before = now_micros() + int(grace_seconds * 1e6)
    unused = [path for path in paths if not is_referred_to(connection, path)]
    connection.executemany("insert into garbage values (?, ?, ?, ?) on conflict do nothing", [(path, table_id, not_before, reason) for path in unused])


def is_referred_to(connection: Connection, path: str) -> bool:
    """Whether any segment, overlay, column file or pending label, live or kept for an earlier snapshot, lies at a path."""
    return any(connection.execute(f"select 1 from {table} where path = ? limit 1", (path,)).fetchone() for table in TABLES_WITH_PATHS)
