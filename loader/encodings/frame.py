"""Frame of reference: values minus their minimum, as one 32-bit stream, or as two halves where the range is wider."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from loader.encodings.stream import Stream
from loader.encodings.target import Scaled, Target
from loader.segment.layout import OutKind

Array = np.ndarray[Any, np.dtype[Any]]
DIVIDE_NS = 0.3


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


def _scaled_text(scaled: Scaled) -> str:
    if scaled.out_kind in (OutKind.F32_DECIMAL, OutKind.F64_DECIMAL):
        patched = f", {scaled.positions.size:,} patches" if scaled.positions.size else ""
        return f"decimals[1/{scaled.scale:,}{patched}]"
    return {OutKind.F32_FROM_F16: "float16", OutKind.F32_FROM_BF16: "bfloat16", OutKind.F32_SCALED_I8: "int8"}[scaled.out_kind]


class Framed:
    """A stream (or a pair of halves) above a base; for decimals, divided afterwards."""

    def __init__(self, base: int, stream: Stream, scaled: Scaled | None = None) -> None:
        self._base, self._stream, self._scaled = base, stream, scaled
        self.num_bytes, self.decode_ns = stream.num_bytes, stream.decode_ns
        if scaled is not None:
            self.num_bytes += scaled.num_bytes
            self.decode_ns += DIVIDE_NS * stream.count

    @property
    def text(self) -> str:
        return self._stream.text if self._scaled is None else f"{_scaled_text(self._scaled)}({self._stream.text})"

    def emit(self, target: Target) -> int:
        return target.read(self._stream, base=self._base, scaled=self._scaled)
