"""Quantisation, only where it is asked for: float32 values with fewer bits; decoding gives float32 again, near what was written."""

from __future__ import annotations

from typing import Any

import numpy as np

from loader.encodings.cascade import choose_stream
from loader.encodings.frame import Framed
from loader.encodings.options import EncodeOptions
from loader.encodings.target import Scaled
from loader.segment.layout import OutKind

Array = np.ndarray[Any, np.dtype[Any]]
KINDS = ("float16", "bfloat16", "int8")
_NO_PATCHES = np.zeros(0, np.int64), np.zeros(0, np.uint32)


def to_bfloat16(values: Array) -> Array:
    """The upper 16 bits of float32, rounded to nearest, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def to_int8(values: Array) -> tuple[Array, np.float32] | None:
    """Integers from −127 to 127 and what one of them is worth; None where a value is not finite."""
    if not np.isfinite(values).all():
        return None
    step = np.float32(max(float(np.abs(values).max()) / 127, float(np.finfo(np.float32).tiny)))
    return np.clip(np.rint(values / step), -127, 127).astype(np.int8), step


def quantise(values: Array, kind: str, options: EncodeOptions) -> Framed | None:
    """Values with less precision; None where the kind cannot hold them (int8 and values that are not finite).

    Args:
        values: float32, at least one.
        kind: `float16` (beyond its range: infinite), `bfloat16` or `int8` (one scale for all values).
        options: How bytes and time compare.
    """
    scale = 0
    if kind == "int8":
        found = to_int8(values)
        if found is None:
            return None
        codes, step = found[0].view(np.uint8), found[1]
        scale, out_kind = int(step.view(np.uint32)), OutKind.F32_SCALED_I8
    elif kind == "bfloat16":
        codes, out_kind = to_bfloat16(values), OutKind.F32_FROM_BF16
    else:
        with np.errstate(over="ignore"):
            codes, out_kind = values.astype(np.float16).view(np.uint16), OutKind.F32_FROM_F16
    positions, bits = _NO_PATCHES
    stored = Scaled(scale=scale, positions=positions, bits=bits, out_kind=out_kind)
    return Framed(0, choose_stream(codes.astype(np.uint32), options), stored)
