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
_WITH_LIFETIME = ("overlays", "column_files", "pending", "segments")  # what refers to a segment goes before it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expired:
    """What one expiry marked.

    Attributes:
        snapshots: Numbers that cannot be read any more.
        floor: Everything that died at or before this snapshot is forgotten, unless a kept one below it needs it.
    """

    snapshots: tuple[int, ...]
    floor: int


def mark_expired(connection: Connection, spec: TableSpec, *, before_micros: int, keep: int) -> Expired:
    """Mark every snapshot that was committed before a moment, but the newest `keep`, tags, and what running jobs hold."""
    (head,) = connection.execute("select head from tables where id = ?", (spec.id,)).fetchone()
    held = set(held_snapshots(connection, spec))
    rows = connection.execute(
        "select id from snapshots where table_id = ? and expired_at is null and created_at < ? and id <= ? order by id", (spec.id, before_micros, head - keep)
    ).fetchall()
    candidates = [snapshot for (snapshot,) in rows]
    chosen = [snapshot for snapshot in candidates if snapshot not in held]
    now = now_micros()
    connection.executemany("update snapshots set expired_at = ? where table_id = ? and id = ?", [(now, spec.id, snapshot) for snapshot in chosen])
    connection.executemany("delete from selections where table_id = ? and snapshot_id = ?", [(spec.id, snapshot) for snapshot in chosen])
    # created_at may go back where writers' clocks differ: the floor is where the first kept snapshot that nobody holds stands
    kept = connection.execute("select id from snapshots where table_id = ? and expired_at is null order by id", (spec.id,)).fetchall()
    floor = next((snapshot for (snapshot,) in kept if snapshot not in held), head)
    connection.execute("update tables set floor = case when floor > ? then floor else ? end where id = ?", (floor, floor, spec.id))
    return Expired(snapshots=tuple(chosen), floor=floor)


def held_snapshots(connection: Connection, spec: TableSpec) -> list[int]:
    """Numbers of the snapshots that tags or unexpired pins hold, ascending."""
    rows = connection.execute(
        "select distinct snapshot_id from pins where table_id = ? and (kind = 'tag' or expires_at is null or expires_at > ?) order by snapshot_id",
        (spec.id, now_micros()),
    )
    return [snapshot for (snapshot,) in rows]


def forget_dead(connection: Connection, spec: TableSpec, *, grace_seconds: float, reason: str = "expired") -> int:
    """Forget one batch of what no kept snapshot shows; its paths go to garbage. Returns how many records went: 0 once there is nothing left."""
    (floor,) = connection.execute("select floor from tables where id = ?", (spec.id,)).fetchone()
    kept = [
        snapshot
        for (snapshot,) in connection.execute("select id from snapshots where table_id = ? and expired_at is null and id < ? order by id", (spec.id, floor))
    ]
    for table in _WITH_LIFETIME:
        rows = connection.execute(
            f"select id, path, added_in, removed_in from {table} where table_id = ? and removed_in <= ? order by removed_in, id", (spec.id, floor)
        ).fetchall()
        dead = [(row_id, path) for row_id, path, added, removed in rows if not _is_shown(kept, added, removed)][:BATCH_ROWS]
        if dead:
            connection.executemany(f"delete from {table} where id = ?", [(row_id,) for row_id, _ in dead])
            if table == "segments":
                sealing.forget(connection, spec.id, [row_id for row_id, _ in dead])
            throw_away(connection, spec.id, sorted({path for _, path in dead}), reason=reason, grace_seconds=grace_seconds)
            return len(dead)
    return 0


def _is_shown(kept: list[int], added: int, removed: int) -> bool:
    """Whether a kept snapshot S has added <= S < removed."""
    at = bisect.bisect_left(kept, added)
    return at < len(kept) and kept[at] < removed
