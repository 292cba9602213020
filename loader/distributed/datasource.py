"""The Ray Data source of a rank's blocks: which ones, in which order. It names blocks and reads none; fetching is in `actors.py`.

A read task yields *descriptors*, a few integers a block. Ray fuses it with the fetch that follows, so descriptors never travel alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from loader.extras import require
from loader.scan.encoded import FetchRequest

if TYPE_CHECKING:
    from ray.data.datasource import ReadTask

# An epoch of a huge plan is a few thousand tasks, not one a block: Ray builds them all before the first runs.
MAX_TASKS = 4096

# What a task is worth: Ray takes 5 to 10 ms for each, and for each result that it hands over.
TASK_BYTES = 8 << 20
MAX_BLOCKS_PER_TASK = 64

DESCRIPTORS = pa.schema([("sequence", pa.int64()), ("shard", pa.int64()), ("block", pa.int64())])


def describe(requests: Iterable[FetchRequest]) -> pa.Table:
    """The requests as a table of integers, in their order: sequence, shard, block."""
    rows = np.fromiter(((request.sequence, request.shard, request.block) for request in requests), dtype=np.dtype((np.int64, 3)))
    return pa.Table.from_arrays([pa.array(rows[:, index]) for index in range(3)], schema=DESCRIPTORS)


def usual_blocks_per_task(block_bytes: int, prefetch_bytes: int, num_actors: int) -> int:
    """So many blocks as make a task worth its while, and leave each actor a few tasks to be ahead by. 1 where the size of blocks is unknown."""
    worth = min(TASK_BYTES, prefetch_bytes // (4 * max(num_actors, 1)))
    return min(max(worth // block_bytes, 1), MAX_BLOCKS_PER_TASK) if block_bytes else 1


def task_bounds(num_requests: int, blocks_per_task: int, max_tasks: int = MAX_TASKS) -> list[tuple[int, int]]:
    """Where to cut a rank's requests into tasks: ranges [first, last) of `blocks_per_task`, or more, so that they are at most `max_tasks`.

    The first ones are shorter, where that many tasks are allowed: 1 block, then twice as many each time, since somebody waits for the first batch.
    """
    each = max(blocks_per_task, -(-num_requests // max_tasks), 1)
    short = [1 << power for power in range((each - 1).bit_length())]
    if -(-num_requests // each) + len(short) > max_tasks:
        short = []
    bounds, first = [], 0
    while first < num_requests:
        size = short.pop(0) if short else each
        bounds.append((first, min(first + size, num_requests)))
        first += size
    return bounds


def make_datasource(descriptors: pa.Table, *, blocks_per_task: int = 1) -> Any:
    """A `ray.data.Datasource` over described requests, in their order.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    return _datasource_class()(descriptors, task_bounds(descriptors.num_rows, blocks_per_task))


@functools.cache
def _datasource_class() -> type[Any]:
    """`SegmentDatasource`, made when it is first needed, since its base class is Ray's."""
    ray_data = require("ray.data", extra="ray")
    block_module = require("ray.data.block", extra="ray")
    source_module = require("ray.data.datasource", extra="ray")

    class SegmentDatasource(ray_data.Datasource):  # type: ignore[misc, name-defined]
        """Yields block descriptors in request order. Pure: Ray asks twice for the same tasks."""

        def __init__(self, descriptors: pa.Table, bounds: Sequence[tuple[int, int]]) -> None:
            super().__init__()
            self.descriptors = descriptors
            self.bounds = list(bounds)

        def estimate_inmemory_data_size(self) -> int | None:
            return int(self.descriptors.nbytes)

        def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:
            """One task a range of requests. `parallelism` is a wish that the order overrules."""
            tasks = []
            for first, last in self.bounds:
                part = self.descriptors.slice(first, last - first).combine_chunks()
                metadata = block_module.BlockMetadata(num_rows=part.num_rows, size_bytes=part.nbytes, input_files=None, exec_stats=None)
                read = functools.partial(_yield_table, part)
                tasks.append(source_module.ReadTask(read, metadata, schema=DESCRIPTORS, per_task_row_limit=per_task_row_limit))
            return tasks

    return SegmentDatasource


def _yield_table(table: pa.Table) -> list[pa.Table]:
    return [table]
