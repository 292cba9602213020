"""Appending an input that need not fit into memory, as one commit: it is encoded and stored part by part, and only its keys are looked at again.

What is held at a time is a part; of the parts that are done, where their sections lie, and labels that were waiting for their rows. Keys lie sorted on
disk, so that one that stands in two parts is found, and each attempt probes them part by part.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader import failpoints
from loader.catalog.commit import Stale
from loader.catalog.records import CommitPlan, NewOverlay, Snapshot, SourceOffsets
from loader.errors import KeyExistsError
from loader.segment.key_index import Keys
from loader.table.append import Append, check_on_conflict
from loader.table.births import Births
from loader.table.context import TableContext
from loader.table.files import Stage
from loader.table.keys import KeyDirectory
from loader.table.parts import fits_whole, parts_of
from loader.table.rows import Data, describe_key, prepare
from loader.table.segments import open_segment, read_by_id
from loader.table.spill import KeySpill
from loader.table.writes import Write

Progress = Callable[[int], None]  # rows stored so far


class StreamedAppend(Write):
    """One append of several parts, from the caller's data to its snapshot.

    Args:
        context: The table.
        parts: The rows, each part once.
        on_conflict, watermark, offsets, commit_id: As for `append`.
        progress: Told after each part.
    """

    is_keyed = False

    def __init__(
        self,
        context: TableContext,
        parts: Iterable[pa.Table],
        *,
        on_conflict: str,
        watermark: int | None,
        offsets: SourceOffsets | None,
        commit_id: str | None,
        progress: Progress | None,
    ) -> None:
        super().__init__(context, offsets=offsets, commit_id=commit_id)
        self.on_conflict, self.watermark, self._progress = on_conflict, watermark, progress
        self._data = parts
        self._births: list[Births] = []
        self._buckets: set[int] = set()
        self._num_rows = 0
        self._spill = KeySpill(context.memory_bytes)
        self._probed: tuple[KeyDirectory, int] | None = None

    def run(self) -> Snapshot:
        """Store all parts, without keeping others from writing, and commit."""
        context, stage = self.context, self.context.new_stage()
        try:
            known = self.known()
            if known is not None:
                return known
            self._store(stage)
            done = context.commit(self._resolved, stage)
            assert done is not None, "a commit without inputs is never abandoned"
            return done
        except KeyExistsError:
            known = self.known()  # because another process committed the same records in between?
            if known is None:
                raise
            return known
        finally:
            self._spill.close()
            self.give_back(stage)

    def _store(self, stage: Stage) -> None:
        for part in self._data:
            births = Births(self.context, prepare(self.context.spec, part), stage=stage)
            failpoints.hit("append.prepared")
            births.write()
            self._spill.add(births.rows.keys)
            self._buckets.update(self.context.key_buckets(births.rows.keys))
            self._num_rows += part.num_rows
            births.release()
            self._births.append(births)
            if self._progress is not None:
                self._progress(self._num_rows)
        twice = self._spill.first_twice()
        if twice is not None:
            (first, place), (second, _) = twice
            raise KeyExistsError(
                f"key {self._describe(first, place)} stands twice in the data, in its parts {first + 1} and {second + 1} of {len(self._spill)}: "
                f"table {self.context.spec.name!r} takes each key once; nothing was written"
            )
        failpoints.hit("append.staged")

    def _resolved(self) -> CommitPlan | Stale:
        with self.context.lock:  # others of this process go on between the attempts
            return self.attempt()

    def attempt(self) -> CommitPlan | Stale:
        base = self.context.refresh()
        if self.on_conflict == "check":
            self._refuse_existing()
        return self._plan(base)

    def _plan(self, base: int) -> CommitPlan:
        context = self.context
        buckets = tuple(sorted(self._buckets))
        waiting = context.waiting(buckets)
        for number, births in enumerate(self._births):
            if waiting or births.num_met:
                births.meet(buckets, self._keys(number))
        failpoints.hit("append.resolved")
        return CommitPlan(
            spec=context.spec,
            kind="append",
            commit_id=self.commit_id,
            base=base,
            rows_buckets=buckets if self.on_conflict == "check" else (),
            rows_changed=buckets,
            pending_buckets=buckets,
            pending_changed=tuple(sorted({bucket for births in self._births for bucket in births.met_buckets})),
            segments=[segment for births in self._births for segment in births.segments],
            overlays=list(self._overlays()),
            met=self._met(),
            inline={path: data for births in self._births for path, data in births.inline.items()},
            offsets=self.offsets,
            watermark=self.watermark,
            summary={"rows_appended": self._num_rows, "labels_met": sum(births.num_met for births in self._births)},
        )

    def _refuse_existing(self) -> None:
        """Probe all keys; at a later attempt only what has come since."""
        directory = self.context.directory
        since = self._probed[1] if self._probed is not None and self._probed[0] is directory else 0
        for number in range(len(self._spill)):
            self._refuse(number, directory.probe(self._spill.read(number)[0], since).found)
        self._probed = (directory, len(directory))

    def _refuse(self, number: int, exists: npt.NDArray[np.bool_]) -> None:
        """Raise KeyExistsError if any of the sorted keys of a part is taken."""
        found = np.flatnonzero(exists)
        if len(found):
            raise KeyExistsError(
                f"{len(found)} of the keys in part {number + 1} of {len(self._spill)} are in table {self.context.spec.name!r} already, the first is "
                f"{self._describe(number, int(found[0]))}: leave them out, or change those rows with patch or upsert; nothing was written"
            )

    def _keys(self, number: int) -> Keys:
        """The keys of a part in the order of its rows."""
        keys, rows = self._spill.read(number)
        return keys.take(np.argsort(rows))

    def _describe(self, number: int, place: int) -> str:
        """A key by its part and its place among the sorted keys, read back from what was stored: no part is held."""
        spec, births = self.context.spec, self._births[number]
        row = int(self._spill.read(number)[1][place])
        segment, start = next((segment, start) for segment, (_, _, start, stop) in zip(births.segments, births.sections, strict=True) if start <= row < stop)
        read = read_by_id(open_segment(self.context.storage, segment), spec.primary_key_ids, rows=np.array([row - start]))
        return describe_key(spec, pa.table([read[column_id] for column_id in spec.primary_key_ids], names=spec.primary_key), 0)

    def _overlays(self) -> Iterator[NewOverlay]:
        before = 0
        for births in self._births:
            yield from (dataclasses.replace(overlay, new_segment=before + (overlay.new_segment or 0)) for overlay in births.overlays)
            before += len(births.segments)

    def _met(self) -> dict[int, bytes]:
        met: dict[int, bytes] = {}
        for births in self._births:
            for pending_id, positions in births.met.items():
                met[pending_id] = met.get(pending_id, b"") + positions
        return met


def append(
    context: TableContext,
    data: Data,
    *,
    on_conflict: str,
    watermark: int | None,
    offsets: SourceOffsets | None,
    commit_id: str | None,
    progress: Progress | None,
) -> Append | StreamedAppend:
    """See `Table.append`: the write of an input, in parts where it is large."""
    if isinstance(data, pa.Table) and fits_whole(data, context.memory_bytes):
        return Append(context, data, on_conflict=on_conflict, watermark=watermark, offsets=offsets, commit_id=commit_id)
    parts = parts_of(data, context.memory_bytes)
    first, second = next(parts), next(parts, None)
    if second is None:
        return Append(context, first, on_conflict=on_conflict, watermark=watermark, offsets=offsets, commit_id=commit_id)
    every = itertools.chain([first, second], parts)
    check_on_conflict(on_conflict)
    return StreamedAppend(context, every, on_conflict=on_conflict, watermark=watermark, offsets=offsets, commit_id=commit_id, progress=progress)
