"""Deleting rows: found by key through the key index, or by an expression over each segment's rows, and recorded by position as deletion vectors.

Owns both ways of finding and the writing of vectors. A retry looks again only where something changed, and writes again only the vectors that changed with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader import failpoints
from loader.catalog.read import load_head, load_view
from loader.catalog.records import DELETES, CommitPlan, NewOverlay, SnapshotView, SourceOffsets
from loader.segment.key_index import Keys
from loader.storage import Storage
from loader.table.context import TableContext
from loader.table.files import Stage, place
from loader.table.keys import Hits, Resolution
from loader.table.reading import live_rows, predicate_of, state_of
from loader.table.segments import encode_overlays
from loader.table.writes import Write

Rows = npt.NDArray[np.uint32]


class DeletionVectors:
    """The vectors of one commit, by segment; what is written and still right is left alone by a retry."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._written: dict[int, tuple[NewOverlay, Rows]] = {}
        self._inline: dict[str, bytes] = {}

    def bring_to(self, wanted: Mapping[int, Rows]) -> list[NewOverlay]:
        """The overlays that delete these rows: sorted row numbers, each once, by segment."""
        self._written = {segment_id: kept for segment_id, kept in self._written.items() if segment_id in wanted and np.array_equal(kept[1], wanted[segment_id])}
        new = {segment_id: rows for segment_id, rows in wanted.items() if segment_id not in self._written}
        if new:
            every, bounds = np.concatenate(list(new.values())), [0, *itertools.accumulate(map(len, new.values()))]
            placed = place(encode_overlays(pa.table({}), (), every, None, bounds), self._stage, self._inline)
            for (segment_id, rows), (offset, num_bytes) in zip(new.items(), placed.sections, strict=True):
                overlay = NewOverlay(
                    segment_id=segment_id,
                    kind=DELETES,
                    path=placed.path,
                    offset=offset,
                    num_bytes=num_bytes,
                    num_rows=len(rows),
                    num_deleted=len(rows),
                    column_ids=(),
                )
                self._written[segment_id] = (overlay, rows)
        return [overlay for overlay, _ in self._written.values()]

    @property
    def inline(self) -> dict[str, bytes]:
        """What of them lies in the catalog."""
        used = {overlay.path for overlay, _ in self._written.values()}
        return {path: data for path, data in self._inline.items() if path in used}


class Matches:
    """The rows that an expression selects, looked at once for each state of a segment."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._seen: dict[tuple[int | None, ...], Rows] = {}

    def find(self, view: SnapshotView, storage: Storage) -> dict[int, Rows]:
        """Selected live rows by segment; segments without any are left out."""
        predicate = predicate_of(view, self._where)
        closed = None if view.attribution is None else view.watermark  # labels whose window closes read as their default from then on
        still: dict[tuple[int | None, ...], Rows] = {}
        found = {}
        for ref in view.segments:
            state = (closed, *state_of(ref))
            rows = still[state] = self._seen[state] if state in self._seen else live_rows(view, ref, predicate, storage)
            if len(rows):
                found[ref.segment_id] = rows
        self._seen = still
        return found


class DeleteKeys(Write):
    """One delete of rows by their keys. Keys that the table does not have are counted and passed over."""

    def __init__(self, context: TableContext, keys: Keys, *, offsets: SourceOffsets | None, commit_id: str | None, files: Stage | None = None) -> None:
        super().__init__(context, offsets=offsets, commit_id=commit_id, files=files)
        self.keys = keys
        self.buckets = context.key_buckets(self.keys)
        self.vectors = DeletionVectors(self.files)
        self.resolution = Resolution(self.keys)

    def attempt(self) -> CommitPlan:
        context = self.context
        base = context.refresh()
        hits = self.resolution.bring_to(context.directory)
        failpoints.hit("delete.resolved")
        overlays = self.vectors.bring_to(rows_by_segment(hits))
        failpoints.hit("delete.staged")
        return CommitPlan(
            spec=context.spec,
            kind="delete",
            commit_id=self.commit_id,
            base=base,
            rows_buckets=self.buckets,
            rows_changed=self.buckets if overlays else (),
            overlays=overlays,
            inline=self.vectors.inline,
            offsets=self.offsets,
            summary={"rows_deleted": sum(overlay.num_deleted for overlay in overlays), "keys_missing": int((~hits.found).sum())},
        )


class DeleteWhere(Write):
    """One delete of all rows that an expression selects, at the very snapshot before it."""

    is_keyed = False

    def __init__(self, context: TableContext, where: str, *, offsets: SourceOffsets | None, commit_id: str | None) -> None:
        super().__init__(context, offsets=offsets, commit_id=commit_id)
        self.matches = Matches(where)
        self.vectors = DeletionVectors(context.stage)

    def attempt(self) -> CommitPlan:
        context = self.context
        view = head_view(context)
        failpoints.hit("delete.resolved")
        overlays = self.vectors.bring_to(self.matches.find(view, context.storage))
        failpoints.hit("delete.staged")
        return CommitPlan(
            spec=context.spec,
            kind="delete",
            commit_id=self.commit_id,
            base=view.snapshot_id,
            is_exact=True,
            rows_changed=tuple(range(context.spec.buckets)) if overlays else (),
            overlays=overlays,
            inline=self.vectors.inline,
            offsets=self.offsets,
            summary={"rows_deleted": sum(overlay.num_deleted for overlay in overlays)},
        )


def head_view(context: TableContext) -> SnapshotView:
    """All that is live now."""
    with context.catalog.read() as connection:
        return load_view(connection, context.spec, load_head(connection, context.spec))


def rows_by_segment(hits: Hits) -> dict[int, Rows]:
    """The rows that were found, sorted, each once, by segment."""
    found = np.flatnonzero(hits.found)
    segment_ids, rows = hits.segment_ids[found], hits.rows[found]
    return {segment_id: np.unique(rows[segment_ids == segment_id]).astype(np.uint32) for segment_id in np.unique(segment_ids).tolist()}
