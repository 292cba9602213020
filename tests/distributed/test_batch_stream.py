"""Batches made by Ray actors: those that the rank would have made, in its order, from any position, through an actor's death."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import loader
from loader.distributed import RayBatchStream, batch_stream
from loader.distributed.ahead import expect
from loader.distributed.decode_actors import DecodeActor
from tests.train.sample_table import TENSOR_COLUMNS, as_rows, create

pytest.importorskip("torch")
pytestmark = pytest.mark.ray
OPTIONS: dict[str, Any] = {"global_batch_size": 48, "window_rows": 64, "canonical_shards": 8, "threads": 1, "seed": 3}


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with loader.connect(tmp_path_factory.mktemp("actors") / "lake") as lake:
        table = create(lake)
        yield table.scan(columns=TENSOR_COLUMNS, where="user <> 3", snapshot=table.view().snapshot_id)


def make(scan: Any, *, actors: int = 0, **options: Any) -> loader.DataLoader:
    """A loader that decodes here, or on some actors."""
    merged = {"rank": 0, "world_size": 1, **OPTIONS, **options}
    if actors:
        merged |= {"decode": "actor", "stream": functools.partial(RayBatchStream, num_actors=actors, batches_per_task=2)}
    return loader.DataLoader(scan, **merged)


def contents(batches: loader.DataLoader) -> list[tuple[Any, Any, dict[str, Any]]]:
    return [(batch.positions().tolist(), as_rows(batch), batches.state_dict()) for batch in batches]


def test_actors_make_the_batches_that_the_rank_would_make(ray_cluster: None, scan: Any) -> None:
    place = {"rank": 1, "world_size": 2, "remainder": "pad"}
    with make(scan, **place) as here, make(scan, actors=2, **place) as there:
        expected = contents(here)
        assert contents(there) == expected
        there_again = make(scan, actors=1, **place)
    with there_again:
        there_again.load_state_dict(json.loads(json.dumps(expected[2][2])))
        assert contents(there_again) == expected[3:], "from a state on, with another number of actors"


def test_without_a_stream_there_is_one_actor(ray_cluster: None, scan: Any) -> None:
    with make(scan) as here, make(scan, decode="actor") as there:
        np.testing.assert_array_equal(next(iter(there)).positions(), next(iter(here)).positions())


class Mortal(DecodeActor):
    """Ends its process before its fifth batch, once."""

    def __call__(self, runs: pa.Table) -> Iterator[pa.Table]:
        died = Path(self._spec.fetch.location) / "died"
        for number, row in enumerate(super().__call__(runs)):
            if runs["position"][0].as_py() + number * 48 == 4 * 48 and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield row


def test_an_actor_that_dies_is_replaced_and_no_batch_changes(ray_cluster: None, scan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_stream, "DecodeActor", Mortal)
    with make(scan) as here, make(scan, actors=1) as there:
        assert contents(there) == contents(here)
        assert (Path(there.plan.fetch_spec().location) / "died").exists()


def test_an_actors_error_is_the_trainers_error(ray_cluster: None, scan: Any) -> None:
    with make(scan, actors=1, memory_bytes=10) as there, pytest.raises(ValueError, match="windows need .* and memory_bytes is"):
        next(iter(there))


def test_epochs_that_were_expected_share_one_read(ray_cluster: None, scan: Any) -> None:
    with make(scan) as here:
        expected = [contents(here) for _ in range(2)]
        stream = RayBatchStream(here.plan.fetch_spec(), num_actors=1, batches_per_task=3)
    there = loader.DataLoader(scan, rank=0, world_size=1, **OPTIONS, decode="actor", stream=stream)
    expect(stream, there, epochs=[0, 1], position=0)
    started = stream._lanes[0].read
    with there:
        assert contents(there) == expected[0]
        assert stream._lanes[0].read is started
        assert contents(there) == expected[1]
    stream.close()


def test_options_must_make_sense(scan: Any) -> None:
    with make(scan) as here, pytest.raises(ValueError, match="at least 1"):
        RayBatchStream(here.plan.fetch_spec(), num_actors=0)
