"""A rank's blocks through Ray Data: one ordered read for each (epoch, position), bounded in bytes, checked on arrival.

Every rank runs its own small read from inside its worker, so its order is its own and a restart asks for what is left: Ray's iterator has no
state, the loader's position is the state. Ray keeps the fetch actors alive and does their work again when one dies. Encoded bytes cross the
object store; decoding is the rank's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from loader.distributed.actors import FetchActor, Fetcher
from loader.distributed.datasource import make_datasource
from loader.distributed.wire import unpack
from loader.errors import HeadraceError
from loader.extras import require
from loader.scan.encoded import EncodedBlock, FetchRequest
from loader.scan.fetch import FetchSpec
from loader.scan.plan import open_fetcher

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
        if min(num_actors, prefetch_bytes, blocks_per_task) < 1 or prefetch_blocks < 0 or cpus_per_actor < 0:
            raise ValueError(
                f"num_actors {num_actors}, prefetch_bytes {prefetch_bytes} and blocks_per_task {blocks_per_task} must be at least 1, "
                f"prefetch_blocks {prefetch_blocks} and cpus_per_actor {cpus_per_actor} not negative"
            )
        self._spec, self._make_fetcher = spec, make_fetcher
        self._num_actors, self._blocks_per_task = num_actors, blocks_per_task
        self._prefetch_bytes, self._prefetch_blocks = prefetch_bytes, prefetch_blocks
        self._remote_options = {"num_cpus": cpus_per_actor, **(resources or {})}

    def open(self, requests: Iterable[FetchRequest]) -> Iterator[EncodedBlock]:
        """Start fetching at once; the blocks come in the order of the requests. Closing the iterator stops the actors.

        Raises:
            HeadraceError: A block could not be fetched (the actor's own error), or came out of order.
        """
        wanted = list(requests)
        if not wanted:
            return iter(())
        batches = iter(self._dataset(wanted).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=self._prefetch_blocks))
        return _BlockIterator(wanted, batches)

    def _dataset(self, requests: Sequence[FetchRequest]) -> Any:
        ray_data = require("ray.data", extra="ray")
        source = make_datasource(requests, blocks_per_task=self._blocks_per_task)
        pool = ray_data.ActorPoolStrategy(size=self._num_actors, max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT)
        with ray_data.DataContext.current(self._context(ray_data)):
            read = ray_data.read_datasource(source, override_num_blocks=len(source.bounds), **self._remote_options)
            return read.map_batches(
                FetchActor,
                fn_constructor_args=(self._spec, self._make_fetcher),
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=pool,
                **self._remote_options,
            )

    def _context(self, ray_data: Any) -> Any:
        """Ray Data's settings for this read alone; the process's own stay as they are."""
        context = ray_data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ray_data.ExecutionResources.for_limits(object_store_memory=self._prefetch_bytes)
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.raise_original_map_exception = True
        return context


class _BlockIterator(Iterator[EncodedBlock]):
    """Hands out blocks one by one and checks that each is the one that was asked for."""

    def __init__(self, requests: Sequence[FetchRequest], batches: Iterator[Any]) -> None:
        self._requests, self._batches = requests, batches
        self._blocks: Iterator[EncodedBlock] = iter(())
        self._arrived = 0

    def __next__(self) -> EncodedBlock:
        while (block := next(self._blocks, None)) is None:
            self._blocks = unpack(self._next_rows())
        wanted = self._requests[self._arrived] if self._arrived < len(self._requests) else None
        if block.request != wanted:
            self.close()
            raise HeadraceError(f"Ray delivered {block.request} where {wanted} was due: the read lost its order; please report it with Ray's version")
        self._arrived += 1
        return block

    def _next_rows(self) -> Any:
        try:
            return next(self._batches)
        except StopIteration:
            if self._arrived < len(self._requests):
                missing = self._requests[self._arrived]
                raise HeadraceError(
                    f"Ray ended the read after {self._arrived} of {len(self._requests)} blocks, before {missing}: see the actors' logs"
                ) from None
            raise
        except Exception as error:
            self.close()
            cause = getattr(error, "cause", None)
            if isinstance(cause, HeadraceError):
                raise cause from error
            raise

    def close(self) -> None:
        """Stop the read and its actors; safe to call twice."""
        self._blocks = iter(())
        close = getattr(self._batches, "close", None)
        if close is not None:
            with contextlib.suppress(ValueError):  # a generator that another thread is running; it ends with that thread
                close()

    def __del__(self) -> None:
        self.close()
