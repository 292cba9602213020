"""Scans as datasets of Ray Train: shards are plain data, equal for equal places, and over all workers every row comes once. Whole runs: `test_soak_train`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loader
from loader.distributed import RayBlockStream, ScanShard
from loader.errors import StateMismatchError
from tests.train.sample_table import create, ids

pytest.importorskip("torch")
pytest.importorskip("ray.train")
pytestmark = pytest.mark.ray
OPTIONS: dict[str, Any] = {"global_batch_size": 48, "window_rows": 64, "threads": 1, "seed": 3, "remainder": "pad"}


@pytest.fixture
def scan(tmp_path: Path) -> Iterator[Any]:
    with loader.connect(tmp_path / "lake") as lake:
        yield create(lake, num_rows=420).scan(columns=["id", "price"], where="user <> 3")


def configure(scan: Any, world_size: int, **options: Any) -> list[dict[str, Any]]:
    with loader.distributed.ScanDataConfig({"train": scan}, **options) as config:
        sent = copy.deepcopy(pickle.loads(pickle.dumps(config)))
        return sent.configure({"train": object()}, world_size, None, [f"node-{rank}" for rank in range(world_size)])


def selected(scan: Any) -> list[int]:
    return sorted(scan.table.to_arrow(columns=["id"], where=scan.where)["id"].to_pylist())


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_shards_of_all_ranks_are_the_scan(scan: Any, world_size: int) -> None:
    shards = [found["train"] for found in configure(scan, world_size)]
    assert [(shard.rank, shard.world_size, shard.node) for shard in shards] == [(rank, world_size, f"node-{rank}") for rank in range(world_size)]
    assert shards == [found["train"] for found in configure(scan, world_size)]
    scan.table.delete("id < 100")  # later than the config: nobody sees it
    found: list[int] = []
    for shard in shards:
        with shard.loader(**OPTIONS) as batches:
            found += [number for batch in batches for number in ids(batch)]
    assert sorted(found) == sorted(scan.table.to_arrow(columns=["id"], where=scan.where, snapshot=shards[0].spec.snapshot)["id"].to_pylist())
    assert len(found) > 300


def test_a_state_goes_on_at_another_number_of_workers(scan: Any) -> None:
    (one,) = (found["train"] for found in configure(scan, 1))
    with one.loader(**OPTIONS) as batches:
        under_way = iter(batches)
        seen = [number for _ in range(3) for number in ids(next(under_way))]
        state = batches.state_dict()
    for found in configure(scan, 2):
        with found["train"].loader(state=state, **OPTIONS) as batches:
            seen += [number for batch in batches for number in ids(batch)]
    assert sorted(seen) == selected(scan)
    with pytest.raises(StateMismatchError, match="seed"):
        one.loader(state=state, **{**OPTIONS, "seed": 4})


def test_a_shard_says_what_to_do_with_it(scan: Any) -> None:
    (shard,) = (found["train"] for found in configure(scan, 1))
    with pytest.raises(TypeError, match=r"shard\.loader\(global_batch_size="):
        iter(shard)
    with pytest.raises(ValueError, match="name at least one"):
        loader.distributed.ScanDataConfig({})


def test_other_datasets_go_rays_own_way(ray_cluster: None, scan: Any) -> None:
    import ray.data

    with loader.distributed.ScanDataConfig({"train": scan}, datasets_to_split=[]) as config:
        (found,) = config.configure({**config.datasets(), "other": ray.data.range(5)}, 1, None, None)
    assert isinstance(found["train"], ScanShard)
    assert sorted(row["id"] for row in found["other"].iter_rows()) == list(range(5))


def test_actors_of_a_shard_read_on_from_epoch_to_epoch(ray_cluster: None, scan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []
    start = RayBlockStream._start
    monkeypatch.setattr(RayBlockStream, "_start", lambda self, table: starts.append(table.num_rows) or start(self, table))
    (shard,) = (found["train"] for found in configure(scan, 1, actors={"num_actors": 1, "blocks_per_task": 4}))
    with shard.loader(epochs=2, **OPTIONS) as batches:
        for _ in range(2):
            assert sorted(number for batch in batches for number in ids(batch)) == selected(scan)
    assert len(starts) == 1, "one Ray read for both epochs"
