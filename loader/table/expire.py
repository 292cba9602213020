"""Expiring snapshots: what no kept snapshot needs is forgotten batch by batch, and its bytes become garbage. Stop it anywhere: the next run goes on."""

from __future__ import annotations

import dataclasses
import datetime

from loader import failpoints
from loader.catalog.commit import GARBAGE_GRACE_SECONDS, now_micros
from loader.catalog.retention import FIRST_DEAD, forget_dead, mark_expired
from loader.table.context import TableContext


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpiryReport:
    """What an expiry did.

    Attributes:
        snapshots: Numbers of the snapshots that cannot be read any more.
        records: Segments, overlays and labels that were forgotten with them.
    """

    snapshots: tuple[int, ...]
    records: int


def expire(context: TableContext, *, older_than: datetime.timedelta | datetime.datetime, keep: int, grace_seconds: float | None) -> ExpiryReport:
    """See `Table.expire`."""
    if keep < 1:
        raise ValueError(f"keep is {keep}: the newest snapshot is always kept")
    if grace_seconds is not None and grace_seconds < 0:
        raise ValueError(f"grace_seconds is {grace_seconds}: it must not be negative")
    before = _micros(older_than)
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
    return ExpiryReport(snapshots=tuple(snapshots), records=records)


def _micros(moment: datetime.timedelta | datetime.datetime) -> int:
    """The moment, or so long ago, as microseconds since 1970."""
    if isinstance(moment, datetime.timedelta):
        return now_micros() - moment // datetime.timedelta(microseconds=1)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone.utc)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)) // datetime.timedelta(microseconds=1)
