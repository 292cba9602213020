"""Pages of local files read natively, many at a time. Owns the C record and the checks of arrays; which pages is the caller's."""

from __future__ import annotations

import ctypes
import enum
from typing import Any

import numpy as np

from loader.kernels.arrays import Array, address

PAGE_SIGNATURES: dict[str, tuple[list[Any], Any]] = {"headrace_read_pages": ([ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32], ctypes.c_uint64)}
PAGE_READ = np.dtype([("offset", "<i8"), ("target", "<u8"), ("num_bytes", "<u8"), ("file", "<i4"), ("checksum", "<u4")])


class PageOutcome(enum.IntEnum):
    """What became of a page."""

    DONE = 0
    CUT_OFF = 1  # the file ends before the page does
    CHANGED = 2  # its checksum does not match
    FAILED = 3  # the operating system refused


class PageMethods:
    """Page reads, for a class that holds the library as `_library`."""

    _library: Any

    def read_pages(self, reads: Array, threads: int) -> tuple[int, PageOutcome] | None:
        """Read pages and compare their checksums.

        Args:
            reads: PAGE_READ records: where in which open file, to which address, how many bytes, and their CRC32C. The memory outlives the call.
            threads: How many read at the same time.

        Returns:
            The first page that is not as it should be and why; None where all are.
        """
        if reads.dtype != PAGE_READ:
            raise ValueError(f"reads must be PAGE_READ records, got {reads.dtype}")
        bad: int = self._library.headrace_read_pages(address(reads, "reads", alignment=8), reads.size, max(threads, 1))
        return None if not bad else ((bad - 1) >> 2, PageOutcome((bad - 1) & 3))
