"""A rank's blocks through Ray Data: one ordered read from a position on, bounded in bytes, checked on arrival.

Every rank runs its own small read from inside its worker, so its order is its own and a restart asks for what is left: Ray's iterator has no
state, the loader's position is the state. Ray keeps the fetch actors alive and does their work again when one dies. Encoded bytes cross the
object store; decoding is the rank's. Starting actors takes a second or two, so epochs that are known to follow can share one read: `expect`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from loader.distributed.actors import FetchActor, Fetcher
from loader.distributed.datasource import describe, make_datasource
from loader.distributed.read import Read
from loader.errors import HeadraceError
from loader.extras import require
from loader.scan.encoded import EncodedBlock, FetchRequest
from loader.scan.fetch import FetchSpec
from loader.scan.plan import open_fetcher
from loader.scan.stream import check_arrival

TASKS_IN_FLIGHT = 2  # an actor's next task waits at the actor, not at the scheduler


class RayBlockStream:
    """A `BlockStream` whose blocks Ray Data actors fetch.

    Args:
        spec: `plan.fetch_spec()`: plain data, from which an actor makes its fetcher.
        num_actors: Fetch actors of this rank.
        prefetch_bytes: Encoded bytes that may wait in the object store.
        prefetch_blocks: Blocks held ready in this process.
        blocks_per_task: Blocks that one Ray task fetches; more saves scheduling where blocks are small.
        cpus_per_actor: Logical CPUs an actor reserves. 0 by default: actors wait for storage, and must start even where the ranks hold every CPU.
        resources: More options for the actors, as for `ray.remote`: `resources`, `label_selector`, `memory`.
        make_fetcher: How an actor makes it.

    Raises:
        MissingDependencyError: Ray is not installed.
    """

    def __init__(
        self,
        spec: FetchSpec,
        *,
        num_actors: int = 1,
        prefetch_bytes: int = 64 << 20,
        prefetch_blocks: int = 2,
        blocks_per_task: int = 1,
        cpus_per_actor: float = 0.0,
        resources: Mapping[str, Any] | None = None,
        make_fetcher: Callable[[Any], Fetcher] = open_fetcher,
    ) -> None:
        require("ray.data", extra="ray")
        if min(num_actors, prefetch_bytes, prefetch_blocks, blocks_per_task) < 1 or cpus_per_actor < 0:
            raise ValueError(
                f"num_actors {num_actors}, prefetch_bytes {prefetch_bytes}, prefetch_blocks {prefetch_blocks} and blocks_per_task {blocks_per_task} "
                f"must be at least 1, cpus_per_actor {cpus_per_actor} not negative"
            )
        self._spec, self._make_fetcher = spec, make_fetcher
        self._num_actors, self._blocks_per_task = num_actors, blocks_per_task
        self._prefetch_bytes, self._prefetch_blocks = prefetch_bytes, prefetch_blocks
        self._remote_options = {"num_cpus": cpus_per_actor, **(resources or {})}
        self._read: Read | None = None
        self._expected: deque[pa.Table] = deque()

    def expect(self, reads: Iterable[Iterable[FetchRequest]]) -> None:
        """Start fetching at once what will be opened next, one after another: the rest of an epoch, and epochs after it.

        An `open` that asks for something else ends this and starts afresh; expecting wrongly costs time, never correctness.
        """
        self.close()
        self._expected = deque(table for read in reads if (table := describe(read)).num_rows)
        if self._expected:
            self._read = self._start(pa.concat_tables(self._expected))

    def open(self, requests: Iterable[FetchRequest]) -> Iterator[EncodedBlock]:
        """The blocks, in the order of the requests. Closing the iterator before its end stops the actors.

        Raises:
            HeadraceError: A block could not be fetched (the actor's own error), or came out of order.
        """
        wanted = list(requests)
        table = describe(wanted)
        if not wanted:
            return iter(())
        if self._read is None or not self._expected or not self._expected[0].equals(table):
            self.close()
            self._expected = deque([table])
            self._read = self._start(table)
        self._expected.popleft()
        return self._blocks(self._read, wanted)

    def close(self) -> None:
        """Stop the read and its actors; a later `open` starts another."""
        read, self._read = self._read, None
        self._expected.clear()
        if read is not None:
            read.close()

    def _blocks(self, read: Read, wanted: Sequence[FetchRequest]) -> Iterator[EncodedBlock]:
        arrived = 0
        try:
            for request in wanted:
                block = read.next_block()
                if block is None:
                    raise HeadraceError(f"Ray ended the read after {arrived} of {len(wanted)} blocks, before {request}: see the actors' logs")
                check_arrival(request, block)
                arrived += 1
                yield block
                del block
        finally:
            if self._read is read and (arrived < len(wanted) or not self._expected):
                self.close()
            elif self._read is not read:
                read.close()

    def _start(self, descriptors: pa.Table) -> Read:
        ray_data = require("ray.data", extra="ray")
        source = make_datasource(descriptors, blocks_per_task=self._blocks_per_task)
        pool = ray_data.ActorPoolStrategy(size=self._num_actors, max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT)
        with ray_data.DataContext.current(self._context(ray_data)):
            rows = ray_data.read_datasource(source, override_num_blocks=len(source.bounds), **self._remote_options).map_batches(
                FetchActor,
                fn_constructor_args=(self._spec, self._make_fetcher),
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=pool,
                **self._remote_options,
            )
        return Read(lambda: rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1), ahead=self._prefetch_blocks)

    def _context(self, ray_data: Any) -> Any:
        """Ray Data's settings for this read alone; the process's own stay as they are."""
        context = ray_data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ray_data.ExecutionResources.for_limits(object_store_memory=self._prefetch_bytes)
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.raise_original_map_exception = True
        return context
