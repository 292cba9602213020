"""Appending rows: encode once, probe the keys, meet the labels that were waiting, commit."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import numpy as np

from loader import failpoints
from loader.catalog.commit import Stale
from loader.catalog.records import CommitPlan, Snapshot, SourceOffsets
from loader.errors import KeyExistsError
from loader.table.births import Births
from loader.table.context import TableContext
from loader.table.keys import Resolution
from loader.table.rows import Data, as_table, describe_key, prepare

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
        self.births = Births(context, prepare(context.spec, as_table(data)))
        self.keys = self.births.rows.keys
        self.buckets = context.key_buckets(self.keys)
        self.resolution = Resolution(self.keys)

    def run(self) -> Snapshot:
        context = self.context
        known = context.answered(self.commit_id, self.offsets)
        if known is not None:
            return known
        failpoints.hit("append.prepared")
        self.births.write()
        failpoints.hit("append.staged")
        done = commit_new(context, self._attempt, self.commit_id, self.offsets)
        self.births.remember()
        return done

    def _attempt(self) -> CommitPlan:
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


def commit_new(context: TableContext, attempt: Callable[[], CommitPlan | Stale], commit_id: str, offsets: SourceOffsets | None) -> Snapshot:
    """Commit rows whose keys may not exist. Where they do because another process committed the same records in between, its snapshot is the answer."""
    try:
        done = context.commit(attempt, context.stage)
    except KeyExistsError:
        known = context.answered(commit_id, offsets)
        if known is None:
            raise
        return known
    assert done is not None, "a commit without inputs is never abandoned"
    return done


def refuse_existing(context: TableContext, births: Births, found: np.ndarray) -> None:
    """Raise KeyExistsError if any of the new rows, by their place, has a key that is in the table."""
    if len(found):
        key = describe_key(context.spec, births.rows.table, int(found[0]))
        raise KeyExistsError(
            f"{len(found)} of {len(births.rows.keys)} keys are in table {context.spec.name!r} already, the first is {key}: "
            "leave them out, or change those rows with patch or upsert; nothing was written"
        )
