"""Expiring snapshots: what no kept snapshot needs is forgotten batch by batch, and its bytes become garbage. Stop it anywhere: the next run goes on."""

from __future__ import annotations

import dataclasses
import datetime

from loader import failpoints
from loader.catalog.commit import GARBAGE_GRACE_SECONDS, now_micros
from loader.catalog.retention import forget_dead, mark_expired
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
    with context.catalog.write(context.spec.id) as connection:
        expired = mark_expired(connection, context.spec, before_micros=before, keep=keep)
    failpoints.hit("expire.marked")
    records = 0
    while True:
        with context.catalog.write(context.spec.id) as connection:
            gone = forget_dead(connection, context.spec, grace_seconds=GARBAGE_GRACE_SECONDS if grace_seconds is None else grace_seconds)
        failpoints.hit("expire.forgotten")
        records += gone
        if not gone:
            context.sealer.run()
            return ExpiryReport(snapshots=expired.snapshots, records=records)


def _micros(moment: datetime.timedelta | datetime.datetime) -> int:
    """The moment, or so long ago, as microseconds since 1970."""
    if isinstance(moment, datetime.timedelta):
        return now_micros() - moment // datetime.timedelta(microseconds=1)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone.utc)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)) // datetime.timedelta(microseconds=1)
