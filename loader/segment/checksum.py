"""CRC32C of chunks and footer pages: the native kernel where it is built, else the google-crc32c package."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np

from loader.kernels import native

Array = np.ndarray[Any, np.dtype[Any]]


@functools.cache
def _implementation() -> Callable[[Any], int]:
    library = native.load()
    if library is not None:
        return library.crc32c
    return lambda buffer: int(google_crc32c.value(bytes(buffer)))


def crc32c(buffer: Any) -> int:
    """CRC32C (Castagnoli) of a contiguous buffer of bytes."""
    return _implementation()(buffer)


def page_checksums(data: Any, page_bytes: int) -> Array:
    """CRC32C of each page of a contiguous buffer, uint32; the last page may be shorter."""
    content = np.frombuffer(data, np.uint8)
    starts = np.arange(0, content.size, page_bytes)
    return range_checksums(content, starts, np.minimum(content.size - starts, page_bytes))


def range_checksums(data: Array, offsets: Array, sizes: Array) -> Array:
    """CRC32C of ranges of bytes, uint32.

    Args:
        data: uint8, contiguous.
        offsets: int64, where each range begins.
        sizes: int64.
    """
    library = native.load()
    if library is not None:
        return library.crc32c_ranges(data, offsets, sizes)
    return np.array([crc32c(data[start : start + size]) for start, size in zip(offsets.tolist(), sizes.tolist(), strict=True)], np.uint32)
