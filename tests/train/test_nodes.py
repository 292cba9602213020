"""What torchdata asks of a loader's state, asked of ours: by `torchdata.nodes.Loader(BatchNode(…))`, and by DataLoader itself for a fresh one.

Mirrors the cases of torchdata's test/stateful_dataloader/test_state_dict.py that apply to a loader without worker processes and samplers: interrupted at
0, 1 and 10 batches (`test_no_mp`, `test_map_iterrupted_shuffle`), SnapshotZero and SnapshotEnd, JsonSerDe, InitialState (`test_initial_state`,
`test_load_state_after_initial_state_dict`, `test_load_state_before_initial_state_dict`, `test_load_then_state`, `test_iteration_error`), ConcurrentDataLoaders,
FastStateDictRequest, MultiEpochSDL, EndOfEpochBehavior, MultiEpochState, SingleIterCalled; and of test/nodes: the walk of `run_test_save_load_state` (initial,
middle and end of two epochs, `restart_on_stop_iteration` on and off), `test_loader_equal_state_dict_on_save_load_*`, and Prefetcher, Batcher and Header over a
source that has state. Cases of worker processes, snapshots every n steps and stateless datasets have nothing to correspond to: a state here is always exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loader
from loader.errors import CorruptSegmentError, StateMismatchError
from loader.scan.encoded import EncodedBlock, FetchRequest
from tests.train.sample_table import create, ids

pytest.importorskip("torch")
nodes = pytest.importorskip("torchdata.nodes")

from loader.train import BatchNode  # noqa: E402

OPTIONS: dict[str, Any] = {"rank": 0, "world_size": 1, "global_batch_size": 24, "window_rows": 64, "threads": 1, "seed": 3, "remainder": "uneven"}


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with loader.connect(tmp_path_factory.mktemp("nodes") / "lake") as lake:
        table = create(lake, num_rows=300)
        yield table.scan(columns=["id", "price"], snapshot=table.view().snapshot_id)


@pytest.fixture
def make(scan: Any) -> Iterator[Callable[..., Any]]:
    """Makes torchdata Loaders over nodes of their own."""
    made = []

    def new(*, restart: bool = True, wrap: Callable[[Any], Any] = lambda node: node, **options: Any) -> Any:
        made.append(loader.DataLoader(scan, **{**OPTIONS, **options}))
        return nodes.Loader(wrap(BatchNode(made[-1])), restart_on_stop_iteration=restart)

    yield new
    for batches in made:
        batches.close()


def all_ids(batches: Any) -> list[list[int]]:
    return [ids(batch) for batch in batches]


def take(iterator: Iterator[Any], count: int) -> list[list[int]]:
    return [ids(next(iterator)) for _ in range(count)]


@pytest.mark.parametrize("interrupt", [0, 1, 10])
@pytest.mark.parametrize("shuffle", ["windows", "none"])
def test_a_new_loader_goes_on_where_the_state_was_taken(make: Any, interrupt: int, shuffle: str) -> None:
    first = make(shuffle=shuffle)
    iterator = iter(first)
    take(iterator, interrupt)
    state = json.loads(json.dumps(first.state_dict()))
    expected = all_ids(iterator)
    again = make(shuffle=shuffle)
    again.load_state_dict(state)
    assert all_ids(again) == expected


def test_the_walk_through_two_epochs_and_back(make: Any) -> None:
    batches = make()
    initial = batches.state_dict()
    iterator = iter(batches)
    first = take(iterator, 5)
    middle = batches.state_dict()
    first += all_ids(iterator)
    end = batches.state_dict()
    iterator = iter(batches)
    second = take(iterator, 5)
    middle_of_second = batches.state_dict()
    second += all_ids(iterator)
    assert sorted(sum(first, [])) == sorted(sum(second, [])) and first != second
    for state, expected in [(middle, [first[5:], second]), (middle_of_second, [second[5:]]), (initial, [first, second])]:
        batches.load_state_dict(state)
        assert [all_ids(batches) for _ in expected] == expected
    for restart, expected in [(False, []), (True, second)]:
        again = make(restart=restart)
        again.load_state_dict(end)
        assert all_ids(again) == expected


def test_the_state_after_loading_is_the_loaded_state(scan: Any, make: Any) -> None:
    batches = make()
    iterator = iter(batches)
    seen = take(iterator, 4)
    state = batches.state_dict()
    batches.load_state_dict(state)
    iterator = iter(batches)
    assert batches.state_dict() == state
    rest = all_ids(iterator)
    assert sorted(sum(seen + rest, [])) == list(range(300))
    with loader.DataLoader(scan, **OPTIONS) as again:
        assert again.state_dict()["position"] == 0  # asked for before another one is loaded
        again.load_state_dict(state["root"])
        assert again.state_dict() == state["root"]
        assert all_ids(again) == rest


def test_a_state_is_loaded_in_the_middle_of_an_iteration(make: Any) -> None:
    batches = make()
    start = batches.state_dict()
    iterator = iter(batches)
    seen = take(iterator, 4)
    batches.load_state_dict(batches.state_dict())
    seen += all_ids(batches)
    batches.load_state_dict(start)
    assert all_ids(batches) == seen


def test_the_end_of_an_epoch_before_and_after_it_is_noticed(scan: Any, make: Any) -> None:
    with loader.DataLoader(scan, **OPTIONS) as batches:
        for _ in batches:
            inside = batches.state_dict()
        outside = batches.state_dict()
        following = all_ids(batches)
    for state, expected in [(inside, []), (outside, following)]:
        with loader.DataLoader(scan, **OPTIONS) as again:
            again.load_state_dict(state)
            assert len(again) == len(expected) and all_ids(again) == expected
            assert inside == state or all_ids(again) != expected, "each epoch in an order of its own"


def test_two_epochs_before_and_two_after_a_state_are_four(scan: Any, make: Any) -> None:
    with loader.DataLoader(scan, **OPTIONS) as whole:
        expected = [all_ids(whole) for _ in range(4)]
    for new in (lambda: make(), lambda: loader.DataLoader(scan, **OPTIONS)):
        first, second = new(), new()
        found = [all_ids(first) for _ in range(2)]
        second.load_state_dict(first.state_dict())
        assert found + [all_ids(second) for _ in range(2)] == expected


def test_leaving_an_epoch_early_begins_the_next(make: Any) -> None:
    batches, whole = make(), make()
    expected = [all_ids(whole) for _ in range(3)]
    assert take(iter(batches), 3) == expected[0][:3]
    assert all_ids(batches) == expected[1]
    assert all_ids(batches) == expected[2]


def test_asking_for_iterators_and_states_moves_nothing(make: Any) -> None:
    batches, whole = make(), make()
    iter(batches), iter(batches)
    states = [batches.state_dict() for _ in range(3)]
    assert states[0] == states[1] == states[2]
    iterator, seen = iter(batches), []
    for _ in range(3):
        seen += take(iterator, 1)
        batches.state_dict()
    assert seen + all_ids(iterator) == all_ids(whole)


def test_two_loaders_at_once_do_not_disturb_each_other(make: Any) -> None:
    first, second, whole = make(), make(), make()
    expected = all_ids(whole)
    assert [(ids(a), ids(b)) for a, b in zip(first, second, strict=True)] == [(batch, batch) for batch in expected]


def test_a_node_that_was_never_iterated_has_a_state(scan: Any) -> None:
    with loader.DataLoader(scan, **OPTIONS) as batches:
        node = BatchNode(batches)
        state = node.state_dict()
        assert state["position"] == 0 and state == batches.state_dict() and len(node) == 13
        expected = all_ids(node)
        node.reset(state)
        assert all_ids(node) == expected
        assert next(node, None) is None and next(node, None) is None, "an epoch that is over stays over until reset"


@pytest.mark.parametrize("steps", [0, 3, 11, 13])
def test_the_state_of_a_composed_pipeline_is_exact(make: Any, steps: int) -> None:
    def wrap(node: Any) -> Any:
        return nodes.Prefetcher(nodes.Batcher(node, batch_size=1, drop_last=False), prefetch_factor=3, snapshot_frequency=4)

    def flat(items: Any) -> list[list[int]]:
        return [ids(batch) for batch in items for batch in batch]

    batches, again = make(wrap=wrap), make(wrap=wrap)
    iterator = iter(batches)
    for _ in range(steps):
        next(iterator)
    state = json.loads(json.dumps(batches.state_dict()))
    expected = flat(iterator)
    again.load_state_dict(state)
    assert flat(again) == (expected or flat(batches))


def test_a_state_taken_at_one_world_size_is_loaded_at_another(make: Any) -> None:
    one = make()
    iterator = iter(one)
    take(iterator, 3)
    state, expected = one.state_dict(), all_ids(iterator)
    ranks = [make(rank=rank, world_size=3) for rank in range(3)]
    for batches in ranks:
        batches.load_state_dict(state)
    parts = [all_ids(batches) for batches in ranks]
    assert [sorted(sum(batch, [])) for batch in zip(*parts, strict=True)] == [sorted(batch) for batch in expected]


def test_a_foreign_state_is_refused_and_changes_nothing(make: Any) -> None:
    batches, other = make(), make(seed=4)
    iterator = iter(batches)
    take(iterator, 2)
    before = batches.state_dict()
    other.load_state_dict(before)
    with pytest.raises(StateMismatchError, match=r"order\.seed"):
        iter(other)
    assert len(all_ids(make(seed=4))) == 13
    assert batches.state_dict() == before and len(all_ids(iterator)) == 11


def test_an_error_reaches_the_consumer(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from loader.scan.fetch import BlockFetcher

    def fail(self: BlockFetcher, request: FetchRequest) -> EncodedBlock:
        raise CorruptSegmentError(f"block {request.block}: checksum does not hold: restore the file")

    monkeypatch.setattr(BlockFetcher, "fetch", fail)
    with pytest.raises(CorruptSegmentError, match="checksum does not hold"):
        next(iter(make()))
