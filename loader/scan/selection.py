"""Selections: which rows of which blocks a plan reads, as bits, with a flat form for the catalog and a hash of what defines them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.errors import StateMismatchError

SELECTION_VERSION = 1
BLOCK_KEY = np.dtype([("segment_id", "<i8"), ("block", "<u4"), ("num_rows", "<u4"), ("selected", "<u4")])
HEADER = np.dtype([("version", "<u4"), ("num_blocks", "<u4")])


def selection_hash(definition: dict[str, Any]) -> str:
    """A name for a selection: equal definitions select equal rows of one snapshot."""
    text = json.dumps({"version": SELECTION_VERSION, **definition}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Selected rows, block by block.

    Attributes:
        blocks: BLOCK_KEY records, by (segment, block), of every block that was looked at.
        bits: By index in `blocks`, uint8, one bit a row (least significant first); only blocks of which some rows are selected and some not.
    """

    blocks: npt.NDArray[Any]
    bits: dict[int, npt.NDArray[np.uint8]]

    def to_bytes(self) -> bytes:
        """Header, block records, then the bits of each partly selected block."""
        header = np.zeros(1, HEADER)
        header["version"], header["num_blocks"] = SELECTION_VERSION, len(self.blocks)
        return b"".join([header.tobytes(), self.blocks.astype(BLOCK_KEY).tobytes(), *(self.bits[index].tobytes() for index in sorted(self.bits))])

    @classmethod
    def from_bytes(cls, data: bytes) -> Selection:
        """Read what `to_bytes` wrote.

        Raises:
            StateMismatchError: It was stored by another version, or is cut short.
        """
        header = np.frombuffer(data, HEADER, 1) if len(data) >= HEADER.itemsize else np.zeros(1, HEADER)
        if header["version"][0] != SELECTION_VERSION:
            raise StateMismatchError(f"the stored selection is of version {header['version'][0]}, this Headrace reads {SELECTION_VERSION}: plan again under it")
        count = int(header["num_blocks"][0])
        at = HEADER.itemsize + count * BLOCK_KEY.itemsize
        if at > len(data):
            raise StateMismatchError(f"the stored selection has {len(data)} bytes and needs at least {at}: it is cut short")
        blocks = np.frombuffer(data, BLOCK_KEY, count, HEADER.itemsize)
        partly = np.flatnonzero((blocks["selected"] > 0) & (blocks["selected"] < blocks["num_rows"]))
        bits = {}
        for index in partly.tolist():
            num_bytes = (int(blocks["num_rows"][index]) + 7) // 8
            bits[index] = np.frombuffer(data[at : at + num_bytes], np.uint8)
            at += num_bytes
        if at != len(data):
            raise StateMismatchError(f"the stored selection has {len(data)} bytes and needs {at}: it is damaged, and must be counted again")
        return cls(blocks=blocks, bits=bits)
