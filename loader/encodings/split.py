"""Class split: skewed values cut by size into up to four classes, each packed to its own width; bit planes say whose turn it is.

A vector of 1,024 skewed values nearly always holds one that is wide, so packing them together pays its width for all. Split by a few
thresholds, each class is a dense stream of its own, and a value is found by counting the bits before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loader.encodings.bits import pack_bits
from loader.encodings.builder import ChunkBuilder
from loader.encodings.stream import Input, Packed, Source, Stream, materialise
from loader.kernels import native
from loader.segment.layout import MAX_CLASSES, VECTOR, VECTOR_META, OpKind, round_up

Array = np.ndarray[Any, np.dtype[Any]]
SAMPLE = 4096
QUANTILES = 32
SPLIT_NS = 0.7  # a value, beside unpacking
MIN_NESTED = 4096  # values of a class
NESTED_BYTES = 256  # of records that a class takes when it is split again


def class_anchors(classes: Array, num_classes: int) -> Array:
    """How many items of classes 1, 2… come before each vector: uint32 `[vectors × (num_classes − 1)]`, vector by vector."""
    padded = np.zeros(round_up(classes.size, VECTOR), np.uint8)
    padded[: classes.size] = classes
    rows = padded.reshape(-1, VECTOR)
    counts = np.stack([np.count_nonzero(rows == number, axis=1) for number in range(1, num_classes)], axis=1)
    return np.asarray(np.cumsum(counts, axis=0) - counts).astype(np.uint32).reshape(-1)


def classify(values: Array, thresholds: Array) -> Array:
    """The class of each value, uint8: how many thresholds it reaches."""
    classes = np.zeros(values.size, np.uint8)
    for threshold in thresholds:
        classes += values >= threshold
    return classes


def partition(values: Array, thresholds: Array) -> tuple[Array, Array | None, Array, list[Array]]:
    """Split a stream.

    Args:
        values: uint32.
        thresholds: uint32 `[classes − 1]`, ascending: the smallest value of classes 1, 2…

    Returns:
        The first plane (uint32 words, as `pack_bits`), the second (None for two classes), the anchors, and each class's values.
    """
    library = native.load()
    if library is not None:
        return library.partition(np.ascontiguousarray(values), thresholds)
    classes = classify(values, thresholds)
    num_classes = thresholds.size + 1
    second = pack_bits(classes >> 1 != 0) if num_classes > 2 else None
    return pack_bits(classes & 1 != 0), second, class_anchors(classes, num_classes), [values[classes == number] for number in range(num_classes)]


def _bit_length(values: Array) -> Array:
    return np.asarray(np.frexp(values.astype(np.float64))[1])


def search(values: Array, num_classes: int) -> tuple[Array, float]:
    """Thresholds for `num_classes` classes, and the bits a value that their widths then take, both from a sample.

    Dynamic programming over candidate thresholds: powers of two above the smallest value, and where there are enough values to pay for the
    search quantiles of the sample, and powers of two below the largest. Infinite bits where there are too few candidates.

    Args:
        values: uint32, at least one.
        num_classes: 2 to 4.
    """
    library = native.load()
    if library is not None:
        return library.split_search(np.ascontiguousarray(values), num_classes)
    low, high = int(values.min()), int(values.max())
    sample = np.sort(values[:: max(values.size // SAMPLE, 1)][:SAMPLE]).astype(np.int64)
    powers = 1 << np.arange(max((high - low).bit_length(), 1), dtype=np.int64)
    starts = np.concatenate([[low], low + powers])
    if values.size >= SAMPLE:
        quantiles = sample[np.linspace(0, sample.size - 1, QUANTILES).astype(np.int64)]
        starts = np.unique(np.concatenate([starts, quantiles, quantiles + 1, high + 1 - powers]))
    starts = starts[(starts >= low) & (starts <= high)]
    ends = np.append(starts, high + 1)
    below = np.searchsorted(sample, ends)
    # cost[i, j]: values from ends[i] up to ends[j], all of one class
    inside = below[None, :] - below[:, None]
    cost = np.where(np.tri(ends.size, k=0, dtype=np.bool_), np.inf, inside * _bit_length(np.maximum(ends[None, :] - 1 - ends[:, None], 0)))
    best = cost[0]
    chosen: list[Array] = []
    for _ in range(num_classes - 1):
        total = best[:, None] + cost
        chosen.append(np.argmin(total, axis=0))
        best = total[chosen[-1], np.arange(ends.size)]
    at, thresholds = ends.size - 1, []
    for step in reversed(chosen):
        at = int(step[at])
        thresholds.append(int(ends[at]))
    found = np.unique(np.array(thresholds, np.int64))
    return found[(found > low)].astype(np.uint32), float(best[-1]) / sample.size


def estimate_bytes(count: int, bits: float, num_classes: int) -> float:
    """Bytes of a split whose classes take `bits` a value on average."""
    planes = 1 if num_classes == 2 else 2
    return count * (bits + planes + 32 * (num_classes - 1) / VECTOR + 8 * VECTOR_META.itemsize / VECTOR) / 8 + 24 * num_classes


class Split:
    """Values split by thresholds; with `nested`, a class that is skewed in itself is split again, and decoded one level earlier."""

    scans = False

    def __init__(self, values: Array, thresholds: Array, *, nested: bool = False) -> None:
        self.count = values.size
        first, second, anchors, streams = partition(values, thresholds)
        self._first, self._second, self._anchors = first, second, anchors
        self._classes = [_class_stream(stream, nested=nested) for stream in streams]
        planes = first.nbytes + (0 if second is None else second.nbytes)
        self.num_bytes = planes + anchors.nbytes + sum(stream.num_bytes for stream in self._classes) + 24 * (thresholds.size + 1)
        self.decode_ns = SPLIT_NS * self.count + sum(stream.decode_ns for stream in self._classes)

    @property
    def text(self) -> str:
        return "split(" + ", ".join(f"{stream.count:,}: {stream.text}" for stream in self._classes) + ")"

    def place(self, builder: ChunkBuilder) -> Input:
        sources = [stream.as_source(builder) for stream in self._classes]
        numbers = [source.add(builder) for source in sources]
        level = max(source.level for source in sources)
        return Input(
            kind=OpKind.SPLIT, source=numbers[0], num_sources=len(numbers), level=level, bits0=builder.stream(self._first),
            bits1=None if self._second is None else builder.stream(self._second), anchors=builder.stream(self._anchors),
        )  # fmt: skip

    def as_source(self, builder: ChunkBuilder, *, by_rank: bool = True) -> Source:
        return materialise(builder, self)


def _class_stream(values: Array, *, nested: bool) -> Stream:
    packed = Packed(values)
    if not nested or values.size < MIN_NESTED:
        return packed
    return best_split(values, packed.num_bytes - NESTED_BYTES) or packed


def best_split(values: Array, below_bytes: float, *, nested: bool = False) -> Split | None:
    """The best split whose estimate lies below some bytes."""
    thresholds, bits = search(values, MAX_CLASSES)
    size = estimate_bytes(values.size, bits, MAX_CLASSES)
    found = thresholds if thresholds.size and size < below_bytes else None
    below_bytes = min(size, below_bytes)
    # two classes never take fewer bits than four, only a plane less; infinite means that there are no four
    if estimate_bytes(values.size, bits if np.isfinite(bits) else 0.0, 2) < below_bytes:
        thresholds, bits = search(values, 2)
        if thresholds.size and estimate_bytes(values.size, bits, 2) < below_bytes:
            found = thresholds
    return None if found is None else Split(values, found, nested=nested)
