"""Footer sections read page by page: a page is fetched and its checksum verified when something in it is first asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loader.errors import CorruptSegmentError
from loader.kernels.native_pages import PAGE_READ
from loader.segment.checksum import crc32c, first_mismatch
from loader.segment.layout import SECTION_PAGE_BYTES, Section

Array = np.ndarray[Any, np.dtype[Any]]
_FEW_RANGES = 256  # are collected one by one
ReadRanges = Callable[[Sequence[tuple[int, int]]], list[memoryview]]


class SectionPages:
    """One section; `bytes` of it are valid once `require` or `all` has asked for them."""

    def __init__(self, entry: Any, read: ReadRanges, where: str) -> None:
        """
        Args:
            entry: Its directory record, bounds already checked.
            read: Fetches ranges of the segment.
            where: File name for errors.
        """
        self._read, self._where = read, where
        self.kind, _, self._offset, self.num_bytes, self.count, self._checksums_offset, _ = entry.item()
        self._is_whole = False

    @functools.cached_property
    def _loaded(self) -> Array:
        return np.zeros(-(-self.num_bytes // SECTION_PAGE_BYTES), np.bool_)

    @functools.cached_property
    def _content(self) -> Array:
        return np.empty(self.num_bytes, np.uint8)

    def all(self) -> Array:
        """The whole section, uint8."""
        if not self._is_whole:
            self._load(np.flatnonzero(~self._loaded))
            self._is_whole = True
        return self._content

    def records(self, dtype: np.dtype[Any], rows: Array | None = None) -> Array:
        """The section as records of `dtype`; only the pages of `rows` are read if those are given, the others hold anything."""
        if self.num_bytes != self.count * dtype.itemsize:
            raise CorruptSegmentError(f"{self._where}: section {self._name()} has {self.num_bytes:,} bytes for {self.count:,} records of {dtype.itemsize}")
        if rows is None:
            return self.all().view(dtype)
        first = rows.astype(np.int64) * dtype.itemsize // SECTION_PAGE_BYTES
        last = ((rows.astype(np.int64) + 1) * dtype.itemsize - 1) // SECTION_PAGE_BYTES
        pages = np.unique(np.concatenate([first, last]))
        self._load(pages[~self._loaded[pages]])
        return self._content.view(dtype)

    def require(self, starts: Array, stops: Array) -> memoryview:
        """Load the pages of many byte ranges at once; the section's bytes, valid in those ranges.

        Raises:
            CorruptSegmentError: A range leaves the section, or a checksum does not match.
        """
        if starts.size and (int(starts.min()) < 0 or int(stops.max()) > self.num_bytes or (starts > stops).any()):
            raise CorruptSegmentError(f"{self._where}: ranges lie outside of section {self._name()}")
        self._load(self.missing(starts, stops))
        return self._content.data

    def missing(self, starts: Array, stops: Array) -> Array:
        """The pages of byte ranges, inside of the section, that have not been read: int64, rising."""
        first, last = starts // SECTION_PAGE_BYTES, -(-stops // SECTION_PAGE_BYTES)
        if starts.size < _FEW_RANGES:
            pages = np.array(sorted({page for start, stop in zip(first.tolist(), last.tolist(), strict=True) for page in range(start, stop)}), np.int64)
            return pages[~self._loaded[pages]]
        steps = np.zeros(self._loaded.size + 1, np.int64)
        np.add.at(steps, first, 1)
        np.add.at(steps, np.maximum(first, last), -1)
        return np.flatnonzero((np.cumsum(steps[:-1]) > 0) & ~self._loaded)

    def load(self, pages: Array) -> None:
        """Read pages by number; several threads may read different ones."""
        self._load(pages)

    @functools.cached_property
    def _checksums(self) -> Array:
        return np.frombuffer(self._read([(self._checksums_offset, 4 * self._loaded.size)])[0], "<u4")

    def reads(self, pages: Array, file: int, start: int) -> Array:
        """PAGE_READ records of pages, for a segment that begins at a byte of an open file; `loaded` says afterwards that they were read."""
        found = np.zeros(pages.size, PAGE_READ)
        at = pages * SECTION_PAGE_BYTES
        found["offset"], found["target"] = start + self._offset + at, self._content.ctypes.data + at
        found["num_bytes"] = np.minimum(self.num_bytes - at, SECTION_PAGE_BYTES)
        found["file"], found["checksum"] = file, self._checksums[pages]
        return found

    def loaded(self, pages: Array) -> None:
        """These pages were read, and their checksums match."""
        self._loaded[pages] = True

    def forget(self) -> None:
        """Give the memory of all pages back; they are read again when they are asked for."""
        self._is_whole = False
        for name in ("_loaded", "_content"):
            self.__dict__.pop(name, None)

    @property
    def content(self) -> Array:
        """The section, uint8; anything where its pages have not been read."""
        return self._content

    @property
    def loaded_bytes(self) -> int:
        """Of the pages that were read."""
        return self.num_bytes if self._is_whole else int(np.count_nonzero(self._loaded)) * SECTION_PAGE_BYTES

    def slice(self, start: int, stop: int) -> memoryview:
        """Bytes `start` to `stop` of the section."""
        if not 0 <= start <= stop <= self.num_bytes:
            raise CorruptSegmentError(f"{self._where}: bytes {start:,} to {stop:,} lie outside of section {self._name()}")
        pages = np.arange(start // SECTION_PAGE_BYTES, -(-stop // SECTION_PAGE_BYTES))
        self._load(pages[~self._loaded[pages]])
        return self._content.data[start:stop]

    def _name(self) -> str:
        return Section(self.kind).name if self.kind in Section.__members__.values() else str(self.kind)

    def _load(self, pages: Array) -> None:
        if not pages.size:
            return
        # neighbours become one range
        first, last = int(pages[0]), int(pages[-1])
        runs = [(first, last + 1)]
        if last - first >= pages.size:
            runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1)]
        spans = [(first * SECTION_PAGE_BYTES, min(last * SECTION_PAGE_BYTES, self.num_bytes)) for first, last in runs]
        ranges = [(self._offset + start, stop - start) for start, stop in spans]
        ranges += [(self._checksums_offset + 4 * first, 4 * (last - first)) for first, last in runs]
        parts = self._read(ranges)
        for (start, stop), part in zip(spans, parts[: len(spans)], strict=True):
            self._content[start:stop] = np.frombuffer(part, np.uint8)
        for (first, last), checksums in zip(runs, parts[len(spans) :], strict=True):
            self._compare(first, last, np.frombuffer(checksums, "<u4"))
        self._loaded[pages] = True

    def _compare(self, first: int, last: int, checksums: Array) -> None:
        bad: int | None
        if last - first == 1:
            start = first * SECTION_PAGE_BYTES
            bad = None if crc32c(self._content[start : start + SECTION_PAGE_BYTES]) == int(checksums[0]) else 0
        else:
            starts = np.arange(first, last) * SECTION_PAGE_BYTES
            bad = first_mismatch(self._content, starts, np.minimum(self.num_bytes - starts, SECTION_PAGE_BYTES), checksums)
        if bad is not None:
            page = first + bad
            raise CorruptSegmentError(
                f"{self._where}: checksum of page {page} of section {self._name()} at offset {self._offset + page * SECTION_PAGE_BYTES:,} does not match: "
                "the bytes changed since they were written; fetch the file again or restore it"
            )
