"""Which byte ranges a read of some chunks asks for: neighbours share a request, and holes are read through only while they are cheap."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from loader.segment.layout import ALIGNMENT, PADDING_BYTES, round_up

Array = np.ndarray[Any, np.dtype[Any]]
MAX_REQUEST_BYTES = 16 << 20
WASTE_SHARE = 0.15  # of the bytes asked for, so that a projection never reads 1.2 times what it needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requests:
    """One read of some chunks.

    Attributes:
        ranges: (offset, num_bytes) in the segment, in the order of the slab.
        starts: Where each range begins in the slab, on ALIGNMENT.
        chunk_offsets: int64 `[chunks]`, where each chunk begins in the slab.
        slab_bytes: Of the slab, PADDING_BYTES after the last chunk included.
    """

    ranges: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]
    chunk_offsets: Array
    slab_bytes: int


def plan(offsets: Array, sizes: Array, *, max_request_bytes: int = MAX_REQUEST_BYTES, waste_share: float = WASTE_SHARE) -> Requests:
    """Put chunks into as few requests as the limits allow.

    The smallest holes are read through first. Chunks that touch (but for the padding between them) always share a request.

    Args:
        offsets: int64 `[chunks]` in the segment, multiples of ALIGNMENT, in any order; a chunk may appear twice.
        sizes: int64 `[chunks]`.
        max_request_bytes: No request grows past this by joining; a larger chunk is a request of its own.
        waste_share: Holes read through, as a share of the chunks' bytes.
    """
    if not offsets.size:
        return Requests(ranges=(), starts=(), chunk_offsets=np.zeros(0, np.int64), slab_bytes=PADDING_BYTES)
    order = np.argsort(offsets, kind="stable")
    start, end = offsets[order], (offsets + sizes)[order]
    reach = np.maximum.accumulate(end)
    holes = np.maximum(start[1:] - reach[:-1], 0)
    joined = _cheap(holes, waste_share * int(sizes.sum()))
    first = _split_large(np.concatenate([[True], ~joined]), start, reach, max_request_bytes)
    begin = np.flatnonzero(first)
    low, high = start[begin], reach[np.append(begin[1:], start.size) - 1]
    rooms = -(-(high - low) // ALIGNMENT) * ALIGNMENT
    slab = np.cumsum(rooms) - rooms
    chunk_offsets = np.empty(offsets.size, np.int64)
    owner = np.cumsum(first) - 1
    chunk_offsets[order] = slab[owner] + start - low[owner]
    return Requests(
        ranges=tuple(zip(low.tolist(), (high - low).tolist(), strict=True)),
        starts=tuple(slab.tolist()),
        chunk_offsets=chunk_offsets,
        slab_bytes=round_up(int(rooms.sum())) + PADDING_BYTES,
    )


def _cheap(holes: Array, budget: float) -> Array:
    """Holes to read through: all below ALIGNMENT, then the smallest while they fit the budget."""
    order = np.argsort(holes, kind="stable")
    spent = np.cumsum(np.where(holes[order] < ALIGNMENT, 0, holes[order]))
    chosen = np.zeros(holes.size, np.bool_)
    chosen[order] = spent <= budget
    return chosen


def _split_large(first: Array, start: Array, reach: Array, max_request_bytes: int) -> Array:
    """Begin a new request where the one before would pass the limit. Overlapping chunks stay together."""
    first = first.copy()
    low = int(start[0])
    for index in range(start.size):
        if not first[index] and int(reach[index]) - low > max_request_bytes and int(start[index]) >= int(reach[index - 1]):
            first[index] = True
        if first[index]:
            low = int(start[index])
    return first
