"""What a commit asks about the segments that it read, replaces, or folds overlays of, and whether that still holds. Raw statements; writes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from loader.catalog.connection import Connection, Cursor
from loader.catalog.records import CommitPlan

MAX_PARAMETERS = 1000  # of one statement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Questions that were sent; their answers are read later."""

    rows: list[Cursor]
    overlays: list[Cursor]
    files: list[Cursor]
    folded: list[Cursor]
    folded_files: list[Cursor]
    erased: list[Cursor]
    lease: Cursor | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of the inputs of one plan.

    Attributes:
        reason: What does not hold any more; None where all does.
        abandoned: There is nothing to try again.
        removed_rows: Live rows of the inputs of a compaction, less the rows that folded deletion vectors delete: those that stand for them delete them again.
    """

    reason: str | None = None
    abandoned: bool = False
    removed_rows: int = 0


def ask_inputs(connection: Connection, plan: CommitPlan) -> Inputs | None:
    """Send what there is to ask; None where the plan depends on no segment."""
    read = plan.removed_segments or plan.read_segments
    if not (read or plan.removed_overlays or plan.lease):
        return None
    table_id = plan.spec.id
    return Inputs(
        rows=_ask(connection, "select live_rows from segments where id in {} and removed_in is null and table_id = ?", read, table_id),
        overlays=_ask(
            connection,
            "select coalesce(max(id), 0), coalesce(sum(num_deleted), 0), count(*) from overlays where segment_id in {} and removed_in is null",
            read,
        ),
        files=_ask(connection, "select count(*) from column_files where segment_id in {} and removed_in is null", read),
        folded=_ask(connection, "select count(*), coalesce(sum(num_deleted), 0) from overlays where id in {} and removed_in is null", plan.removed_overlays),
        folded_files=_ask(connection, "select count(*) from column_files where id in {} and removed_in is null", plan.removed_column_files),
        erased=_ask(
            connection, "select count(*) from overlays where segment_id in {} and kind = 'erased' and id > ?", plan.folded_segments, plan.latest_overlay
        ),
        lease=None
        if plan.lease is None
        else connection.execute(
            f"select count(*) from buckets where bucket in ({', '.join('?' * len(plan.lease.buckets))}) and table_id = ? and lease_owner = ?",
            (*plan.lease.buckets, table_id, plan.lease.owner),
        ),
    )


def _ask(connection: Connection, statement: str, ids: Sequence[int], *others: int) -> list[Cursor]:
    """One cursor for every so many ids."""
    parts = [ids[start : start + MAX_PARAMETERS] for start in range(0, len(ids), MAX_PARAMETERS)]
    return [connection.execute(statement.format(f"({', '.join('?' * len(part))})"), (*part, *others)) for part in parts]


def judge_inputs(plan: CommitPlan, inputs: Inputs | None) -> Verdict:
    """Whether what the plan read is as it was."""
    if inputs is None:
        return Verdict()
    if plan.lease is not None and inputs.lease is not None and int(inputs.lease.fetchone()[0]) != len(plan.lease.buckets):
        return Verdict(reason="lease", abandoned=True)
    folded = [cursor.fetchone() for cursor in inputs.folded]
    if sum(int(count) for count, _ in folded) != len(plan.removed_overlays) or _total(inputs.folded_files) != len(plan.removed_column_files):
        return Verdict(reason="folded", abandoned=True)
    if _total(inputs.erased):
        return Verdict(reason="erased", abandoned=True)  # the folded overlays hold what was erased since
    again = sum(int(deleted) for _, deleted in folded)
    if not (plan.removed_segments or plan.read_segments):
        return Verdict(removed_rows=-again)
    live = [int(rows) for cursor in inputs.rows for (rows,) in cursor]
    overlays = [cursor.fetchone() for cursor in inputs.overlays]
    if len(live) != len(plan.removed_segments or plan.read_segments):
        return Verdict(reason="inputs", abandoned=bool(plan.removed_segments))
    if _total(inputs.files) != plan.num_column_files:
        return Verdict(reason="columns", abandoned=bool(plan.removed_segments))
    if max(latest for latest, _, _ in overlays) > plan.latest_overlay:
        return Verdict(reason="overlays")
    if plan.num_overlays is not None and sum(int(count) for _, _, count in overlays) != plan.num_overlays:
        # an overlay that was folded meanwhile holds operands that were read one by one: carried over, it would count them again
        return Verdict(reason="folded", abandoned=True)
    return Verdict(removed_rows=sum(live) - sum(int(deleted) for _, deleted, _ in overlays) if plan.removed_segments else 0)


def _total(cursors: Sequence[Cursor]) -> int:
    return sum(int(cursor.fetchone()[0]) for cursor in cursors)
