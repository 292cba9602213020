"""What a candidate encoding writes to: a region of the chunk being built, with or without nulls, and 32-bit streams for its ops."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from loader.encodings import bitpack
from loader.encodings.bits import Bitmap
from loader.encodings.builder import ChunkBuilder
from loader.segment.layout import NO_REGION, OpKind, OutKind, SourceKind

Array = np.ndarray[Any, np.dtype[Any]]
OUT_KINDS = {1: OutKind.U8, 2: OutKind.U16, 4: OutKind.U32, 8: OutKind.U64}
UNSIGNED: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A region to be filled with `count` items.

    Attributes:
        nulls: If given, streams hold present values only and the op spreads them.
    """

    builder: ChunkBuilder
    region: int
    out_kind: OutKind
    count: int
    nulls: Bitmap | None = None

    def op(self, *, level: int, source: int, num_sources: int = 1, base: int = 0, dictionary: int = NO_REGION, dict_count: int = 0) -> None:
        """The op that fills the region from `source`."""
        spread = self.nulls is not None
        self.builder.op(
            OpKind.NULLS if spread else OpKind.DIRECT,
            out=self.region,
            out_kind=self.out_kind,
            count=self.count,
            level=level,
            source=source,
            num_sources=num_sources,
            base=base,
            dictionary=dictionary,
            dict_count=dict_count,
            bits=self.nulls.bits if self.nulls is not None else None,
            anchors=self.nulls.anchors if self.nulls is not None else None,
        )


class Candidate(Protocol):
    """One way to store the values of a region."""

    @property
    def num_bytes(self) -> int:
        """Exact bytes of its streams."""

    @property
    def cost(self) -> float:
        """Bytes times what its decoding costs beside a copy."""

    @property
    def text(self) -> str:
        """As `headrace inspect` shows it."""

    def emit(self, target: Target) -> None:
        """Write streams, sources and ops."""


def stream_bytes(packing: bitpack.PackPlan) -> int:
    """Bytes of a 32-bit stream as `emit_stream` writes it."""
    return 0 if is_constant(packing) else packing.num_bytes


def is_constant(packing: bitpack.PackPlan) -> bool:
    """Whether the whole stream is one value."""
    return not packing.widths.any() and (packing.bases.size < 2 or bool((packing.bases == packing.bases[0]).all()))


def stream_text(packing: bitpack.PackPlan) -> str:
    return "constant" if is_constant(packing) else packing.bits_text()


def emit_stream(builder: ChunkBuilder, values: Array, packing: bitpack.PackPlan | None = None) -> int:
    """Add a uint32 stream as a constant or packed source; returns the source's number."""
    packing = bitpack.plan(values) if packing is None else packing
    if is_constant(packing):
        return builder.source(SourceKind.CONSTANT, count=values.size, value=int(packing.bases[0]) if values.size else 0)
    words, meta = bitpack.pack(values, packing)
    meta_at = builder.stream(meta)
    return builder.source(SourceKind.PACKED, count=values.size, data=builder.stream(words), meta=meta_at, num_words=words.size)
