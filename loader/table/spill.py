"""Keys of an input that need not fit into memory: a sorted run a part, in an unnamed file. Owns the file, and finds a key that stands in two parts."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from loader.segment.key_index import Keys

U64 = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class _Spilled:
    """Where a part's arrays begin in the file: low words, high words if there are any, and the row of each."""

    offset: int
    num_keys: int
    key_bytes: int


class KeySpill:
    """Sorted keys of parts on disk.

    Args:
        memory_bytes: What a search for repeated keys may hold, about.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._file = tempfile.TemporaryFile(prefix="headrace-keys-")  # noqa: SIM115 (closed by `close`)
        self._parts: list[_Spilled] = []

    def __len__(self) -> int:
        """Parts."""
        return len(self._parts)

    def add(self, keys: Keys) -> None:
        """Write the keys of the next part, given in the order of its rows."""
        order = keys.order()
        sorted_keys = keys.take(order)
        self._parts.append(_Spilled(self._file.seek(0, 2), len(keys), keys.key_bytes))
        for array in (sorted_keys.low, sorted_keys.high, order.astype(np.uint32)):
            if array is not None and len(array):
                array.tofile(self._file)
        self._file.flush()

    def read(self, part: int) -> tuple[Keys, npt.NDArray[np.uint32]]:
        """The sorted keys of a part, and the row of each."""
        spilled = self._parts[part]
        words = spilled.key_bytes // 8
        low, high = (self._words(spilled, word, 0, spilled.num_keys) if word < words else None for word in (0, 1))
        assert low is not None, "every key has a low word"
        self._file.seek(spilled.offset + spilled.key_bytes * spilled.num_keys)
        return Keys(low, high), np.fromfile(self._file, np.uint32, spilled.num_keys)

    def _words(self, spilled: _Spilled, word: int, start: int, stop: int) -> U64:
        self._file.seek(spilled.offset + 8 * (word * spilled.num_keys + start))
        return np.fromfile(self._file, np.uint64, stop - start)

    def first_twice(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """(part, place among its sorted keys) of two equal keys of different parts, or None. Holds a stretch of all parts at a time."""
        if len(self._parts) < 2:
            return None
        maps = [self._low_map(spilled) for spilled in self._parts]
        most = max(self._memory_bytes // 64, 1024)  # keys at a time: their words, parts and places, and what sorting takes
        step = max(most // (4 * len(maps)), 1)
        samples = np.sort(np.concatenate([low[::step] for low in maps]))
        bounds = np.unique(samples[:: 2 * len(maps)])[1:]
        edges = [np.concatenate([[0], np.searchsorted(low, bounds), [len(low)]]) for low in maps]
        for at in range(len(bounds) + 1):
            found = self._twice_between([(int(edge[at]), int(edge[at + 1])) for edge in edges])
            if found is not None:
                return found
        return None

    def _low_map(self, spilled: _Spilled) -> U64:
        if not spilled.num_keys:
            return np.zeros(0, np.uint64)
        return np.memmap(self._file, np.uint64, "r", spilled.offset, (spilled.num_keys,))

    def _twice_between(self, stretches: list[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]] | None:
        parts = [Keys(self._words(one, 0, *span), self._words(one, 1, *span) if one.key_bytes > 8 else None) for one, span in self._stretches(stretches)]
        keys = Keys.concat(parts)
        twice = keys.first_twice()
        if twice is None:
            return None
        starts = [0, *itertools.accumulate(len(part) for part in parts)]
        found = []
        for place in twice:
            part = int(np.searchsorted(starts, place, side="right")) - 1
            found.append((part, stretches[part][0] + place - starts[part]))
        return found[0], found[1]

    def _stretches(self, stretches: list[tuple[int, int]]) -> Iterator[tuple[_Spilled, tuple[int, int]]]:
        return zip(self._parts, stretches, strict=True)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
