"""Which snapshots are kept and what their files are: expiry in SQL. Every function takes a connection inside a write transaction of the table.

A snapshot is kept if it is young or recent enough, tagged, or pinned by a job that runs. What is live in no kept snapshot is forgotten, and its path goes to
garbage once nothing else lies at it; the bytes go after the grace period. Nothing here lists storage.
"""

from __future__ import annotations

import bisect
import dataclasses

from loader.catalog import sealing
from loader.catalog.commit import now_micros, throw_away
from loader.catalog.connection import Connection
from loader.catalog.records import TableSpec

BATCH_ROWS = 5_000
FIRST_DEAD = (0, -1, -1)
_WITH_LIFETIME = ("overlays", "column_files", "pending", "segments")  # what refers to a segment goes before it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expired:
    """What one batch of an expiry marked.

    Attributes:
        snapshots: Numbers that cannot be read any more.
        floor: Everything that died at or before this snapshot is forgotten, unless a kept one below it needs it.
        after: Where the next batch begins; None after the last.
    """

    snapshots: tuple[int, ...]
    floor: int
    after: int | None


def mark_expired(connection: Connection, spec: TableSpec, *, before_micros: int, keep: int, after: int = 0) -> Expired:
    """Mark one batch of the snapshots that were committed before a moment, but the newest `keep`, tags, and what running jobs hold."""
    (head,) = connection.execute("select head from tables where id = ?", (spec.id,)).fetchone()
    held = set(held_snapshots(connection, spec))
    rows = connection.execute(
        "select id from snapshots where table_id = ? and id > ? and expired_at is null and created_at < ? and id <= ? order by id limit ?",
        (spec.id, after, before_micros, head - keep, BATCH_ROWS),
    ).fetchall()
    candidates = [snapshot for (snapshot,) in rows]
    chosen = [snapshot for snapshot in candidates if snapshot not in held]
    now = now_micros()
    connection.executemany("update snapshots set expired_at = ? where table_id = ? and id = ?", [(now, spec.id, snapshot) for snapshot in chosen])
    connection.executemany("delete from selections where table_id = ? and snapshot_id = ?", [(spec.id, snapshot) for snapshot in chosen])
    # created_at may go back where writers' clocks differ: the floor is where the first kept snapshot that nobody holds stands
    kept = connection.execute("select id from snapshots where table_id = ? and expired_at is null order by id limit ?", (spec.id, len(held) + 1)).fetchall()
    floor = next((snapshot for (snapshot,) in kept if snapshot not in held), head)
    connection.execute("update tables set floor = case when floor > ? then floor else ? end where id = ?", (floor, floor, spec.id))
    return Expired(snapshots=tuple(chosen), floor=floor, after=candidates[-1] if len(candidates) == BATCH_ROWS else None)


def held_snapshots(connection: Connection, spec: TableSpec) -> list[int]:
    """Numbers of the snapshots that tags or unexpired pins hold, ascending."""
    rows = connection.execute(
        "select distinct snapshot_id from pins where table_id = ? and (kind = 'tag' or expires_at is null or expires_at > ?) order by snapshot_id",
        (spec.id, now_micros()),
    )
    return [snapshot for (snapshot,) in rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What one batch forgot.

    Attributes:
        records: How many went.
        after: (table, removed_in, id) of the last one looked at; None once all have been.
    """

    records: int
    after: tuple[int, int, int] | None


def forget_dead(
    connection: Connection, spec: TableSpec, *, grace_seconds: float, after: tuple[int, int, int] = FIRST_DEAD, reason: str = "expired"
) -> Forgotten:
    """Look at one batch of what has died and forget what of it no kept snapshot shows; its paths go to garbage. Each record is looked at once a run.

    Args:
        connection: In a write transaction of the table.
        spec: The table.
        grace_seconds: How long bytes stay.
        after: Where the batch before ended.
        reason: Why, for the record of garbage.
    """
    (floor,) = connection.execute("select floor from tables where id = ?", (spec.id,)).fetchone()
    kept = [
        snapshot
        for (snapshot,) in connection.execute("select id from snapshots where table_id = ? and expired_at is null and id < ? order by id", (spec.id, floor))
    ]
    number, removed_in, last = after
    table = _WITH_LIFETIME[number]
    rows = connection.execute(
        f"select id, path, added_in, removed_in from {table} where table_id = ? and removed_in <= ? and (removed_in > ? or (removed_in = ? and id > ?)) "
        "order by removed_in, id limit ?",
        (spec.id, floor, removed_in, removed_in, last, BATCH_ROWS),
    ).fetchall()
    dead = [(row_id, path) for row_id, path, added, removed in rows if not _is_shown(kept, added, removed)]
    if dead:
        connection.executemany(f"delete from {table} where id = ?", [(row_id,) for row_id, _ in dead])
        if table == "segments":
            sealing.forget(connection, spec.id, [row_id for row_id, _ in dead])
        throw_away(connection, spec.id, sorted({path for _, path in dead}), reason=reason, grace_seconds=grace_seconds)
    if len(rows) == BATCH_ROWS:
        return Forgotten(records=len(dead), after=(number, int(rows[-1][3]), int(rows[-1][0])))
    return Forgotten(records=len(dead), after=(number + 1, -1, -1) if number + 1 < len(_WITH_LIFETIME) else None)


def _is_shown(kept: list[int], added: int, removed: int) -> bool:
    """Whether a kept snapshot S has added <= S < removed."""
    at = bisect.bisect_left(kept, added)
    return at < len(kept) and kept[at] < removed
