"""Deleting bytes: garbage whose grace period is over, and files of writers that died. Storage is never listed to decide.

A writer numbers the files under its leased prefix and each commit says how far they are accounted for; what a dead writer left lies in the
numbers after that, so it is found by name. Among them may be files that are committed, of a process whose threads wrote at once.
"""

from __future__ import annotations

import dataclasses

from loader import failpoints
from loader.catalog.commit import is_referred_to, now_micros
from loader.catalog.connection import Database
from loader.catalog.records import INLINE_PREFIX
from loader.storage import TEMPORARY_SUFFIX, Storage

BATCH_PATHS = 1_000  # deleted in one go
MAX_STAGED_GAP = 32  # numbers without a file after which a writer's files have ended; gaps are files that were thrown away or moved, and deleted since


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectionReport:
    """What a collection deleted."""

    deleted_paths: int
    expired_stages: int


def staged_path(prefix: str, number: int) -> str:
    """The path of a writer's file by its number."""
    return f"{prefix}{number:08d}.hr"


def collect(catalog: Database, storage: Storage, *, now: int | None = None) -> CollectionReport:
    """Delete what may go now.

    Bytes go first and the catalog's row after them, so that a collection that dies is continued by the next one.

    Args:
        catalog: Says what is garbage.
        storage: Holds it.
        now: Wall clock in microseconds; the real one by default.
    """
    now = now_micros() if now is None else now
    deleted, after = 0, ""
    while True:
        with catalog.read() as connection:
            rows = connection.execute("select path from garbage where not_before <= ? and path > ? order by path limit ?", (now, after, BATCH_PATHS)).fetchall()
            listed = [path for (path,) in rows]
            paths = [path for path in listed if not is_referred_to(connection, path)]
        storage.delete(path for path in paths if not path.startswith(INLINE_PREFIX))
        failpoints.hit("garbage.deleted")
        if listed:
            with catalog.write() as connection:
                connection.executemany("delete from inline_data where path = ?", [(path,) for path in paths if path.startswith(INLINE_PREFIX)])
                connection.executemany("delete from garbage where path = ?", [(path,) for path in listed])
        deleted += len(paths)
        if len(listed) < BATCH_PATHS:
            break
        after = listed[-1]
    with catalog.write() as connection:
        connection.execute("delete from pins where kind = 'pin' and expires_at <= ?", (now,))
        stages = connection.execute("select prefix, next_file from staged where lease_until <= ?", (now,)).fetchall()
    expired = sum(_collect_stage(catalog, storage, prefix, next_file, now) for prefix, next_file in stages)
    return CollectionReport(deleted_paths=deleted, expired_stages=expired)


def _collect_stage(catalog: Database, storage: Storage, prefix: str, next_file: int, now: int) -> int:
    """End a writer's expired lease for good, delete the files that it wrote and never committed, then forget the lease."""
    with catalog.write() as connection:
        fenced = connection.execute(
            "update staged set lease_until = 0 where prefix = ? and lease_until <= ? and next_file = ?", (prefix, now, next_file)
        ).rowcount
    if not fenced:
        return 0  # its writer lives after all
    missing, end = 0, next_file
    while missing < MAX_STAGED_GAP:
        missing = 0 if storage.exists(staged_path(prefix, end)) else missing + 1
        end += 1
    left = [staged_path(prefix, number) for number in range(next_file, end)]
    with catalog.read() as connection:  # a write of another thread may have committed its file while a lower number was still to be: nobody can any more
        left = [file for file in left if not is_referred_to(connection, file)]
    # the last one first: a collection that dies leaves no gap, which the next one would take for the end
    storage.delete(path for file in reversed(left) for path in (file, file + TEMPORARY_SUFFIX))
    with catalog.write() as connection:
        connection.execute("delete from staged where prefix = ?", (prefix,))
    return 1
