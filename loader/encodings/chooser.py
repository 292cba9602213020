"""Which encoding the values of a region get: sizes of a few candidates, weighed with what decoding costs; deterministic.

Samples decide what is worth trying (dictionaries, thresholds of classes); what is tried is measured. Returns what was chosen, and why,
as text for `headrace inspect`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from loader.encodings import decimals, runs
from loader.encodings.bits import Bitmap
from loader.encodings.cascade import MAX_RUN_SHARE, SMALL_BYTES, choose_stream, weigh
from loader.encodings.compressed import Compressed, worth_trying
from loader.encodings.constant import Constant
from loader.encodings.dictionary import RECORD_BYTES, best_dictionary, estimate_bytes
from loader.encodings.frame import Framed, frame
from loader.encodings.options import EncodeOptions
from loader.encodings.plain import Plain
from loader.encodings.quantise import quantise
from loader.encodings.runs import Runs
from loader.encodings.stream import Packed, Pair, Stream
from loader.encodings.target import UNSIGNED, Candidate, Scaled, Target
from loader.segment.layout import VALUE_DTYPES, OutKind, ValueType

Array = np.ndarray[Any, np.dtype[Any]]
_DECIMAL_TYPES = (ValueType.FLOAT32, ValueType.FLOAT64)
MIN_DECIMALS = 64
MAX_CHANGES = 1 / 40  # of the values of a mask: a change costs about 32 bits

__all__ = ["Decision", "EncodeOptions", "as_integers", "choose", "encode_booleans", "encode_entries", "encode_mask", "encode_values"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What was chosen, e.g. `dictionary[7: packed 9 bits](packed 3 bits)`, and why, e.g. `24,576 B; plain 65,536 B`."""

    tree: str
    reason: str


def as_integers(values: Array, value_type: ValueType) -> Array:
    """The values as the integers that encoders work on: floats as the unsigned integers of their bits."""
    return values.view(UNSIGNED[values.dtype.itemsize]) if value_type >= ValueType.FLOAT16 else values


def choose(values: Array, *, spread: bool, options: EncodeOptions, value_type: ValueType | None = None) -> tuple[Candidate, str]:
    """The cheapest candidate for non-empty integers, and the reason.

    Args:
        values: Present values, from `as_integers`.
        spread: Whether nulls lie between them; plain values cannot be spread.
        options: What may be used.
        value_type: What the integers stand for, where that is floats, or UINT8 for bytes of strings.
    """
    parts = frame(values)
    if parts.span == 0:
        return Constant(pattern=parts.base), f"{values.size:,} equal values"
    candidates = _flat(values, spread=spread, options=options, value_type=value_type)
    least = min(candidate.num_bytes for candidate in candidates)
    if value_type == ValueType.UINT8 and not spread and options.compress and worth_trying(values):
        candidates.append(Compressed(values))
    worth_hashing = options.dictionary and values.dtype.itemsize > 1 and least > SMALL_BYTES
    if worth_hashing and estimate_bytes(values) + RECORD_BYTES < 0.9 * least:
        candidates.append(best_dictionary(values, options, lambda entries: encode_entries(entries, options, value_type)))
    coded = None if options.shared is None else options.shared.candidate(values, options)
    if coded is not None:
        candidates.append(coded)
    best = _cheapest(candidates, options)
    others = "; ".join(f"{candidate.text.split('[')[0].split('(')[0]} {candidate.num_bytes:,} B" for candidate in candidates if candidate is not best)
    return best, f"{best.num_bytes:,} B" + (f"; {others}" if others else "")


def encode_entries(entries: Array, options: EncodeOptions, value_type: ValueType | None = None) -> Candidate:
    """The cheapest candidate for the entries of a dictionary."""
    return _cheapest(_flat(entries, options=options, value_type=value_type, budget=1), options)


def _cheapest(candidates: list[Candidate], options: EncodeOptions) -> Candidate:
    return min(candidates, key=lambda candidate: weigh(candidate.num_bytes, candidate.decode_ns, options))


def _flat(values: Array, *, options: EncodeOptions, value_type: ValueType | None, spread: bool = False, budget: int = 2) -> list[Candidate]:
    """Candidates without a dictionary of their own, for non-empty integers."""
    parts = frame(values)
    found: list[Candidate] = []
    if value_type in _DECIMAL_TYPES and values.size >= MIN_DECIMALS:
        found.extend(_decimal(values.view(VALUE_DTYPES[value_type]), options, budget))
    if found:
        # the bits of decimals are never as narrow as their integers
        return found
    if parts.deltas.dtype == np.uint32:
        found.append(Framed(parts.base, choose_stream(parts.deltas, options, budget=budget, direct=True)))
    else:
        found.extend(Framed(parts.base, stream) for stream in _wide(parts.deltas, options, spread=spread))
    if not spread:
        found.append(Plain(values=values.view(UNSIGNED[values.dtype.itemsize])))
    return found


def _wide(deltas: Array, options: EncodeOptions, *, spread: bool) -> list[Stream]:
    """Values of more than 32 bits: halves, or runs of halves."""
    found: list[Stream] = [_halves(deltas)]
    mask = runs.starts(deltas)
    if not spread and np.count_nonzero(mask) < MAX_RUN_SHARE * deltas.size:
        found.append(Runs(mask, _halves(deltas[mask])))
    return found


def _halves(deltas: Array) -> Pair:
    return Pair(Packed(deltas.astype(np.uint32)), Packed((deltas >> np.uint64(32)).astype(np.uint32)))


def _decimal(values: Array, options: EncodeOptions, budget: int) -> list[Candidate]:
    found = decimals.find(values)
    if found is None:
        return []
    parts = frame(found.integers)
    if parts.deltas.dtype != np.uint32:
        return [] if values.dtype.itemsize == 4 else [Framed(parts.base, _halves(parts.deltas), _scaled(found, values))]
    return [Framed(parts.base, choose_stream(parts.deltas, options, budget=budget, direct=True), _scaled(found, values))]


def _scaled(found: decimals.Decimals, values: Array) -> Scaled:
    size = values.dtype.itemsize
    out_kind = OutKind.F32_DECIMAL if size == 4 else OutKind.F64_DECIMAL
    return Scaled(scale=found.scale, positions=found.patches, bits=values[found.patches].view(UNSIGNED[size]), out_kind=out_kind)


def encode_values(target: Target, values: Array, options: EncodeOptions, value_type: ValueType | None = None) -> Decision:
    """Choose an encoding for the integers of a region and write it.

    Args:
        target: Region and nulls.
        values: `target.count` integers; those under a null are ignored.
        options: What may be used.
        value_type: What the integers stand for, where that is floats.
    """
    nulls = target.nulls
    present = values if nulls is None else values[nulls.mask]
    if not present.size:
        Constant(pattern=0).emit(dataclasses.replace(target, nulls=None))
        return Decision(tree="nulls" if nulls else "empty", reason="nothing present")
    if options.quantise and value_type == ValueType.FLOAT32:
        stored = quantise(present.view(np.float32), options.quantise, options)
        if stored is not None:
            stored.emit(target)
            return Decision(tree=f"nulls[{nulls.mask.size - nulls.num_set:,}]({stored.text})" if nulls else stored.text, reason="asked for")
    best, reason = choose(present, spread=nulls is not None, options=options, value_type=value_type)
    best.emit(target)
    tree = f"nulls[{nulls.mask.size - nulls.num_set:,}]({best.text})" if nulls else best.text
    return Decision(tree=tree, reason=reason)


def encode_booleans(target: Target, values: Array, options: EncodeOptions) -> Decision:
    """One bit a value, nulls as 0; where values rarely change, their changes."""
    mask = values.view(np.bool_) if target.nulls is None else values.view(np.bool_) & target.nulls.mask
    return encode_mask(dataclasses.replace(target, nulls=None), mask, options)


def encode_mask(target: Target, mask: Array, options: EncodeOptions) -> Decision:
    """Bytes 0 and 1 of a bool array that no other op reads as bits."""
    set_bits = int(np.count_nonzero(mask))
    if set_bits in (0, mask.size):
        Constant(pattern=int(set_bits > 0)).emit(target)
        return Decision(tree="constant", reason=f"{mask.size:,} equal values")
    changes = int(np.count_nonzero(mask[1:] != mask[:-1]))
    if changes < MAX_CHANGES * mask.size:
        stream = choose_stream(mask.astype(np.uint32), options, direct=True)
        if weigh(stream.num_bytes, stream.decode_ns, options) < mask.size / 8:
            target.read(stream)
            return Decision(tree=stream.text, reason=f"{stream.num_bytes:,} B; bits {mask.size // 8:,} B")
    Bitmap(target.builder, mask).emit_bytes(target.region)
    return Decision(tree="bits", reason="a bit a value")
