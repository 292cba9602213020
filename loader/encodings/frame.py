"""Frame of reference: values minus their minimum, as one packed 32-bit stream, or as two halves where the range is wider."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from loader.encodings import bitpack
from loader.encodings.target import Target, emit_stream, stream_bytes, stream_text

Array = np.ndarray[Any, np.dtype[Any]]
UNPACK_COST = 1.03  # of a packed byte beside a copied one
HALVES_COST = 1.06


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """Values as a base and what lies above it.

    Attributes:
        base: The minimum; for signed values a negative number.
        span: Maximum minus minimum.
        deltas: uint32 where the span is below 2^32, else uint64.
    """

    base: int
    span: int
    deltas: Array


def frame(values: Array) -> Frame:
    """Split off the minimum.

    Args:
        values: A non-empty array of any integer type; floats come as the unsigned integers of their bits.
    """
    base, top = int(values.min()), int(values.max())
    span = top - base
    unsigned = values.view(values.dtype.str.replace("i", "u"))
    wide = np.uint32 if values.dtype.itemsize <= 4 or span < 1 << 32 else np.uint64
    if values.dtype.itemsize == 8:
        deltas = (unsigned - np.uint64(base % (1 << 64))).astype(wide, copy=False)
    else:
        # modulo 2^32: exact, since the span is known to be below it
        deltas = values.astype(np.uint32, copy=False) - np.uint32(base % (1 << 32))
    return Frame(base=base, span=span, deltas=deltas)


class Packed:
    """One packed stream above a base; the range is below 2^32."""

    def __init__(self, base: int, deltas: Array) -> None:
        self._base, self._deltas = base, deltas
        self._plan = bitpack.plan(deltas)
        self.num_bytes = stream_bytes(self._plan)
        self.cost = self.num_bytes * UNPACK_COST
        self.text = stream_text(self._plan)

    def emit(self, target: Target) -> None:
        target.op(level=0, source=emit_stream(target.builder, self._deltas, self._plan), base=self._base)


class Halves:
    """Two packed streams, the low and the high 32 bits above a base."""

    def __init__(self, base: int, deltas: Array) -> None:
        self._base = base
        self._parts = (deltas.astype(np.uint32), (deltas >> np.uint64(32)).astype(np.uint32))
        self._plans = tuple(bitpack.plan(part) for part in self._parts)
        self.num_bytes = sum(stream_bytes(part) for part in self._plans)
        self.cost = self.num_bytes * HALVES_COST
        self.text = f"halves(low={stream_text(self._plans[0])}, high={stream_text(self._plans[1])})"

    def emit(self, target: Target) -> None:
        low, _ = (emit_stream(target.builder, part, packing) for part, packing in zip(self._parts, self._plans, strict=True))
        target.op(level=0, source=low, num_sources=2, base=self._base)
