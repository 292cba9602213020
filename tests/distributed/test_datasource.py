"""The datasource names every block once, in order, the same when asked again; without Ray the error says what to install."""

from __future__ import annotations

import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.distributed import RayBlockStream
from loader.distributed.datasource import describe, make_datasource, task_bounds, usual_blocks_per_task
from loader.errors import MissingDependencyError
from loader.scan.encoded import FetchRequest


@given(st.integers(0, 50_000), st.integers(1, 100), st.integers(1, 5_000))
def test_tasks_cover_the_requests_in_order(num_requests: int, blocks_per_task: int, max_tasks: int) -> None:
    bounds = task_bounds(num_requests, blocks_per_task, max_tasks)
    assert [row for first, last in bounds for row in (first, last)] == sorted(row for first, last in bounds for row in (first, last))
    assert sum(last - first for first, last in bounds) == num_requests
    assert all(last == following for (_, last), (following, _) in zip(bounds, bounds[1:], strict=False))
    assert len(bounds) <= max_tasks and all(last > first for first, last in bounds)


def test_reading_tasks_twice_gives_the_same_descriptors() -> None:
    pytest.importorskip("ray.data")
    requests = [FetchRequest(sequence=index, shard=index % 3, block=7 * index) for index in range(10)]
    source = make_datasource(describe(requests), blocks_per_task=4)
    once, again = ([pa.concat_tables(task()) for task in source.get_read_tasks(parallelism)] for parallelism in (1, 16))
    assert pa.concat_tables(once).equals(describe(requests)) and pa.concat_tables(again).equals(describe(requests))
    assert [table.num_rows for table in once] == [1, 2, 4, 3], "the first batch waits for one block"


@pytest.mark.parametrize(("block_bytes", "prefetch_bytes", "num_actors", "blocks"), [(0, 64 << 20, 1, 1), (1 << 20, 64 << 20, 1, 8), (1 << 20, 8 << 20, 2, 1)])
def test_a_task_is_worth_its_while_and_leaves_room_ahead(block_bytes: int, prefetch_bytes: int, num_actors: int, blocks: int) -> None:
    assert usual_blocks_per_task(block_bytes, prefetch_bytes, num_actors) == blocks
    assert usual_blocks_per_task(100, prefetch_bytes, num_actors) == 64 and usual_blocks_per_task(1 << 30, prefetch_bytes, num_actors) == 1


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headrace\[ray\]'"):
        RayBlockStream({}, make_fetcher=lambda spec: pytest.fail("never made"))
