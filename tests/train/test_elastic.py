"""Elastic cases that other loaders test, asked of ours: the same global batches at any world size, and the rest of them after any change in the middle.

Mirrors, of mosaicml/streaming: tests/test_streaming.py `test_dataloader_determinism` (two loaders, one order), `test_streamingdataloader_mid_epoch_resumption`
(no row missing, none twice), `test_multiple_dataset_instantiation` (two loaders side by side); tests/test_partition.py `test_partition_drop_all` (every place
to go on from), `test_partition_small_num_samples` and `test_partition_samples_less_than_ncn` (fewer rows than ranks), `test_partition_relaxed_resumption`
(other numbers of hosts, several times over). Of google/grain: its checkpoint check, which goes on from the state of every single step, and compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import loader
from tests.train.sample_table import create, ids

pytest.importorskip("torch")
ROWS, BATCH = 300, 24
OPTIONS: dict[str, Any] = {"window_rows": 64, "threads": 1, "output": "numpy", "remainder": "pad"}


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with loader.connect(tmp_path_factory.mktemp("elastic") / "lake") as lake:
        table = create(lake, num_rows=ROWS, patch=False)
        yield table.scan(columns=["id"], snapshot=table.view().snapshot_id)


def run(scan: Any, world: int, *, state: Any = None, batches: int | None = None, size: int = BATCH, **options: Any) -> tuple[list[list[int]], Any]:
    """(global batches, each sorted; the state after them), of all ranks of a world; every rank must give as many batches, and the same state."""
    parts, states = [], []
    for rank in range(world):
        with loader.DataLoader(scan, rank=rank, world_size=world, global_batch_size=size, **{**OPTIONS, **options}) as one:
            if state is not None:
                one.load_state_dict(state)
            iterator = iter(one)
            wanted = len(one) if batches is None else min(batches, len(one))
            parts.append([ids(next(iterator)) for _ in range(wanted)])
            states.append(json.loads(json.dumps(one.state_dict())))
    assert all(found == states[0] for found in states) and len({len(part) for part in parts}) == 1
    return [sorted(sum(found, [])) for found in zip(*parts, strict=True)], states[0]


@pytest.mark.parametrize("shuffle", ["windows", "blocks", "full"])
def test_the_global_batches_are_the_same_at_every_world_size(scan: Any, shuffle: str) -> None:
    whole, _ = run(scan, 1, shuffle=shuffle, canonical_shards=24)
    assert sorted(sum(whole, [])) == list(range(ROWS))
    assert whole == run(scan, 1, shuffle=shuffle, canonical_shards=24)[0]
    for world in (2, 3, 8):
        assert run(scan, world, shuffle=shuffle, canonical_shards=24)[0] == whole


@pytest.mark.parametrize("shuffle", ["windows", "none"])
def test_every_step_is_a_place_to_go_on_from(scan: Any, shuffle: str) -> None:
    whole, _ = run(scan, 1, shuffle=shuffle)
    for step in range(len(whole) + 1):
        _, state = run(scan, 1, shuffle=shuffle, batches=step)
        assert run(scan, 1, shuffle=shuffle, state=state)[0] == whole[step:]


def test_the_world_may_change_again_and_again(scan: Any) -> None:
    whole, _ = run(scan, 2)
    found, state = run(scan, 2, batches=2)
    for world in (8, 1, 3, 6, 4):
        more, state = run(scan, world, state=state, batches=2)
        found += more
    assert found + run(scan, 12, state=state)[0] == whole


def test_the_batch_size_may_change_with_the_world(scan: Any) -> None:
    (first, state) = run(scan, 2, batches=3)
    rest, _ = run(scan, 5, state=state, size=40)
    assert sorted(sum(first + rest, [])) == list(range(ROWS)) and {len(batch) for batch in rest[:-1]} == {40}


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_rows_than_ranks(scan: Any, rows: int) -> None:
    few = scan.table.scan(columns=["id"], where=f"id < {rows}", snapshot=scan.snapshot)
    assert run(few, 8)[0] == [list(range(rows))]


def test_loaders_side_by_side_keep_their_own_order(scan: Any) -> None:
    alone = {seed: run(scan, 1, seed=seed)[0] for seed in (3, 4)}
    assert alone[3] != alone[4]
    place = {"rank": 0, "world_size": 1, "global_batch_size": BATCH}
    with loader.DataLoader(scan, seed=3, **place, **OPTIONS) as first, loader.DataLoader(scan, seed=4, **place, **OPTIONS) as second:
        pairs = [(sorted(ids(a)), sorted(ids(b))) for a, b in zip(first, second, strict=True)]
    assert [a for a, _ in pairs] == alone[3] and [b for _, b in pairs] == alone[4]
