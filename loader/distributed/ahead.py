"""What a rank will ask for, before its loader asks: the same arithmetic that the loader follows. Lets a stream start while the model is still being built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from loader.distributed.batch_stream import RayBatchStream
from loader.distributed.datasource import MAX_TASKS
from loader.distributed.stream import RayBlockStream
from loader.scan import order as ordering
from loader.scan.encoded import FetchRequest
from loader.scan.mix import AnyPlan
from loader.train.batch_stream import BatchJob

T = TypeVar("T")


def expect(stream: RayBlockStream | RayBatchStream, batches: Any, *, epochs: Sequence[int], position: int) -> None:
    """Begin what a rank will read from where its loader is: the rest of this epoch, and as many of the next as one Ray read takes well.

    Args:
        stream: The loader's own.
        batches: The rank's loader, before its first `iter()`.
        epochs: Numbers of the epochs to come, the one under way first.
        position: Rows of that epoch that all ranks have yielded.
    """
    jobs = coming_jobs(batches, epochs=epochs, position=position)
    if isinstance(stream, RayBatchStream):
        stream.expect(_one_read(jobs, lambda job: job.num_batches))
    else:
        reads = [list(epoch_requests(batches.plan, job)) for job in jobs]
        coming = _one_read(reads, len)
        stream.expect(coming)


def _one_read(reads: Iterable[T], num_tasks: Callable[[T], int]) -> Iterator[T]:
    """So many of them as one Ray read takes well, at least one."""
    tasks = 0
    for read in reads:
        yield read
        tasks += num_tasks(read)
        if tasks >= MAX_TASKS:
            return


def coming_jobs(batches: Any, *, epochs: Sequence[int], position: int) -> list[BatchJob]:
    """What a loader will yield, a job an epoch. Arguments as for `expect`."""
    now, jobs = batches.job(), []
    for epoch in epochs:
        num_batches = ordering.num_batches(now.num_rows, position, now.options.global_batch_size, now.options.remainder)
        jobs.append(dataclasses.replace(now, order=dataclasses.replace(now.order, epoch=epoch), position=position, num_batches=num_batches))
        position = 0
    return jobs


def epoch_requests(plan: AnyPlan, job: BatchJob) -> Iterator[FetchRequest]:
    """The blocks of a job, in the order in which a `DataLoader` asks its stream for them."""
    options, layout = job.options, plan.lay_out(job.order)
    end = min(job.position + job.num_batches * options.global_batch_size, plan.num_units)
    sequence = 0
    for window in layout.windows(job.position, options.rank, options.world_size, end):
        for block in layout.pieces(window)[0].tolist():
            yield FetchRequest(sequence=sequence, shard=window.shard, block=block)
            sequence += 1
