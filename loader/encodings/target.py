"""What a candidate encoding writes to: a region of the chunk being built, with or without nulls."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from loader.encodings.bits import Bitmap
from loader.encodings.builder import ChunkBuilder
from loader.encodings.stream import Input, Pair, Stream, op_of, place_codes
from loader.segment.layout import NO_REGION, PATCH_F32, PATCH_F64, OpKind, OutKind

Array = np.ndarray[Any, np.dtype[Any]]
OUT_KINDS = {1: OutKind.U8, 2: OutKind.U16, 4: OutKind.U32, 8: OutKind.U64}
UNSIGNED: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled:
    """How decimals or quantised values become floats.

    Attributes:
        scale: What the integers are divided by; for int8 the bits of the float32 that they are multiplied with.
        positions: int64, which of the present values are patched, ascending.
        bits: Their bit patterns.
    """

    scale: int
    positions: Array
    bits: Array
    out_kind: OutKind

    @property
    def num_bytes(self) -> int:
        return self.positions.size * (PATCH_F32 if self.bits.dtype.itemsize == 4 else PATCH_F64).itemsize


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

    def read(
        self, stream: Stream, *, base: int = 0, dictionary: int = NO_REGION, dict_count: int = 0, level: int = 0, scaled: Scaled | None = None
    ) -> int:  # fmt: skip
        """Write a stream and the op that fills the region from it.

        Args:
            stream: The present values, or their codes.
            base: Added to each.
            dictionary: The region that codes look up.
            dict_count: Its entries.
            level: The lowest level the op may have.
            scaled: For decimals and quantised values.

        Returns:
            The op's level.
        """
        if self.nulls is not None:
            placed = self._spread(stream)
        else:
            # neither codes nor quantised values are summed up
            summable = dictionary == NO_REGION and (scaled is None or scaled.out_kind < OutKind.F32_FROM_F16)
            placed = stream.place(self.builder) if summable else place_codes(self.builder, stream)
        level = max(level, placed.level)
        out_kind = self.out_kind if scaled is None else scaled.out_kind
        fields: dict[str, Any] = {} if scaled is None else {"scale": scaled.scale, **self._patches(scaled)}
        op_of(
            self.builder, placed, out=self.region, out_kind=out_kind, count=self.count, level=level, base=base, dictionary=dictionary,
            dict_count=dict_count, **fields,
        )  # fmt: skip
        return level

    def _spread(self, stream: Stream) -> Input:
        assert self.nulls is not None
        if isinstance(stream, Pair):
            placed = stream.place(self.builder)
        else:
            source = stream.as_source(self.builder)
            placed = Input(source=source.add(self.builder), level=source.level)
        return dataclasses.replace(placed, kind=OpKind.NULLS, bits0=self.nulls.bits, anchors=self.nulls.anchors)

    def _patches(self, scaled: Scaled) -> dict[str, int]:
        if not scaled.positions.size:
            return {}
        records = np.zeros(scaled.positions.size, PATCH_F32 if self.out_kind == OutKind.U32 else PATCH_F64)
        records["position"] = scaled.positions if self.nulls is None else np.flatnonzero(self.nulls.mask)[scaled.positions]
        records["bits"] = scaled.bits
        return {"patches": self.builder.stream(records), "num_patches": records.size}


class Candidate(Protocol):
    """One way to store the values of a region."""

    @property
    def num_bytes(self) -> int:
        """Exact bytes of its streams."""

    @property
    def decode_ns(self) -> float:
        """Nanoseconds to decode, about."""

    @property
    def text(self) -> str:
        """As `headrace inspect` shows it."""

    def emit(self, target: Target) -> int:
        """Write streams, sources and ops; returns the level of the region's last op."""
