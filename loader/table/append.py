"""Appending rows: encode once, probe the keys, meet the labels that were waiting, commit. Small appends that come together are encoded together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Self

import numpy as np
import pyarrow as pa

from loader import failpoints
from loader.catalog.records import CommitPlan, Snapshot, SourceOffsets
from loader.errors import HeadraceError, KeyExistsError
from loader.segment.key_index import bucket_of
from loader.table.births import Births, remember_all
from loader.table.context import TableContext
from loader.table.keys import Resolution
from loader.table.rows import Data, as_table, describe_key, encode_sections, prepare, prepare_parts
from loader.table.writes import Write

ON_CONFLICT = ("check", "trust")


class Append(Write):
    """One append, from the caller's data to its snapshot."""

    def __init__(
        self, context: TableContext, data: Data, *, on_conflict: str, watermark: int | None, offsets: SourceOffsets | None, commit_id: str | None
    ) -> None:
        check_on_conflict(on_conflict)
        super().__init__(context, offsets=offsets, commit_id=commit_id)
        self.on_conflict, self.watermark = on_conflict, watermark
        self.data = as_table(data)
        self.num_bytes = self.data.nbytes

    def stage(self) -> None:
        self._born(Births(self.context, prepare(self.context.spec, self.data)))
        failpoints.hit("append.prepared")
        self.births.write()
        failpoints.hit("append.staged")

    @classmethod
    def stage_all(cls, writes: Sequence[Self]) -> None:
        if len(writes) == 1 or any(not write.data.schema.equals(writes[0].data.schema) for write in writes):
            super().stage_all(writes)
            return
        context = writes[0].context
        try:
            bounds = [0, *itertools.accumulate(write.data.num_rows for write in writes)]
            prepared = prepare_parts(context.spec, pa.concat_tables([write.data for write in writes]), bounds)
            whole = prepared.whole
            ids = [column.id for column in context.spec.schema]
            encoded = encode_sections(context.spec, whole.table, whole.keys, ids, whole.sections)
        except (HeadraceError, ValueError, pa.ArrowException):
            super().stage_all(writes)  # one of them does not fit, and has the error to itself
            return
        buckets = bucket_of(whole.keys, context.spec.buckets)
        for number, (write, (first, last)) in enumerate(zip(writes, itertools.pairwise(prepared.section_bounds), strict=True)):
            births = Births(context, prepared.part(number))
            try:
                births.place(encoded[first:last])
            except Exception as error:  # noqa: BLE001 (the caller of the write gets it)
                write.fail(error)
                continue
            mine = buckets[bounds[number] : bounds[number + 1]]
            write._born(births, tuple(np.flatnonzero(np.bincount(mine, minlength=1)).tolist()))
        failpoints.hit("append.staged")

    @classmethod
    def resolve_all(cls, writes: Sequence[Self]) -> None:
        new = [write.resolution for write in writes if write.on_conflict == "check" and write.resolution.is_new]
        if len(new) > 1:
            Resolution.bring_all(new, writes[0].context.directory)

    def _born(self, births: Births, buckets: tuple[int, ...] | None = None) -> None:
        self.births, self.keys = births, births.rows.keys
        self.buckets = self.context.key_buckets(self.keys) if buckets is None else buckets
        self.resolution = Resolution(self.keys)

    def refused(self, error: HeadraceError) -> Snapshot | None:
        """Keys exist because another process committed the same records in between: its snapshot is the answer."""
        return self.known() if isinstance(error, KeyExistsError) else None

    @classmethod
    def remember_all(cls, writes: Sequence[Self]) -> None:
        remember_all([write.births for write in writes])

    def attempt(self) -> CommitPlan:
        base = self.context.refresh()
        if self.on_conflict == "check":
            hits = self.resolution.bring_to(self.context.directory)
            refuse_existing(self.context, self.births, np.flatnonzero(hits.found))
        births = self.births
        births.meet(self.buckets)
        failpoints.hit("append.resolved")
        return CommitPlan(
            spec=self.context.spec,
            kind="append",
            commit_id=self.commit_id,
            base=base,
            rows_buckets=self.buckets if self.on_conflict == "check" else (),
            rows_changed=self.buckets,
            pending_buckets=self.buckets,
            pending_changed=births.met_buckets,
            segments=births.segments,
            overlays=births.overlays,
            met=births.met,
            inline=births.inline,
            offsets=self.offsets,
            watermark=self.watermark,
            summary={"rows_appended": len(self.keys), "labels_met": births.num_met},
        )


def check_on_conflict(on_conflict: str) -> None:
    """Raise ValueError for a word that means nothing."""
    if on_conflict not in ON_CONFLICT:
        raise ValueError(f"on_conflict is 'check' (refuse a key that exists) or 'trust' (skip the probe), not {on_conflict!r}")


def refuse_existing(context: TableContext, births: Births, found: np.ndarray) -> None:
    """Raise KeyExistsError if any of the new rows, by their place, has a key that is in the table."""
    if len(found):
        key = describe_key(context.spec, births.rows.table, int(found[0]))
        raise KeyExistsError(
            f"{len(found)} of {len(births.rows.keys)} keys are in table {context.spec.name!r} already, the first is {key}: "
            "leave them out, or change those rows with patch or upsert; nothing was written"
        )
