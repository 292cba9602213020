"""The chunks that blocks of a segment share: which columns look up which dictionary, and its bytes, read and compared once for all blocks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loader.errors import CorruptSegmentError
from loader.segment.checksum import crc32c
from loader.segment.layout import ALIGNMENT, CHUNK, SHARED_CHUNK
from loader.segment.pages import SectionPages

Array = np.ndarray[Any, np.dtype[Any]]
CACHE_BYTES = 64 << 20  # of encoded dictionaries that an open segment keeps


def behind_columns(numbers: Array) -> Array | None:
    """Numbers of dictionaries as the chunks of a request where they come after those of the columns; None where no column has one."""
    return np.where(numbers >= 0, numbers + numbers.size, -1) if (numbers >= 0).any() else None


class SharedChunks:
    """The shared chunks of a segment; safe to share between threads."""

    def __init__(
        self, pages: SectionPages | None, num_columns: int, num_bytes: int, name: str, read: Callable[[Sequence[tuple[int, int]]], list[memoryview]]
    ) -> None:
        """
        Args:
            pages: The SHARED_CHUNKS section, None where there is none.
            num_columns: Of the segment.
            num_bytes: Of the segment.
            name: Of the file, for errors.
            read: Reads ranges of the segment.

        Raises:
            CorruptSegmentError: The section does not hold together.
        """
        self._name, self._read = name, read
        self._records = np.zeros(0, SHARED_CHUNK) if pages is None else pages.records(SHARED_CHUNK)
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, tuple[Array, bool]] = OrderedDict()  # by offset: bytes, and whether their checksum was compared
        columns, ends = self._records["column_index"].astype(np.int64), self._records["offset"] + self._records["num_bytes"]
        outside = (ends > num_bytes) | (ends < self._records["offset"]) | (self._records["offset"] % ALIGNMENT != 0) | (columns >= num_columns)
        if (np.diff(columns) <= 0).any() or outside.any():
            raise CorruptSegmentError(f"{name}: the SHARED_CHUNKS section does not hold together; fetch or write the file again")

    def of(self, rows: Array) -> tuple[Array, Array]:
        """The dictionaries that columns look up.

        Args:
            rows: int64, rows of COLUMNS.

        Returns:
            CHUNK records, each dictionary once; and for each of `rows` the number of its dictionary among them, -1 where it has none (int64).
        """
        numbers = np.full(rows.size, -1, np.int64)
        if not self._records.size:
            return np.zeros(0, CHUNK), numbers
        known = self._records["column_index"].astype(np.int64)
        at = np.minimum(np.searchsorted(known, rows), known.size - 1)
        has = known[at] == rows
        # columns may look up one chunk
        _, first, which = np.unique(self._records["offset"][at[has]], return_index=True, return_inverse=True)
        numbers[has] = which
        found = np.zeros(first.size, CHUNK)
        for field in CHUNK.names or ():
            found[field] = self._records[field][at[has][first]]
        return found, numbers

    def bytes_of(self, rows: Array) -> Array:
        """Bytes of the dictionary of each column, int64; 0 where it has none."""
        found, numbers = self.of(rows)
        sizes = np.append(found["num_bytes"].astype(np.int64), 0)
        return np.asarray(sizes[numbers])

    def data(self, records: Array, *, verify: bool) -> list[Array]:
        """The bytes of dictionaries, uint8 each; what was read before is not read again.

        Args:
            records: From `of`.
            verify: Compare their checksums, unless that was done before.

        Raises:
            CorruptSegmentError: A checksum does not match.
        """
        with self._lock:
            known = {offset: self._cache[offset] for offset in records["offset"].tolist() if offset in self._cache}
        missing = [record for record in records if int(record["offset"]) not in known]
        parts = self._read([(int(record["offset"]), int(record["num_bytes"])) for record in missing]) if missing else []
        for record, part in zip(missing, parts, strict=True):
            known[int(record["offset"])] = (np.frombuffer(part, np.uint8), False)
        for record in records:
            offset = int(record["offset"])
            data, compared = known[offset]
            if verify and not compared:
                if crc32c(data) != int(record["checksum"]):
                    raise CorruptSegmentError(
                        f"{self._name}: the dictionary that blocks share, at offset {offset:,}, does not match its checksum: the bytes changed since they were "
                        "written; fetch the file again or restore it"
                    )
                known[offset] = (data, True)
        with self._lock:
            for offset, (data, compared) in known.items():
                self._cache[offset] = (data, compared or self._cache.get(offset, (data, False))[1])
                self._cache.move_to_end(offset)
            while len(self._cache) > 1 and sum(data.size for data, _ in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        return [known[offset][0] for offset in records["offset"].tolist()]
