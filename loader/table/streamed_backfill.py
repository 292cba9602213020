"""Backfilling from an input that need not fit into memory, as one commit: it is put in the order of the rows that it fills, and written segment by segment.

With keys the input goes to disk in ranges of its keys, each range finds its rows, and what was found goes to disk again by (segment, row). Without keys it
is in that order as it comes. What is held at a time is a part, a range, or the filled columns of one segment.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader import failpoints
from loader.catalog.commit import Stale
from loader.catalog.read import load_segments_by_id
from loader.catalog.records import CommitPlan, NewColumnFile, NewOverlay, SegmentRef, Snapshot
from loader.errors import KeyExistsError
from loader.table.backfill import Backfill, Filling, alive_rows, view_at, wrong_number
from loader.table.context import TableContext
from loader.table.files import Stage
from loader.table.key_ranges import KeyRanges
from loader.table.keys import Hits
from loader.table.parts import WORKING_COPIES, parts_of
from loader.table.patch import PatchVectors
from loader.table.rows import Data, describe_key, key_words
from loader.table.writes import Write

I64 = npt.NDArray[np.int64]
Progress = Callable[[int], None]  # rows read and put in order, or stored, so far
_ROW = "__row"  # the row of a segment that a value is for
_ROW_BITS = np.uint64(32)  # a place is a segment's number above the row


class _Filled:
    """What is written of the segments so far. A retry writes a segment again only where other rows of it are filled, or it gained values meanwhile."""

    def __init__(self, context: TableContext, filling: Filling, stage: Stage) -> None:
        self._context, self._filling, self._stage = context, filling, stage
        self._done: dict[int, tuple[bytes, NewColumnFile | NewOverlay, dict[str, bytes]]] = {}

    def write(self, ref: SegmentRef, rows: I64, operands: pa.Table) -> None:
        """Fill rows of a segment: with a column file, or a patch where it holds something of the columns already."""
        is_patch = self._filling.has_values(ref)
        state = hashlib.blake2b(rows.tobytes() + bytes([is_patch])).digest()
        if ref.segment_id in self._done and self._done[ref.segment_id][0] == state:
            return
        inline: dict[str, bytes] = {}
        made: NewColumnFile | NewOverlay
        if is_patch:
            vectors = PatchVectors(self._stage, operands, self._filling.ids, None)
            (made,) = vectors.bring_to(Hits(np.full(len(rows), ref.segment_id), rows))
            inline = vectors.inline
        else:
            made = self._filling.write(ref, rows, operands, self._stage, inline if self._may_inline() else None)
        self._done[ref.segment_id] = (state, made, inline)

    def _may_inline(self) -> bool:
        """Small files lie in the catalog, as long as they are no large part of memory."""
        return sum(len(data) for _, _, inline in self._done.values() for data in inline.values()) < self._context.memory_bytes // WORKING_COPIES

    def plan(self, write: Write, refs: list[SegmentRef], base: int, *, buckets: tuple[int, ...], num_filled: int, num_missing: int) -> CommitPlan:
        """What to commit of these segments."""
        spec, done = self._context.spec, [self._done[ref.segment_id] for ref in refs]
        return CommitPlan(
            spec=spec,
            evolved=None if self._filling.spec is spec else self._filling.spec,
            kind="backfill",
            commit_id=write.commit_id,
            base=base,
            is_exact=not self._filling.is_keyed,
            rows_buckets=buckets,
            column_files=[made for _, made, _ in done if isinstance(made, NewColumnFile)],
            overlays=[made for _, made, _ in done if isinstance(made, NewOverlay)],
            inline={path: data for _, _, inline in done for path, data in inline.items()},
            read_segments=tuple(ref.segment_id for ref in refs),
            latest_overlay=max((overlay.overlay_id for ref in refs for overlay in ref.overlays), default=0),
            num_column_files=sum(len(ref.column_files) for ref in refs),
            summary={"rows_filled": num_filled, "keys_missing": num_missing, "columns": self._filling.names},
        )


class StreamedBackfill(Write):
    """One backfill of several parts, from the caller's data to its snapshot.

    Args:
        context: The table.
        parts: The input, each part once.
        schema: Of the parts.
        snapshot_id: For rows without a key, the snapshot whose rows they follow.
        commit_id: As for `append`.
        progress: Told as it goes on.
    """

    is_keyed = False

    def __init__(
        self, context: TableContext, parts: Iterable[pa.Table], schema: pa.Schema, *, snapshot_id: int | None, commit_id: str | None, progress: Progress | None
    ) -> None:
        super().__init__(context, offsets=None, commit_id=commit_id)
        self.filling = Filling(context, schema)
        self._parts, self._snapshot_id, self._progress = parts, snapshot_id, progress

    def run(self) -> Snapshot:
        """Read all parts and store what they fill, without keeping others from writing for long, and commit."""
        stage = self.context.new_stage()
        try:
            known = self.known()
            if known is not None:
                return known
            return self._by_key(stage) if self.filling.is_keyed else self._by_place(stage)
        finally:
            self.give_back(stage)

    def _told(self, num_rows: int) -> None:
        if self._progress is not None:
            self._progress(num_rows)

    def _commit(self, attempt: Callable[[], CommitPlan | Stale], stage: Stage) -> Snapshot:
        done = self.context.commit(attempt, stage)
        assert done is not None, "a commit that replaces nothing is never abandoned"
        return done

    def _by_key(self, stage: Stage) -> Snapshot:
        ranges, filled, num_rows = KeyRanges(self.context.memory_bytes), _Filled(self.context, self.filling, stage), 0
        try:
            for part in self._parts:
                table = self.filling.conform(part)
                ranges.add(key_words(self.filling.spec, table), table)
                num_rows += table.num_rows
                failpoints.hit("streamed.spilled")
                self._told(num_rows)
            return self._commit(lambda: self._resolved(ranges, filled, stage), stage)
        finally:
            ranges.close()

    def _resolved(self, ranges: KeyRanges, filled: _Filled, stage: Stage) -> CommitPlan | Stale:
        """Find the rows of all keys, and write what they fill."""
        context, places = self.context, KeyRanges(self.context.memory_bytes)
        bases, buckets, segments = list[int](), set[int](), set[int]()
        num_filled = num_missing = 0
        try:
            for number in range(len(ranges)):
                table = ranges.read(number)
                keys = key_words(self.filling.spec, table)
                twice = keys.first_twice()
                if twice is not None:
                    raise KeyExistsError(f"key {describe_key(self.filling.spec, table, twice[0])} stands twice in the data; nothing was written")
                with context.lock:  # others of this process go on between the ranges
                    bases.append(context.refresh())
                    hits = context.directory.probe(keys)
                found = np.flatnonzero(hits.found)
                buckets.update(context.key_buckets(keys))
                segments.update(np.unique(hits.segment_ids[found]).tolist())
                num_filled, num_missing = num_filled + len(found), num_missing + len(keys) - len(found)
                words = hits.segment_ids[found].astype(np.uint64) << _ROW_BITS | hits.rows[found].astype(np.uint64)
                places.add_words(words, self.filling.operands(table).take(pa.array(found)).append_column(_ROW, pa.array(hits.rows[found])))
            failpoints.hit("backfill.resolved")
            with context.catalog.read() as connection:
                refs = load_segments_by_id(connection, context.spec.id, sorted(segments))
            if len(refs) < len(segments):
                return Stale("inputs")
            for ref in refs:
                place = np.uint64(ref.segment_id)
                mine = places.between(place << _ROW_BITS, (place + np.uint64(1)) << _ROW_BITS)
                filled.write(ref, mine[_ROW].to_numpy(), mine.drop_columns([_ROW]))
            failpoints.hit("backfill.staged")
        finally:
            places.close()
        plan = filled.plan(self, refs, min(bases), buckets=tuple(sorted(buckets)), num_filled=num_filled, num_missing=num_missing)
        stage.check_kept(plan)
        return plan

    def _by_place(self, stage: Stage) -> Snapshot:
        """The parts are in the order of the snapshot's rows: cut where its segments are, and written as they come."""
        context, filled = self.context, _Filled(self.context, self.filling, stage)
        view = view_at(context, self._snapshot_id)
        values, refs, num_rows = _Rows(self.filling.operands(self.filling.conform(part)) for part in self._parts), list[SegmentRef](), 0
        for ref in view.segments:
            rows = alive_rows(ref, context.storage)
            mine = values.take(len(rows))
            num_rows += mine.num_rows
            if mine.num_rows < len(rows):
                raise wrong_number(view, num_rows)
            if len(rows):
                filled.write(ref, rows, mine)
                refs.append(ref)
                failpoints.hit("streamed.resolved")
                self._told(num_rows)
        more = values.num_left()
        if more:
            raise wrong_number(view, num_rows + more)
        failpoints.hit("backfill.staged")

        def attempt() -> CommitPlan:
            plan = filled.plan(self, refs, view_at(context, self._snapshot_id).snapshot_id, buckets=(), num_filled=num_rows, num_missing=0)
            stage.check_kept(plan)
            return plan

        return self._commit(attempt, stage)


class _Rows:
    """Rows of tables that come one after another, so many at a time."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._left: pa.Table | None = next(tables, None)

    def take(self, num_rows: int) -> pa.Table:
        """The next rows; fewer where there are no more."""
        taken: list[pa.Table] = []
        while self._left is not None and (num_rows or not taken):
            taken.append(self._left.slice(0, num_rows))
            num_rows -= taken[-1].num_rows
            self._left = self._left.slice(taken[-1].num_rows)
            while self._left is not None and not self._left.num_rows:
                self._left = next(self._tables, None)
        return pa.concat_tables(taken).combine_chunks() if taken else pa.table({})

    def num_left(self) -> int:
        """Count what is left, reading it."""
        return int((0 if self._left is None else self._left.num_rows) + sum(table.num_rows for table in self._tables))


def backfill(
    context: TableContext, data: Data, *, snapshot_id: int | None, commit_id: str | None, progress: Progress | None = None
) -> Backfill | StreamedBackfill:
    """See `Table.backfill`: the write of an input, in parts where it is large."""
    parts = parts_of(data, context.memory_bytes)
    first, second = next(parts), next(parts, None)
    if second is None:
        return Backfill(context, first, snapshot_id=snapshot_id, commit_id=commit_id)
    every = itertools.chain([first, second], parts)
    return StreamedBackfill(context, every, first.schema, snapshot_id=snapshot_id, commit_id=commit_id, progress=progress)
