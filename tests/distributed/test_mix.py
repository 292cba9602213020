"""A mix over Ray: fetch actors and decode actors give the batches that threads of the rank give, source by source."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

import loader
from loader.distributed import RayBatchStream, RayBlockStream
from loader.distributed.shard import shards
from tests.train.sample_table import TENSOR_COLUMNS, as_rows, create

pytest.importorskip("torch")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("mix")
    with loader.connect(folder / "large") as large, loader.connect(folder / "small") as small:
        tables = create(large), create(small, name="clicks", num_rows=130, commit_rows=25)
        scans = [table.scan(columns=TENSOR_COLUMNS, where="user <> 3", snapshot=table.view().snapshot_id) for table in tables]
        yield loader.mix([(scans[0], 3), (scans[1], 1)])


def make(scan: Any, stream: Any = None, rank: int = 0, **options: Any) -> loader.DataLoader:
    shape: dict[str, Any] = {"global_batch_size": 24, "window_rows": 64, "canonical_shards": 8, "threads": 1, "remainder": "pad"}
    return loader.DataLoader(scan, rank=rank, world_size=2, stream=stream, **shape, **options)


def contents(batches: loader.DataLoader) -> list[tuple[Any, Any, dict[str, Any]]]:
    return [(batch.source.tolist(), as_rows(batch), batches.state_dict()) for batch in batches]


def test_actors_that_fetch_or_decode_give_the_batches_of_the_rank(ray_cluster: None, scan: Any) -> None:
    with make(scan) as here, make(scan, RayBlockStream) as fetched:
        expected = contents(here)
        assert contents(fetched) == expected and {source for sources, _, _ in expected for source in sources} >= {0, 1}
    decoded = make(scan, functools.partial(RayBatchStream, num_actors=2, batches_per_task=2), decode="actor")
    with decoded:
        decoded.load_state_dict(json.loads(json.dumps(expected[1][2])))
        assert contents(decoded) == expected[2:]


def test_a_worker_of_ray_train_makes_its_loader_of_plain_data(scan: Any) -> None:
    plan = scan.plan()
    _, second = shards("train", pickle.loads(pickle.dumps(plan.fetch_spec())), world_size=2, nodes=None, actors=None)
    with make(scan, rank=1) as here, second.loader(global_batch_size=24, window_rows=64, canonical_shards=8, remainder="pad") as there:
        assert contents(there) == contents(here)
    plan.release()
