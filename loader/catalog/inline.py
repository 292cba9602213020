"""The lake's storage as readers see it: stored files, and commits that were too small for a file and lie in the catalog itself."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from loader.catalog.connection import Database
from loader.catalog.kept import READ_CACHE_BYTES, Kept
from loader.catalog.records import INLINE_PREFIX
from loader.errors import NotFoundError, StorageError
from loader.storage import COALESCE_GAP_BYTES, MAX_REQUEST_BYTES, Buffer, Range, Storage, StoredObject

INLINE_CACHE_BYTES = 64 * 1024 * 1024
_CODECS = {b"HRZLZ41\0": pa.Codec("lz4_raw"), b"HRZSTD1\0": pa.Codec("zstd", 1)}  # by what such bytes begin with; zstd is what older ones wrote
_PACKED = b"HRZLZ41\0"


def pack(data: Buffer) -> bytes:
    """Bytes as they lie in the catalog: small segments are mostly the same headers again and again."""
    packed: bytes = _CODECS[_PACKED].compress(data, asbytes=True)
    return _PACKED + memoryview(data).nbytes.to_bytes(8, "little") + packed


def unpacked_bytes(stored: bytes) -> int | None:
    """Bytes of what was packed; None where nothing was."""
    return int.from_bytes(stored[8:16], "little") if stored[:8] in _CODECS else None


def unpack(stored: bytes) -> bytes:
    """The inverse of `pack`; what an older Headrace stored is as it was.

    Raises:
        StorageError: The bytes are not what their header says.
    """
    num_bytes = unpacked_bytes(stored)
    if num_bytes is None:
        return stored
    try:
        return bytes(_CODECS[stored[:8]].decompress(stored[16:], num_bytes, asbytes=True))
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{len(stored)} bytes that lie in the catalog do not unpack: {error}") from error


class LakeStorage(Storage):
    """A lake's files, with paths under `inline/` read from the catalog. Picklable through `reopen`, by the lake's location.

    Attributes:
        files: The files alone.
        catalog: What the inline paths are read from.
        kept: Footers and folded overlays that reads of any table have in memory.
    """

    def __init__(
        self, files: Storage, catalog: Database, reopen: tuple[Callable[..., Any], tuple[Any, ...]], *, read_cache_bytes: int = READ_CACHE_BYTES
    ) -> None:
        super().__init__(files.url)
        self.files = files
        self.catalog = catalog
        self.kept = Kept(read_cache_bytes)
        self._reopen = reopen
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cached_bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reopen

    def put(self, path: str, data: Buffer, *, sync: bool = True) -> None:
        if path.startswith(INLINE_PREFIX):
            raise StorageError(f"{path} lies in the catalog and is written by a commit alone")
        self.files.put(path, data, sync=sync)

    def size(self, path: str) -> int:
        return len(self._inline(path)) if path.startswith(INLINE_PREFIX) else self.files.size(path)

    def local_path(self, path: str) -> Path | None:
        return None if path.startswith(INLINE_PREFIX) else self.files.local_path(path)

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        return self.files.objects(prefix)

    def delete(self, paths: Iterable[str]) -> None:
        self.files.delete(path for path in paths if not path.startswith(INLINE_PREFIX))

    def read_ranges(
        self,
        path: str,
        ranges: Sequence[Range],
        *,
        coalesce_gap_bytes: int = COALESCE_GAP_BYTES,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> list[memoryview]:
        if not path.startswith(INLINE_PREFIX):
            return self.files.read_ranges(path, ranges, coalesce_gap_bytes=coalesce_gap_bytes, max_request_bytes=max_request_bytes)
        data = memoryview(self._inline(path))
        for offset, num_bytes in ranges:
            if offset < 0 or num_bytes < 0 or offset + num_bytes > data.nbytes:
                raise StorageError(f"{path} has {data.nbytes} bytes and was read at ({offset}, {num_bytes})")
        return [data[offset : offset + num_bytes] for offset, num_bytes in ranges]

    def forget(self) -> None:
        """Let go of rows, and bytes of the catalog, that are in memory."""
        self.kept.clear()
        with self._lock:
            self._cache.clear()
            self._cached_bytes = 0

    def _inline(self, path: str) -> bytes:
        self._check_process()
        with self._lock:
            if path in self._cache:
                self._cache.move_to_end(path)
                return self._cache[path]
        with self.catalog.read() as connection:
            row = connection.execute("select data from inline_data where path = ?", (path,)).fetchone()
        if row is None:
            raise NotFoundError(f"the catalog holds no {path}: it was deleted")
        data = unpack(bytes(row[0]))
        with self._lock:
            if path not in self._cache:
                self._cache[path] = data
                self._cached_bytes += len(data)
            while self._cached_bytes > INLINE_CACHE_BYTES:
                _, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= len(dropped)
        return data
