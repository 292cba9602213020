"""The plan that the handles of a table keep: its segments as of the last snapshot they saw, brought forward by what came and went since."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from loader.catalog.connection import Database
from loader.catalog.manifest import Within, advance, load_segments
from loader.catalog.read import load_floor, load_spec_at, load_view, make_view, resolve_snapshot
from loader.catalog.records import Snapshot, SnapshotView, TableSpec
from loader.catalog.segments import Segments


@dataclasses.dataclass(frozen=True)
class _Kept:
    """The segments of a snapshot."""

    snapshot_id: int
    segments: Segments


class Views:
    """Snapshots of one table, from what was loaded before. Safe to share between threads: two that load at once both do the work.

    Args:
        catalog: Of the table.
    """

    def __init__(self, catalog: Database) -> None:
        self._catalog = catalog
        self._kept: _Kept | None = None

    def at(self, spec: TableSpec, snapshot: int | str | Snapshot | None, needed: Callable[[TableSpec], Within | None] | None = None) -> SnapshotView:
        """A snapshot.

        Args:
            spec: The table.
            snapshot: Which; None is the newest.
            needed: What of it is needed, by the schema of the snapshot. Where the whole table is at hand already, it comes whole.
        """
        kept = self._kept
        with self._catalog.read() as connection:
            snapshot_id = resolve_snapshot(connection, spec, snapshot)
            # what died at or before the floor may be forgotten, and what lies there may have moved
            if kept is None or snapshot_id < kept.snapshot_id or kept.snapshot_id < load_floor(connection, spec):
                within = None if needed is None else needed(load_spec_at(connection, spec, snapshot_id))
                if within is not None:
                    return load_view(connection, spec, snapshot_id, within)
                segments = load_segments(connection, spec.id, snapshot_id)
            elif snapshot_id == kept.snapshot_id:
                segments = kept.segments
            else:
                segments = advance(connection, spec.id, kept.segments, kept.snapshot_id, snapshot_id)
            view = make_view(connection, spec, snapshot_id, segments)
        latest = self._kept
        if latest is None or latest.snapshot_id < snapshot_id:
            self._kept = _Kept(snapshot_id, segments)
        return view
