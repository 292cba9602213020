"""Changes by key of an input that need not fit into memory, as one commit: the input is put in ranges of its keys, and each is resolved as a small input is.

All rows of a key are in one range, in the order they came, so that ranges have nothing to do with each other and their plans are simply put together. What is
held at a time is a part or a range; of the others, where their sections lie. A retry resolves every range again, and writes again only what changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import pyarrow as pa

from loader import failpoints
from loader.catalog.commit import Stale
from loader.catalog.read import load_segments_by_id
from loader.catalog.records import CommitPlan, NewOverlay, SegmentRef, Snapshot, SourceOffsets
from loader.table.context import TableContext
from loader.table.files import Stage
from loader.table.key_ranges import KeyRanges
from loader.table.keys import Hits, Resolution
from loader.table.rows import key_words
from loader.table.writes import Write

Progress = Callable[[int], None]  # rows resolved and stored so far


class Change(Protocol):
    """A write that finds its rows by key."""

    resolution: Resolution

    def attempt(self) -> CommitPlan | Stale: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Resolved:
    """A range that is written: what its keys were found to be, and what there is to commit of it."""

    state: bytes
    plan: CommitPlan
    num_rows: int


class StreamedChange(Write):
    """One patch, upsert or delete by key of several parts, from the caller's data to its snapshot.

    Args:
        context: The table.
        parts: The input, each part once.
        conform: A part in the table's types, checked, with the columns of the key.
        make: The write of such rows, with its files in this stage.
        offsets, commit_id: As for `append`.
        progress: Told after each range.
    """

    is_keyed = False

    def __init__(
        self,
        context: TableContext,
        parts: Iterable[pa.Table],
        *,
        conform: Callable[[pa.Table], pa.Table],
        make: Callable[[pa.Table, Stage], Change],
        offsets: SourceOffsets | None,
        commit_id: str | None,
        progress: Progress | None,
    ) -> None:
        super().__init__(context, offsets=offsets, commit_id=commit_id)
        self._parts, self._conform, self._make, self._progress = parts, conform, make, progress
        self._done: dict[int, _Resolved] = {}

    def run(self) -> Snapshot:
        """Read all parts and store all ranges, without keeping others from writing for long, and commit."""
        context, ranges, stage = self.context, KeyRanges(self.context.memory_bytes), self.context.new_stage()
        try:
            known = self.known()
            if known is not None:
                return known
            for part in self._parts:
                table = self._conform(part)
                ranges.add(key_words(context.spec, table), table)
                failpoints.hit("streamed.spilled")
            done = context.commit(lambda: self._attempt(ranges, stage), stage)
            assert done is not None, "a commit that replaces nothing is never abandoned"
            return done
        finally:
            ranges.close()
            self.give_back(stage)

    def _attempt(self, ranges: KeyRanges, stage: Stage) -> CommitPlan | Stale:
        for number in range(len(ranges)):
            rows = ranges.read(number)
            with self.context.lock, self.context.one_head():  # others of this process go on between the ranges
                plan = self._resolve(number, rows, stage)
            if isinstance(plan, Stale):
                return plan
            if number not in self._done and self._progress is not None:
                self._progress(sum(done.num_rows for done in self._done.values()) + rows.num_rows)
            self._done[number] = plan
            failpoints.hit("streamed.resolved")
        refs = self._read()
        if refs is None:
            return Stale("inputs")
        whole = together([done.plan for done in self._done.values()], self, refs)
        stage.check_kept(whole)
        return whole

    def _resolve(self, number: int, rows: pa.Table, stage: Stage) -> _Resolved | Stale:
        """Bring a range to the head; it is written where something about it changed."""
        context, before = self.context, self._done.get(number)
        change = self._make(rows, stage)
        base = context.refresh()
        hits = change.resolution.bring_to(context.directory)
        if before is not None and not before.plan.read_segments and before.state == self._state(hits, before.plan):
            return dataclasses.replace(before, plan=dataclasses.replace(before.plan, base=base))
        plan = change.attempt()
        return plan if isinstance(plan, Stale) else _Resolved(state=self._state(hits, plan), plan=plan, num_rows=rows.num_rows)

    def _state(self, hits: Hits, plan: CommitPlan) -> bytes:
        """What a plan hangs on: where its keys are, and the labels that wait for its new rows."""
        waiting = [(label.pending_id, label.num_held, label.met) for label in self.context.waiting(plan.pending_buckets)] if plan.pending_buckets else []
        return hashlib.blake2b(hits.segment_ids.tobytes() + hits.rows.tobytes() + repr(waiting).encode()).digest()

    def _read(self) -> list[SegmentRef] | None:
        """The segments whose rows were read, None if one is not any more as a range saw it."""
        plans = [done.plan for done in self._done.values() if done.plan.read_segments]
        with self.context.catalog.read() as connection:
            refs = {
                ref.segment_id: ref
                for ref in load_segments_by_id(connection, self.context.spec.id, sorted({one for plan in plans for one in plan.read_segments}))
            }
        for plan in plans:
            own = [refs[segment_id] for segment_id in plan.read_segments if segment_id in refs]
            if len(own) < len(plan.read_segments) or (plan.latest_overlay, plan.num_column_files) != _age(own):
                return None
        return list(refs.values())


def together(plans: Sequence[CommitPlan], write: Write, refs: Sequence[SegmentRef]) -> CommitPlan:
    """One plan of those of ranges that have no key in common.

    Args:
        plans: Of the ranges; at the oldest of their heads the whole must hold.
        write: What they are of.
        refs: The segments that they read, as all of them saw them.
    """
    latest_overlay, num_column_files = _age(refs)
    return dataclasses.replace(
        plans[0],
        commit_id=write.commit_id,
        base=min(plan.base for plan in plans),
        rows_buckets=_all(plan.rows_buckets for plan in plans),
        rows_changed=_all(plan.rows_changed for plan in plans),
        pending_buckets=_all(plan.pending_buckets for plan in plans),
        pending_changed=_all(plan.pending_changed for plan in plans),
        segments=[segment for plan in plans for segment in plan.segments],
        overlays=_overlays(plans),
        pending=[pending for plan in plans for pending in plan.pending],
        met=_met(plans),
        inline={path: data for plan in plans for path, data in plan.inline.items()},
        read_segments=tuple(ref.segment_id for ref in refs),
        latest_overlay=latest_overlay,
        num_column_files=num_column_files,
        offsets=write.offsets,
        summary=_summary(plans),
    )


def _age(refs: Sequence[SegmentRef]) -> tuple[int, int]:
    """The latest overlay of segments, and how many column files they have."""
    return max((overlay.overlay_id for ref in refs for overlay in ref.overlays), default=0), sum(len(ref.column_files) for ref in refs)


def _all(buckets: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted(set(itertools.chain.from_iterable(buckets))))


def _overlays(plans: Sequence[CommitPlan]) -> list[NewOverlay]:
    """The overlays of all plans, counted within the segments of all of them."""
    found, before = [], 0
    for plan in plans:
        found += [
            overlay if overlay.new_segment is None else dataclasses.replace(overlay, new_segment=before + overlay.new_segment) for overlay in plan.overlays
        ]
        before += len(plan.segments)
    return found


def _met(plans: Sequence[CommitPlan]) -> dict[int, bytes]:
    met: dict[int, bytes] = {}
    for plan in plans:
        for pending_id, positions in plan.met.items():
            met[pending_id] = met.get(pending_id, b"") + positions
    return met


def _summary(plans: Sequence[CommitPlan]) -> dict[str, Any]:
    return {name: sum(plan.summary[name] for plan in plans) for name in plans[0].summary}
