"""Where the keys of a table's live rows are: the segments' key indexes, merged in memory where that pays, kept up with the head.

Owns which index is where, the memory bound and the probe. A run holds the keys of several segments; runs of like size are merged, so there are few.
Entries of dead segments and of deleted rows are skipped when found and dropped at the next merge. The index of a large segment is read by page (its key
range, its Bloom filter, then a page or two for a key) until so many keys were looked for in it that reading it whole would have been cheaper, and for good
where memory is spent; its pages are dropped, the oldest segment's first, when there are too many of them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loader.catalog.records import OverlayRef, SegmentRef
from loader.errors import CorruptSegmentError
from loader.segment import key_run
from loader.segment.key_index import KeyIndex, Keys, signed
from loader.segment.key_pages import KeyPages
from loader.segment.key_run import Alive, KeyRun
from loader.segment.layout import ROW_COLUMN_ID, Section
from loader.storage import Storage
from loader.table.segments import open_segment, operand_rows, read_by_id

I64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
KEY_MEMORY_BYTES = 512 * 1024 * 1024
ALWAYS_WARM_KEYS = 65_536  # smaller segments are merged at once, and even when memory is spent: there would be too many to probe one by one
PAGED_SHARE = 16  # a larger one once more than this part of its keys has been looked for
KEY_BYTES = 24  # of a key while its run is made, at most


@dataclasses.dataclass(frozen=True)
class Hits:
    """Where keys were found: segment_ids i64[n] and rows i64[n], both −1 where a key is nowhere."""

    segment_ids: I64
    rows: I64

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        return self.segment_ids >= 0


class Resolution:
    """Where the keys of one write are, from attempt to attempt: a retry looks again only where something changed.

    Args:
        keys: What to find.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._directory: KeyDirectory | None = None
        self._hits: Hits | None = None
        self._seen = self._synced = 0

    @property
    def is_new(self) -> bool:
        return self._hits is None

    @staticmethod
    def bring_all(resolutions: Sequence[Resolution], directory: KeyDirectory) -> None:
        """`bring_to` for several that are new, with one probe."""
        parts = [resolution._keys for resolution in resolutions]
        hits = directory.probe(Keys.concat(parts))
        stops = np.cumsum([len(keys) for keys in parts]).tolist()
        for resolution, keys, stop in zip(resolutions, parts, stops, strict=True):
            mine = slice(stop - len(keys), stop)
            resolution._hits = Hits(hits.segment_ids[mine], hits.rows[mine])
            resolution._directory, resolution._seen, resolution._synced = directory, len(directory), directory.synced

    def bring_to(self, directory: KeyDirectory) -> Hits:
        """The rows as `directory` knows them now."""
        if self._hits is not None and directory is self._directory and directory.synced == self._synced:
            return self._hits
        if self._hits is None or directory is not self._directory:  # one that was begun anew counts its segments from the start
            self._hits = directory.probe(self._keys)
        else:
            self._hits = directory.probe_again(self._keys, self._hits, self._seen)
        self._directory, self._seen, self._synced = directory, len(directory), directory.synced
        return self._hits


class KeyDirectory:
    """The keys of one table. Not thread-safe: its handle guards it.

    Attributes:
        synced: The snapshot whose live segments it knows.
    """

    def __init__(self, storage: Storage, memory_bytes: int = KEY_MEMORY_BYTES) -> None:
        self.synced = 0
        self._storage = storage
        self._memory_bytes = memory_bytes
        self._refs: list[SegmentRef | None] = []  # by place; what died is forgotten, its place stays
        self._ids = np.zeros(64, np.int64)
        self._live = np.zeros(64, bool)
        self._ordinal_of: dict[int, int] = {}
        self._runs: list[KeyRun] = []
        self._cold: dict[int, int] = {}  # large segments that are read by page, by place: the keys looked for in each so far
        self._pages: OrderedDict[int, KeyPages] = OrderedDict()
        self._built: dict[tuple[str, int], KeyIndex] = {}
        self._built_keys = 0
        self._written: list[
            tuple[Sequence[tuple[str, int]], KeyRun]
        ] = []  # what this process wrote: (path, offset) of a run's segments, which have no place yet
        self._deleted: dict[int, Flags] = {}  # by place, of segments that have lost rows
        self._alive: dict[KeyRun, Alive] = {}  # begun afresh when something dies

    def __len__(self) -> int:
        """Segments seen so far; what comes later has a place from here on."""
        return len(self._refs)

    @property
    def num_rows(self) -> int:
        """Of the live segments, deleted ones included."""
        return sum(ref.num_rows for ref in self._refs if ref is not None)

    @property
    def num_bytes(self) -> int:
        """Memory of the runs, and of the pages of what is no part of them."""
        return sum(run.num_bytes for run in self._runs) + sum(pages.loaded_bytes for pages in self._pages.values())

    def remember(self, path: str, offset: int, index: KeyIndex) -> None:
        """Keep the index of a segment that this handle has just written, so that it is not read back by its next write."""
        self._built[path, offset] = index
        self._built_keys += len(index)
        while self._built_keys * KEY_BYTES > self._memory_bytes // 4 and self._built:
            self._built_keys -= len(self._built.pop(next(iter(self._built))))

    def remember_sections(self, sections: Sequence[tuple[str, int]], keys: Keys, bounds: Sequence[int]) -> None:
        """`remember` for small sections that were committed together, by path and offset: the keys of their rows end to end, and the first row of each."""
        order = keys.order()
        self._written.append((sections, KeyRun(keys.take(order), order.astype(np.uint32), np.array(bounds, np.uint64), np.arange(len(sections)))))

    def apply(self, head: int, added: list[SegmentRef], removed: list[int], deletes: list[tuple[int, OverlayRef]]) -> None:
        """Follow the catalog to snapshot `head`.

        Args:
            head: The snapshot.
            added: Segments that came, by number.
            removed: Numbers of segments that went.
            deletes: (segment, deletion vector) of those that came, live at `head`.
        """
        fresh = self._take_written(added)
        for ref in added:
            if ref.segment_id in self._ordinal_of:
                continue
            ordinal = self._place(ref)
            if ref.num_rows > ALWAYS_WARM_KEYS and ((ref.path, ref.offset) not in self._built or not self._has_room(ref.num_rows)):
                self._cold[ordinal] = 0
            else:
                fresh.append(self._load(ordinal))
        for segment_id in removed:
            ordinal = self._ordinal_of.pop(segment_id, -1)
            if ordinal >= 0:
                self._refs[ordinal], self._live[ordinal] = None, False
                for by_place in (self._pages, self._deleted, self._cold):
                    by_place.pop(ordinal, None)
        self._delete(deletes)
        if removed or deletes:
            self._alive.clear()
        self._add(fresh)
        self.synced = head
        self._built.clear()
        self._written.clear()
        self._built_keys = 0

    def _take_written(self, added: list[SegmentRef]) -> list[KeyRun]:
        """Runs of what this process has written, of those that came whole."""
        if not self._written:
            return []
        by_place = {(ref.path, ref.offset): ref for ref in added}
        runs = []
        for sections, run in self._written:
            refs = [by_place[section] for section in sections if section in by_place]
            if len(refs) == len(sections):
                runs.append(dataclasses.replace(run, segments=np.array([self._place(ref) for ref in refs])))
        return runs

    def _place(self, ref: SegmentRef) -> int:
        ordinal = len(self._refs)
        self._refs.append(ref)
        self._ordinal_of[ref.segment_id] = ordinal
        if ordinal >= len(self._live):
            self._ids, self._live = np.resize(self._ids, 2 * ordinal), np.append(self._live, np.zeros(ordinal, bool))
        self._ids[ordinal], self._live[ordinal] = ref.segment_id, True
        return ordinal

    def _delete(self, deletes: list[tuple[int, OverlayRef]]) -> None:
        for segment_id, overlay in deletes:
            ordinal = self._ordinal_of.get(segment_id, -1)
            if ordinal < 0:
                continue
            rows = operand_rows(read_by_id(open_segment(self._storage, overlay), [ROW_COLUMN_ID]))
            bitmap = self._deleted.setdefault(ordinal, np.zeros(self.at(ordinal).num_rows, bool))
            if len(rows) and int(rows.max()) >= len(bitmap):
                raise CorruptSegmentError(f"deletion vector {overlay.overlay_id} at {overlay.path} deletes row {int(rows.max())} of {len(bitmap)}")
            bitmap[rows] = True

    def _has_room(self, num_keys: int) -> bool:
        return sum(run.num_bytes for run in self._runs) + num_keys * KEY_BYTES <= self._memory_bytes

    def _add(self, fresh: list[KeyRun]) -> None:
        """Take runs in, and merge those of like size, so that there are few; all or nothing."""
        if len(fresh) > 1 and key_run.fits(fresh):
            fresh = [self._merge(fresh)]
        runs = sorted([*self._runs, *fresh], key=len, reverse=True)
        while True:
            total = list(itertools.accumulate(map(len, reversed(runs))))[::-1]
            first = next((at for at in range(len(runs) - 1) if len(runs[at]) <= 2 * total[at + 1]), None)
            if first is None or not key_run.fits(runs[first:]):
                break
            runs = sorted([*runs[:first], self._merge(runs[first:])], key=len, reverse=True)
        self._runs = runs
        self._alive = {run: alive for run, alive in self._alive.items() if run in runs}

    def _merge(self, runs: Sequence[KeyRun]) -> KeyRun:
        return key_run.merge([self._alive_of(run) for run in runs])

    def _load(self, ordinal: int) -> KeyRun:
        """The run of one segment, all of its index read."""
        ref = self.at(ordinal)
        built = self._built.pop((ref.path, ref.offset), None)
        return KeyRun.of(ordinal, built if built is not None else self._paged(ordinal).load())

    def _paged(self, ordinal: int) -> KeyPages:
        if ordinal in self._pages:
            self._pages.move_to_end(ordinal)
            return self._pages[ordinal]
        ref = self.at(ordinal)
        pages = open_segment(self._storage, ref).pages(Section.KEY_INDEX)
        if pages is None:
            raise CorruptSegmentError(f"segment {ref.segment_id} at {ref.path} offset {ref.offset} has no key index")
        found = KeyPages(pages, f"segment {ref.segment_id} at {ref.path}")
        if found.num_keys != ref.num_rows:
            raise CorruptSegmentError(f"segment {ref.segment_id} at {ref.path} has {ref.num_rows} rows and {found.num_keys} keys")
        return found

    def at(self, ordinal: int) -> SegmentRef:
        """A live segment by its place, without its overlays."""
        ref = self._refs[ordinal]
        assert ref is not None, "only live segments are opened"
        return ref

    def ref(self, segment_id: int) -> SegmentRef:
        """A live segment by its number, without its overlays."""
        return self.at(self._ordinal_of[segment_id])

    def probe(self, keys: Keys, since: int = 0) -> Hits:
        """Find keys among the live segments.

        Args:
            keys: What to find.
            since: Look only in segments from this place on (an earlier `len`).
        """
        ordinals = np.full(len(keys), -1, np.int64)
        rows = np.full(len(keys), -1, np.int64)
        if self._cold:
            self._warm(len(keys), since)
        for run in self._runs:
            if since == 0 or int(run.segments.max(initial=-1)) >= since:
                alive = self._alive_of(run)
                key_run.probe(Alive(run, alive.accept & (run.segments >= since), alive.dead) if since else alive, keys, ordinals, rows)
        for ordinal in self._cold:
            if ordinal >= since:
                self._probe_pages(ordinal, keys, ordinals, rows)
        return Hits(np.where(ordinals >= 0, self._ids[ordinals], -1), rows)

    def _warm(self, num_keys: int, since: int) -> None:
        """Read those large segments whole in which enough keys have been looked for."""
        fresh: list[KeyRun] = []
        for ordinal in [ordinal for ordinal in self._cold if ordinal >= since]:
            self._cold[ordinal] += num_keys
            if self._cold[ordinal] * PAGED_SHARE < self.at(ordinal).num_rows or not self._has_room(self.at(ordinal).num_rows + sum(map(len, fresh))):
                continue
            fresh.append(self._load(ordinal))
        if fresh:
            self._add(fresh)
        for run in fresh:  # only now: nothing is lost if this is interrupted
            del self._cold[int(run.segments[0])]
            self._pages.pop(int(run.segments[0]), None)

    def _probe_pages(self, ordinal: int, keys: Keys, ordinals: I64, rows: I64) -> None:
        ref = self.at(ordinal)
        left = np.flatnonzero(ordinals < 0)
        wanted = keys.take(left)
        if not len(left) or ref.key_min is None or ref.key_max is None:
            return
        if signed(int(wanted.low.max())) < ref.key_min or signed(int(wanted.low.min())) > ref.key_max:
            return
        pages = self._pages[ordinal] = self._paged(ordinal)
        found = pages.probe(wanted, ~self._deleted[ordinal] if ordinal in self._deleted else None)
        hit = found >= 0
        ordinals[left[hit]], rows[left[hit]] = ordinal, found[hit]
        self._pages.move_to_end(ordinal)
        while len(self._pages) > 1 and sum(one.loaded_bytes for one in self._pages.values()) > self._memory_bytes // 4:
            self._pages.popitem(last=False)

    def probe_again(self, keys: Keys, hits: Hits, since: int) -> Hits:
        """Bring earlier hits up to date: only what is not found in a live row any more is looked for, only in what came since."""
        again = np.ones(len(keys), bool)
        for segment_id in np.unique(hits.segment_ids).tolist():
            ordinal = self._ordinal_of.get(segment_id, -1)
            if ordinal >= 0:
                mine = np.flatnonzero(hits.segment_ids == segment_id)
                again[mine] = self._deleted[ordinal][hits.rows[mine]] if ordinal in self._deleted else False
        left = np.flatnonzero(again)
        found = self.probe(keys.take(left), since)
        segment_ids, rows = hits.segment_ids.copy(), hits.rows.copy()
        segment_ids[left], rows[left] = found.segment_ids, found.rows
        return Hits(segment_ids, rows)

    def _alive_of(self, run: KeyRun) -> Alive:
        if run not in self._alive:
            self._alive[run] = Alive(run, self._live[run.segments], [self._deleted.get(ordinal) for ordinal in run.segments.tolist()])
        return self._alive[run]
