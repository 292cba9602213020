"""Streams of 32-bit values inside a chunk: what an op reads them as, and what they cost.

A `Stream` is one way to store values. It ends up as the `Input` of an op; where an op needs a plain source instead (nulls, runs, list
lengths), `as_source` decodes the stream into scratch first, one level earlier.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from loader.encodings import bitpack
from loader.encodings.builder import ChunkBuilder
from loader.segment.layout import OpKind, OutKind, Role, Scan, SourceKind, ValueType

Array = np.ndarray[Any, np.dtype[Any]]
EXCEPTION_NS = 2.0
UNPACK_NS = 0.25  # to decode a value, about, on one core: only how costs compare matters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A source that is not in the chunk's table yet, so that those of one op can be added side by side.

    Attributes:
        level: The lowest level of an op that may read it.
    """

    kind: SourceKind
    count: int
    value: int = 0
    data: int | None = None
    meta: int | None = None
    region: int = 0
    num_words: int = 0
    level: int = 0

    def add(self, builder: ChunkBuilder) -> int:
        """Its number in the chunk."""
        return builder.source(
            self.kind, count=self.count, value=self.value, data=self.data, meta=self.meta, region=self.region, num_words=self.num_words
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """How an op finds its input: the fields of its record that say so. Streams are handles of the builder.

    Attributes:
        level: The lowest level that the op may have.
    """

    kind: OpKind = OpKind.DIRECT
    source: int
    num_sources: int = 1
    level: int = 0
    scan: Scan = Scan.NONE
    scan_anchors: int | None = None
    bits0: int | None = None
    bits1: int | None = None
    anchors: int | None = None


class Stream(Protocol):
    """One way to store 32-bit values.

    Attributes:
        scans: Whether the op that reads it sums it up, so that it cannot look up a dictionary as well.
    """

    scans: bool

    @property
    def count(self) -> int:
        """Values."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its streams: exact, or a good estimate until it is chosen."""

    @property
    def decode_ns(self) -> float:
        """Nanoseconds to decode, about."""

    @property
    def text(self) -> str:
        """As `headrace inspect` shows it."""

    def place(self, builder: ChunkBuilder) -> Input:
        """Write it."""

    def as_source(self, builder: ChunkBuilder, *, by_rank: bool = True) -> Source:
        """Write it as one source of an op; `by_rank` if the op reads it in another order than its own, or beside another source."""


class Packed:
    """A constant or packed stream."""

    scans = False

    def __init__(self, values: Array, packing: bitpack.PackPlan | None = None) -> None:
        self._values = values
        self._plan = bitpack.plan(values) if packing is None else packing
        self._constant = not self._plan.widths.any() and (self._plan.bases.size < 2 or bool((self._plan.bases == self._plan.bases[0]).all()))
        self.count = values.size
        self.num_bytes = 0 if self._constant else self._plan.num_bytes
        self.decode_ns = UNPACK_NS * values.size

    @property
    def text(self) -> str:
        return "constant" if self._constant else self._plan.bits_text()

    def as_source(self, builder: ChunkBuilder, *, by_rank: bool = True) -> Source:
        if self._constant:
            return Source(kind=SourceKind.CONSTANT, count=self.count, value=int(self._plan.bases[0]) if self.count else 0)
        words, meta = bitpack.pack(self._values, self._plan)
        meta_at = builder.stream(meta)
        return Source(kind=SourceKind.PACKED, count=self.count, data=builder.stream(words), meta=meta_at, num_words=words.size)

    def place(self, builder: ChunkBuilder) -> Input:
        return Input(source=self.as_source(builder).add(builder))


class Excepted:
    """A packed stream whose vectors may hold a few values wider than their width."""

    scans = False

    def __init__(self, values: Array) -> None:
        self._values = values
        self._plan = bitpack.plan_exceptions(values)
        assert self._plan.exceptions is not None
        self.num_exceptions = int(self._plan.exceptions.sum())
        self.count = values.size
        self.num_bytes = self._plan.num_bytes
        self.decode_ns = UNPACK_NS * values.size + EXCEPTION_NS * self.num_exceptions

    @property
    def text(self) -> str:
        return f"{self._plan.bits_text()} and {self.num_exceptions:,} exceptions"

    def place(self, builder: ChunkBuilder) -> Input:
        return Input(source=self.as_source(builder, by_rank=False).add(builder))

    def as_source(self, builder: ChunkBuilder, *, by_rank: bool = True) -> Source:
        if by_rank:
            return materialise(builder, self)
        words, meta = bitpack.pack(self._values, self._plan)
        meta_at = builder.stream(meta)
        return Source(kind=SourceKind.PACKED_EXCEPTIONS, count=self.count, data=builder.stream(words), meta=meta_at, num_words=words.size)


class Pair:
    """Two streams, the low and the high halves of 64-bit values."""

    scans = False

    def __init__(self, low: Stream, high: Stream) -> None:
        self._parts = (low, high)
        self.count = low.count
        self.num_bytes = low.num_bytes + high.num_bytes
        self.decode_ns = low.decode_ns + high.decode_ns

    @property
    def text(self) -> str:
        low, high = self._parts
        return f"halves(low={low.text}, high={high.text})"

    def place(self, builder: ChunkBuilder) -> Input:
        low, high = (part.as_source(builder) for part in self._parts)
        number = low.add(builder)
        high.add(builder)
        return Input(source=number, num_sources=2, level=max(low.level, high.level))

    def as_source(self, builder: ChunkBuilder, *, by_rank: bool = True) -> Source:
        raise AssertionError("64-bit values are no 32-bit source")


def op_of(builder: ChunkBuilder, placed: Input, *, out: int, out_kind: OutKind, count: int, level: int, **fields: Any) -> None:
    """Add the op that reads an input."""
    builder.op(
        placed.kind, out=out, out_kind=out_kind, count=count, level=level, source=placed.source, num_sources=placed.num_sources, scan=placed.scan,
        scan_anchors=placed.scan_anchors, bits=placed.bits0, bits1=placed.bits1, anchors=placed.anchors, **fields,
    )  # fmt: skip


def place_codes(builder: ChunkBuilder, codes: Stream) -> Input:
    """Write codes for an op that looks them up."""
    if not codes.scans:
        return codes.place(builder)
    source = codes.as_source(builder)
    return Input(source=source.add(builder), level=source.level)


def materialise(builder: ChunkBuilder, stream: Stream) -> Source:
    """Decode a stream into scratch; a source that reads it there."""
    placed = stream.place(builder)
    region = builder.region(Role.SCRATCH, depth=0, item_bytes=4, value_type=ValueType.UINT32, count=stream.count)
    op_of(builder, placed, out=region, out_kind=OutKind.U32, count=stream.count, level=placed.level)
    return Source(kind=SourceKind.PLAIN, count=stream.count, region=region, level=placed.level + 1)
