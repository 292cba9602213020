"""A rank's blocks through Ray Data: one ordered read from a position on, bounded in bytes, checked on arrival.

Every rank runs its own small read from inside its worker, so its order is its own and a restart asks for what is left: Ray's iterator has no
state, the loader's position is the state. Ray keeps the fetch actors alive and does their work again when one dies. Encoded bytes cross the
object store; decoding is the rank's. Starting actors takes a second or two, so epochs that are known to follow can share one read: `expect`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from loader.distributed.actors import FetchActor, Fetcher
from loader.distributed.datasource import describe, usual_blocks_per_task
from loader.distributed.execution import TIMEOUT_SECONDS, start_rows
from loader.distributed.lane import Lane
from loader.distributed.read import Read
from loader.distributed.wire import unpack
from loader.extras import require
from loader.scan.encoded import EncodedBlock, FetchRequest
from loader.scan.fetch import FetchSpec, OpensPlan
from loader.scan.plan import open_fetcher
from loader.scan.stream import check_arrival


class RayBlockStream:
    """A `BlockStream` whose blocks Ray Data actors fetch.

    Args:
        spec: `plan.fetch_spec()`: plain data, from which an actor makes its fetcher.
        num_actors: Fetch actors of this rank.
        prefetch_bytes: Encoded bytes that may wait in the object store.
        prefetch_blocks: Blocks held ready in this process.
        blocks_per_task: Blocks that one Ray task fetches and hands over together. Default so many as make a few MB: what Ray does for a task takes as long as
            fetching those.
        cpus_per_actor: Logical CPUs an actor reserves. 0 by default: actors wait for storage, and must start even where the ranks hold every CPU.
        resources: More options for the actors, as for `ray.remote`: `resources`, `label_selector`, `memory`, which also say on what hosts they may be.
        timeout_seconds: Longest wait for a block. It covers actors that start or are replaced, and nodes that come.
        make_fetcher: How an actor makes it.

    Raises:
        MissingDependencyError: Ray is not installed.
    """

    def __init__(
        self,
        spec: FetchSpec | OpensPlan,
        *,
        num_actors: int = 1,
        prefetch_bytes: int = 64 << 20,
        prefetch_blocks: int = 2,
        blocks_per_task: int | None = None,
        cpus_per_actor: float = 0.0,
        resources: Mapping[str, Any] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        make_fetcher: Callable[[Any], Fetcher] = open_fetcher,
    ) -> None:
        require("ray.data", extra="ray")
        if blocks_per_task is None:
            blocks_per_task = usual_blocks_per_task(getattr(spec, "block_bytes", 0), prefetch_bytes, num_actors)
        if min(num_actors, prefetch_bytes, prefetch_blocks, blocks_per_task) < 1 or cpus_per_actor < 0 or timeout_seconds <= 0:
            raise ValueError(
                f"num_actors {num_actors}, prefetch_bytes {prefetch_bytes}, prefetch_blocks {prefetch_blocks} and blocks_per_task {blocks_per_task} "
                f"must be at least 1, cpus_per_actor {cpus_per_actor} not negative, timeout_seconds {timeout_seconds} positive"
            )
        self._spec, self._make_fetcher = spec, make_fetcher
        self._num_actors, self._blocks_per_task = num_actors, blocks_per_task
        self._prefetch_bytes, self._prefetch_blocks = prefetch_bytes, prefetch_blocks
        self._remote_options = {"num_cpus": cpus_per_actor, **(resources or {})}
        self._lane: Lane[EncodedBlock] = Lane(
            lambda descriptors: self._start(descriptors), "blocks", timeout_seconds=timeout_seconds, asked=self._remote_options
        )

    def expect(self, reads: Iterable[Iterable[FetchRequest]]) -> None:
        """Start fetching at once what will be opened next, one after another: the rest of an epoch, and epochs after it.

        An `open` that asks for something else ends this and starts afresh; expecting wrongly costs time, never correctness.
        """
        self._lane.expect(describe(read) for read in reads)

    def open(self, requests: Iterable[FetchRequest]) -> Iterator[EncodedBlock]:
        """The blocks, in the order of the requests. Closing the iterator before its end stops the actors.

        Raises:
            HeadraceError: A block could not be fetched (the actor's own error), or came out of order.
            StreamTimeoutError: No block came in time.
        """
        wanted = list(requests)
        return self._lane.open(
            describe(wanted),
            len(wanted),
            lambda number, block: check_arrival(wanted[number], block),
            lambda number: f"block {wanted[number].block} of the plan (request {wanted[number].sequence})",
        )

    def close(self) -> None:
        """Stop the actors."""
        self._lane.close()

    def _start(self, descriptors: pa.Table) -> Read[EncodedBlock]:
        rows = start_rows(
            descriptors,
            FetchActor,
            (self._spec, self._make_fetcher),
            num_actors=self._num_actors,
            rows_per_task=self._blocks_per_task,
            prefetch_bytes=self._prefetch_bytes,
            options=self._remote_options,
        )
        return Read(rows, unpack, ahead=self._prefetch_blocks)
