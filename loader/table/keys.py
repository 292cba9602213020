"""Where the keys of a table's live rows are: merged in-memory runs of the segments' key indexes, kept up with the head.

Owns the runs, their memory bound and the probe. A run holds the keys of several segments; runs of like size are merged, so there are few.
Entries of dead segments and of deleted rows are skipped when found and dropped at the next merge. What does not fit in memory stays cold: it is
pruned by key range, then by its Bloom filter, and opened through a bounded cache.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loader.catalog.records import OverlayRef, SegmentRef
from loader.errors import CorruptSegmentError
from loader.segment.key_index import KeyIndex, Keys, search, signed
from loader.segment.layout import ROW_COLUMN_ID, Section
from loader.segment.reader import SegmentReader
from loader.storage import Storage
from loader.table.segments import open_segment, operand_rows, read_by_id

I64 = npt.NDArray[np.int64]
KEY_MEMORY_BYTES = 512 * 1024 * 1024
ALWAYS_WARM_KEYS = 65_536  # smaller segments are merged even when memory is spent: there would be too many to probe one by one


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
        self._seen = 0

    def bring_to(self, directory: KeyDirectory) -> Hits:
        """The rows as `directory` knows them now."""
        if self._hits is None or directory is not self._directory:  # one that was begun anew counts its segments from the start
            self._hits = directory.probe(self._keys)
        else:
            self._hits = directory.probe_again(self._keys, self._hits, self._seen)
        self._directory, self._seen = directory, len(directory)
        return self._hits


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    keys: Keys
    ordinals: npt.NDArray[np.uint32]  # which segment, by its place in the directory
    rows: npt.NDArray[np.uint32]
    newest: int  # the highest of `ordinals`

    @property
    def nbytes(self) -> int:
        return self.ordinals.nbytes + self.rows.nbytes + len(self.keys) * self.keys.key_bytes


@dataclasses.dataclass(frozen=True)
class _Written:
    """Sections that this process has written into one object: their keys end to end, and the first row of each."""

    path: str
    keys: Keys
    bounds: I64


def _unsorted(written: _Written, ordinals: dict[int, int]) -> _Run:
    """The entries of those sections that were committed, by their places; `KeyDirectory._merge` sorts them."""
    places = np.array(sorted(ordinals))
    starts, counts = written.bounds[places], np.diff(written.bounds)[places]
    rows = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    at = rows + np.repeat(starts, counts)
    of = np.array([ordinals[place] for place in places.tolist()], np.uint32)
    keys = written.keys if len(at) == len(written.keys) else written.keys.take(at)
    return _Run(keys, np.repeat(of, counts), rows.astype(np.uint32), int(of.max()))


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
        self._runs: list[_Run] = []
        self._cold: list[int] = []
        self._opened: OrderedDict[int, KeyIndex] = OrderedDict()
        self._built: dict[tuple[str, int], KeyIndex] = {}
        self._written: dict[tuple[str, int], tuple[_Written, int]] = {}
        self._deleted: dict[int, npt.NDArray[np.bool_]] = {}  # by place, of segments that have lost rows
        self._accepted: dict[_Run, npt.NDArray[np.bool_]] = {}  # entries of live rows; begun afresh when something dies

    def __len__(self) -> int:
        """Segments seen so far; what comes later has a place from here on."""
        return len(self._refs)

    def remember(self, path: str, offset: int, index: KeyIndex) -> None:
        """Keep the index of a segment that this handle has just written, so that it is not read back by its next write."""
        self._built[path, offset] = index
        while sum(len(kept) * 24 for kept in self._built.values()) > self._memory_bytes // 4:
            self._built.pop(next(iter(self._built)))

    def remember_sections(self, path: str, offsets: Sequence[int], keys: Keys, bounds: Sequence[int]) -> None:
        """`remember` for all sections of one object: the keys of their rows end to end, and the first row of each."""
        written = _Written(path, keys, np.array(bounds))
        for place, offset in enumerate(offsets):
            self._written[path, offset] = (written, place)

    def apply(self, head: int, added: list[SegmentRef], removed: list[int], deletes: list[tuple[int, OverlayRef]]) -> None:
        """Follow the catalog to snapshot `head`.

        Args:
            head: The snapshot.
            added: Segments that came, by number.
            removed: Numbers of segments that went.
            deletes: (segment, deletion vector) of those that came, live at `head`.
        """
        fresh: list[_Run] = []
        written: dict[str, tuple[_Written, dict[int, int]]] = {}
        for ref in added:
            ordinal = len(self._refs)
            self._refs.append(ref)
            self._ordinal_of[ref.segment_id] = ordinal
            if ordinal >= len(self._live):
                self._ids, self._live = np.resize(self._ids, 2 * ordinal), np.append(self._live, np.zeros(ordinal, bool))
            self._ids[ordinal], self._live[ordinal] = ref.segment_id, True
            own = self._written.pop((ref.path, ref.offset), None)
            if own is not None:
                written.setdefault(ref.path, (own[0], {}))[1][own[1]] = ordinal
            elif ref.num_rows > ALWAYS_WARM_KEYS and self._nbytes(fresh) + ref.num_rows * 24 > self._memory_bytes:
                self._cold.append(ordinal)
            else:
                fresh.append(self._load(ordinal))
        fresh += [_unsorted(*parts) for parts in written.values()]
        for segment_id in removed:
            ordinal = self._ordinal_of.pop(segment_id, -1)
            if ordinal >= 0:
                self._refs[ordinal], self._live[ordinal] = None, False
                self._opened.pop(ordinal, None)
                self._deleted.pop(ordinal, None)
        self._delete(deletes)
        if removed or deletes:
            self._accepted.clear()
        self._cold = [ordinal for ordinal in self._cold if self._live[ordinal]]
        if fresh:
            self._runs.append(self._merge(fresh))
        while len(self._runs) > 1 and len(self._runs[-2].rows) <= 2 * len(self._runs[-1].rows):
            last, before = self._runs.pop(), self._runs.pop()
            self._runs.append(self._merge([before, last]))
            for gone in (before, last):
                self._accepted.pop(gone, None)
        self.synced = head
        self._built.clear()
        self._written.clear()

    def _delete(self, deletes: list[tuple[int, OverlayRef]]) -> None:
        for segment_id, overlay in deletes:
            ordinal = self._ordinal_of.get(segment_id, -1)
            if ordinal < 0:
                continue
            rows = operand_rows(read_by_id(open_segment(self._storage, overlay), [ROW_COLUMN_ID]))
            bitmap = self._deleted.setdefault(ordinal, np.zeros(self._ref(ordinal).num_rows, bool))
            if len(rows) and int(rows.max()) >= len(bitmap):
                raise CorruptSegmentError(f"deletion vector {overlay.overlay_id} at {overlay.path} deletes row {int(rows.max())} of {len(bitmap)}")
            bitmap[rows] = True

    def _nbytes(self, fresh: list[_Run]) -> int:
        return sum(run.nbytes for run in [*self._runs, *fresh])

    def _load(self, ordinal: int) -> _Run:
        index = self._index(ordinal)
        return _Run(index.keys, np.full(len(index), ordinal, np.uint32), index.rows, ordinal)

    def _ref(self, ordinal: int) -> SegmentRef:
        ref = self._refs[ordinal]
        assert ref is not None, "only live segments are opened"
        return ref

    def _index(self, ordinal: int) -> KeyIndex:
        ref = self._ref(ordinal)
        built = self._built.pop((ref.path, ref.offset), None)
        if built is not None:
            return built
        section = SegmentReader(self._storage.section(ref.path, ref.offset, ref.num_bytes)).section(Section.KEY_INDEX)
        if section is None:
            raise CorruptSegmentError(f"segment {ref.segment_id} at {ref.path} offset {ref.offset} has no key index")
        index = KeyIndex.open(section)
        if len(index) != ref.num_rows:
            raise CorruptSegmentError(f"segment {ref.segment_id} at {ref.path} has {ref.num_rows} rows and {len(index)} keys")
        return index

    def ref(self, segment_id: int) -> SegmentRef:
        """A live segment, without its overlays."""
        return self._ref(self._ordinal_of[segment_id])

    def probe(self, keys: Keys, since: int = 0) -> Hits:
        """Find keys among the live segments.

        Args:
            keys: What to find.
            since: Look only in segments from this place on (an earlier `len`).
        """
        ordinals = np.full(len(keys), -1, np.int64)
        rows = np.full(len(keys), -1, np.int64)
        for run in self._runs:
            if run.newest < since:
                continue
            left = np.flatnonzero(ordinals < 0)
            accepted = self._accept(run)
            at = search(run.keys, keys.take(left), accepted & (run.ordinals >= since) if since else accepted)
            hit = at >= 0
            ordinals[left[hit]], rows[left[hit]] = run.ordinals[at[hit]], run.rows[at[hit]]
        for ordinal in self._cold:
            if ordinal >= since:
                self._probe_cold(ordinal, keys, ordinals, rows)
        return Hits(np.where(ordinals >= 0, self._ids[ordinals], -1), rows)

    def _probe_cold(self, ordinal: int, keys: Keys, ordinals: I64, rows: I64) -> None:
        ref = self._ref(ordinal)
        left = np.flatnonzero(ordinals < 0)
        wanted = keys.take(left)
        if not len(left) or ref.key_min is None or ref.key_max is None:
            return
        if signed(int(wanted.low.max())) < ref.key_min or signed(int(wanted.low.min())) > ref.key_max:
            return
        if ordinal not in self._opened:
            self._opened[ordinal] = self._index(ordinal)
        self._opened.move_to_end(ordinal)
        while len(self._opened) > 1 and sum(len(index) * 24 for index in self._opened.values()) > self._memory_bytes // 4:
            self._opened.popitem(last=False)
        found = self._opened[ordinal].probe(wanted)
        hit = found >= 0
        if ordinal in self._deleted:
            hit &= ~self._deleted[ordinal][found]
        ordinals[left[hit]], rows[left[hit]] = ordinal, found[hit]

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

    def _accept(self, run: _Run) -> npt.NDArray[np.bool_]:
        """Which entries of a run stand for live rows."""
        if run not in self._accepted:
            self._accepted[run] = self._alive(run.ordinals, run.rows)
        return self._accepted[run]

    def _alive(self, ordinals: npt.NDArray[np.uint32], rows: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        alive = self._live[ordinals]
        if not self._deleted:
            return alive
        starts = np.full(len(self._refs), -1, np.int64)
        bitmaps, at = [], 0
        for ordinal, bitmap in self._deleted.items():
            starts[ordinal] = at
            bitmaps.append(bitmap)
            at += len(bitmap)
        hit = np.flatnonzero(starts[ordinals] >= 0)
        alive[hit] &= ~np.concatenate(bitmaps)[starts[ordinals[hit]] + rows[hit]]
        return alive

    def _merge(self, runs: list[_Run]) -> _Run:
        keys = Keys.concat([run.keys for run in runs])
        ordinals = np.concatenate([run.ordinals for run in runs])
        rows = np.concatenate([run.rows for run in runs])
        kept = np.flatnonzero(self._alive(ordinals, rows))
        order = kept[np.argsort(keys.low[kept], kind="stable")]
        return _Run(keys.take(order), ordinals[order], rows[order], max(run.newest for run in runs))
