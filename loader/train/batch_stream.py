"""Batches made by another process: what a rank asks for, what arrives, and how parts of a batch become the batch that the rank would have made.

Owns the protocol between a loader and a stream of batches (Ray actors: `loader.distributed.batch_stream`). A rank's work divides by shards: part k of n reads
what rank `rank + world_size * k` of a world n times as large would, so every shard is read once, and a batch is the parts' rows shard by shard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from loader.batch.assemble import BatchArrays, Part
from loader.batch.gather import LENGTH_SHIFT
from loader.batch.window import ListWindow, WindowData
from loader.errors import HeadraceError
from loader.scan.groups import Groups
from loader.scan.order import Order, ShardSlice
from loader.train.bad_blocks import MetBlock
from loader.train.options import LoaderOptions

MAX_POOL_VALUES = 2**32


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchJob:
    """What one rank wants: the batches from a position on.

    Attributes:
        options: Of the rank's loader.
        order: Of the epoch.
        position: Rows that all ranks yielded before.
        num_batches: Batches to the end of the epoch.
        num_rows: Rows of the plan; groups, where positions count groups.
    """

    options: LoaderOptions
    order: Order
    position: int
    num_batches: int
    num_rows: int

    def bounds(self, number: int) -> tuple[int, int]:
        """Positions [start, stop) of a global batch."""
        size = self.options.global_batch_size
        start = self.position + number * size
        return start, min(start + size, self.num_rows)

    def part(self, index: int, num_parts: int) -> BatchJob:
        """The share of one of `num_parts` parts: rows that a rank of a larger world would get, unpadded."""
        options = self.options
        remainder = "uneven" if options.remainder == "pad" else options.remainder
        rank, world = options.rank + options.world_size * index, options.world_size * num_parts
        return dataclasses.replace(self, options=dataclasses.replace(options, rank=rank, world_size=world, remainder=remainder, decode="rank"))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PartBatch:
    """One part's rows of one batch, as they arrive.

    Attributes:
        epoch: Of the order.
        position: Where the global batch starts.
        arrays: The rows, in host memory that may not be written.
        blocks: Blocks fetched for it, since the part before.
        encoded_bytes: Bytes of their chunks.
        window_bytes: Largest size of the windows its maker held.
        bad: Bad blocks that its maker met since the part before.
    """

    epoch: int
    position: int
    arrays: BatchArrays
    blocks: int = 0
    encoded_bytes: int = 0
    window_bytes: int = 0
    bad: tuple[MetBlock, ...] = ()


@runtime_checkable
class BatchStream(Protocol):
    """Anything that makes a rank's batches elsewhere."""

    def open_batches(self, job: BatchJob) -> Iterator[Sequence[PartBatch]]:
        """The parts of each batch, in order of parts. Closing the iterator (a generator's `close`) stops all work for it before it returns."""
        ...


def num_parts(job: BatchJob, wanted: int) -> int:
    """How many parts a job divides into, at most `wanted`: each has whole shards and an even share of every batch."""
    options = job.options
    if job.order.shards % options.world_size:
        return 1  # ranks share shards already
    shards, rows = job.order.shards // options.world_size, options.global_batch_size // options.world_size
    return next(parts for parts in range(max(wanted, 1), 0, -1) if shards % parts == 0 and rows % parts == 0)


def check_part(job: BatchJob, number: int, part: PartBatch) -> None:
    """Refuse a part that is not the one that comes next: a stream must neither lose, repeat nor reorder.

    Raises:
        HeadraceError: It is another one.
    """
    start, _ = job.bounds(number)
    if (part.epoch, part.position) != (job.order.epoch, start):
        raise HeadraceError(
            f"the batch stream handed over the batch at position {part.position} of epoch {part.epoch} where position {start} of epoch {job.order.epoch} "
            "is due: it lost or reordered batches, and going on would train on wrong samples"
        )


def merge_parts(job: BatchJob, number: int, parts: Sequence[PartBatch], pieces: Sequence[ShardSlice], groups: Groups | None = None) -> list[Part[WindowData]]:
    """A batch's parts as the slices of which the rank would have assembled it: shard by shard.

    Args:
        job: The rank's.
        number: Of the batch.
        parts: In the order of parts.
        pieces: The rank's slices of the batch.
        groups: Of the plan, where slices count groups.

    Raises:
        HeadraceError: A part has too few or too many rows.
    """
    options, (start, _) = job.options, job.bounds(number)
    windows = [as_window(part.arrays) for part in parts]
    begin = [np.arange(window.num_rows + 1) if groups is None else groups.offsets(window.blocks, window.rows) for window in windows]
    taken = [0] * len(parts)
    slices = []
    for piece in pieces:
        index = (piece.shard - options.rank) // options.world_size % len(parts) if len(parts) > 1 else 0  # parts divide the shards: so of lanes too
        after = taken[index] + piece.num_rows
        if after < len(begin[index]):
            slices.append(Part(window=windows[index], start=int(begin[index][taken[index]]), stop=int(begin[index][after])))
        taken[index] = after
    given, unit = [len(offsets) - 1 for offsets in begin], "rows" if groups is None else "groups"
    if taken != given:
        raise HeadraceError(f"the batch at position {start} has parts of {given} {unit} where {taken} are due: run the same Headrace and lake on every host")
    return slices


def masked_rows(parts: Sequence[PartBatch], arrays: BatchArrays) -> npt.NDArray[np.bool_] | None:
    """Those rows of a batch that its parts say are masked; None for none."""
    places = [_places(part.arrays)[part.arrays.masked] for part in parts if part.arrays.masked is not None]
    return np.isin(_places(arrays), np.concatenate(places)) if places else None


def _places(arrays: BatchArrays) -> npt.NDArray[np.int64]:
    return arrays.blocks.astype(np.int64) << 32 | arrays.rows


def as_window(arrays: BatchArrays) -> WindowData:
    """Arrived arrays as a window, of which batches are assembled; shares their memory."""
    lists = {}
    for column, (values, offsets) in arrays.lists.items():
        if len(values) > MAX_POOL_VALUES:
            raise ValueError(f"a batch has {len(values):,} values in one list column, over 2**32: lower global_batch_size")
        lengths = np.diff(offsets).astype(np.uint64)
        views = np.where(lengths > 0, offsets[:-1].astype(np.uint64) | lengths << LENGTH_SHIFT, np.uint64(0))  # every empty list is the view 0
        if column in arrays.inverses:
            views = views[arrays.inverses[column]]
        lists[column] = ListWindow(views=views, pool=values, base=0)
    return WindowData(
        num_rows=arrays.num_rows, fixed=arrays.fixed, wide=arrays.wide, lists=lists, validity=arrays.validity, blocks=arrays.blocks, rows=arrays.rows
    )
