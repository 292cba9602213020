"""Run ends: equal neighbours once, and a bit for each item that starts a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from loader.encodings.bits import pack_bits, rank_anchors
from loader.encodings.builder import ChunkBuilder
from loader.encodings.stream import Input, Pair, Source, Stream, materialise
from loader.segment.layout import OpKind

Array = np.ndarray[Any, np.dtype[Any]]
RUN_NS = 0.5  # a value


def starts(values: Array) -> Array:
    """bool `[values]`: whether an item differs from the one before; the first always does."""
    mask = np.ones(values.size, np.bool_)
    np.not_equal(values[1:], values[:-1], out=mask[1:])
    return mask


class Runs:
    """Run values as a stream (or a pair of them, for 64 bits), spread by a bitmap."""

    scans = False

    def __init__(self, mask: Array, values: Stream) -> None:
        self._words, self._values = pack_bits(mask), values
        self._anchors = rank_anchors(self._words)
        self.count = mask.size
        self.num_bytes = self._words.nbytes + self._anchors.nbytes + values.num_bytes
        self.decode_ns = RUN_NS * mask.size + values.decode_ns

    @property
    def text(self) -> str:
        return f"runs[{self._values.count:,}]({self._values.text})"

    def place(self, builder: ChunkBuilder) -> Input:
        if isinstance(self._values, Pair):
            placed = self._values.place(builder)
            number, num_sources, level = placed.source, 2, placed.level
        else:
            source = self._values.as_source(builder)
            number, num_sources, level = source.add(builder), 1, source.level
        return Input(
            kind=OpKind.RUNS, source=number, num_sources=num_sources, level=level, bits0=builder.stream(self._words), anchors=builder.stream(self._anchors)
        )  # fmt: skip

    def as_source(self, builder: ChunkBuilder, *, by_rank: bool = True) -> Source:
        return materialise(builder, self)
