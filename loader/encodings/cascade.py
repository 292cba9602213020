"""Which streams stand for 32-bit values: packed, with exceptions, delta, runs or class split, and what those are made of in turn."""

from __future__ import annotations

from typing import Any

import numpy as np

from loader.encodings import runs
from loader.encodings.delta import Delta, differences, zigzag
from loader.encodings.options import EncodeOptions
from loader.encodings.runs import Runs
from loader.encodings.split import best_split
from loader.encodings.stream import Excepted, Packed, Stream
from loader.segment.layout import Scan

Array = np.ndarray[Any, np.dtype[Any]]
MIN_SPLIT = 256  # values: below, the planes and tables cost what the widths save
MAX_RUN_SHARE = 0.4  # of the values that start a run
MIN_SAVING = 0.98
SMALL_BYTES = 192  # about what the records of another encoding take
STRETCH = 1024
RARE_CHANGES = 1 / 20  # of the values: each is an exception of about 32 bits


def weigh(num_bytes: float, decode_ns: float, options: EncodeOptions) -> float:
    """Bytes plus what decoding costs, in bytes."""
    return num_bytes + options.bytes_per_ns * decode_ns


def choose_stream(values: Array, options: EncodeOptions, *, budget: int = 2, direct: bool = False) -> Stream:
    """The cheapest way to store a uint32 stream.

    Args:
        values: uint32.
        options: How bytes and time compare.
        budget: How many encodings may lie around the packed streams.
        direct: Whether values, not codes, are read, so that vectors may have exceptions (under nulls by way of scratch).
    """
    packed = Packed(values)
    if packed.num_bytes <= SMALL_BYTES or not budget:
        return packed
    best, best_cost = _better([packed], options)
    found: list[Stream] = []
    mask = runs.starts(values)
    num_runs = int(np.count_nonzero(mask))
    if num_runs < MAX_RUN_SHARE * values.size:
        found.append(Runs(mask, choose_stream(values[mask], options, budget=budget - 1)))
    if _steps_are_small(values):
        found.extend(_deltas(values, packed.num_bytes, options, budget))
    if direct:
        found.append(Excepted(values))
    best, best_cost = _better([best, *found], options)
    if values.size >= MIN_SPLIT:
        split = best_split(values, MIN_SAVING * best.num_bytes, nested=options.nested_splits and budget > 1)
        if split is not None:
            best, best_cost = _better([best, split], options)
    return best


def _steps_are_small(values: Array) -> bool:
    """Whether a stretch from the middle takes fewer bits as differences than above its minimum, or rarely changes."""
    middle = values.size // 2
    stretch = values[max(middle - STRETCH // 2, 0) : middle + STRETCH // 2].astype(np.int64)
    if stretch.size < 2:
        return False
    steps = np.abs(np.diff(stretch))
    if np.count_nonzero(steps) < steps.size * RARE_CHANGES:
        return True
    # frexp gives bit lengths; a mean of them does not mind a few wide steps, as exceptions do not
    return float(np.frexp(steps)[1].mean()) + 1 < 0.95 * float(np.frexp(stretch - stretch.min())[1].mean()) + 0.5


def _deltas(values: Array, packed_bytes: float, options: EncodeOptions, budget: int) -> list[Stream]:
    """Differences packed, with exceptions and, if they can be cascaded, split."""
    steps, anchors = differences(values)
    # steps that only go up need no room for a sign; a few that go down are exceptions
    coded = {Scan.SUM: steps, Scan.ZIGZAG_SUM: zigzag(steps)}
    found: list[tuple[Scan, Stream]] = [(scan, stream) for scan, taken in coded.items() for stream in (Packed(taken), Excepted(taken))]
    scan, least = min(found, key=lambda pair: pair[1].num_bytes)
    if budget > 1 and steps.size >= MIN_SPLIT and SMALL_BYTES < least.num_bytes < packed_bytes:
        split = best_split(coded[scan], MIN_SAVING * least.num_bytes)
        if split is not None:
            return [Delta(anchors, least, scan), Delta(anchors, split, scan)]
    return [Delta(anchors, stream, scan) for scan, stream in found]


def _better(streams: list[Stream], options: EncodeOptions) -> tuple[Stream, float]:
    """The cheapest, the first of equals."""
    costs = [weigh(stream.num_bytes, stream.decode_ns, options) for stream in streams]
    best = min(range(len(streams)), key=costs.__getitem__)
    return streams[best], costs[best]
