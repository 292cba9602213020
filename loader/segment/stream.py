"""A segment block by block, in memory that does not grow with the file.

While a block is in use its encoded bytes and its arena are alive, nothing else: less than two blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from loader.decode.result import DecodedBlock
from loader.segment.reader import Allocate, SegmentReader

Array = np.ndarray[Any, np.dtype[Any]]


class Arena:
    """One piece of memory that every block decodes into: a block is valid until the next one is asked for."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def __call__(self, num_bytes: int) -> Array:
        if self._memory.size < num_bytes:
            self._memory = np.empty(0, np.uint8)  # let go of the old before there is a new
            self._memory = np.empty(num_bytes, np.uint8)
        return self._memory


def stream_blocks(
    reader: SegmentReader,
    columns: Sequence[str | int] | None = None,
    *,
    blocks: Sequence[int] | None = None,
    verify: bool | None = None,
    threads: int = 1,
    allocate: Allocate | None = None,
) -> Iterator[tuple[int, DecodedBlock]]:
    """Decode blocks one after another.

    Args:
        reader: The segment.
        columns: Names or ids, in the order wanted; default all, in the order they were written.
        blocks: Which blocks, in the order wanted; default all.
        verify: Compare checksums; default as the reader was opened.
        threads: Of the native executor.
        allocate: Where arenas come from. Default one arena for all: a block is valid until the next one is asked for. `BufferPool` memory lives for as
            long as somebody holds it.

    Yields:
        (number of the block, its columns).

    Raises:
        ColumnNotFoundError: A column is not in the segment.
        CorruptSegmentError: A checksum or the structure does not hold.
    """
    ids = reader.resolve(columns)
    allocate = Arena() if allocate is None else allocate
    for block in range(reader.num_blocks) if blocks is None else blocks:
        yield block, reader.read_block(block, ids, verify=verify, threads=threads, allocate=allocate)
