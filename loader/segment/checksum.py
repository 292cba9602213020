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
