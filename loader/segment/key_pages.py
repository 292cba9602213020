"""A key index read by page: its Bloom filter, then the few pages of keys that a probe needs, their checksums verified.

For segments whose keys are not worth holding in memory. Owns the search for a page; pages are `segment.pages`', the layout is `key_index`'s.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.errors import CorruptSegmentError
from loader.segment.key_index import HEADER, KeyIndex, Keys, array_sizes, in_bloom, read_header
from loader.segment.layout import round_up
from loader.segment.pages import SectionPages

I64 = npt.NDArray[np.int64]
GROUP = 512  # keys that are read together: a page of words


class KeyPages:
    """One segment's key index. Not thread-safe.

    Attributes:
        num_keys: In the segment.
    """

    def __init__(self, pages: SectionPages, where: str) -> None:
        """
        Args:
            pages: The KEY_INDEX section.
            where: What errors call the segment.

        Raises:
            UnsupportedVersionError, CorruptSegmentError: As `KeyIndex.open`.
        """
        self._pages, self._where = pages, where
        header = read_header(pages.slice(0, min(HEADER.itemsize, pages.num_bytes)), pages.num_bytes)
        self.num_keys, self._is_wide = int(header["num_keys"][0]), bool(header["key_bytes"][0] == 16)
        self._least, self._most = header["min_key"][0], header["max_key"][0]
        sizes = array_sizes(header)
        starts = list(itertools.accumulate([HEADER.itemsize, *map(round_up, sizes)]))
        self._low_at, self._high_at, self._rows_at = starts[0], starts[1], starts[-3]
        self._bloom_at, self._bloom_bytes = starts[-2], sizes[-1]

    @property
    def loaded_bytes(self) -> int:
        """Memory of the pages read so far."""
        return self._pages.loaded_bytes

    def load(self) -> KeyIndex:
        """The whole index."""
        return KeyIndex.open(self._pages.all().data)

    def probe(self, keys: Keys, accept: npt.NDArray[np.bool_] | None = None) -> I64:
        """The row of each key, i64[n]; −1 where the segment has no such key in a row that counts.

        Args:
            keys: What to find, in any order.
            accept: bool[rows]: rows that count; default all.

        Raises:
            CorruptSegmentError: A checksum does not match, or a key points to a row that is not there.
        """
        found = np.full(len(keys), -1, np.int64)
        if not self.num_keys or not len(keys):
            return found
        passed = np.flatnonzero((keys.low >= self._least) & (keys.low <= self._most))
        if len(passed):
            bloom = np.frombuffer(self._pages.slice(self._bloom_at, self._bloom_at + self._bloom_bytes), "<u4")
            passed = passed[in_bloom(bloom, keys.low[passed])]
        wanted = keys.take(passed)
        at = self._lower_bound(wanted.low)
        while len(passed):
            inside = at < self.num_keys
            passed, at, wanted = passed[inside], at[inside], wanted.take(inside.nonzero()[0])
            same = self._words(self._low_at, at) == wanted.low
            passed, at, wanted = passed[same], at[same], wanted.take(same.nonzero()[0])
            hit = np.ones(len(at), bool) if wanted.high is None or not self._is_wide else self._words(self._high_at, at) == wanted.high
            rows = self._rows(at)
            hit &= True if accept is None else accept[rows]
            found[passed[hit]] = rows[hit]
            passed, at, wanted = passed[~hit], at[~hit] + 1, wanted.take((~hit).nonzero()[0])
        return found

    def _lower_bound(self, low: npt.NDArray[np.uint64]) -> I64:
        """The first entry of each low word or above it: guessed by its place in the range of keys, so that evenly spread keys are found in a read or two."""
        first = np.zeros(len(low), np.int64)
        last = np.full(len(low), (self.num_keys - 1) // GROUP)  # groups: the first whose last key is not below the wanted one
        below, above = np.full(len(low), float(self._least)), np.full(len(low), float(self._most))
        for step in itertools.count():  # a guess may not help: every other step halves
            open_ = np.flatnonzero(first < last)
            if not len(open_):
                break
            span = (last - first)[open_]
            if step % 2:
                guess = span // 2
            else:
                share = (low[open_].astype(np.float64) - below[open_]) / np.maximum(above[open_] - below[open_], 1.0)
                guess = np.clip(share * (span + 1), 0, span).astype(np.int64)
            group = first[open_] + guess
            least, most = self._ends(group)
            over = low[open_] > most
            inside = ~over & ((low[open_] > least) | (group == 0))
            first[open_] = np.where(over, np.minimum(group + 1, last[open_]), np.where(inside, group, first[open_]))
            last[open_] = np.where(over, last[open_], group)
            below[open_] = np.where(over, most, below[open_])
            above[open_] = np.where(over, above[open_], least)
        self._require(self._low_at, 8, first * GROUP, np.minimum((first + 1) * GROUP, self.num_keys))
        keys = self._array(self._low_at, "<u8")
        found = np.empty(len(low), np.int64)
        for group in np.unique(first).tolist():
            mine = np.flatnonzero(first == group)
            found[mine] = group * GROUP + np.searchsorted(keys[group * GROUP : (group + 1) * GROUP], low[mine])
        return found

    def _ends(self, groups: I64) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """The first and the last low word of groups."""
        stops = np.minimum((groups + 1) * GROUP, self.num_keys)
        self._require(self._low_at, 8, groups * GROUP, stops)
        keys = self._array(self._low_at, "<u8")
        return keys[groups * GROUP], keys[stops - 1]

    def _words(self, start: int, at: I64) -> npt.NDArray[np.uint64]:
        self._require(start, 8, at, at + 1)
        return self._array(start, "<u8")[at]

    def _rows(self, at: I64) -> I64:
        self._require(self._rows_at, 4, at, at + 1)
        rows = self._array(self._rows_at, "<u4")[at].astype(np.int64)
        if len(rows) and int(rows.max()) >= self.num_keys:
            raise CorruptSegmentError(f"{self._where}: its key index of {self.num_keys} keys points to row {int(rows.max())}; fetch or write the file again")
        return rows

    def _require(self, start: int, item_bytes: int, first: I64, stop: I64) -> None:
        self._pages.require(start + item_bytes * first, start + item_bytes * stop)

    def _array(self, start: int, dtype: str) -> npt.NDArray[Any]:
        """An array of the section; what was not required of it is anything."""
        return np.frombuffer(self._pages.require(np.zeros(0, np.int64), np.zeros(0, np.int64)), dtype, count=self.num_keys, offset=start)
