"""CRC32C of chunks and footer pages: the native kernel where it is built, else the google-crc32c package."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from loader.kernels import native


@functools.cache
def _implementation() -> Callable[[Any], int]:
    library = native.load()
    if library is not None:
        return library.crc32c
    import google_crc32c  # not where the native library is: scripts/gpu_check runs on machines that lack it

    return lambda buffer: int(google_crc32c.value(bytes(buffer)))


def crc32c(buffer: Any) -> int:
    """CRC32C (Castagnoli) of a contiguous buffer of bytes."""
    return _implementation()(buffer)


def page_checksums(data: Any, page_bytes: int) -> np.ndarray[Any, np.dtype[Any]]:
    """CRC32C of each page of a contiguous buffer, uint32; the last page may be shorter."""
    library, content = native.load(), np.frombuffer(data, np.uint8)
    if library is not None:
        return library.crc32c_pages(content, page_bytes)
    return np.array([crc32c(content[at : at + page_bytes]) for at in range(0, content.size, page_bytes)], np.uint32)


def first_mismatch(data: np.ndarray[Any, np.dtype[Any]], starts: Any, sizes: Any, checksums: Any, *, threads: int = 1) -> int | None:
    """The first of some ranges of uint8 whose CRC32C is not the one stated, None where all agree.

    Args:
        data: uint8, contiguous.
        starts: int64 `[ranges]`.
        sizes: int64 `[ranges]`, bytes of each.
        checksums: uint32 `[ranges]`.
        threads: How many share the ranges.
    """
    library = native.load()
    if library is not None:
        return library.first_mismatch(data, np.ascontiguousarray(starts), np.ascontiguousarray(sizes), np.ascontiguousarray(checksums), threads)
    ranges = enumerate(zip(starts.tolist(), sizes.tolist(), checksums.tolist(), strict=True))
    return next((number for number, (start, size, stated) in ranges if crc32c(data[start : start + size]) != stated), None)
