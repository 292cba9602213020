"""What the catalog knows of the values of a column in a segment: a record of 32 bytes beside the segment's row, and arrays over the segments of a pack.

Owns both forms. Ranges are of the segment as it was written: a column that a patch or a column file touches since is not to be judged by them. What is
not known is said so; nothing here guesses.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.catalog.packed import I64, Packed, pack

RECORD = np.dtype([("column_id", "<u4"), ("flags", "<u4"), ("null_count", "<u8"), ("min", "<u8"), ("max", "<u8")])
KNOWN, HAS_RANGE = 1, 2  # flags; the kind stands above them
_KIND_SHIFT = 4


class Kind(enum.IntEnum):
    """How the bit patterns of min and max read."""

    SIGNED = 0
    UNSIGNED = 1
    FLOAT = 2  # float64; NaN is in no range
    TEXT = 3  # the first eight bytes, big-endian, as an unsigned number: it keeps the order of UTF-8 and of bytes


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ranges:
    """Statistics of one column over segments.

    Attributes:
        flags: i64[n], KNOWN and HAS_RANGE, and the kind above them.
        null_count: i64[n].
        min, max: u64[n], bit patterns by kind.
    """

    flags: I64
    null_count: I64
    min: npt.NDArray[np.uint64]
    max: npt.NDArray[np.uint64]

    @classmethod
    def unknown(cls, count: int) -> Ranges:
        """Of segments of which nothing is known."""
        zeros = np.zeros(count, np.uint64)
        return cls(flags=np.zeros(count, np.int64), null_count=np.zeros(count, np.int64), min=zeros, max=zeros)

    def __len__(self) -> int:
        return len(self.flags)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        return np.asarray((self.flags & KNOWN) != 0, np.bool_)

    @property
    def ranged(self) -> npt.NDArray[np.bool_]:
        return np.asarray((self.flags & HAS_RANGE) != 0, np.bool_)

    def of_kind(self, kind: Kind) -> npt.NDArray[np.bool_]:
        """Those with a range of one kind."""
        return np.asarray(self.ranged & ((self.flags >> _KIND_SHIFT) == kind), np.bool_)

    def at(self, places: I64) -> Ranges:
        return Ranges(flags=self.flags[places], null_count=self.null_count[places], min=self.min[places], max=self.max[places])

    @classmethod
    def concat(cls, parts: Sequence[Ranges]) -> Ranges:
        parts = parts or [cls.unknown(0)]
        return cls(
            flags=np.concatenate([part.flags for part in parts]),
            null_count=np.concatenate([part.null_count for part in parts]),
            min=np.concatenate([part.min for part in parts]),
            max=np.concatenate([part.max for part in parts]),
        )

    def to_bytes(self) -> bytes:
        """As one pack holds it."""
        return pack({"flags": self.flags, "null_count": self.null_count, "min": self.min.view(np.int64), "max": self.max.view(np.int64)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Ranges:
        packed = Packed(data)
        low, high = packed.array("min").view(np.uint64), packed.array("max").view(np.uint64)
        return cls(flags=packed.array("flags"), null_count=packed.array("null_count"), min=low, max=high)


def flags_of(kind: Kind, *, has_range: bool) -> int:
    """The flags of a record."""
    return KNOWN | (HAS_RANGE if has_range else 0) | (int(kind) << _KIND_SHIFT)


def text_word(value: bytes) -> int:
    """The first eight bytes as a number: of two texts, the greater never has the smaller word."""
    return int.from_bytes(value[:8].ljust(8, b"\0"), "big")


def by_column(blobs: Sequence[bytes | None]) -> dict[int, Ranges]:
    """The statistics of segments, given as the records of each, by column; None where nothing is known of a segment."""
    records = [np.frombuffer(blob or b"", RECORD) for blob in blobs]
    owner = np.repeat(np.arange(len(blobs)), [len(part) for part in records])
    rows: npt.NDArray[Any] = np.concatenate([np.zeros(0, RECORD), *records])
    return {int(column_id): _spread(rows[mine], owner[mine], len(blobs)) for column_id, mine in _groups(rows["column_id"])}


def of_column(blobs: Iterable[bytes | None], column_id: int) -> Ranges:
    """The statistics of one column over segments, given as the records of each."""
    blobs = list(blobs)
    return by_column(blobs).get(column_id) or Ranges.unknown(len(blobs))


def _groups(ids: npt.NDArray[np.integer]) -> list[tuple[int, npt.NDArray[np.bool_]]]:
    return [(int(column_id), ids == column_id) for column_id in np.unique(ids).tolist()]


def _spread(rows: npt.NDArray[Any], owner: I64, count: int) -> Ranges:
    found = Ranges.unknown(count)
    low, high = found.min.copy(), found.max.copy()
    found.flags[owner], found.null_count[owner] = rows["flags"], rows["null_count"]
    low[owner], high[owner] = rows["min"], rows["max"]
    return dataclasses.replace(found, min=low, max=high)
