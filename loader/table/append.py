"""Appending rows: encode once, probe the keys, meet the labels that were waiting, commit.

A retry never encodes or writes the rows again. What the rows meet in `pending` becomes overlays that the new segments are born with.
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

from loader import failpoints
from loader.catalog.read import load_pending
from loader.catalog.records import CommitPlan, NewOverlay, Snapshot, SourceOffsets
from loader.errors import KeyExistsError
from loader.segment.key_index import bucket_of
from loader.table.context import TableContext
from loader.table.files import place
from loader.table.keys import Hits
from loader.table.pending import Meeting, meet
from loader.table.rows import Data, as_table, describe_key, encode_sections, prepare

ON_CONFLICT = ("check", "trust")


class Append:
    """One append, from the caller's data to its snapshot."""

    def __init__(
        self, context: TableContext, data: Data, *, on_conflict: str, watermark: int | None, offsets: SourceOffsets | None, commit_id: str | None
    ) -> None:
        if on_conflict not in ON_CONFLICT:
            raise ValueError(f"on_conflict is 'check' (refuse a key that exists) or 'trust' (skip the probe), not {on_conflict!r}")
        self.context, self.on_conflict = context, on_conflict
        self.watermark, self.offsets, self.commit_id = watermark, offsets, commit_id or uuid.uuid4().hex
        self.rows = prepare(context.spec, as_table(data))
        self.keys = self.rows.keys
        self.buckets = context.key_buckets(self.keys)
        self.inline: dict[str, bytes] = {}
        self.hits: Hits | None = None
        self.seen = 0
        self.meetings: list[Meeting] = []
        self.met_overlays: list[NewOverlay] = []
        self.met_inline: dict[str, bytes] = {}

    def run(self) -> Snapshot:
        context = self.context
        known = context.answered(self.commit_id, self.offsets)
        if known is not None:
            return known
        self.encoded = encode_sections(context.spec, self.rows)
        failpoints.hit("append.prepared")
        self.placed = place([encoded.segment.data for encoded in self.encoded], context.stage, self.inline) if self.encoded else None
        failpoints.hit("append.staged")
        try:
            done = context.commit(self._attempt, context.stage)
        except KeyExistsError:
            known = context.answered(self.commit_id, self.offsets)
            if known is None:
                raise
            return known  # another process committed the same records in between: these keys are ours
        assert done is not None, "an append is never abandoned"
        if self.placed is not None:
            for encoded, (offset, _) in zip(self.encoded, self.placed.sections, strict=True):
                context.directory.remember(self.placed.path, offset, encoded.index)
        return done

    def _attempt(self) -> CommitPlan:
        context = self.context
        base = context.refresh()
        if self.on_conflict == "check":
            self._probe()
        self._meet()
        failpoints.hit("append.resolved")
        met = {meeting.pending_id: meeting.positions for meeting in self.meetings}
        return CommitPlan(
            spec=context.spec,
            kind="append",
            commit_id=self.commit_id,
            base=base,
            rows_buckets=self.buckets if self.on_conflict == "check" else (),
            rows_changed=self.buckets,
            pending_buckets=self.buckets,
            pending_changed=tuple(sorted({meeting.bucket for meeting in self.meetings})),
            segments=[
                encoded.new_segment(self.placed.path, offset, num_bytes, level=0)
                for encoded, (offset, num_bytes) in zip(self.encoded, self.placed.sections, strict=True)
            ]
            if self.placed is not None
            else [],
            overlays=self.met_overlays,
            met=met,
            inline=self.inline | self.met_inline,
            offsets=self.offsets,
            watermark=self.watermark,
            summary=self._summary(),
        )

    def _summary(self) -> dict[str, Any]:
        return {"rows_appended": len(self.keys), "labels_met": sum(len(meeting.positions) // 4 for meeting in self.meetings)}

    def _probe(self) -> None:
        directory = self.context.directory
        self.hits = directory.probe(self.keys) if self.hits is None else directory.probe_again(self.keys, self.hits, self.seen)
        self.seen = len(directory)
        found = np.flatnonzero(self.hits.found)
        if len(found):
            key = describe_key(self.context.spec, self.rows.table, int(found[0]))
            raise KeyExistsError(
                f"{len(found)} of {len(self.keys)} keys are in table {self.context.spec.name!r} already, the first is {key}: "
                "leave them out, or change those rows with patch; nothing was written"
            )

    def _meet(self) -> None:
        """Find the labels that wait for these rows, and make them overlays of the new sections."""
        context = self.context
        with context.catalog.read() as connection:
            waiting = load_pending(connection, context.spec.id, self.buckets)
        if not waiting and not self.meetings:
            return
        meetings = meet(waiting, self.keys, bucket_of(self.keys, context.spec.buckets), context.storage)
        if [(m.pending_id, m.positions) for m in meetings] == [(m.pending_id, m.positions) for m in self.meetings]:
            return
        self.meetings, self.met_overlays, self.met_inline = meetings, [], {}
        targets, sections = [], []
        for at, (_, _, start, stop) in enumerate(self.rows.sections):
            for meeting in meetings:
                part = meeting.overlay(start, stop)
                if part is not None:
                    targets.append((at, meeting, part.num_rows))
                    sections.append(part.data)
        if not sections:
            return
        placed = place(sections, context.stage, self.met_inline)
        self.met_overlays = [
            NewOverlay(
                new_segment=at,
                path=placed.path,
                offset=offset,
                num_bytes=num_bytes,
                num_rows=num_rows,
                column_ids=meeting.column_ids,
                sequence=meeting.sequence,
            )
            for (at, meeting, num_rows), (offset, num_bytes) in zip(targets, placed.sections, strict=True)
        ]
