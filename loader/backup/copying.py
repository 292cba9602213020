"""Copying objects between two places, several at a time within a memory bound; what is there already is compared, and every copy is read back."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from loader import failpoints
from loader.errors import AlreadyExistsError, StorageError
from loader.segment.checksum import crc32c
from loader.storage import Storage

THREADS = 8
MEMORY_BYTES = 512 * 1024 * 1024


def copy_object(source: Storage, path: str, target: Storage, target_path: str, *, checksum: int | None, least_bytes: int, failpoint: str) -> tuple[int, int]:
    """Copy one object, unless it is there; returns its length and CRC32C.

    Args:
        source, path: What to copy.
        target, target_path: Where to.
        checksum: Its CRC32C where it is known: then what is there already is not read again from the source.
        least_bytes: How long it must be.
        failpoint: Passed after each.

    Raises:
        NotFoundError: It is not at the source.
        StorageError: It is cut off or damaged, or something else is at the target.
    """
    if checksum is not None and target.exists(target_path):
        there = target.read(target_path)
        if crc32c(there) == checksum:
            return there.nbytes, checksum
        raise _differs(target, target_path)
    data = source.read(path)
    if data.nbytes < least_bytes:
        raise StorageError(f"{source.url}/{path} has {data.nbytes:,} bytes and {least_bytes:,} are counted on: it was cut off (see headrace doctor)")
    own = crc32c(data)
    if checksum not in (None, own):
        raise StorageError(f"{source.url}/{path} is damaged: its checksum does not match; restore another generation, or that file from elsewhere")
    try:
        target.put(target_path, data)
    except AlreadyExistsError:
        pass  # by a run that was stopped, or is at work beside this one: compared like a copy of our own
    if crc32c(target.read(target_path)) != own:
        raise _differs(target, target_path)
    failpoints.hit(failpoint)
    return data.nbytes, own


def _differs(target: Storage, path: str) -> StorageError:
    return StorageError(f"{target.url}/{path} is not the object that was copied: its checksum does not match; move it away and run the same command again")


def in_bounds(tasks: Iterable[tuple[int, Callable[[], tuple[int, int]]]]) -> Iterator[tuple[int, int]]:
    """Run (bytes it takes, task) side by side within MEMORY_BYTES; results in order. The first error ends it, once what runs is done."""
    waiting: collections.deque[tuple[int, Future[tuple[int, int]]]] = collections.deque()
    held = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="headrace-copy") as pool:
        for num_bytes, task in tasks:
            while waiting and (held + num_bytes > MEMORY_BYTES or len(waiting) >= 4 * THREADS):
                size, first = waiting.popleft()
                yield first.result()
                held -= size
            waiting.append((num_bytes, pool.submit(task)))
            held += num_bytes
        while waiting:
            yield waiting.popleft()[1].result()
