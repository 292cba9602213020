"""Block streams: encoded blocks in the order of their requests, fetched ahead. Owns the protocol and the threaded stream.

A stream knows nothing of batches, and a loader nothing of where blocks are fetched: threads of this process here, Ray actors in `loader.distributed`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from loader.errors import HeadraceError
from loader.scan.encoded import EncodedBlock, FetchRequest

MAX_AHEAD = 256
MAX_REQUESTS = 32  # at a time, where a slow store asks for more than the usual threads


@runtime_checkable
class BlockStream(Protocol):
    """Anything that turns requests into blocks."""

    def open(self, requests: Iterable[FetchRequest]) -> Iterator[EncodedBlock]:
        """Blocks in the order of the requests. Closing the iterator (a generator's `close`) stops all work for it before it returns."""
        ...


class ThreadBlockStream:
    """Fetches with threads of this process, so many blocks ahead as fit into `prefetch_bytes`.

    Args:
        fetch: Fetches one block; called from several threads.
        threads: Requests at a time.
        prefetch_bytes: Bytes of blocks fetched or being fetched and not yet taken. One block is always allowed.
        interrupt: Called when the stream is closed, before its threads are waited for: ends what `fetch` may wait for.
        ahead: Blocks ahead at most, now; each may be a request of its own, so that more of them hide a slow store. Default what fits, `threads` at a time.
    """

    def __init__(
        self,
        fetch: Callable[[FetchRequest], EncodedBlock],
        *,
        threads: int = 2,
        prefetch_bytes: int = 64 << 20,
        interrupt: Callable[[], None] = lambda: None,
        ahead: Callable[[], int] | None = None,
    ) -> None:
        if threads < 1 or prefetch_bytes < 1:
            raise ValueError(f"threads is {threads} and prefetch_bytes is {prefetch_bytes}; both must be at least 1")
        self._fetch = fetch
        self._threads = threads
        self._prefetch_bytes = prefetch_bytes
        self._interrupt = interrupt
        self._ahead = ahead
        self._workers = threads if ahead is None else max(threads, MAX_REQUESTS)

    def open(self, requests: Iterable[FetchRequest]) -> Iterator[EncodedBlock]:
        pending: deque[tuple[FetchRequest, Future[EncodedBlock]]] = deque()
        source, taken_blocks, taken_bytes = iter(requests), 0, 0
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="headrace-fetch")
        try:
            while True:
                usual_bytes = taken_bytes // taken_blocks if taken_blocks else self._prefetch_bytes // (2 * self._threads)
                while not pending or (len(pending) < self._most() and self._held_bytes(pending, usual_bytes) + usual_bytes <= self._prefetch_bytes):
                    request = next(source, None)
                    if request is None:
                        break
                    pending.append((request, pool.submit(self._fetch, request)))
                if not pending:
                    return
                request, future = pending.popleft()
                block = self._result(request, future)
                taken_blocks, taken_bytes = taken_blocks + 1, taken_bytes + block.num_bytes
                del future
                yield block
                del block  # its memory may be what the next one waits for
        finally:
            self._interrupt()
            pool.shutdown(wait=True, cancel_futures=True)

    def _most(self) -> int:
        """Blocks that may be ahead now."""
        return MAX_AHEAD if self._ahead is None else min(self._ahead(), MAX_AHEAD)

    @staticmethod
    def _held_bytes(pending: Iterable[tuple[FetchRequest, Future[EncodedBlock]]], usual_bytes: int) -> int:
        """What the blocks ahead take; those still under way are reckoned as usual ones."""
        return sum(future.result().num_bytes if future.done() and future.exception() is None else usual_bytes for _, future in pending)

    @staticmethod
    def _result(request: FetchRequest, future: Future[EncodedBlock]) -> EncodedBlock:
        try:
            return future.result()
        except HeadraceError as error:
            error.add_note(f"while fetching block {request.block} of the plan for shard {request.shard} (request {request.sequence})")
            raise


def check_arrival(wanted: FetchRequest, block: EncodedBlock) -> None:
    """Refuse a block that is not the one that comes next: a stream must neither lose, repeat nor reorder.

    Raises:
        HeadraceError: It is another one.
    """
    if block.request != wanted:
        raise HeadraceError(
            f"the block stream handed over block {block.request.block} (request {block.request.sequence}) where block {wanted.block} "
            f"(request {wanted.sequence}) is due: it lost or reordered blocks, and going on would train on wrong samples"
        )
