"""Frame of reference + bit packing of a 32-bit stream, vector by vector, in 32 interleaved lanes.

After FastLanes (Afroozeh and Boncz, VLDB 2023) with 32-bit words. `plan` and `pack` have native twins that give the same; here vectors
of one width are packed together, so the Python work is by width, never by value or vector.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from loader.errors import CorruptSegmentError
from loader.kernels import native
from loader.segment.layout import LANES, VECTOR, VECTOR_META

Array = np.ndarray[Any, np.dtype[Any]]
ROWS = VECTOR // LANES


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackPlan:
    """Widths of a stream's vectors: enough to know its exact size without packing it.

    Attributes:
        bases: uint32 `[vectors]`, the minimum of each.
        widths: uint8 `[vectors]`, bits a value.
        words: int64 `[vectors]`, 32-bit words each takes, exceptions apart.
        exceptions: int64 `[vectors]`, values wider than the width, a word each; None if there are none.
    """

    bases: Array
    widths: Array
    words: Array
    exceptions: Array | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of words and per-vector records."""
        extra = 0 if self.exceptions is None else int(self.exceptions.sum())
        return (int(self.words.sum()) + extra) * 4 + self.widths.size * VECTOR_META.itemsize

    def bits_text(self) -> str:
        """For descriptions: `packed 7 bits` or `packed 3-9 bits`."""
        low, high = (int(self.widths.min()), int(self.widths.max())) if self.widths.size else (0, 0)
        return f"packed {high} bits" if low == high else f"packed {low}-{high} bits"


def num_vectors(count: int) -> int:
    """Vectors that `count` values take."""
    return -(-count // VECTOR)


def vector_rows(count: int) -> Array:
    """Rows of 32 values in each vector, int64 `[vectors]`."""
    rows = np.full(num_vectors(count), ROWS, np.int64)
    if count % VECTOR:
        rows[-1] = -(-(count % VECTOR) // LANES)
    return rows


def plan(values: Array) -> PackPlan:
    """Bases and widths of a uint32 stream."""
    library = native.load()
    if library is not None:
        bases, widths, words, _ = library.plan(np.ascontiguousarray(values))
        return PackPlan(bases=bases, widths=widths, words=words)
    full = values.size // VECTOR * VECTOR
    body = values[:full].reshape(-1, VECTOR)
    low, high = body.min(axis=1), body.max(axis=1)
    if full < values.size:
        low, high = np.append(low, values[full:].min()), np.append(high, values[full:].max())
    # the exponent of a float64 is the bit length of an integer, and 0 for 0
    widths = np.frexp((high - low).astype(np.float64))[1].astype(np.uint8)
    words = -(-vector_rows(values.size) * widths // LANES) * LANES
    return PackPlan(bases=low.astype(np.uint32), widths=widths, words=words)


def plan_exceptions(values: Array) -> PackPlan:
    """As `plan`, but a vector may be packed to fewer bits than its widest values have: the width with the fewest words in all."""
    library = native.load()
    if library is not None:
        bases, widths, words, exceptions = library.plan(np.ascontiguousarray(values), exceptions=True)
        return PackPlan(bases=bases, widths=widths, words=words, exceptions=exceptions)
    tight = plan(values)
    vectors = tight.widths.size
    vector = np.repeat(np.arange(vectors), VECTOR)[: values.size]
    lengths = np.frexp((values - tight.bases[vector]).astype(np.float64))[1]
    counts = np.bincount(vector * 33 + lengths, minlength=33 * vectors).reshape(vectors, 33)
    wider = counts.sum(axis=1, keepdims=True) - np.cumsum(counts, axis=1)
    widths = np.arange(33)
    words = -(-vector_rows(values.size)[:, None] * widths // LANES) * LANES
    # the high part of an exception has 22 bits
    allowed = (widths <= tight.widths[:, None]) & (tight.widths[:, None] - widths.astype(np.int64) <= 22)
    best = np.argmin(np.where(allowed, words + wider, np.iinfo(np.int64).max), axis=1)
    at = (np.arange(vectors), best)
    return PackPlan(bases=tight.bases, widths=best.astype(np.uint8), words=words[at], exceptions=wider[at])


def _pack_group(deltas: Array, width: int) -> Array:
    """`[vectors, 1024]` values below 2^width → `[vectors, width × 32]` words."""
    vectors = deltas.shape[0]
    rows = np.ascontiguousarray(deltas.reshape(vectors, ROWS, LANES).transpose(1, 0, 2)).reshape(ROWS, -1)
    words = np.zeros((width, rows.shape[1]), np.uint32)
    for row in range(ROWS):
        word, shift = divmod(row * width, 32)
        words[word] |= rows[row] << np.uint32(shift)
        if shift + width > 32:
            words[word + 1] |= rows[row] >> np.uint32(32 - shift)
    return np.ascontiguousarray(words.reshape(width, vectors, LANES).transpose(1, 0, 2)).reshape(vectors, -1)


def pack(values: Array, packing: PackPlan | None = None) -> tuple[Array, Array]:
    """Pack a uint32 stream.

    Args:
        values: uint32 `[count]`.
        packing: Its plan, if known.

    Returns:
        The words (uint32) and a VECTOR_META record for each vector.
    """
    packing = plan(values) if packing is None else packing
    library = native.load()
    if library is None:
        return pack_reference(values, packing)
    exceptions = np.zeros(packing.words.size, np.int64) if packing.exceptions is None else packing.exceptions
    return library.pack_planned(np.ascontiguousarray(values), packing.bases, packing.widths, packing.words, exceptions)


def pack_reference(values: Array, packing: PackPlan) -> tuple[Array, Array]:
    """`pack` in NumPy."""
    meta = np.zeros(packing.widths.size, VECTOR_META)
    spans = packing.words
    if packing.exceptions is not None:
        spans = spans + packing.exceptions
        meta["num_exceptions"] = packing.exceptions
    ends = np.cumsum(spans)
    meta["word_offset"], meta["base"], meta["width"] = ends - spans, packing.bases, packing.widths
    words = np.zeros(int(ends[-1]) if ends.size else 0, np.uint32)
    full = values.size // VECTOR
    body = values[: full * VECTOR].reshape(-1, VECTOR)
    for width in np.unique(packing.widths[:full]).tolist():
        if width:
            chosen = np.flatnonzero(packing.widths[:full] == width)
            mask = np.uint32((1 << width) - 1)
            packed = _pack_group((body[chosen] - packing.bases[chosen, None]) & mask, width)
            if packing.exceptions is None and chosen[-1] - chosen[0] + 1 == chosen.size:
                start = int(meta["word_offset"][chosen[0]])
                words[start : start + packed.size] = packed.reshape(-1)
            else:
                words[meta["word_offset"][chosen].astype(np.int64)[:, None] + np.arange(packed.shape[1])] = packed
    if full < packing.widths.size and packing.widths[full]:
        tail = np.zeros((1, VECTOR), np.uint32)
        width = int(packing.widths[full])
        tail[0, : values.size - full * VECTOR] = (values[full * VECTOR :] - packing.bases[full]) & np.uint32((1 << width) - 1)
        start, size = int(meta["word_offset"][full]), int(packing.words[full])
        words[start : start + size] = _pack_group(tail, width).reshape(-1)[:size]
    if packing.exceptions is not None:
        _put_exceptions(words, values, packing, ends - packing.exceptions)
    return words, meta


def _put_exceptions(words: Array, values: Array, packing: PackPlan, starts: Array) -> None:
    """A word for each value wider than its vector's width: its position in the low 10 bits, what lies above the width in the rest."""
    assert packing.exceptions is not None
    vector = np.repeat(np.arange(packing.widths.size), VECTOR)[: values.size]
    high = ((values - packing.bases[vector]).astype(np.uint64) >> packing.widths[vector].astype(np.uint64)).astype(np.uint32)
    at = np.flatnonzero(high)
    of = vector[at]
    first = np.cumsum(packing.exceptions) - packing.exceptions
    words[starts[of] + np.arange(at.size) - first[of]] = (at % VECTOR).astype(np.uint32) | (high[at] << np.uint32(10))


def _unpack_group(words: Array, width: int) -> Array:
    """`[vectors, width × 32]` words → `[vectors, 1024]` values."""
    vectors = words.shape[0]
    planes = np.ascontiguousarray(words.reshape(vectors, width, LANES).transpose(1, 0, 2)).reshape(width, -1)
    rows = np.zeros((ROWS, planes.shape[1]), np.uint32)
    mask = np.uint32((1 << width) - 1)
    for row in range(ROWS):
        word, shift = divmod(row * width, 32)
        value = planes[word] >> np.uint32(shift)
        if shift + width > 32:
            value |= planes[word + 1] << np.uint32(32 - shift)
        rows[row] = value & mask
    return np.ascontiguousarray(rows.reshape(ROWS, vectors, LANES).transpose(1, 0, 2)).reshape(vectors, VECTOR)


def unpack(words: Array, meta: Array, count: int, *, exceptions: bool = False) -> Array:
    """Decode `count` values; the reference for every other decoder.

    Args:
        words: uint32, all words of the stream.
        meta: VECTOR_META records.
        count: Values.
        exceptions: Whether vectors may hold values wider than their width.

    Raises:
        CorruptSegmentError: A vector's width, exceptions or words do not fit.
    """
    widths = meta["width"].astype(np.int64)
    extra = meta["num_exceptions"].astype(np.int64)
    if (widths > 32).any() or (extra.any() and not exceptions):
        raise CorruptSegmentError("a packed vector has a width over 32 bits or exceptions")
    needed = -(-vector_rows(count) * widths // LANES) * LANES
    offsets = meta["word_offset"].astype(np.int64)
    if (offsets + needed + extra > words.size).any():
        raise CorruptSegmentError("a packed vector's words lie outside its stream")
    values = np.zeros((meta.size, VECTOR), np.uint32)
    for width in np.unique(widths).tolist():
        chosen = np.flatnonzero(widths == width)
        if width:
            positions = offsets[chosen, None] + np.arange(width * LANES)
            inside = positions < (offsets + needed)[chosen, None]
            values[chosen] = _unpack_group(np.where(inside, words[np.where(inside, positions, 0)], np.uint32(0)), width)
        values[chosen] += meta["base"][chosen, None]
    if extra.any():
        _add_exceptions(values, words, offsets + needed, extra, widths, count)
    return values.reshape(-1)[:count]


def _add_exceptions(values: Array, words: Array, starts: Array, counts: Array, widths: Array, count: int) -> None:
    """Add the high parts of exceptions to `[vectors, 1024]` values, modulo 2^32."""
    vector = np.repeat(np.arange(counts.size), counts)
    if (widths[vector] > 31).any():
        raise CorruptSegmentError("a packed vector of 32 bits has exceptions")
    found = words[np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(vector.size)]
    at = vector * VECTOR + (found & np.uint32(1023)).astype(np.int64)
    if (np.diff(at) <= 0).any() or int(at[-1]) >= count:
        raise CorruptSegmentError("exceptions are not in order or lie past their vector")
    values.reshape(-1)[at] += (found >> np.uint32(10)) << widths[vector].astype(np.uint32)
