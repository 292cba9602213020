"""Dictionary: the distinct values once, in a scratch region; codes through it.

Entries stand in classes by frequency, the frequent first, and sorted within each class: codes then split by class into narrow
streams, and entries cost little as differences. Where frequency gains nothing there is one class.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from loader.encodings import runs, split
from loader.encodings.cascade import MAX_RUN_SHARE, choose_stream, weigh
from loader.encodings.options import EncodeOptions
from loader.encodings.split import Split
from loader.encodings.stream import Packed, Stream
from loader.encodings.target import OUT_KINDS, Candidate, Target
from loader.kernels import native
from loader.segment.layout import Role, ValueType

Array = np.ndarray[Any, np.dtype[Any]]
GATHER_NS = 0.6
RECORD_BYTES = 112  # of the region, op and source that a dictionary adds to a chunk
CODE_EXCESS = 0.5  # bits that a code takes beyond the entropy of a sample
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


def log2_fixed(numbers: Array) -> Array:
    """log2 of positive integers below 2^47, int64 in units of 2^-16, to within 0.008: in integers, so that it is the same on every machine."""
    whole = np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1
    part = ((numbers.astype(np.int64) << 16) >> whole) - 65536
    return np.asarray((whole << 16) + part + (((part * (65536 - part)) >> 16) * 22544 >> 16))


def estimate_bytes(patterns: Array) -> float:
    """Bytes of a dictionary and its codes, guessed before anything is hashed: codes by the entropy of a sample, entries as differences.

    Infinite where all values are seen and hardly any comes twice: codes then take what sorted entries save.
    """
    distinct = max(estimate_distinct(patterns), 2.0)
    if distinct >= patterns.size <= SAMPLE:
        return math.inf
    sample = np.sort(patterns[:: max(patterns.size // SAMPLE, 1)][:SAMPLE])
    counts = np.diff(np.flatnonzero(np.concatenate([[True], sample[1:] != sample[:-1], [True]])))
    entropy = int((counts * (log2_fixed(np.array(sample.size)) - log2_fixed(counts))).sum()) / 65536.0 / sample.size
    # what came once in the sample would come once among more values, too: its code is longer than the sample shows
    entropy += int(np.count_nonzero(counts == 1)) / sample.size * math.log2(max(patterns.size / sample.size, 1))
    spread = max(math.log2(max((int(sample[-1]) - int(sample[0])) / distinct, 1)), 1.0)
    return patterns.size * (entropy + CODE_EXCESS) / 8 + 0.7 * distinct * spread / 8


def distinct(values: Array) -> tuple[Array, Array, Array]:
    """Distinct values in the order of their first occurrence, the code of each value (uint32), and how often each occurs (int64)."""
    library = native.load()
    if library is not None and values.dtype.itemsize > 1:
        found = library.distinct(np.ascontiguousarray(values))
        assert found is not None
        return found
    # Arrow's hash is several times faster than sorting all values
    encoded = pa.array(values).dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.uint32)
    entries = encoded.dictionary.to_numpy()
    return entries, codes, np.bincount(codes, minlength=entries.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
    """Entries in classes by frequency.

    Attributes:
        entries: Sorted within each class.
        codes: uint32, one a value.
        limits: uint32, the first code of classes 1, 2…; empty for one class.
    """

    entries: Array
    codes: Array
    limits: Array


def class_limits(counts: Array) -> Array:
    """The first codes of the classes that give the shortest codes, uint32 `[classes − 1]`; class k holds a power of two of entries.

    Args:
        counts: How often each entry occurs, descending.
    """
    total, num_entries = int(counts.sum()), counts.size
    below = np.concatenate([[0], np.cumsum(counts)])
    bits = max((num_entries - 1).bit_length(), 1)
    # per value: planes, and what anchors and records of the streams take
    overhead = {2: 1 + 0.06 + 0.19, 4: 2 + 0.12 + 0.38}
    best_bits, best = float(total * (num_entries - 1).bit_length()), np.zeros(0, np.uint32)
    one = np.arange(bits)
    pairs, fours = one[:, None], np.stack(np.meshgrid(one, one, one, indexing="ij"), axis=-1).reshape(-1, 3)
    for widths in (pairs, fours[(np.diff(fours, axis=1) >= 0).all(axis=1)]):
        ends = np.cumsum(1 << widths.astype(np.int64), axis=1)
        keep = ends[:, -1] < num_entries
        if not keep.any():
            continue
        widths, ends = widths[keep], ends[keep]
        starts = np.concatenate([np.zeros((ends.shape[0], 1), np.int64), ends], axis=1)
        sizes = np.diff(below[np.concatenate([starts, np.full((ends.shape[0], 1), num_entries)], axis=1)], axis=1)
        last = np.frexp((num_entries - ends[:, -1:] - 1).astype(np.float64))[1]
        cost = (sizes * np.concatenate([widths, last], axis=1)).sum(axis=1) + overhead[widths.shape[1] + 1] * total
        at = int(np.argmin(cost))
        if cost[at] + 2000 < best_bits:
            best_bits, best = float(cost[at]), ends[at].astype(np.uint32)
    return best


def by_frequency(entries: Array, codes: Array, counts: Array, *, split_codes: bool = True) -> Classes:
    """Order entries into classes, and codes after them.

    Args:
        entries, codes, counts: From `distinct`.
        split_codes: False for one class of sorted entries.
    """
    library = native.load()
    if library is not None:
        ordered, renumbered, borders = library.by_frequency(entries, codes, counts, split_codes=split_codes)
        return Classes(entries=ordered, codes=renumbered, limits=borders)
    by_value = np.argsort(entries, kind="stable")
    order, limits = by_value, np.zeros(0, np.uint32)
    if split_codes:
        frequent = by_value[np.argsort(-counts[by_value], kind="stable")]
        limits = class_limits(counts[frequent])
        if limits.size:
            # one key sorts within all classes: the class in front, the rank by value behind
            rank = np.empty(order.size, np.int64)
            rank[by_value] = np.arange(order.size)
            group = split.classify(np.arange(order.size, dtype=np.uint32), limits).astype(np.int64)
            order = frequent[np.argsort(group * order.size + rank[frequent], kind="stable")]
    new = np.empty(order.size, np.uint32)
    new[order] = np.arange(order.size, dtype=np.uint32)
    return Classes(entries=entries[order], codes=new[codes], limits=limits)


class Dictionary:
    """Values of 2, 4 or 8 bytes, few of them distinct.

    Attributes:
        entries: Distinct values, in the order of their codes.
        values: Their encoding.
        limits: Where codes are in classes, the first code of classes 1, 2…
    """

    def __init__(self, entries: Array, values: Candidate, codes: Stream, limits: Array) -> None:
        """
        Args:
            entries, values, limits: See the attributes.
            codes: The code of each value, encoded.
        """
        self._size, self._count = entries.dtype.itemsize, entries.size
        self.entries, self.limits = entries, limits
        self.values, self._codes = values, codes
        self.num_bytes = codes.num_bytes + values.num_bytes + RECORD_BYTES
        self.decode_ns = codes.decode_ns + values.decode_ns + GATHER_NS * codes.count

    @property
    def text(self) -> str:
        return f"dictionary[{self._count:,}: {self.values.text}]({self._codes.text})"

    def emit(self, target: Target) -> int:
        builder = target.builder
        scratch = builder.region(Role.SCRATCH, depth=0, item_bytes=self._size, value_type=ValueType.UINT8, count=self._count)
        level = self.values.emit(Target(builder=builder, region=scratch, out_kind=OUT_KINDS[self._size], count=self._count))
        return target.read(self._codes, dictionary=scratch, dict_count=self._count, level=level + 1)


def best_dictionary(values: Array, options: EncodeOptions, encode_entries: Callable[[Array], Candidate]) -> Dictionary:
    """The cheaper of entries by value and entries by frequency.

    Args:
        values: Integers of 2, 4 or 8 bytes, at least one.
        options: How bytes and time compare.
        encode_entries: Chooses the encoding of the entries.
    """
    found = distinct(values)
    ordered = by_frequency(*found, split_codes=False)
    frequent = by_frequency(*found)
    # thresholds on codes by value are searched only where frequency gives none
    scattered = np.count_nonzero(runs.starts(ordered.codes)) > MAX_RUN_SHARE * values.size
    codes: Stream = Packed(ordered.codes) if frequent.limits.size and scattered else choose_stream(ordered.codes, options)
    best = Dictionary(ordered.entries, encode_entries(ordered.entries), codes, ordered.limits)
    if frequent.limits.size:
        other = Dictionary(frequent.entries, encode_entries(frequent.entries), Split(frequent.codes, frequent.limits), frequent.limits)
        if weigh(other.num_bytes, other.decode_ns, options) < weigh(best.num_bytes, best.decode_ns, options):
            best = other
    return best
