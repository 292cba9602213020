"""Rewriting what holds erased rows, object by object: every section of an object is carried to a new one, the hit ones blanked, the others byte for byte.

First the rows are hidden (a vector of erased rows on each segment, seen at every snapshot), then patches, column files and waiting labels are rewritten, and
the segments themselves last: while a segment's key index still names a row, everything that belongs to it is looked at again. So each step may be repeated.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from loader import failpoints
from loader.catalog import erasure as records
from loader.catalog.commit import throw_away
from loader.catalog.erasure import ErasureStep, Mark, Move, StoredSection
from loader.catalog.records import ERASED
from loader.errors import CorruptSegmentError, NotFoundError
from loader.segment.key_index import Keys
from loader.segment.layout import LOOKUP_ROWS_COLUMN_ID, ROW_COLUMN_ID
from loader.segment.reader import SegmentReader
from loader.table.context import TableContext
from loader.table.erasure.blank import Blanked, Rows, blank_columns, blank_segment, drop_operands
from loader.table.erasure.check import names_of_keys, not_blank
from loader.table.erasure.find import Found, HeldLabels, StoredSegment
from loader.table.files import Stage, place
from loader.table.segments import encode_overlay, operand_rows, read_by_id

logger = logging.getLogger(__name__)
Place: TypeAlias = tuple[str, int, int]  # path, offset, bytes
Recipe: TypeAlias = Callable[[], Blanked | None]  # a section's new bytes, made when its object's turn comes; None drops it


@dataclasses.dataclass(kw_only=True)
class Rewriter:
    """One pass over what a search found.

    Attributes:
        context: The table.
        erasure_id: For which request.
        keys: That are being erased.
        stage: Where new objects go.
        grace_seconds: How long the old ones stay.
    """

    context: TableContext
    erasure_id: str
    keys: Keys
    stage: Stage
    grace_seconds: float

    def run(self, found: Found, progress: Callable[[int, int], None] | None = None) -> int:
        """Hide and rewrite; returns how many objects were replaced. What changed meanwhile is left for the next pass."""
        self._hide(found)
        failpoints.hit("erase.hidden")
        targets = self._targets(found)
        paths = sorted(targets, key=lambda path: (any(at in self._segments for at in targets[path]), path))
        done = 0
        for number, path in enumerate(paths):
            try:
                done += self._replace(path, targets[path])
            except NotFoundError as error:  # forgotten or moved by another meanwhile, or truly gone, which the next search says
                logger.info("erasure %s: %s", self.erasure_id, error)
            failpoints.hit("erase.rewritten")
            if progress is not None:
                progress(number + 1, len(paths))
        return done

    def _hide(self, found: Found) -> None:
        """A vector of erased rows for every segment that has none of these yet."""
        context = self.context
        wanted: list[tuple[int, Rows]] = []
        for segment, rows in found.segments:
            hidden = self._hidden(segment.id)
            new = rows if hidden is None else np.setdiff1d(rows, hidden).astype(np.uint32)
            if len(new):
                wanted.append((segment.id, new))
        if not wanted:
            return
        inline: dict[str, bytes] = {}
        placed = place([encode_overlay(pa.table({}), (), rows, None) for _, rows in wanted], self.stage, inline)
        marks = [
            Mark(segment_id=segment_id, path=placed.path, offset=offset, num_bytes=num_bytes, num_rows=len(rows))
            for (segment_id, rows), (offset, num_bytes) in zip(wanted, placed.sections, strict=True)
        ]
        self._commit(ErasureStep(spec=context.spec, erasure_id=self.erasure_id, marks=marks, inline=inline))

    def _hidden(self, segment_id: int) -> Rows | None:
        """Rows of a segment that are marked as erased already."""
        with self.context.catalog.read() as connection:
            vectors = [section for section, kind, _ in records.belongings(connection, self.context.spec.id, segment_id) if kind == ERASED]
        if not vectors:
            return None
        return np.unique(np.concatenate([operand_rows(read_by_id(self._reader(section), [ROW_COLUMN_ID])) for section in vectors])).astype(np.uint32)

    def _reader(self, section: StoredSection | StoredSegment | HeldLabels) -> SegmentReader:
        return SegmentReader(self.context.storage.section(section.path, section.offset, section.num_bytes))

    def _targets(self, found: Found) -> dict[str, dict[Place, Recipe]]:
        """By path and place: how to make the sections that hold an erased row anew."""
        targets: dict[str, dict[Place, Recipe]] = defaultdict(dict)
        self._segments: dict[Place, int] = {}
        self._expected: dict[int, frozenset[tuple[str, int]]] = {}
        self._labels: dict[Place, list[HeldLabels]] = defaultdict(list)
        for labels in found.pending:
            self._labels[labels.path, labels.offset, labels.num_bytes].append(labels)
        for at, entries in self._labels.items():
            rows = np.unique(np.concatenate([labels.rows for labels in entries])).astype(np.uint32)
            targets[at[0]][at] = functools.partial(self._columns, entries[0], rows)
        for segment, rows in found.segments:
            self._segment_targets(segment, rows, targets)
        return targets

    def _segment_targets(self, segment: StoredSegment, rows: Rows, targets: dict[str, dict[Place, Recipe]]) -> None:
        with self.context.catalog.read() as connection:
            belongings = records.belongings(connection, self.context.spec.id, segment.id)
        self._expected[segment.id] = frozenset((section.table, section.id) for section, kind, _ in belongings if kind != ERASED)
        for section, kind, column_ids in belongings:
            at = (section.path, section.offset, section.num_bytes)
            if kind == "patch" and self._patches_one_of(section, rows):
                targets[section.path][at] = functools.partial(self._operands, section, rows)
            elif kind == "columns" and column_ids == [LOOKUP_ROWS_COLUMN_ID]:
                targets[section.path][at] = _nothing  # rows once more, for look-ups: it can be built again
            elif kind == "columns":
                targets[section.path][at] = functools.partial(self._columns, section, rows)
        at = (segment.path, segment.offset, segment.num_bytes)
        self._segments[at] = segment.id
        targets[segment.path][at] = functools.partial(self._segment, segment, rows)

    def _patches_one_of(self, section: StoredSection, rows: Rows) -> bool:
        return bool(np.isin(operand_rows(read_by_id(self._reader(section), [ROW_COLUMN_ID])), rows).any())

    def _segment(self, segment: StoredSegment, rows: Rows) -> Blanked:
        """The segment's new bytes, read back before anything refers to them: nobody can say later which key a blank row had."""
        spec = self.context.spec
        blanked = blank_segment(spec, self._reader(segment), rows, self.keys, segment.partition)
        written = SegmentReader(blanked.data)
        left = not_blank(spec, written, rows) + names_of_keys(spec, written, rows, self.keys)
        if left:
            raise CorruptSegmentError(
                f"erasure {self.erasure_id}: segment {segment.id} at {segment.path} still holds values of {len(rows)} erased rows in {', '.join(left)} "
                "after they were blanked: nothing refers to the new bytes; report this"
            )
        return blanked

    def _columns(self, section: StoredSection | HeldLabels, rows: Rows) -> Blanked:
        return blank_columns(self._reader(section), rows)

    def _operands(self, section: StoredSection, rows: Rows) -> Blanked | None:
        return drop_operands(self._reader(section), rows)

    def _replace(self, path: str, targets: dict[Place, Recipe]) -> int:
        """Carry one object over to a new one; 0 where it is no longer referred to, or changed meanwhile."""
        context = self.context
        with context.catalog.read() as connection:
            sections = records.sections_of(connection, context.spec.id, path)
        places = sorted({(path, section.offset, section.num_bytes) for section in sections})
        made = {at: recipe() for at, recipe in targets.items() if at in places}
        kept = [at for at in places if at not in made or made[at] is not None]
        parts = [blanked.data if (blanked := made.get(at)) is not None else self._bytes(at) for at in kept]
        inline: dict[str, bytes] = {}
        placed = place(parts, self.stage, inline) if parts else None
        new = dict(zip(kept, placed.sections, strict=True)) if placed is not None else {}
        moves: list[Move] = []
        buckets: set[int] = set()
        for section in sections:
            at = (path, section.offset, section.num_bytes)
            if at not in new or placed is None:
                moves.append(Move(section=section, path=None))
                continue
            offset, num_bytes = new[at]
            columns = blanked.columns if (blanked := made.get(at)) is not None else {}
            labels = next((one for one in self._labels.get(at, ()) if section.table == "pending" and one.id == section.id), None)
            positions = () if labels is None else tuple(labels.positions.tolist())
            buckets |= set() if labels is None else {labels.bucket}
            moves.append(Move(section=section, path=placed.path, offset=offset, num_bytes=num_bytes, columns=columns, labels=positions))
        touched = [self._segments[at] for at in places if at in self._segments]
        step = ErasureStep(
            spec=context.spec,
            erasure_id=self.erasure_id,
            moves=moves,
            expected={segment_id: self._expected[segment_id] for segment_id in touched},
            touched=touched,
            inline=inline,
            pending_buckets=sorted(buckets),
        )
        return int(bool(sections) and self._commit(step))

    def _bytes(self, at: Place) -> memoryview:
        path, offset, num_bytes = at
        return self.context.storage.read_ranges(path, [(offset, num_bytes)])[0]

    def _commit(self, step: ErasureStep) -> bool:
        with self.context.catalog.write(self.context.spec.id) as connection:
            self.stage.settle(connection)
            new = records.apply(connection, step, grace_seconds=self.grace_seconds)
            if new is None:  # its files count as accounted for now, so nobody else would look for them
                throw_away(connection, self.context.spec.id, sorted(step.new_paths), reason=f"not used by {self.erasure_id}", grace_seconds=self.grace_seconds)
            failpoints.hit("erase.written")
        return new is not None


def _nothing() -> None:
    return None
