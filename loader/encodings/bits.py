"""Bitmaps in 32-bit words with a rank anchor for each vector: validity, booleans, nulls and fresh rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from loader.encodings.builder import ChunkBuilder
from loader.segment.layout import VECTOR, OpKind, OutKind, Role, SourceKind, ValueType, round_up

Array = np.ndarray[Any, np.dtype[Any]]


def pack_bits(mask: Array) -> Array:
    """uint32 words of a bool array, bit i in word i / 32, padded with zeros to whole vectors."""
    packed = np.packbits(mask.view(np.bool_), bitorder="little")
    words = np.zeros(round_up(mask.size, VECTOR) // 8, np.uint8)
    words[: packed.size] = packed
    return words.view(np.uint32)


def unpack_bits(words: Array, count: int) -> Array:
    """bool `[count]` of uint32 words."""
    return np.unpackbits(words.view(np.uint8), bitorder="little", count=count).view(np.bool_)


def rank_anchors(words: Array) -> Array:
    """Set bits before each vector, uint32 `[vectors]`."""
    counts = np.bitwise_count(words).reshape(-1, VECTOR // 32).sum(axis=1, dtype=np.uint32)
    return np.asarray(np.cumsum(counts, dtype=np.uint32) - counts)


class Bitmap:
    """A bitmap put into a chunk once, for validity, for nulls and for ranks alike; its streams are written when first asked for."""

    def __init__(self, builder: ChunkBuilder, mask: Array) -> None:
        self.mask = mask
        self.num_set = int(np.count_nonzero(mask))
        self._builder = builder
        self._words: Array | None = None
        self._bits: int | None = None
        self._anchors: int | None = None

    @property
    def words(self) -> Array:
        if self._words is None:
            self._words = pack_bits(self.mask)
        return self._words

    @property
    def bits(self) -> int:
        """Handle of the bitmap."""
        if self._bits is None:
            self._bits = self._builder.stream(self.words)
        return self._bits

    @property
    def anchors(self) -> int:
        """Handle of the rank anchors."""
        if self._anchors is None:
            self._anchors = self._builder.stream(rank_anchors(self.words))
        return self._anchors

    def emit_validity(self, depth: int) -> None:
        """A VALIDITY region with one byte an entry."""
        region = self._builder.region(Role.VALIDITY, depth=depth, item_bytes=1, value_type=ValueType.BOOL, count=self.mask.size)
        self.emit_bytes(region)

    def emit_bytes(self, region: int) -> None:
        """Store the bits as bytes 0 and 1 in a region."""
        if self.num_set == 0:
            source = self._builder.source(SourceKind.CONSTANT, count=self.mask.size)
        else:
            source = self._builder.source(SourceKind.BITS, count=self.mask.size, data=self.bits)
        self._builder.op(OpKind.DIRECT, out=region, out_kind=OutKind.U8, count=self.mask.size, level=0, source=source)
