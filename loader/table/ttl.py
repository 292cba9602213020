"""Dropping rows by age: whole segments by their time range, without a read; of those that reach across the limit, rows by position.

Owns the table's own retention settings too, which `expire` applies. The rows leave the head; older snapshots keep them until they expire.
"""

from __future__ import annotations

import dataclasses
import datetime
import uuid

import numpy as np

from loader import failpoints
from loader.catalog import admin
from loader.catalog.records import CommitPlan, SegmentRef, Snapshot, SnapshotView
from loader.errors import SchemaError
from loader.schema import Column
from loader.storage import Storage
from loader.table.context import TableContext
from loader.table.delete import DeletionVectors, Rows, head_view
from loader.table.reading import state_of
from loader.table.resolve import deleted_rows
from loader.table.segments import open_columns, read_by_id
from loader.table.times import time_value, time_words
from loader.table.writes import Write

RETENTION = "retention"  # its name among the table's properties
MAX_SEGMENTS = 1_000  # dropped in one commit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """What a table keeps, unless a call says otherwise.

    Attributes:
        ttl_seconds: Rows so much older than now, by the time column, are dropped; None keeps all.
        older_than_seconds: Age from which snapshots go.
        keep: How many of the newest snapshots stay.
        grace_seconds: How long bytes stay after that; None is the default.
    """

    ttl_seconds: float | None = None
    older_than_seconds: float = 7 * 86_400.0
    keep: int = 1
    grace_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttl_seconds", "older_than_seconds", "grace_seconds"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}: it must not be negative")
        if self.keep < 1:
            raise ValueError(f"keep is {self.keep}: the newest snapshot is always kept")


def load_retention(context: TableContext) -> Retention:
    """The table's settings, or the defaults."""
    with context.catalog.read() as connection:
        return Retention(**admin.load_property(connection, context.spec, RETENTION, {}))


def save_retention(context: TableContext, retention: Retention) -> None:
    """Keep settings with the table.

    Raises:
        SchemaError: There is a limit on the age of rows, and no time column.
    """
    if retention.ttl_seconds is not None:
        _time_column(context)
    with context.catalog.write(context.spec.id) as connection:
        admin.set_property(connection, context.spec, RETENTION, dataclasses.asdict(retention))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropped:
    """Rows that were dropped by age, of which segments without a read."""

    rows: int = 0
    segments: int = 0


def drop_old(context: TableContext, limit: datetime.timedelta | datetime.datetime) -> Dropped:
    """Drop the rows whose time lies before a moment, or so long ago, in commits of bounded size. Stop it anywhere: the next run goes on."""
    column = _time_column(context)
    moment = datetime.datetime.now(datetime.UTC) - limit if isinstance(limit, datetime.timedelta) else limit
    before, done = time_value(moment, column.type), Dropped()
    while True:
        write = DropOld(context, before)
        if write.is_needless():
            return done
        snapshot: Snapshot = write.run()
        done = Dropped(rows=done.rows + int(snapshot.summary["rows_dropped"]), segments=done.segments + int(snapshot.summary["segments_dropped"]))


def _time_column(context: TableContext) -> Column:
    column = context.spec.time_column
    if column is None:
        raise SchemaError(f"table {context.spec.name!r} has no time column to say how old a row is: create it with time_column=…")
    return column


class DropOld(Write):
    """One commit of a drop, at the very snapshot before it."""

    is_keyed = False

    def __init__(self, context: TableContext, before: int) -> None:
        super().__init__(context, offsets=None, commit_id=uuid.uuid4().hex)
        self.before = before
        self.vectors = DeletionVectors(context.stage)
        self._seen: dict[tuple[int, ...], Rows] = {}

    def is_needless(self) -> bool:
        """Whether no live row is too old."""
        whole, partly = self._find(head_view(self.context))
        return not whole and not any(len(rows) for rows in partly.values())

    def attempt(self) -> CommitPlan:
        view = head_view(self.context)
        whole, partly = self._find(view)
        failpoints.hit("ttl.resolved")
        overlays = self.vectors.bring_to({segment_id: rows for segment_id, rows in partly.items() if len(rows)})
        failpoints.hit("ttl.staged")
        return CommitPlan(
            spec=self.context.spec,
            kind="ttl",
            commit_id=self.commit_id,
            base=view.snapshot_id,
            is_exact=True,
            rows_changed=tuple(range(self.context.spec.buckets)),
            overlays=overlays,
            inline=self.vectors.inline,
            removed_segments=tuple(ref.segment_id for ref in whole),
            latest_overlay=max((overlay.overlay_id for ref in whole for overlay in ref.overlays), default=0),
            num_column_files=sum(len(ref.column_files) for ref in whole),
            summary={
                "rows_dropped": sum(ref.live_rows for ref in whole) + sum(overlay.num_deleted for overlay in overlays),
                "segments_dropped": len(whole),
            },
        )

    def _find(self, view: SnapshotView) -> tuple[list[SegmentRef], dict[int, Rows]]:
        """Live segments that are too old as a whole, so many as one commit takes; and live rows that are, of others."""
        old = [ref for ref in view.segments if ref.time_min is not None and ref.time_min < self.before]
        whole = [ref for ref in old if ref.time_max is not None and ref.time_max < self.before][:MAX_SEGMENTS]
        partly = [ref for ref in old if ref.time_max is None or ref.time_max >= self.before]
        return whole, {ref.segment_id: self._old_rows(ref, self.context.storage) for ref in partly}

    def _old_rows(self, ref: SegmentRef, storage: Storage) -> Rows:
        state = state_of(ref)
        if state not in self._seen:
            column = self.context.spec.time_column
            assert column is not None, "checked before"
            times = time_words(read_by_id(open_columns(storage, ref), [column.id])[column.id])
            old = times < self.before
            deleted = deleted_rows(ref, storage)
            self._seen[state] = np.flatnonzero(old if deleted is None else old & ~deleted).astype(np.uint32)
        return self._seen[state]
