"""Blocks through Ray: the same bytes in the same order as without it, bounded, through an actor's death, and with the actor's own errors."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loader.distributed import RayBlockStream
from loader.distributed import read as reading
from loader.distributed.read import Read
from loader.distributed.wire import pack, unpack
from loader.errors import CorruptSegmentError, HeadraceError, StreamTimeoutError
from loader.scan.encoded import EncodedBlock, FetchRequest
from tests.distributed.fake_blocks import FakeFetcher, expected_slab

pytestmark = pytest.mark.ray


def make_requests(num_blocks: int, seed: int = 0) -> list[FetchRequest]:
    blocks = np.random.default_rng(seed).permutation(num_blocks)
    return [FetchRequest(sequence=sequence, shard=sequence % 4, block=int(block)) for sequence, block in enumerate(blocks)]


def make_stream(spec: dict[str, Any], **options: Any) -> RayBlockStream:
    return RayBlockStream(spec, make_fetcher=FakeFetcher, **options)


def assert_same(arrived: EncodedBlock, expected: EncodedBlock) -> None:
    assert arrived.request == expected.request and arrived.num_rows == expected.num_rows
    np.testing.assert_array_equal(arrived.slab, expected.slab)
    np.testing.assert_array_equal(arrived.chunk_offsets, expected.chunk_offsets)
    np.testing.assert_array_equal(arrived.chunk_bytes, expected.chunk_bytes)
    assert (arrived.selected is None) == (expected.selected is None)
    assert arrived.patches.keys() == expected.patches.keys()
    for column, patch in expected.patches.items():
        np.testing.assert_array_equal(arrived.patches[column].rows, patch.rows)
        assert arrived.patches[column].values.equals(patch.values)


@pytest.mark.parametrize(("num_actors", "blocks_per_task"), [(1, 1), (2, 3)])
def test_blocks_arrive_as_fetched_in_the_order_asked_for(ray_cluster: None, num_actors: int, blocks_per_task: int) -> None:
    requests = make_requests(20)
    here = FakeFetcher({"bytes": 1000})
    stream = make_stream({"bytes": 1000}, num_actors=num_actors, blocks_per_task=blocks_per_task)
    arrived = list(stream.open(requests))
    assert len(arrived) == 20
    for block, request in zip(arrived, requests, strict=True):
        assert_same(block, here.fetch(request))


def test_a_later_position_is_a_new_read_of_what_is_left(ray_cluster: None) -> None:
    requests = [dataclasses.replace(request, sequence=request.sequence + 100) for request in make_requests(8)][5:]
    assert [block.request for block in make_stream({}).open(requests)] == requests


@pytest.mark.parametrize("num_bytes", [1001, 300_001])
def test_slabs_are_aligned_and_large_ones_are_views_of_shared_memory(ray_cluster: None, num_bytes: int) -> None:
    for block in make_stream({"bytes": num_bytes}, blocks_per_task=4).open(make_requests(8)):
        assert block.slab.ctypes.data % 8 == 0
        assert num_bytes < 100_000 or not block.slab.flags.writeable


def test_fetching_ahead_is_bounded(ray_cluster: None, tmp_path: Path) -> None:
    log = tmp_path / "fetched"
    stream = make_stream({"bytes": 1 << 20, "log": str(log)}, prefetch_bytes=4 << 20, prefetch_blocks=1)
    requests = make_requests(60)
    blocks = stream.open(requests)
    for consumed in range(1, 31):
        next(blocks)
        assert len(log.read_text().split()) - consumed <= 16
    blocks.close()  # type: ignore[attr-defined]
    assert len(log.read_text().split()) < 60


def test_an_actor_that_dies_is_replaced_and_nothing_is_lost(ray_cluster: None, tmp_path: Path) -> None:
    requests = make_requests(16)
    spec = {"kill": requests[6].block, "killed": str(tmp_path / "killed")}
    assert [block.request for block in make_stream(spec).open(requests)] == requests
    assert (tmp_path / "killed").exists()


def test_an_actors_error_is_the_trainers_error(ray_cluster: None) -> None:
    requests = make_requests(12)
    blocks = make_stream({"corrupt": requests[4].block}).open(requests)
    with pytest.raises(CorruptSegmentError, match=rf"block {requests[4].block}, column 'price': checksum does not hold"):
        list(blocks)


def test_a_wait_that_cannot_end_says_for_what(ray_cluster: None) -> None:
    requests = make_requests(3)
    blocks = make_stream({}, resources={"resources": {"nowhere": 1.0}}, timeout_seconds=0.5).open(requests)
    with pytest.raises(
        StreamTimeoutError, match=rf"nothing for 0\.5 s: waiting for block {requests[0].block} .* after 0 of 3 blocks.*nowhere.*CPU . free of 2"
    ):
        next(blocks)


def test_nothing_wanted_is_nothing_read(ray_cluster: None) -> None:
    assert list(make_stream({}).open([])) == []


def rows_of(requests: list[FetchRequest], *indices: int) -> Read[EncodedBlock]:
    fetcher = FakeFetcher({})
    return Read(lambda: [pack(fetcher.fetch(requests[index])) for index in indices], unpack, ahead=1)


def test_a_block_out_of_turn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    requests, stream = make_requests(3), make_stream({})
    monkeypatch.setattr(stream, "_start", lambda table: rows_of(requests, 0, 2))
    blocks = stream.open(requests)
    assert next(blocks).request == requests[0]
    with pytest.raises(HeadraceError, match="lost or reordered blocks"):
        next(blocks)


def test_closing_does_not_wait_for_ever_for_ray(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(reading, "CLOSE_SECONDS", 0.1)
    answer = threading.Event()
    read: Read[Any] = Read(lambda: iter(lambda: answer.wait(30), True), iter, ahead=1)  # as where no actor finds a place
    read.close()
    assert "can the cluster place the actors" in caplog.text and read.take() is None
    answer.set()
    read.close()
    assert not read._thread.is_alive()


def test_a_read_that_ends_early_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    requests, stream = make_requests(2), make_stream({})
    monkeypatch.setattr(stream, "_start", lambda table: rows_of(requests, 0))
    blocks = stream.open(requests)
    next(blocks)
    with pytest.raises(HeadraceError, match="after 1 of 2 blocks"):
        next(blocks)


def test_epochs_that_were_expected_share_one_read(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = [make_requests(6, seed) for seed in range(3)]
    stream, starts = make_stream({}, blocks_per_task=4), []
    start = stream._start
    monkeypatch.setattr(stream, "_start", lambda table: starts.append(table.num_rows) or start(table))
    stream.expect(epochs)
    for epoch in epochs:
        assert [block.request for block in stream.open(epoch)] == epoch
    assert starts == [18]
    assert [block.request for block in stream.open(epochs[1])] == epochs[1]
    assert starts == [18, 6]


def test_what_was_not_expected_is_read_all_the_same(ray_cluster: None) -> None:
    epochs = [make_requests(6, seed) for seed in range(2)]
    stream = make_stream({})
    stream.expect(epochs)
    assert [block.request for block in stream.open(epochs[1])] == epochs[1]
    blocks = stream.open(epochs[0])
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    assert [block.request for block in stream.open(epochs[0])] == epochs[0]


def test_wire_rows_keep_odd_buffers() -> None:
    request = FetchRequest(sequence=0, shard=0, block=1)
    (row,) = pack(FakeFetcher({"bytes": 777}).fetch(request)).to_pylist()
    assert len(row["payload"]) % 64 == 0
    start, size = row["starts"][1], row["sizes"][1]
    assert start % 64 == 0 and row["payload"][start : start + size] == expected_slab(1, 777).tobytes()


def test_options_must_make_sense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_stream({}, num_actors=0)
