"""Overwriting: the rows that an expression selects go and new ones come, in one commit, at the very snapshot before it. Large inputs come part by part."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from loader import failpoints
from loader.catalog.commit import Stale
from loader.catalog.records import CommitPlan, Snapshot, SourceOffsets
from loader.errors import HeadraceError, KeyExistsError
from loader.table.append import refuse_existing
from loader.table.births import Births
from loader.table.context import TableContext
from loader.table.delete import DeletionVectors, Matches, Rows, head_view
from loader.table.files import Stage
from loader.table.keys import Hits
from loader.table.parts import parts_of
from loader.table.reading import predicate_of
from loader.table.rows import Data, as_table, prepare
from loader.table.streamed import Progress, StreamedAppend
from loader.table.writes import Write


class Overwrite(Write):
    """One overwrite, from the caller's data to its snapshot."""

    is_keyed = False

    def __init__(self, context: TableContext, data: Data, where: str, *, watermark: int | None, offsets: SourceOffsets | None, commit_id: str | None) -> None:
        super().__init__(context, offsets=offsets, commit_id=commit_id)
        self.watermark = watermark
        self.births = Births(context, prepare(context.spec, as_table(data)))
        self.keys = self.births.rows.keys
        self.matches = Matches(where)
        self.vectors = DeletionVectors(context.stage)

    def stage(self) -> None:
        self.births.write()

    def refused(self, error: HeadraceError) -> Snapshot | None:
        """Keys exist because another process committed the same records in between: its snapshot is the answer."""
        return self.known() if isinstance(error, KeyExistsError) else None

    def remember(self) -> None:
        self.births.remember()

    def attempt(self) -> CommitPlan | Stale:
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


class StreamedOverwrite(StreamedAppend):
    """One overwrite of an input in several parts: an append of these, and the rows that go."""

    def __init__(
        self,
        context: TableContext,
        parts: Iterable[pa.Table],
        where: str,
        *,
        watermark: int | None,
        offsets: SourceOffsets | None,
        commit_id: str | None,
        progress: Progress | None,
    ) -> None:
        super().__init__(context, parts, on_conflict="check", watermark=watermark, offsets=offsets, commit_id=commit_id, progress=progress)
        self._where, self.matches = where, Matches(where)

    def _store(self, stage: Stage) -> None:
        predicate_of(head_view(self.context), self._where)  # refused before anything is read
        self.vectors = DeletionVectors(stage)
        super()._store(stage)

    def attempt(self) -> CommitPlan | Stale:
        context = self.context
        view = head_view(context)
        selected = self.matches.find(view, context.storage)
        failpoints.hit("overwrite.resolved")
        if context.refresh() != view.snapshot_id:
            return Stale("head")
        for number in range(len(self._spill)):
            self._refuse(number, _stays(context.directory.probe(self._spill.read(number)[0]), selected))
        plan = self._plan(view.snapshot_id)
        vectors = self.vectors.bring_to(selected)
        failpoints.hit("overwrite.staged")
        return dataclasses.replace(
            plan,
            kind="overwrite",
            is_exact=True,
            rows_buckets=(),
            pending_buckets=(),
            rows_changed=tuple(range(context.spec.buckets)),
            overlays=[*plan.overlays, *vectors],
            inline=plan.inline | self.vectors.inline,
            summary={"rows_deleted": sum(overlay.num_deleted for overlay in vectors), **plan.summary},
        )


def overwrite(
    context: TableContext,
    data: Data,
    where: str,
    *,
    watermark: int | None,
    offsets: SourceOffsets | None,
    commit_id: str | None,
    progress: Progress | None,
) -> Overwrite | StreamedOverwrite:
    """See `Table.overwrite`: the write of an input, in parts where it is large."""
    parts = parts_of(data, context.memory_bytes)
    first, second = next(parts), next(parts, None)
    if second is None:
        return Overwrite(context, first, where, watermark=watermark, offsets=offsets, commit_id=commit_id)
    every = itertools.chain([first, second], parts)
    return StreamedOverwrite(context, every, where, watermark=watermark, offsets=offsets, commit_id=commit_id, progress=progress)


def _stays(hits: Hits, selected: dict[int, Rows]) -> np.ndarray:
    """Which keys are found in rows that are not selected."""
    stays = hits.found.copy()
    for segment_id, rows in selected.items():
        mine = np.flatnonzero(hits.segment_ids == segment_id)
        stays[mine] &= ~np.isin(hits.rows[mine], rows)
    return stays
