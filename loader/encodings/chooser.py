"""Which encoding the values of a region get: exact sizes of a few candidates, weighted by what decoding costs; deterministic.

A sample decides only whether a dictionary is worth trying. Returns what was chosen, and why, as text for `headrace inspect`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from loader.encodings.bits import Bitmap
from loader.encodings.constant import Constant
from loader.encodings.dictionary import Dictionary, distinct_codes, estimate_bytes
from loader.encodings.frame import Halves, Packed, frame
from loader.encodings.plain import Plain
from loader.encodings.target import UNSIGNED, Candidate, Target
from loader.segment.layout import ValueType

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What encoders may use.

    Attributes:
        dictionary: Try dictionaries.
        list_views: Share and overlap views of repeated list rows.
        min_pool_saving: Share of a pool that sliding must save before it is used: accidental matches cost more than they save.
        max_slide_items: Most items a window may drop from one row to the next and still be found.
    """

    dictionary: bool = True
    list_views: bool = True
    min_pool_saving: float = 0.15
    max_slide_items: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What was chosen, e.g. `dictionary[7: packed 9 bits](packed 3 bits)`, and why, e.g. `24,576 B; plain 65,536 B`."""

    tree: str
    reason: str


def as_integers(values: Array, value_type: ValueType) -> Array:
    """The values as the integers that encoders work on: floats as the unsigned integers of their bits."""
    return values.view(UNSIGNED[values.dtype.itemsize]) if value_type >= ValueType.FLOAT16 else values


def choose(values: Array, *, spread: bool, options: EncodeOptions) -> tuple[Candidate, str]:
    """The cheapest candidate for non-empty integers, and the reason.

    Args:
        values: Present values, from `as_integers`.
        spread: Whether nulls lie between them; plain values cannot be spread.
        options: What may be used.
    """
    parts = frame(values)
    if parts.span == 0:
        return Constant(pattern=parts.base), f"{values.size:,} equal values"
    size = values.dtype.itemsize
    candidates: list[Candidate] = []
    if parts.deltas.dtype == np.uint32:
        candidates.append(Packed(parts.base, parts.deltas))
    else:
        candidates.append(Halves(parts.base, parts.deltas))
    if not spread:
        candidates.append(Plain(values=values.view(UNSIGNED[size])))
    if options.dictionary and size > 1 and estimate_bytes(values) < 0.9 * min(candidate.num_bytes for candidate in candidates):
        candidates.append(Dictionary(*distinct_codes(values)))
    best = min(candidates, key=lambda candidate: candidate.cost)
    others = "; ".join(f"{candidate.text.split('[')[0].split('(')[0]} {candidate.num_bytes:,} B" for candidate in candidates if candidate is not best)
    return best, f"{best.num_bytes:,} B" + (f"; {others}" if others else "")


def encode_values(target: Target, values: Array, options: EncodeOptions) -> Decision:
    """Choose an encoding for the integers of a region and write it.

    Args:
        target: Region and nulls.
        values: `target.count` integers; those under a null are ignored.
        options: What may be used.
    """
    nulls = target.nulls
    present = values if nulls is None else values[nulls.mask]
    if not present.size:
        Constant(pattern=0).emit(dataclasses.replace(target, nulls=None))
        return Decision(tree="nulls" if nulls else "empty", reason="nothing present")
    best, reason = choose(present, spread=nulls is not None, options=options)
    best.emit(target)
    tree = f"nulls[{nulls.mask.size - nulls.num_set:,}]({best.text})" if nulls else best.text
    return Decision(tree=tree, reason=reason)


def encode_booleans(target: Target, values: Array) -> Decision:
    """One bit a value, nulls as 0."""
    mask = values.view(np.bool_) if target.nulls is None else values.view(np.bool_) & target.nulls.mask
    plain = dataclasses.replace(target, nulls=None)
    set_bits = int(np.count_nonzero(mask))
    if set_bits in (0, mask.size):
        Constant(pattern=int(set_bits > 0)).emit(plain)
        return Decision(tree="constant", reason=f"{mask.size:,} equal values")
    bitmap = Bitmap(target.builder, mask)
    bitmap.emit_bytes(target.region)
    return Decision(tree="bits", reason="a bit a value")
