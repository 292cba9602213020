"""Decimal floats: values that are an integer divided by a power of ten, as that integer; the few that are not, as patches.

After ALP (Afroozeh, Kuffó and Boncz, SIGMOD 2024), with a division instead of a multiplication by an inexact inverse: a value counts
as decimal only if decoding gives its very bits, so −0.0, NaN and infinities are patches.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from loader.kernels import native

Array = np.ndarray[Any, np.dtype[Any]]
SCALES = tuple(10**exponent for exponent in range(8))
SAMPLE = 256
MAX_PATCHES = 1 / 16  # of the values
_LIMITS = {4: 2.0**31, 8: 2.0**53}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decimals:
    """Values as integers.

    Attributes:
        integers: int64, `value × scale`; where a patch stands, an integer like its neighbours.
        scale: A power of ten.
        patches: Positions of the values that no integer gives, ascending.
    """

    integers: Array
    scale: int
    patches: Array


def try_scale(values: Array, scale: int) -> tuple[Array, Array]:
    """`value × scale` as int64, and whether dividing gives back the value's very bits.

    Args:
        values: float32 or float64.
        scale: Integer, at least 1.
    """
    library = native.load()
    if library is not None:
        return library.try_scale(np.ascontiguousarray(values), scale)
    with np.errstate(all="ignore"):
        scaled = values.astype(np.float64) * scale
        rounded = np.rint(np.where(np.abs(scaled) < _LIMITS[values.dtype.itemsize], scaled, 0.0))
    integers = rounded.astype(np.int64)
    unsigned = f"<u{values.dtype.itemsize}"
    # as a decoder does: int → float of the value's type, then one division
    back = integers.astype(values.dtype) / values.dtype.type(scale)
    return integers, np.asarray(back.view(unsigned) == values.view(unsigned))


def find(values: Array) -> Decimals | None:
    """The smallest scale that gives all but a few of the values; None if there is none.

    Args:
        values: float32 or float64, at least one.
    """
    sample = values[:: max(values.size // SAMPLE, 1)][:SAMPLE]
    for scale in SCALES:
        if np.count_nonzero(try_scale(sample, scale)[1]) < (1 - MAX_PATCHES) * sample.size:
            continue
        integers, exact = try_scale(values, scale)
        patches = np.flatnonzero(~exact)
        if patches.size > MAX_PATCHES * values.size:
            continue
        if patches.size:
            integers[patches] = integers[exact][0] if exact.any() else 0
        return Decimals(integers=integers, scale=scale, patches=patches)
    return None
