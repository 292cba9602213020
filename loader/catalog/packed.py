"""Named arrays of integers in one blob, each as a base and offsets of the fewest whole bytes. Owns that format; knows nothing of what is in it.

A header, one entry an array, then the arrays. A constant takes no bytes, row numbers two, random keys eight: reading is an addition over a view of the
blob, so that a million rows in a thousand blobs are arrays in milliseconds. Byte strings (paths) lie beside them, compressed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.errors import StorageError

MAGIC = b"HRP1"
_HEADER = struct.Struct("<4sI")
_ENTRY = struct.Struct("<16sqIIII")  # name, base, bytes an item (BYTES: compressed bytes), items (or bytes once inflated), offset, stored bytes
_BYTES = 0xFF
_WIDTHS = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}
CODEC = "zstd"

I64 = npt.NDArray[np.int64]


def pack(arrays: Mapping[str, I64], strings: Mapping[str, bytes] | None = None) -> bytes:
    """Put arrays, and byte strings beside them, into one blob."""
    entries, parts = [], []
    offset = _HEADER.size + _ENTRY.size * (len(arrays) + len(strings or {}))
    for name, values in arrays.items():
        base, width, data = _narrow(np.ascontiguousarray(values, np.int64))
        entries.append(_ENTRY.pack(name.encode(), base, width, len(values), offset, len(data)))
        parts.append(data)
        offset += len(data)
    for name, raw in (strings or {}).items():
        data = pa.compress(raw, codec=CODEC, asbytes=True)
        entries.append(_ENTRY.pack(name.encode(), 0, _BYTES, len(raw), offset, len(data)))
        parts.append(data)
        offset += len(data)
    return b"".join([_HEADER.pack(MAGIC, len(entries)), *entries, *parts])


def _narrow(values: I64) -> tuple[int, int, bytes]:
    """(base, bytes an item, the offsets from the base)."""
    if not len(values):
        return 0, 0, b""
    base = int(values.min())
    offsets = values.view(np.uint64) - np.uint64(base % 2**64)  # wraps: any two int64 are less than 2^64 apart
    most = int(offsets.max())
    width = next(width for width in (0, 1, 2, 4, 8) if most < 1 << (8 * width))
    return base, width, offsets.astype(_WIDTHS[width]).tobytes() if width else b""


class Packed:
    """What `pack` made, read where it lies.

    Raises:
        StorageError: It is something else, or cut short.
    """

    __slots__ = ("_entries", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        try:
            magic, count = _HEADER.unpack_from(data)
            if magic != MAGIC:
                raise ValueError(f"it begins with {magic!r}")
            entries = [_ENTRY.unpack_from(data, _HEADER.size + at * _ENTRY.size) for at in range(count)]
            if entries and entries[-1][4] + entries[-1][5] != len(data):
                raise ValueError(f"it has {len(data)} bytes")
        except (struct.error, ValueError) as error:
            raise StorageError(f"a pack of the catalog cannot be read ({error}): restore the catalog from a backup, or run `headrace doctor`") from error
        self._entries = {name.rstrip(b"\0").decode(): entry for name, *entry in entries}

    def __reduce__(self) -> tuple[type[Packed], tuple[bytes]]:
        return Packed, (self.data,)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def array(self, name: str) -> I64:
        """One array, in memory of its own."""
        base, width, count, offset, _ = self._entries[name]
        if not width:
            return np.full(count, base, np.int64)
        values = np.frombuffer(self.data, _WIDTHS[width], count, offset).astype(np.int64)
        values += base
        return values

    def count(self, name: str) -> int:
        """Items of an array."""
        return int(self._entries[name][2])

    def value(self, name: str, at: int) -> int:
        """One item of an array."""
        base, width, _, offset, _ = self._entries[name]
        if not width:
            return int(base)
        raw = int.from_bytes(self.data[offset + at * width : offset + (at + 1) * width], "little")
        total = base + raw
        return int(total - 2**64 if total >= 2**63 else total)

    def string(self, name: str) -> bytes:
        """One byte string, inflated."""
        _, _, size, offset, stored = self._entries[name]
        inflated: Any = pa.decompress(self.data[offset : offset + stored], decompressed_size=size, codec=CODEC, asbytes=True) if size else b""
        return bytes(inflated)
