"""Which blocks a rank will ask for, before its loader asks: the same arithmetic that the loader follows. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from loader.scan import order as ordering
from loader.scan.encoded import FetchRequest
from loader.scan.order import Order
from loader.scan.plan import Plan


def epoch_requests(plan: Plan, order: Order, *, position: int, rank: int, world_size: int, global_batch_size: int, remainder: str) -> Iterator[FetchRequest]:
    """The blocks of one rank from a position to the end of an epoch, as a `DataLoader` of these options opens its stream.

    Args:
        plan: What is read.
        order: Of the epoch.
        position: Rows that all ranks yielded before.
        rank, world_size, global_batch_size, remainder: As for the `DataLoader`.
    """
    layout = ordering.lay_out(plan.blocks["selected"], order)
    num_batches = ordering.num_batches(plan.num_rows, position, global_batch_size, remainder)
    end = min(position + num_batches * global_batch_size, plan.num_rows)
    sequence = 0
    for window in ordering.rank_windows(layout, position, rank, world_size, end):
        for block in ordering.window_pieces(layout, window)[0].tolist():
            yield FetchRequest(sequence=sequence, shard=window.shard, block=block)
            sequence += 1


def at_epoch(order: Order, epoch: int) -> Order:
    """The same order in another epoch."""
    return dataclasses.replace(order, epoch=epoch)
