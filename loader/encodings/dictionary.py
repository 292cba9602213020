"""Dictionary: the distinct values once, sorted, in a scratch region; packed codes through it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from loader.encodings import bitpack
from loader.encodings.frame import Halves, Packed, frame
from loader.encodings.plain import Plain
from loader.encodings.target import OUT_KINDS, UNSIGNED, Candidate, Target, emit_stream, stream_bytes, stream_text
from loader.segment.layout import Role, ValueType

Array = np.ndarray[Any, np.dtype[Any]]
GATHER_COST = 1.1
SAMPLE = 4096


def estimate_distinct(patterns: Array) -> float:
    """How many distinct values there are, from an evenly spaced sample; all of them where hardly any value came twice.

    The guaranteed-error estimator of Charikar et al. (PODS 2000): values seen once stand for sqrt(values / sample) others each.
    """
    sample = np.sort(patterns[:: max(patterns.size // SAMPLE, 1)][:SAMPLE])
    edges = np.flatnonzero(np.concatenate([[True], sample[1:] != sample[:-1], [True]]))
    once = int(np.count_nonzero(np.diff(edges) == 1))
    if once > 0.75 * sample.size:
        return float(patterns.size)
    return edges.size - 1 - once + once * math.sqrt(patterns.size / sample.size)


def estimate_bytes(patterns: Array) -> float:
    """Bytes of a dictionary and its codes, guessed before anything is hashed."""
    distinct = max(estimate_distinct(patterns), 2.0)
    return patterns.size * math.log2(distinct) / 8 + 0.7 * distinct * patterns.dtype.itemsize


def distinct_codes(patterns: Array) -> tuple[Array, Array]:
    """Sorted distinct values and the code of each value (uint32)."""
    # Arrow's hash is several times faster than sorting all values
    encoded = pa.array(patterns).dictionary_encode()
    found, codes = encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
    order = np.argsort(found)
    rank = np.empty(order.size, np.uint32)
    rank[order] = np.arange(order.size, dtype=np.uint32)
    return found[order], rank[codes]


class Dictionary:
    """Values of 2, 4 or 8 bytes, few of them distinct."""

    def __init__(self, entries: Array, codes: Array) -> None:
        """
        Args:
            entries: Distinct values, sorted, in the integer type whose order they were sorted by.
            codes: uint32, one a value.
        """
        self._entries, self._codes = entries, codes
        self._plan = bitpack.plan(codes)
        self._values = best_flat(entries)
        self.num_bytes = stream_bytes(self._plan) + self._values.num_bytes
        self.cost = self.num_bytes * GATHER_COST
        self.text = f"dictionary[{entries.size:,}: {self._values.text}]({stream_text(self._plan)})"

    def emit(self, target: Target) -> None:
        builder, size = target.builder, self._entries.dtype.itemsize
        scratch = builder.region(Role.SCRATCH, depth=0, item_bytes=size, value_type=ValueType.UINT8, count=self._entries.size)
        self._values.emit(Target(builder=builder, region=scratch, out_kind=OUT_KINDS[size], count=self._entries.size))
        source = emit_stream(builder, self._codes, self._plan)
        target.op(level=1, source=source, dictionary=scratch, dict_count=self._entries.size)


def best_flat(values: Array) -> Candidate:
    """The cheapest of packed, halves and plain for non-empty integers."""
    parts = frame(values)
    packed: Candidate = Packed(parts.base, parts.deltas) if parts.deltas.dtype == np.uint32 else Halves(parts.base, parts.deltas)
    plain = Plain(values=values.view(UNSIGNED[values.dtype.itemsize]))
    return plain if plain.cost <= packed.cost else packed
