"""Checks of NumPy arrays before their addresses are passed to native code."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
VECTOR = 1024
VECTOR_META = np.dtype([("word_offset", "<u4"), ("base", "<u4"), ("width", "u1"), ("reserved", "u1"), ("num_exceptions", "<u2")])


def address(array: Array, name: str, *, writable: bool = False, alignment: int | None = None) -> int:
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous, got strides {array.strides}: pass np.ascontiguousarray({name})")
    if writable and not array.flags.writeable:
        raise ValueError(f"{name} is read-only: pass an array that may be written")
    # the interface takes a third of the time, but describes all fields of records
    address: int = array.__array_interface__["data"][0] if array.dtype.names is None else array.ctypes.data
    alignment = alignment or array.dtype.itemsize
    if array.size and address % alignment:
        raise ValueError(f"{name} starts at an address that is not a multiple of {alignment} bytes: copy it into a fresh array")
    return address


def check_dtype(array: Array, name: str, *allowed: str) -> None:
    if array.dtype.str not in allowed:
        raise ValueError(f"{name} must have dtype {' or '.join(allowed)}, got {array.dtype.str}")


def item_bytes(array: Array, name: str) -> int:
    if array.dtype.itemsize not in (1, 2, 4, 8) or array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional with items of 1, 2, 4 or 8 bytes, got {array.dtype} of shape {array.shape}")
    return array.dtype.itemsize
