"""New rows of a commit: encoded and staged once, and the labels that were waiting for them as overlays that the new segments are born with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.records import DELETES, NewOverlay, NewSegment
from loader.segment.key_index import Keys, bucket_of
from loader.table.context import TableContext
from loader.table.files import Placed, Stage, place
from loader.table.keys import ALWAYS_WARM_KEYS
from loader.table.pending import Meeting, meet
from loader.table.rows import EncodedRows, PreparedRows, encode_sections
from loader.table.segments import encode_overlay

I64 = npt.NDArray[np.int64]
_NO_ROWS = PreparedRows(table=pa.table({}), keys=Keys(np.zeros(0, np.uint64), None), sections=())  # one for all: small buffers that stay keep large pages


class Births:
    """The new rows of one commit. A retry writes none of them again: a row that another writer inserted first is deleted at birth.

    Args:
        context: The table.
        rows: The new rows, sorted into sections.
        column_ids: Of their columns; default the schema's.
        level: Of their segments: 1 where values bring an order of their own, as after a compaction.
        sequences: The lowest and highest commit sequence of rows that bring theirs; None for the commit's own.
        stage: Where files go, small ones too; default the table's, and the catalog for what is small.
    """

    def __init__(
        self,
        context: TableContext,
        rows: PreparedRows,
        *,
        column_ids: Sequence[int] | None = None,
        level: int = 0,
        sequences: tuple[int, int] | None = None,
        stage: Stage | None = None,
    ) -> None:
        self.rows, self.sections = rows, rows.sections
        self._stage, self._may_inline = context.stage if stage is None else stage, stage is None
        self._segments: list[NewSegment] | None = None
        self._context, self._level, self._sequences = context, level, sequences
        self._ids = [column.id for column in context.spec.schema] if column_ids is None else list(column_ids)
        self._encoded: Sequence[EncodedRows] = ()
        self._placed: Placed | None = None
        self._inline: dict[str, bytes] = {}
        self._meetings: list[Meeting] = []
        self._met_overlays: list[NewOverlay] = []
        self._met_inline: dict[str, bytes] = {}
        self._given_overlays: list[NewOverlay] = []
        self._given_inline: dict[str, bytes] = {}
        self._dead_overlays: list[NewOverlay] = []
        self._dead_inline: dict[str, bytes] = {}
        self._dead = np.zeros(0, np.int64)

    def write(self) -> None:
        """Encode all sections and stage them, once."""
        if self._placed is not None or not self.rows.sections:
            return
        rows = self.rows
        self.place(encode_sections(self._context.spec, rows.table, rows.keys, self._ids, rows.sections))

    def place(self, encoded: Sequence[EncodedRows]) -> None:
        """Stage sections that were encoded together with those of other commits."""
        self._encoded = encoded
        self._placed = place([one.segment.data for one in encoded], self._stage, self._inline if self._may_inline else None) if encoded else None

    def release(self) -> None:
        """Let go of rows and bytes that are stored; who goes on gives `meet` the keys."""
        self._segments, self._encoded = self.segments, ()
        self.rows = _NO_ROWS

    def meet(self, key_buckets: tuple[int, ...], keys: Keys | None = None) -> None:
        """Find the labels that wait for these rows, and make them overlays of the new sections; written again only where they changed."""
        keys = self.rows.keys if keys is None else keys
        context = self._context
        waiting = context.waiting(key_buckets)
        if not waiting and not self._meetings:
            return
        meetings = meet(waiting, keys, bucket_of(keys, context.spec.buckets), context.storage)
        if [(m.pending_id, m.positions) for m in meetings] == [(m.pending_id, m.positions) for m in self._meetings]:
            return
        self._meetings, self._met_overlays, self._met_inline = meetings, [], {}
        targets, sections = [], []
        for at, (_, _, start, stop) in enumerate(self.sections):
            for meeting in meetings:
                part = meeting.overlay(start, stop)
                if part is not None:
                    targets.append((at, meeting, part.num_rows))
                    sections.append(part.data)
        if not sections:
            return
        placed = place(sections, self._stage, self._met_inline)
        self._met_overlays = [
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

    def give(self, operands: pa.Table, column_ids: tuple[int, ...], rows: I64, orders: I64 | None) -> None:
        """Operands of this very commit for some of the new rows, which count after the labels that waited for them.

        Args:
            operands: By column.
            column_ids: Of the columns.
            rows: Place in `rows` of each operand, sorted; repeats allowed.
            orders: The order of each, or None.
        """
        targets, sections = [], []
        for at, (_, _, start, stop) in enumerate(self.sections):
            first, last = np.searchsorted(rows, [start, stop]).tolist()
            if first < last:
                targets.append((at, last - first))
                own = None if orders is None else orders[first:last]
                sections.append(encode_overlay(operands.slice(first, last - first), column_ids, rows[first:last] - start, own))
        placed = place(sections, self._stage, self._given_inline)
        self._given_overlays = [
            NewOverlay(new_segment=at, path=placed.path, offset=offset, num_bytes=num_bytes, num_rows=num_rows, column_ids=column_ids)
            for (at, num_rows), (offset, num_bytes) in zip(targets, placed.sections, strict=True)
        ]

    def delete_at_birth(self, dead: I64) -> None:
        """Rows, by their place in `rows`, sorted, that are not to be: another writer was first."""
        if np.array_equal(dead, self._dead):
            return
        self._dead, self._dead_overlays, self._dead_inline = dead, [], {}
        targets, sections = [], []
        for at, (_, _, start, stop) in enumerate(self.sections):
            first, last = np.searchsorted(dead, [start, stop]).tolist()
            if first < last:
                targets.append((at, last - first))
                sections.append(encode_overlay(pa.table({}), (), dead[first:last] - start, None))
        if sections:
            placed = place(sections, self._stage, self._dead_inline)
            self._dead_overlays = [
                NewOverlay(
                    new_segment=at,
                    kind=DELETES,
                    path=placed.path,
                    offset=offset,
                    num_bytes=num_bytes,
                    num_rows=num_rows,
                    num_deleted=num_rows,
                    column_ids=(),
                )
                for (at, num_rows), (offset, num_bytes) in zip(targets, placed.sections, strict=True)
            ]

    @property
    def segments(self) -> list[NewSegment]:
        if self._segments is not None:
            return self._segments
        if self._placed is None:
            return []
        return [
            encoded.new_segment(self._placed.path, offset, num_bytes, level=self._level, sequences=self._sequences)
            for encoded, (offset, num_bytes) in zip(self._encoded, self._placed.sections, strict=True)
        ]

    @property
    def overlays(self) -> list[NewOverlay]:
        """What the new segments are born with; `new_segment` counts within `segments`."""
        return self._met_overlays + self._given_overlays + self._dead_overlays

    @property
    def inline(self) -> dict[str, bytes]:
        return self._inline | self._met_inline | self._given_inline | self._dead_inline

    @property
    def met(self) -> dict[int, bytes]:
        """Pending id -> which of its keys are met."""
        return {meeting.pending_id: meeting.positions for meeting in self._meetings}

    @property
    def met_buckets(self) -> tuple[int, ...]:
        """Key buckets of the labels that are met."""
        return tuple(sorted({meeting.bucket for meeting in self._meetings}))

    @property
    def num_met(self) -> int:
        return sum(len(meeting.positions) // 4 for meeting in self._meetings)

    def remember(self) -> None:
        """After the commit: keep the key indexes, so that the next write need not read them back."""
        remember_all([self])


def remember_all(births: Sequence[Births]) -> None:
    """`remember` for the new rows of commits of one table that were made together."""
    small: list[Births] = []
    for one in births:
        placed = one._placed
        if placed is None:
            continue
        if max(stop - start for _, _, start, stop in one.sections) <= ALWAYS_WARM_KEYS:
            small.append(one)
            continue
        for encoded, (offset, _) in zip(one._encoded, placed.sections, strict=True):
            one._context.directory.remember(placed.path, offset, encoded.index)
    if small:
        sections = [(one._placed.path, offset) for one in small if one._placed is not None for offset, _ in one._placed.sections]
        sizes = [stop - start for one in small for _, _, start, stop in one.sections]
        small[0]._context.directory.remember_sections(sections, Keys.concat([one.rows.keys for one in small]), [0, *itertools.accumulate(sizes)])
