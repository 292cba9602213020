"""Expiring snapshots: what no kept snapshot needs is forgotten batch by batch, and its bytes become garbage. Stop it anywhere: the next run goes on."""

from __future__ import annotations

import dataclasses
import datetime

from loader import failpoints
from loader.catalog.commit import GARBAGE_GRACE_SECONDS, now_micros
from loader.catalog.retention import FIRST_DEAD, forget_dead, mark_expired
from loader.table.context import TableContext
from loader.table.ttl import Dropped, Retention, drop_old, load_retention


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpiryReport:
    """What an expiry did.

    Attributes:
        snapshots: Numbers of the snapshots that cannot be read any more.
        records: Segments, overlays and labels that were forgotten with them.
        rows_dropped: Rows that were too old, gone from the head.
        segments_dropped: Segments of only such rows.
    """

    snapshots: tuple[int, ...]
    records: int
    rows_dropped: int = 0
    segments_dropped: int = 0


def expire(
    context: TableContext,
    *,
    older_than: datetime.timedelta | datetime.datetime | None,
    keep: int | None,
    grace_seconds: float | None,
    ttl: datetime.timedelta | datetime.datetime | None,
) -> ExpiryReport:
    """See `Table.expire`."""
    settings = load_retention(context)
    keep = settings.keep if keep is None else keep
    grace_seconds = settings.grace_seconds if grace_seconds is None else grace_seconds
    Retention(keep=keep, grace_seconds=grace_seconds)  # says what is wrong with them
    if ttl is None and settings.ttl_seconds is not None:
        ttl = datetime.timedelta(seconds=settings.ttl_seconds)
    before = _micros(datetime.timedelta(seconds=settings.older_than_seconds) if older_than is None else older_than)
    dropped = Dropped() if ttl is None else drop_old(context, ttl)
    grace = GARBAGE_GRACE_SECONDS if grace_seconds is None else grace_seconds
    snapshots: list[int] = []
    at: int | None = 0
    while at is not None:
        with context.catalog.write(context.spec.id) as connection:
            expired = mark_expired(connection, context.spec, before_micros=before, keep=keep, after=at)
        failpoints.hit("expire.marked")
        snapshots += expired.snapshots
        at = expired.after
    records = 0
    place: tuple[int, int, int] | None = FIRST_DEAD
    while place is not None:
        with context.catalog.write(context.spec.id) as connection:
            forgotten = forget_dead(connection, context.spec, grace_seconds=grace, after=place)
        failpoints.hit("expire.forgotten")
        records += forgotten.records
        place = forgotten.after
    context.sealer.run()
    return ExpiryReport(snapshots=tuple(snapshots), records=records, rows_dropped=dropped.rows, segments_dropped=dropped.segments)


def _micros(moment: datetime.timedelta | datetime.datetime) -> int:
    """The moment, or so long ago, as microseconds since 1970."""
    if isinstance(moment, datetime.timedelta):
        return now_micros() - moment // datetime.timedelta(microseconds=1)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone.utc)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)) // datetime.timedelta(microseconds=1)
