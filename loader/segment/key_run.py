"""Runs of keys in memory: the key indexes of several segments merged, with the row that each key has in its segment.

Owns a run's arrays, its probe and the merge of several; which segments are live is the caller's. A key costs 13.5 bytes (21.5 with two words): the key, a
place of four bytes, 1.5 of Bloom filter. The native kernels (`kernels/key_probe.h`) and the NumPy reference here give the same arrays.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loader.kernels import native
from loader.kernels.native_keys import KEY_RUN
from loader.segment.key_index import KeyIndex, Keys, bloom_blocks, build_bloom, search

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
MAX_PLACES = 1 << 32
PROBE_THREADS = max(1, min(4, os.cpu_count() or 1))  # they share a probe of many thousand keys, which waits for memory most of the time


@dataclasses.dataclass(frozen=True, eq=False)
class KeyRun:
    """Sorted keys of some segments.

    Attributes:
        keys: Sorted by low word, then high; a key may stand several times, for rows that died.
        places: u32[n], the row of each, counted through the segments: rows of segment k have the places from bases[k] on.
        bases: u64[segments + 1].
        segments: i64[segments], what the caller calls each, rising.
    """

    keys: Keys
    places: npt.NDArray[np.uint32]
    bases: U64
    segments: I64

    @staticmethod
    def of(segment: int, index: KeyIndex) -> KeyRun:
        """The run of one segment's key index."""
        run = KeyRun(index.keys, index.rows, np.array([0, len(index)], np.uint64), np.array([segment]))
        run.__dict__["bloom"] = index.bloom
        return run

    def __len__(self) -> int:
        return len(self.places)

    @property
    def num_bytes(self) -> int:
        """Memory, its filter included."""
        return len(self) * (self.keys.key_bytes + 4) + 32 * int(bloom_blocks(np.array(len(self)))) + 16 * len(self.segments)

    @functools.cached_property
    def bloom(self) -> npt.NDArray[np.uint32]:
        """The filter of its keys, as in a key index."""
        blocks = int(bloom_blocks(np.array(len(self))))
        library = native.load()
        return build_bloom(self.keys.low, blocks) if library is None else library.key_bloom(self.keys.low, blocks)

    def rows(self, entries: I64) -> tuple[I64, I64]:
        """(segment counted in the run, row) of entries."""
        places = self.places[entries].astype(np.uint64)
        segments = np.searchsorted(self.bases, places, side="right") - 1
        return segments, (places - self.bases[segments]).astype(np.int64)


class Alive:
    """Which entries of a run stand for live rows.

    Args:
        run: The run.
        accept: bool[segments]: the segments that count.
        dead: bool[rows of the segment] or None for each segment: rows that do not.
    """

    def __init__(self, run: KeyRun, accept: Flags, dead: Sequence[Flags | None]) -> None:
        self.run, self.accept, self.dead = run, np.ascontiguousarray(accept), list(dead)
        self._names = np.ascontiguousarray(run.segments, np.int64)
        self._pointers = np.array([0 if flags is None else flags.ctypes.data for flags in self.dead], np.uint64)

    @functools.cached_property
    def to_probe(self) -> npt.NDArray[np.void]:
        """The record that a probe takes, one KEY_RUN."""
        return np.array([self.record(bloom=True)], KEY_RUN)

    def entries(self) -> Flags:
        """The reference: bool[entries]."""
        segments, rows = self.run.rows(np.arange(len(self.run)))
        alive = self.accept[segments]
        for segment, flags in enumerate(self.dead):
            if flags is not None:
                mine = np.flatnonzero(segments == segment)
                alive[mine] &= ~flags[rows[mine]]
        return alive

    def record(self, shifts: U64 | None = None, *, bloom: bool) -> tuple[int, ...]:
        """A KEY_RUN record's fields; good as long as this, the run and the shifts live."""
        run = self.run
        high = 0 if run.keys.high is None else run.keys.high.ctypes.data
        filtered = (run.bloom.ctypes.data, len(run.bloom) // 8) if bloom else (0, 0)
        return (
            run.keys.low.ctypes.data, high, run.places.ctypes.data, len(run), *filtered, run.bases.ctypes.data, self.accept.ctypes.data,
            self._pointers.ctypes.data, 0 if shifts is None else shifts.ctypes.data, len(run.segments), self._names.ctypes.data,
        )  # fmt: skip


def probe(alive: Alive, keys: Keys, segments: I64, rows: I64) -> None:
    """Find keys in a run; what is found already (`segments` not negative) is passed over.

    Args:
        alive: The run, and which entries count.
        keys: What to find, in any order.
        segments: i64[keys], set to the caller's number of the segment where a key is found.
        rows: i64[keys], set with it.
    """
    run, library = alive.run, native.load()
    if not len(run) or not len(keys):
        return
    if library is None:
        left = np.flatnonzero(segments < 0)
        at = search(run.keys, keys.take(left), alive.entries())
        hit = at >= 0
        found, rows[left[hit]] = run.rows(at[hit])
        segments[left[hit]] = run.segments[found]
        return
    low, high = np.ascontiguousarray(keys.low), None if keys.high is None else np.ascontiguousarray(keys.high)
    library.probe_keys(alive.to_probe, low, high, segments, rows, PROBE_THREADS)


def merge(parts: Sequence[Alive]) -> KeyRun:
    """One run of the entries that count in several, of equal keys those of the earlier first; segments that do not count are left out.

    Raises:
        ValueError: Their segments have more rows than a run has places for.
    """
    spans, shifts, segments, at = [], [], [], 0
    for alive in parts:
        sizes = np.diff(alive.run.bases.astype(np.int64)) * alive.accept
        begins = at + np.cumsum(sizes) - sizes
        shifts.append((begins - alive.run.bases[:-1].astype(np.int64)).view(np.uint64))
        spans.append(begins[alive.accept])
        segments.append(alive.run.segments[alive.accept])
        at += int(sizes.sum())
    if at > MAX_PLACES:
        raise ValueError(f"segments of {at:,} rows do not fit into a run of {MAX_PLACES:,}")
    bases = np.append(np.concatenate([np.zeros(0, np.int64), *spans]), at).astype(np.uint64)
    keys, places = _merged(parts, shifts)
    return KeyRun(keys, places, bases, np.concatenate([np.zeros(0, np.int64), *segments]))


def fits(parts: Sequence[KeyRun]) -> bool:
    """Whether runs can be merged."""
    return sum(int(run.bases[-1]) for run in parts) <= MAX_PLACES


def _merged(parts: Sequence[Alive], shifts: Sequence[U64]) -> tuple[Keys, npt.NDArray[np.uint32]]:
    library = native.load()
    if library is None:
        return merged_reference(parts, shifts)
    room = sum(len(alive.run) for alive in parts)
    wide = any(alive.run.keys.high is not None for alive in parts)
    low, high, places = np.empty(room, np.uint64), np.empty(room, np.uint64) if wide else None, np.empty(room, np.uint32)
    records = np.array([alive.record(shift, bloom=False) for alive, shift in zip(parts, shifts, strict=True)], KEY_RUN)
    count = library.merge_keys(records, low, high, places)
    if count == room:
        return Keys(low, high), places
    return Keys(low[:count].copy(), None if high is None else high[:count].copy()), places[:count].copy()


def merged_reference(parts: Sequence[Alive], shifts: Sequence[U64]) -> tuple[Keys, npt.NDArray[np.uint32]]:
    """What the library merges, in NumPy."""
    taken, placed = [Keys(np.zeros(0, np.uint64), None)], [np.zeros(0, np.uint64)]
    for alive, shift in zip(parts, shifts, strict=True):
        kept = np.flatnonzero(alive.entries())
        found, _ = alive.run.rows(kept)
        taken.append(alive.run.keys.take(kept))
        placed.append(alive.run.places[kept] + shift[found])
    keys = Keys.concat(taken[1:] or taken)
    order = keys.order()
    return keys.take(order), np.concatenate(placed)[order].astype(np.uint32)
