"""The commit: one short transaction that makes plans the next snapshots, or says why not. Raw parameterised statements; no object I/O.

Order inside the transaction: the head is read under the table's lock; a commit_id that is there returns its snapshot; offsets are compared
and swapped; the key buckets that a plan was resolved in must not have changed since; then everything is inserted and the head advances.
All questions are asked before the first answer is read, and nothing that is written is asked about: two round trips to a server. Several plans
share the transaction and its sync to disk; each has its own snapshot, or its own reason to have none.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence

from loader import failpoints
from loader.catalog.connection import Connection, Cursor, Database
from loader.catalog.inputs import Inputs, ask_inputs, judge_inputs
from loader.catalog.insert import (
    Numbered,
    advance_buckets,
    advance_offsets,
    insert_parts,
    insert_snapshots,
    meet_pending,
    remove_inputs,
)
from loader.catalog.read import BUCKETS, OFFSETS, SNAPSHOT, attribution_json, find_commit, load_head, load_offsets, load_snapshot, make_snapshot
from loader.catalog.records import CommitPlan, Snapshot, SourceOffsets, TableSpec
from loader.errors import CatalogUnavailableError, ConflictError, FencedError, HeadraceError, StorageError, TableNotFoundError, UnknownOutcomeError

STAGED_LEASE_SECONDS = 3600
GARBAGE_GRACE_SECONDS = 3600
TABLES_WITH_PATHS = ("segments", "overlays", "column_files", "pending")
_TABLE = (
    "select t.head, t.watermark, t.schema_id, (select s.num_rows from snapshots s where s.table_id = t.id and s.id = t.head) "
    "from tables t where t.id = ? and t.dropped_at is null"
)


class LeaseLostError(ConflictError):
    """A writer's lease on its files ran out before it committed."""


class SchemaChangedError(ConflictError):
    """The table has another schema than the one this commit was prepared for."""


@dataclasses.dataclass(frozen=True)
class Stale:
    """The plan was resolved at a snapshot that is no longer good enough.

    Attributes:
        reason: What changed (head, rows, pending, overlays, columns, inputs, folded, erased or lease); or connection: nothing did, but it did not arrive.
        abandoned: What a compaction or a fold replaces is no longer live, or its bucket is another's; there is nothing to try again.
    """

    reason: str
    abandoned: bool = False


Outcome = Snapshot | Stale | HeadraceError


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
    (outcome,) = commit_group(catalog, [plan])
    if isinstance(outcome, HeadraceError):
        raise outcome
    return outcome


def commit_group(catalog: Database, plans: Sequence[CommitPlan]) -> list[Outcome]:
    """Commit plans of one table one after the other, in one transaction with one sync to disk.

    Args:
        catalog: The catalog.
        plans: Of several of them, none may add, move or remove rows of a key that another one names: they are checked against what was committed before all of
            them.

    Returns:
        For each what `commit` returns; or, where it alone is refused, the error that `commit` raises.

    Raises:
        CatalogBusyError: Another process held the lock for too long; none was committed.
        UnknownOutcomeError: The answer was lost, and the catalog cannot be asked for what happened.
    """
    spec, outcomes = plans[0].spec, list[Outcome]()
    try:
        with catalog.write(spec.id, durability=spec.durability) as connection:
            failpoints.hit("commit.begun")
            answers = _ask(connection, plans)
            before = _table_before(spec, answers)
            outcomes, numbered = _decide(connection, plans, answers, before)
            _write(connection, numbered, before, {pending_id: cursor.fetchone() for pending_id, cursor in answers.met.items()})
            for _, plan in numbered:
                plan.written = True
            failpoints.hit("commit.written")
    except (OSError, StorageError) as error:
        return _look_up(catalog, plans, outcomes, error)
    failpoints.hit("commit.committed")
    return outcomes


def _look_up(catalog: Database, plans: Sequence[CommitPlan], outcomes: list[Outcome], error: Exception) -> list[Outcome]:
    """The answer was lost: what happened is looked up, never guessed. What was written of a group has happened, or nothing of it."""
    try:
        with catalog.outcome(plans[0].spec.id) as connection:
            known = [find_commit(connection, plan.spec, plan.commit_id) for plan in plans]
    except HeadraceError:
        if not isinstance(error, CatalogUnavailableError):
            raise
        names = ", ".join(repr(plan.commit_id) for plan in plans)
        raise UnknownOutcomeError(
            f"the answer to commit {names} of table {plans[0].spec.name!r} was lost, and the catalog cannot be asked what became of it ({error}): "
            "once it answers, repeat the same write with this commit_id; it is committed once"
        ) from error
    for plan, found, outcome in zip(plans, known, outcomes or known, strict=True):
        plan.written = plan.written and found == outcome  # not another process's commit of this name, which came after ours was lost
    if any(plan.written for plan in plans):
        return [outcome if found is None else found for outcome, found in zip(outcomes, known, strict=True)]
    if not isinstance(error, CatalogUnavailableError) and None in known:
        raise error
    return [Stale("connection") if found is None else found for found in known]  # it did not happen, and the catalog answers again


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
    found = replayed(spec, offsets, load_offsets(connection, spec.id, offsets.pipeline, offsets.source))
    return None if found is None else load_snapshot(connection, spec, found)


def replayed(spec: TableSpec, offsets: SourceOffsets, committed: dict[str, tuple[int, int, int]]) -> int | None:
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
        return max(committed[partition][2] for partition in ranges)
    shown = {partition: (span, committed[partition][0] if partition in committed else None) for partition, span in ranges.items()}
    raise ConflictError(
        f"offsets of pipeline {offsets.pipeline!r}, source {offsets.source!r} neither continue nor repeat what table {spec.name!r} holds: "
        f"{{partition: ((start, end), committed next)}} = {shown}: read again from table.offsets(...)"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Answers:
    """What plans ask of the catalog under the table's lock. Offsets by (pipeline, source), inputs by the plan's place, leases by prefix."""

    table: Cursor
    known: Cursor
    buckets: Cursor | None
    offsets: dict[tuple[str, str], Cursor]
    inputs: list[Inputs | None]
    leases: dict[str, Cursor]
    met: dict[int, Cursor]


def _ask(connection: Connection, plans: Sequence[CommitPlan]) -> _Answers:
    table_id = plans[0].spec.id
    sources = dict.fromkeys((plan.offsets.pipeline, plan.offsets.source) for plan in plans if plan.offsets is not None)
    return _Answers(
        table=connection.execute(_TABLE, (table_id,)),
        known=connection.execute(f"{SNAPSHOT} and commit_id in ({', '.join('?' * len(plans))})", (table_id, *(plan.commit_id for plan in plans))),
        buckets=connection.execute(BUCKETS, (table_id,)) if any(plan.rows_buckets or plan.pending_buckets for plan in plans) else None,
        offsets={source: connection.execute(OFFSETS, (table_id, *source)) for source in sources},
        inputs=[ask_inputs(connection, plan) for plan in plans],
        leases={
            prefix: connection.execute("select 1 from staged where prefix = ? and lease_until > 0", (prefix,))
            for prefix in dict.fromkeys(plan.staged for plan in plans if plan.staged is not None)
        },
        met={
            pending_id: connection.execute("select num_held, met from pending where id = ?", (pending_id,))
            for pending_id in dict.fromkeys(pending_id for plan in plans for pending_id in plan.met)
        },
    )


@dataclasses.dataclass(kw_only=True)
class _Before:
    """The table as the commit finds it. Offsets as `load_offsets` gives them, by (pipeline, source); `removed` are the rows of a compaction's inputs."""

    head: int
    watermark: int | None
    schema_id: int
    num_rows: int
    known: dict[str, Snapshot]
    buckets: dict[int, tuple[int, int]]
    offsets: dict[tuple[str, str], dict[str, tuple[int, int, int]]]
    leases: set[str]
    created_at: int
    removed: int = 0


def _table_before(spec: TableSpec, answers: _Answers) -> _Before:
    row = answers.table.fetchone()
    if row is None:
        raise TableNotFoundError(f"table {spec.name!r} was dropped")
    known = [make_snapshot(spec, one) for one in answers.known]
    return _Before(
        head=int(row[0]),
        watermark=row[1],
        schema_id=int(row[2]),
        num_rows=int(row[3] or 0),
        known={snapshot.commit_id: snapshot for snapshot in known},
        buckets={} if answers.buckets is None else {bucket: (rows, pending) for bucket, rows, pending in answers.buckets},
        offsets={
            source: {partition: (following, epoch, committed_in) for partition, following, epoch, committed_in in cursor}
            for source, cursor in answers.offsets.items()
        },
        leases={prefix for prefix, cursor in answers.leases.items() if cursor.fetchone() is not None},
        created_at=now_micros(),
    )


def _decide(connection: Connection, plans: Sequence[CommitPlan], answers: _Answers, before: _Before) -> tuple[list[Outcome], Numbered]:
    """The outcome of each plan, and the plans that are to be written with the snapshots that they become. Offsets in `before` go on with each of these."""
    outcomes: list[Outcome] = []
    numbered: list[tuple[int, CommitPlan]] = []
    made: dict[int, Snapshot] = {}
    rows, watermark = before.num_rows, before.watermark
    for place, plan in enumerate(plans):
        try:
            found = _answered(connection, plan, before, made) or _stale(plan, answers.inputs[place], before, before.head + len(numbered))
        except HeadraceError as error:
            outcomes.append(error)
            continue
        if found is not None:
            outcomes.append(found)
            continue
        new = before.head + len(numbered) + 1
        rows += sum(segment.num_rows - segment.num_deleted for segment in plan.segments) - sum(overlay.num_deleted for overlay in plan.overlays)
        rows -= before.removed
        if plan.watermark is not None:
            watermark = plan.watermark if watermark is None else max(watermark, plan.watermark)
        summary = json.dumps(plan.summary)
        snapshot = make_snapshot(
            plan.spec if plan.evolved is None else plan.evolved, (new, plan.kind, plan.commit_id, before.created_at, watermark, rows, summary)
        )
        numbered.append((new, plan))
        outcomes.append(snapshot)
        made[new] = before.known[plan.commit_id] = snapshot
        if plan.offsets is not None:
            next_offsets = {str(partition): (end, plan.offsets.epoch, new) for partition, (_, end) in plan.offsets.ranges.items()}
            before.offsets[plan.offsets.pipeline, plan.offsets.source].update(next_offsets)
    return outcomes, numbered


def _answered(connection: Connection, plan: CommitPlan, before: _Before, made: dict[int, Snapshot]) -> Snapshot | None:
    """The snapshot that has this plan's name or offsets already; it may be one of this transaction."""
    known = before.known.get(plan.commit_id)
    if known is not None or plan.offsets is None:
        return known
    found = replayed(plan.spec, plan.offsets, before.offsets[plan.offsets.pipeline, plan.offsets.source])
    if found is None:
        return None
    return made[found] if found in made else load_snapshot(connection, plan.spec, found)


def _stale(plan: CommitPlan, inputs: Inputs | None, before: _Before, head: int) -> Stale | None:
    """What does not hold any more. The live rows of a compaction's inputs are counted on the way."""
    before.removed = 0
    if before.schema_id != plan.spec.schema_id:
        raise SchemaChangedError(f"the schema of table {plan.spec.name!r} changed while this commit was prepared: open the table again and repeat the write")
    if plan.staged is not None and plan.staged not in before.leases:
        raise _lease_lost(plan.staged)
    if plan.is_exact and head != plan.base:
        return Stale("head")
    if any(before.buckets[bucket][0] > plan.base for bucket in plan.rows_buckets):
        return Stale("rows")
    if any(before.buckets[bucket][1] > plan.base for bucket in plan.pending_buckets):
        return Stale("pending")
    verdict = judge_inputs(plan, inputs)
    before.removed = verdict.removed_rows
    return None if verdict.reason is None else Stale(verdict.reason, abandoned=verdict.abandoned)


def _write(connection: Connection, numbered: Numbered, before: _Before, held: dict[int, tuple[int, bytes | None]]) -> None:
    """Insert everything, and let the head advance."""
    if not numbered:
        return
    table_id = numbered[0][1].spec.id
    rows, snapshot = [], None
    for new, plan in numbered:
        snapshot = before.known[plan.commit_id]
        schema_id = plan.spec.schema_id if plan.evolved is None else _evolve(connection, plan.evolved, new)
        counted = (snapshot.watermark, snapshot.num_rows, before.created_at, json.dumps(plan.summary))
        rows.append((table_id, new, plan.commit_id, plan.kind, schema_id, *counted))
    insert_snapshots(connection, rows)
    insert_parts(connection, table_id, numbered)
    meet_pending(connection, numbered, held)
    remove_inputs(connection, numbered)
    advance_buckets(connection, table_id, numbered)
    advance_offsets(connection, table_id, numbered)
    for _, plan in numbered:
        if plan.accounted is not None:
            connection.execute(_RENEW, _renewal(*plan.accounted))
        if plan.garbage:
            throw_away(connection, table_id, plan.garbage, reason=f"not used by commit {plan.commit_id}")
    assert snapshot is not None, "some plan is written"
    connection.execute("update tables set head = ?, watermark = ? where id = ?", (snapshot.id, snapshot.watermark, table_id))


def _evolve(connection: Connection, spec: TableSpec, new: int) -> int:
    """Make a new schema the table's own; returns its number. `spec` has the number of the one before, which the commit has checked."""
    schema_id = spec.schema_id + 1
    connection.execute("insert into schemas values (?, ?, ?, ?)", (spec.id, schema_id, json.dumps(spec.schema.to_json()), new))
    connection.execute(
        "update tables set schema_id = ?, merge = ?, attribution = ? where id = ?",
        (schema_id, json.dumps(dict(spec.merge_by_id)), attribution_json(spec), spec.id),
    )
    return schema_id


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
