"""What one rank does from a position to the end of an epoch, and the blocks that arrive for it. Plain data and order; nothing here decodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loader.batch.batch import BatchLayout
from loader.batch.buffers import BufferPool
from loader.batch.window import Columns
from loader.scan.encoded import EncodedBlock, FetchRequest
from loader.scan.mixed_order import AnyLayout
from loader.scan.order import ShardSlice, Window
from loader.scan.stream import check_arrival
from loader.train.bad_blocks import BadBlocks
from loader.train.batch_stream import BatchJob
from loader.train.images import ImageStage
from loader.train.stats import StageClock, StatsRecorder

if TYPE_CHECKING:
    from loader.batch.device import BatchDevice
    from loader.scan.mix import AnyPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one rank does from a position to the end of an epoch.

    Attributes:
        plan: What is read.
        layout: In which order.
        batch_layout: What batches look like.
        position: Rows that all ranks yielded before.
        num_batches: Batches to come.
        global_batch_size: Rows of a global batch.
        rank, world_size: Which part of it is made.
        remainder: `pad` fills the last batch up.
        threads: For native decoding and gathers.
        transforms: Applied to every batch, in order.
        pool: Memory of batches.
        renew: Called before every batch, to keep the snapshot.
        job: What another process is asked for, where it makes the batches.
        device: Where blocks are decoded and batches made; None is the CPU.
        images: Decodes image columns, where there are any.
        bad: What to do about blocks that cannot be had.
    """

    plan: AnyPlan
    layout: AnyLayout
    batch_layout: BatchLayout
    position: int
    num_batches: int
    global_batch_size: int
    rank: int
    world_size: int
    remainder: str
    threads: int
    transforms: tuple[Callable[[Any], Any], ...]
    pool: BufferPool
    renew: Callable[[], None]
    job: BatchJob | None = None
    device: BatchDevice | None = None
    images: ImageStage | None = None
    bad: BadBlocks = dataclasses.field(default_factory=BadBlocks)

    @property
    def pad_to(self) -> int:
        """Rows that a batch has at least."""
        return self.global_batch_size // self.world_size if self.remainder == "pad" and self.batch_layout.groups is None else 0

    def bounds(self, index: int) -> tuple[int, int]:
        """Positions [start, stop) of a global batch."""
        start = self.position + index * self.global_batch_size
        return start, min(start + self.global_batch_size, self.end)

    @property
    def end(self) -> int:
        """Position after the last batch."""
        return min(self.position + self.num_batches * self.global_batch_size, self.layout.num_rows)

    def slices(self, index: int) -> list[ShardSlice]:
        """This rank's part of a global batch."""
        return self.layout.slices(*self.bounds(index), self.rank, self.world_size)

    def windows(self) -> Iterator[Window]:
        """Windows in the order in which they are needed."""
        return self.layout.windows(self.position, self.rank, self.world_size, self.end)

    def requests(self) -> Iterator[FetchRequest]:
        """Blocks in the order in which their windows are needed."""
        sequence = 0
        for window in self.windows():
            for block in self.layout.pieces(window)[0].tolist():
                yield FetchRequest(sequence=sequence, shard=window.shard, block=block)
                sequence += 1


def layout_of(plan: AnyPlan, output: str, unique: Sequence[str] = (), images: Collection[str] = (), pad_groups: int = 0) -> BatchLayout:
    """What all batches of a plan share; `unique` names list columns that come unexpanded, `images` binary columns that become pixels."""
    return BatchLayout(
        columns=Columns.of(plan.read, unique),
        names=plan.columns if plan.row_weights is None else (*plan.columns, plan.row_weights.column),
        block_segments=plan.blocks["segment_id"].astype(np.int64),
        block_row_starts=plan.row_starts,
        block_sources=plan.block_sources,
        output=output,
        images=frozenset(images),
        weights=plan.row_weights,
        groups=plan.groups,
        pad_groups=pad_groups,
    )


class Arrivals:
    """Blocks as they come from a stream, checked against what was asked for, and counted."""

    def __init__(self, work: Work, blocks: Iterator[EncodedBlock], clock: StageClock, recorder: StatsRecorder) -> None:
        self._requests, self._blocks, self._clock, self._recorder = work.requests(), blocks, clock, recorder
        self._bad = work.bad

    def next(self) -> EncodedBlock:
        """The block that is due."""
        with self._clock.stage("read"):
            wanted = next(self._requests)
            block = next(self._blocks)
            check_arrival(wanted, block)
            self._bad.arrive(block)
        self._recorder.blocks += 1
        self._recorder.encoded_bytes += int(block.chunk_bytes.sum())
        return block
