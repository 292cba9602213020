"""CRC32C of chunks and footer pages: the native kernel where it is built, else the google-crc32c package."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import google_crc32c

from loader.kernels import native


@functools.cache
def _implementation() -> Callable[[Any], int]:
    library = native.load()
    if library is not None:
        return library.crc32c
    return lambda buffer: int(google_crc32c.value(bytes(buffer)))


def crc32c(buffer: Any) -> int:
    """CRC32C (Castagnoli) of a contiguous buffer of bytes."""
    return _implementation()(buffer)
