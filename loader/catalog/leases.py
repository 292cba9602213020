"""Leases on buckets: who may compact them. Every function takes a connection inside a write transaction of the table.

A lease is taken for a time and renewed; one that lapsed may be taken by anybody, and whoever lost it is refused by the commit (`CommitPlan.lease`). A bucket
here is of rows (by `bucket_by`); the row of `buckets` with its number holds the lease. What somebody wrote and never committed is collected once their
lease is taken from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loader.catalog.commit import now_micros
from loader.catalog.connection import Connection
from loader.catalog.records import BucketLease

LEASE_SECONDS = 30.0


def take_buckets(
    connection: Connection, table_id: int, owner: str, buckets: Sequence[int], *, seconds: float = LEASE_SECONDS, is_dead: Callable[[str], bool] | None = None
) -> BucketLease:
    """Lease those of the buckets that are free, the owner's already, or lapsed.

    Args:
        connection: Inside a write transaction.
        table_id: The table.
        owner: Of the lease; a name that nobody else has.
        buckets: Wanted.
        seconds: For how long.
        is_dead: Says of another owner that it has ended and cannot come back, so that its lease may be taken before it lapses.
    """
    now = now_micros()
    held = {
        bucket: (by, until) for bucket, by, until in connection.execute("select bucket, lease_owner, lease_until from buckets where table_id = ?", (table_id,))
    }
    taken, lost = [], set()
    for bucket in sorted(set(buckets)):
        by, until = held.get(bucket, (None, None))  # of ALL_BUCKETS there is no row before its first lease
        if by is None or by == owner or (until or 0) <= now or (is_dead is not None and is_dead(by)):
            taken.append(bucket)
            lost |= {by} - {None, owner}
    connection.executemany(
        "insert into buckets (table_id, bucket, rows_changed_in, pending_changed_in, lease_owner, lease_until) values (?, ?, 0, 0, ?, ?) "
        "on conflict (table_id, bucket) do update set lease_owner = excluded.lease_owner, lease_until = excluded.lease_until",
        [(table_id, bucket, owner, now + int(seconds * 1e6)) for bucket in taken],
    )
    # whoever lost a bucket can commit nothing to it: files that it left are not kept for as long as a writer's
    connection.executemany(
        "update staged set lease_until = ? where table_id = ? and owner = ? and lease_until > ?", [(now, table_id, by, now) for by in sorted(lost)]
    )
    return BucketLease(owner=owner, buckets=tuple(taken))


def renew_buckets(connection: Connection, table_id: int, lease: BucketLease, *, seconds: float = LEASE_SECONDS) -> int:
    """Hold the buckets for so long from now; returns how many of them are still the owner's."""
    until = now_micros() + int(seconds * 1e6)
    return sum(
        connection.execute(
            "update buckets set lease_until = ? where table_id = ? and bucket = ? and lease_owner = ?", (until, table_id, bucket, lease.owner)
        ).rowcount
        for bucket in lease.buckets
    )


def give_buckets_back(connection: Connection, table_id: int, lease: BucketLease) -> None:
    """Let go of buckets that are still the owner's."""
    connection.executemany(
        "update buckets set lease_owner = null, lease_until = null where table_id = ? and bucket = ? and lease_owner = ?",
        [(table_id, bucket, lease.owner) for bucket in lease.buckets],
    )


def leased_buckets(connection: Connection, table_id: int) -> dict[int, tuple[str, int]]:
    """Bucket -> (owner, until in microseconds) of the leases that have not lapsed."""
    rows = connection.execute(
        "select bucket, lease_owner, lease_until from buckets where table_id = ? and lease_owner is not null and lease_until > ? order by bucket",
        (table_id, now_micros()),
    )
    return {bucket: (owner, until) for bucket, owner, until in rows}
