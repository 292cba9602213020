"""Object storage: local folders, memory, S3, GCS, Azure. Owns paths, durable writes and coalesced range reads; knows nothing of segments.

Local folders are read and written with the operating system's own calls, because a local write has to be synced; every other store
goes through `loader.object_store`. A path is written once: `put` refuses one that exists. Nothing half-written is ever visible under its final name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import itertools
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from loader import failpoints, object_store
from loader.errors import AlreadyExistsError, ForkedProcessError, NotFoundError, StorageError, StorageFullError, TruncatedSegmentError

Range = tuple[int, int]
Buffer = bytes | bytearray | memoryview
COALESCE_GAP_BYTES = 64 * 1024
MAX_REQUEST_BYTES = 32 * 1024 * 1024
SCATTERED_BYTES = 16 * 1024  # reads no larger than this are of pages here and there
MAX_VECTORS = 1024  # buffers of one system call (IOV_MAX)
TEMPORARY_SUFFIX = ".tmp"
_ADVISE = getattr(os, "posix_fadvise", None)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Source(Protocol):
    """What a segment reader reads from: a stored range of bytes."""

    @property
    def num_bytes(self) -> int: ...

    def read_ranges(self, ranges: Sequence[Range]) -> list[memoryview]: ...


def check_path(path: str) -> str:
    """Return `path` if it is a plain relative path, so that no path that came out of data leaves the lake's folder.

    Raises:
        StorageError: It is absolute, empty, or has a `.`, `..`, empty or backslashed part.
    """
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise StorageError(f"path {path!r} is not a plain relative path: a lake's files lie inside its own folder")
    return path


def coalesce(ranges: Sequence[Range], *, gap_bytes: int, max_request_bytes: int) -> list[tuple[int, int, list[int]]]:
    """Group byte ranges into requests: a pure planner.

    Args:
        ranges: (offset, num_bytes) pairs in any order.
        gap_bytes: Neighbours this close are read together; the bytes between them are read and dropped.
        max_request_bytes: No request that joins ranges grows past this.

    Returns:
        (start, stop, indices into `ranges`) of each request, by start.
    """
    requests: list[tuple[int, int, list[int]]] = []
    for index in sorted(range(len(ranges)), key=lambda i: ranges[i]):
        start, stop = ranges[index][0], ranges[index][0] + ranges[index][1]
        if requests:
            first, last, members = requests[-1]
            joined = max(last, stop)
            if start - last <= gap_bytes and joined - first <= max_request_bytes:
                members.append(index)
                requests[-1] = (first, joined, members)
                continue
        requests.append((start, stop, [index]))
    return requests


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One object of a listing: its path, its size, and when it was written."""

    path: str
    num_bytes: int
    modified: datetime.datetime


class Storage:
    """A folder of one object store. Thread-safe; picklable by its url. Open one with `Storage.open`.

    Attributes:
        url: Where it is: an absolute `file://` url, `memory://name`, `s3://bucket/prefix`…
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._pid = os.getpid()

    @staticmethod
    def open(url: str | os.PathLike[str]) -> Storage:
        """Open a local folder (a path or a `file://` url), `memory://name`, or any url that obstore knows."""
        text = os.fspath(url)
        scheme = text.split("://", 1)[0]
        if "://" not in text:
            return LocalStorage(Path(text).expanduser().absolute())
        if scheme == "file":
            parts = urlsplit(text)
            if parts.netloc not in ("", "localhost") or not parts.path:
                raise ValueError(f"{text!r} names a host, not a folder: write file:///absolute/path, or a plain path")
            return LocalStorage(Path(unquote(parts.path)))
        return ObjectStorage(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage.open, (self.url,)

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def put(self, path: str, data: Buffer, *, sync: bool = True) -> None:
        """Write a new object, all or nothing.

        Args:
            path: Relative to the storage's url.
            data: Its bytes.
            sync: On local disk, flush the file and its folder before returning, so that it survives a loss of power.

        Raises:
            AlreadyExistsError: Something is at `path`.
            StorageFullError: No space left; nothing is visible at `path`.
            StorageError: The store refused for another reason.
        """
        raise NotImplementedError

    def size(self, path: str) -> int:
        """Bytes of the object at `path`; NotFoundError if there is none."""
        raise NotImplementedError

    def exists(self, path: str) -> bool:
        try:
            self.size(path)
        except NotFoundError:
            return False
        return True

    def delete(self, paths: Iterable[str]) -> None:
        """Delete the objects; one that is not there is no error."""
        raise NotImplementedError

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """What is stored under a folder, in any order: for reports. What is deleted is never decided by a listing."""
        raise NotImplementedError

    def _read(self, path: str, requests: Sequence[Range]) -> list[memoryview]:
        """Bytes of each (start, stop), each complete."""
        raise NotImplementedError

    def read_ranges(
        self,
        path: str,
        ranges: Sequence[Range],
        *,
        coalesce_gap_bytes: int = COALESCE_GAP_BYTES,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> list[memoryview]:
        """Read byte ranges of one object, near ones together.

        Args:
            path: The object.
            ranges: (offset, num_bytes) pairs, in any order.
            coalesce_gap_bytes: Largest hole that is read through.
            max_request_bytes: Largest request that joins ranges.

        Returns:
            The bytes of each range, in the order given; ranges that were read together share one buffer.

        Raises:
            NotFoundError: Nothing is at `path`.
            StorageError: The object ends before a range does, or the store refused.
        """
        self._check_process()
        if any(offset < 0 or size < 0 for offset, size in ranges):
            raise StorageError(f"negative range in a read of {path}: {[r for r in ranges if min(r) < 0][:3]}")
        requests = coalesce(ranges, gap_bytes=coalesce_gap_bytes, max_request_bytes=max_request_bytes)
        buffers = self._read(check_path(path), [(start, stop) for start, stop, _ in requests])
        found: list[memoryview] = [memoryview(b"")] * len(ranges)
        for (start, _, members), buffer in zip(requests, buffers, strict=True):
            for index in members:
                at = ranges[index][0] - start
                found[index] = buffer[at : at + ranges[index][1]]
        return found

    def read_ranges_into(
        self,
        path: str,
        ranges: Sequence[Range],
        targets: Sequence[npt.NDArray[np.uint8]],
        *,
        coalesce_gap_bytes: int = COALESCE_GAP_BYTES,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        """As `read_ranges`, into contiguous memory that is there already; local files without a copy between."""
        parts = self.read_ranges(path, ranges, coalesce_gap_bytes=coalesce_gap_bytes, max_request_bytes=max_request_bytes)
        for target, part in zip(targets, parts, strict=True):
            target[:] = np.frombuffer(part, np.uint8)

    def read(self, path: str) -> memoryview:
        """The whole object."""
        return self.read_ranges(path, [(0, self.size(path))])[0]

    def local_path(self, path: str) -> Path | None:
        """The file of an object, where it is one of this machine's."""
        return None

    def section(self, path: str, offset: int, num_bytes: int) -> StoredSection:
        """A part of one object as a source for a segment reader."""
        return StoredSection(self, path, offset, num_bytes)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ForkedProcessError(
                f"storage {self.url} was opened in process {self._pid} and is used in its forked child {os.getpid()}: "
                "open it there, or start workers with spawn"
            )


class StoredSection:
    """A byte range of one stored object; offsets count from its first byte."""

    def __init__(self, storage: Storage, path: str, offset: int, num_bytes: int) -> None:
        self.storage = storage
        self.path = path
        self.offset = offset
        self.num_bytes = num_bytes

    def read_ranges(self, ranges: Sequence[Range]) -> list[memoryview]:
        for start, size in ranges:
            if start < 0 or size < 0 or start + size > self.num_bytes:
                raise StorageError(f"range ({start}, {size}) leaves the section of {self.num_bytes} bytes at {self.offset} of {self.path}")
        return self.storage.read_ranges(self.path, [(self.offset + start, size) for start, size in ranges])

    def local_place(self) -> tuple[Path, int] | None:
        """The file that it lies in and its first byte there, where that is a file of this machine."""
        path = self.storage.local_path(self.path)
        return None if path is None else (path, self.offset)

    def __repr__(self) -> str:
        return f"{self.path}[{self.offset}:{self.offset + self.num_bytes}]"


class LocalStorage(Storage):
    """A local folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.absolute().as_uri())
        self.folder = folder.absolute()

    def put(self, path: str, data: Buffer, *, sync: bool = True) -> None:
        self._check_process()
        target = self.folder / check_path(path)
        temporary = target.with_name(target.name + TEMPORARY_SUFFIX)
        try:
            make_folders(target.parent, sync=sync)
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()  # left by a writer that died with the same name
            try:
                write_file(temporary, data, sync=sync)
                failpoints.hit("storage.temporary_written")
                _link_if_absent(temporary, target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
            failpoints.hit("storage.linked")
            if sync:
                sync_folder(target.parent)
        except FileExistsError as error:
            raise AlreadyExistsError(f"{target} is already there: a path is written once") from error
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise StorageFullError(full_message(target, memoryview(data).nbytes)) from error
            raise StorageError(f"cannot write {target} ({memoryview(data).nbytes:,} bytes): {error.strerror or error}") from error

    def local_path(self, path: str) -> Path | None:
        self._check_process()
        return self.folder / check_path(path)

    def size(self, path: str) -> int:
        target = self.folder / check_path(path)
        try:
            return target.stat().st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"no file {target}") from error
        except OSError as error:
            raise StorageError(f"cannot read {target}: {error.strerror or error}") from error

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            try:
                (self.folder / check_path(path)).unlink()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise StorageError(f"cannot delete {self.folder / path}: {error.strerror or error}") from error

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        self._check_process()
        for target in (self.folder / check_path(prefix.rstrip("/"))).rglob("*"):
            try:
                found = target.stat()
            except FileNotFoundError:
                continue  # it went while the folder was read
            if stat.S_ISREG(found.st_mode):
                modified = datetime.datetime.fromtimestamp(found.st_mtime, datetime.UTC)
                yield StoredObject(path=target.relative_to(self.folder).as_posix(), num_bytes=found.st_size, modified=modified)

    def _read(self, path: str, requests: Sequence[Range]) -> list[memoryview]:
        with self._opened(path) as (file, target):
            if _ADVISE is not None and all(stop - start <= SCATTERED_BYTES for start, stop in requests):
                _ADVISE(file, 0, 0, os.POSIX_FADV_RANDOM)  # else a page is read with the 31 behind it
            return [_read_exactly(file, target, start, stop) for start, stop in requests]

    def read_ranges_into(
        self,
        path: str,
        ranges: Sequence[Range],
        targets: Sequence[npt.NDArray[np.uint8]],
        *,
        coalesce_gap_bytes: int = COALESCE_GAP_BYTES,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        order = sorted(range(len(ranges)), key=lambda i: ranges[i])
        if any(sum(ranges[a]) > ranges[b][0] for a, b in itertools.pairwise(order)):  # overlaps: only a copy can give both their bytes
            super().read_ranges_into(path, ranges, targets, coalesce_gap_bytes=coalesce_gap_bytes, max_request_bytes=max_request_bytes)
            return
        self._check_process()
        with self._opened(check_path(path)) as (file, target):
            for start, stop, members in coalesce(ranges, gap_bytes=coalesce_gap_bytes, max_request_bytes=max_request_bytes):
                _read_scattered(file, target, start, stop, [(ranges[i][0], targets[i].data) for i in members], coalesce_gap_bytes)

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[tuple[int, Path]]:
        target = self.folder / path
        try:
            file = os.open(target, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"no file {target}: it was deleted, or the lake was moved without it") from error
        except OSError as error:
            raise StorageError(f"cannot read {target}: {error.strerror or error}") from error
        try:
            yield file, target
        except OSError as error:
            raise StorageError(f"cannot read {target}: {error.strerror or error}") from error
        finally:
            os.close(file)


class ObjectStorage(Storage):
    """Any other store; see `loader.object_store`."""

    def __init__(self, url: str) -> None:
        super().__init__(url.rstrip("/"))
        self._store = object_store.open_store(url)
        self._uploads = object_store.open_store(url, object_store.PUT_SECONDS)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.url.startswith("memory:"):
            raise TypeError(f"{self.url} lives in this process alone and cannot be sent to another: use a folder")
        return super().__reduce__()

    def put(self, path: str, data: Buffer, *, sync: bool = True) -> None:
        self._check_process()
        object_store.put_new(self._uploads, check_path(path), bytes(data), f"{self.url}/{path}")

    def size(self, path: str) -> int:
        self._check_process()
        return object_store.size(self._store, check_path(path), f"{self.url}/{path}")

    def delete(self, paths: Iterable[str]) -> None:
        self._check_process()
        for path in paths:
            object_store.delete(self._store, check_path(path), f"{self.url}/{path}")

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        self._check_process()
        for path, num_bytes, modified in object_store.listing(self._store, check_path(prefix.rstrip("/")), f"{self.url}/{prefix}"):
            yield StoredObject(path=path, num_bytes=num_bytes, modified=modified)

    def _read(self, path: str, requests: Sequence[Range]) -> list[memoryview]:
        return object_store.ranges(self._store, path, requests, f"{self.url}/{path}")


def full_message(path: str | Path, num_bytes: int | None) -> str:
    """What to say when `num_bytes` (None: not known) for `path` did not fit."""
    folder = Path(path).parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    wanted = "" if num_bytes is None else f"{num_bytes:,} bytes wanted, "
    return f"no space left to write {path}: {wanted}{free:,} free; nothing was committed, free some space and try again"


def write_file(path: Path, data: Buffer, *, sync: bool) -> None:
    """Write a new file completely, flushed to disk if asked; OSError as the system raises it."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        left = memoryview(data).cast("B")
        while left.nbytes:
            left = left[os.write(file, left[: 1 << 30]) :]
        if sync:
            os.fsync(file)
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def make_folders(folder: Path, *, sync: bool) -> None:
    """Make a folder and those above it; their entries flushed to disk if asked."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        if sync:
            sync_folder(new.parent)


def _link_if_absent(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(target)) from error
        temporary.rename(target)  # a file system without hard links; names are unique to their writer


def _cut_off(path: str, end: int, wanted: int) -> TruncatedSegmentError:
    return TruncatedSegmentError(
        f"{path} ends at byte {end:,}, before byte {wanted:,} that the catalog counts on: the file was cut off, restore it from a backup"
    )


def _read_scattered(file: int, target: Path, start: int, stop: int, parts: Sequence[tuple[int, memoryview]], gap_bytes: int) -> None:
    """Read [start, stop) with its parts, in order and apart from each other, straight into their places."""
    hole, at, buffers = memoryview(bytearray(gap_bytes)), start, []
    for offset, place in parts:
        buffers += [hole[: offset - at], place]
        at = offset + place.nbytes
    left = [buffer for buffer in buffers if buffer.nbytes]
    at = start
    while left:
        count = os.preadv(file, left[:MAX_VECTORS], at)
        if not count:
            raise _cut_off(str(target), at, stop)
        at += count
        while left and count >= left[0].nbytes:
            count -= left.pop(0).nbytes
        if count:
            left[0] = left[0][count:]


def _read_exactly(file: int, path: Path, start: int, stop: int) -> memoryview:
    buffer = bytearray(stop - start)
    view = memoryview(buffer)
    done = 0
    while done < len(buffer):
        count = os.preadv(file, [view[done:]], start + done)
        if count == 0:
            raise _cut_off(str(path), start + done, stop)
        done += count
    return view
