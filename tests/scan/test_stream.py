"""Claims about block streams: order, bounds, shut-down and errors; and about retries."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from loader.errors import HeadraceError, NotFoundError, StorageError
from loader.scan.encoded import EncodedBlock, FetchRequest, empty_slab
from loader.scan.fetch import retry
from loader.scan.stream import BlockStream, ThreadBlockStream, check_arrival

BLOCK_BYTES = 1000


def block(request):
    return EncodedBlock(request=request, num_rows=1, slab=empty_slab(BLOCK_BYTES), chunk_offsets=np.zeros(0, np.int64), chunk_bytes=np.zeros(0, np.int64))


def requests(count):
    return [FetchRequest(sequence=i, shard=i % 3, block=100 - i) for i in range(count)]


class Gate:
    """A fetcher whose odd requests wait until a later one was fetched, so that arrival order differs from request order."""

    def __init__(self):
        self.later = threading.Event()
        self.started = []

    def fetch(self, request):
        self.started.append(request.sequence)
        if request.sequence == 0:
            assert self.later.wait(10)
        else:
            self.later.set()
        return block(request)


def test_blocks_come_in_the_order_of_the_requests_whatever_arrives_first():
    gate = Gate()
    stream = ThreadBlockStream(gate.fetch, threads=3)
    assert isinstance(stream, BlockStream)
    assert [found.request for found in stream.open(requests(20))] == requests(20)


def test_prefetch_stays_inside_its_bytes():
    held = block(requests(1)[0]).num_bytes
    started = []
    stream = ThreadBlockStream(lambda request: (started.append(request.sequence), block(request))[1], threads=2, prefetch_bytes=4 * held)
    for taken, found in enumerate(stream.open(requests(40)), 1):
        assert found.request.sequence == taken - 1
        assert len(started) - taken <= 4
    assert len(started) == 40


def test_one_block_is_fetched_even_if_it_is_larger_than_the_limit():
    assert len(list(ThreadBlockStream(block, threads=1, prefetch_bytes=1).open(requests(5)))) == 5


def test_closing_early_stops_the_threads_and_fetches_no_more():
    before = threading.active_count()
    started = []
    stream = ThreadBlockStream(lambda request: (started.append(1), block(request))[1], threads=2, prefetch_bytes=3 * block(requests(1)[0]).num_bytes)
    blocks = stream.open(requests(100))
    next(blocks)
    blocks.close()
    assert threading.active_count() == before and len(started) < 10


def test_an_error_comes_where_its_block_would_have_with_its_request():
    def fetch(request):
        if request.sequence == 3:
            raise StorageError("no answer")
        return block(request)

    blocks = ThreadBlockStream(fetch, threads=2).open(requests(6))
    assert [next(blocks).request.sequence for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StorageError, match="no answer") as error:
        next(blocks)
    assert "block 97 of the plan for shard 0 (request 3)" in error.value.__notes__[0]


def test_a_block_that_is_not_due_is_refused():
    first, second = requests(2)
    check_arrival(first, block(first))
    with pytest.raises(HeadraceError, match=r"block 99 \(request 1\) where block 100 \(request 0\) is due"):
        check_arrival(first, block(second))


def test_refused_requests_are_tried_again_with_growing_pauses():
    pauses, left = [], [StorageError("busy"), StorageError("busy")]

    def action():
        if left:
            raise left.pop()
        return 7

    assert retry(action, delay_seconds=1, sleep=pauses.append) == 7
    assert 0.5 <= pauses[0] <= 1.5 and 1 <= pauses[1] <= 3


def test_what_cannot_get_better_is_raised_at_once_and_the_rest_after_some_tries():
    calls = []

    def missing():
        calls.append(1)
        raise NotFoundError("gone")

    with pytest.raises(NotFoundError):
        retry(missing, sleep=lambda _: None)
    assert len(calls) == 1

    def busy():
        calls.append(1)
        raise StorageError("busy")

    with pytest.raises(StorageError, match="busy") as error:
        retry(busy, attempts=3, sleep=lambda _: None)
    assert len(calls) == 4 and error.value.__notes__ == ["after 3 attempts"]


def test_buffers_of_another_version_are_refused():
    buffers = block(requests(1)[0]).to_buffers()
    with pytest.raises(ValueError, match="version 99"):
        EncodedBlock.from_buffers([bytes(buffers[0]).replace(b'"version": 3', b'"version": 99'), *buffers[1:]])
