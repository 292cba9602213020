"""Where a segment's bytes come from: a local file, memory, or a section of a stored file that somebody else wraps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from loader.errors import NotFoundError, TruncatedSegmentError


@runtime_checkable
class SegmentSource(Protocol):
    """Bytes of one segment, offsets from its first."""

    @property
    def num_bytes(self) -> int:
        """Length of the segment."""

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """The bytes of (offset, num_bytes) ranges."""


class FileSource:
    """A local file; reads are positional, so threads may share it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError(f"no segment {self.name}: check the path, or list the table's segments with `headrace describe`") from None
        self.num_bytes = os.fstat(self._descriptor).st_size

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        return [memoryview(self._read(offset, num_bytes)) for offset, num_bytes in ranges]

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on, without a copy between."""
        done = 0
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done:]], offset + done)
            if not count:
                raise TruncatedSegmentError(f"{self.name} ends at {offset + done:,}, before byte {offset + len(target):,}: it was cut off while open")
            done += count

    def _read(self, offset: int, num_bytes: int) -> bytes:
        parts, missing = [], num_bytes
        while missing:
            part = os.pread(self._descriptor, missing, offset + num_bytes - missing)
            if not part:
                raise TruncatedSegmentError(
                    f"{self.name} ends at {offset + num_bytes - missing:,}, before byte {offset + num_bytes:,}: it was cut off while open"
                )
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


class MemorySource:
    """A segment in memory; ranges are views of it."""

    name = "<memory>"

    def __init__(self, data: Any) -> None:
        self._data = memoryview(data).cast("B")
        self.num_bytes = len(self._data)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        return [self._data[offset : offset + num_bytes] for offset, num_bytes in ranges]


def fill(source: SegmentSource, ranges: Sequence[tuple[int, int]], starts: Sequence[int], slab: memoryview) -> None:
    """Read ranges to their places in a slab.

    Args:
        source: The segment.
        ranges: (offset, num_bytes).
        starts: Where each goes.
        slab: Writable bytes.
    """
    if isinstance(source, FileSource):
        for (offset, num_bytes), start in zip(ranges, starts, strict=True):
            source.read_into(offset, slab[start : start + num_bytes])
        return
    for (_, num_bytes), start, part in zip(ranges, starts, source.read_ranges(ranges), strict=True):
        if len(part) != num_bytes:
            raise TruncatedSegmentError(f"{source_name(source)}: {num_bytes:,} bytes could not be read whole; fetch or write the file again")
        slab[start : start + num_bytes] = part


def open_source(source: Any) -> SegmentSource:
    """A source for a path, bytes or anything that is a source already."""
    if isinstance(source, str | os.PathLike):
        return FileSource(source)
    if isinstance(source, SegmentSource):
        return source
    return MemorySource(source)


def source_name(source: SegmentSource) -> str:
    """What errors call it."""
    return str(getattr(source, "name", None) or getattr(source, "path", None) or "<segment>")
