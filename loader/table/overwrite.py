"""Overwriting: the rows that an expression selects go and new ones come, in one commit, at the very snapshot before it."""

from __future__ import annotations

import uuid

import numpy as np

from loader import failpoints
from loader.catalog.commit import Stale
from loader.catalog.records import CommitPlan, Snapshot, SourceOffsets
from loader.table.append import commit_new, refuse_existing
from loader.table.births import Births
from loader.table.context import TableContext
from loader.table.delete import DeletionVectors, Matches, Rows, head_view
from loader.table.keys import Hits
from loader.table.rows import Data, as_table, prepare


class Overwrite:
    """One overwrite, from the caller's data to its snapshot."""

    def __init__(self, context: TableContext, data: Data, where: str, *, watermark: int | None, offsets: SourceOffsets | None, commit_id: str | None) -> None:
        self.context, self.watermark, self.offsets, self.commit_id = context, watermark, offsets, commit_id or uuid.uuid4().hex
        self.births = Births(context, prepare(context.spec, as_table(data)))
        self.keys = self.births.rows.keys
        self.matches = Matches(where)
        self.vectors = DeletionVectors(context.stage)

    def run(self) -> Snapshot:
        context = self.context
        known = context.answered(self.commit_id, self.offsets)
        if known is not None:
            return known
        self.births.write()
        done = commit_new(context, self._attempt, self.commit_id, self.offsets)
        self.births.remember()
        return done

    def _attempt(self) -> CommitPlan | Stale:
        context, births = self.context, self.births
        view = head_view(context)
        selected = self.matches.find(view, context.storage)
        failpoints.hit("overwrite.resolved")
        if context.refresh() != view.snapshot_id:
            return Stale("head")  # rows that are selected may lie elsewhere by now: their keys must not be taken for others'
        refuse_existing(context, births, np.flatnonzero(_stays(context.directory.probe(self.keys), selected)))
        births.meet(context.key_buckets(self.keys))
        vectors = self.vectors.bring_to(selected)
        failpoints.hit("overwrite.staged")
        return CommitPlan(
            spec=context.spec,
            kind="overwrite",
            commit_id=self.commit_id,
            base=view.snapshot_id,
            is_exact=True,
            rows_changed=tuple(range(context.spec.buckets)),
            pending_changed=births.met_buckets,
            segments=births.segments,
            overlays=[*births.overlays, *vectors],
            met=births.met,
            inline=births.inline | self.vectors.inline,
            offsets=self.offsets,
            watermark=self.watermark,
            summary={"rows_deleted": sum(overlay.num_deleted for overlay in vectors), "rows_appended": len(self.keys), "labels_met": births.num_met},
        )


def _stays(hits: Hits, selected: dict[int, Rows]) -> np.ndarray:
    """Which keys are found in rows that are not selected."""
    stays = hits.found.copy()
    for segment_id, rows in selected.items():
        mine = np.flatnonzero(hits.segment_ids == segment_id)
        stays[mine] &= ~np.isin(hits.rows[mine], rows)
    return stays
