"""What the ranks of a run agree on through the catalog, on both databases, and a loader that follows while another handle writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import loader
from loader.catalog import follow as ends
from loader.catalog.admin import active_pins
from loader.catalog.follow import End
from loader.lake import Lake
from tests.table.samples import create, rows

MakeLake = Callable[..., Lake]


def test_the_first_to_propose_an_end_wins_for_all(make_lake: MakeLake) -> None:
    table = create(make_lake())
    for start in range(0, 40, 5):
        table.append(rows(start, start + 5))
    barrier = threading.Barrier(4)

    def propose(until: int) -> End | None:
        lake = make_lake()
        spec = lake.table("samples").spec
        barrier.wait()
        with lake.database.write(spec.id, as_reader=True) as connection:
            return ends.propose(connection, spec, "run", 2, End(until=until, is_flush=False), 0)

    with ThreadPoolExecutor(4) as pool:
        agreed = list(pool.map(propose, [3, 5, 6, 8]))
    assert len(set(agreed)) == 1 and agreed[0] is not None
    with table.lake.database.read() as connection:
        assert ends.load_end(connection, table.spec.id, "run", 2) == agreed[0]
        assert ends.load_end(connection, table.spec.id, "other", 2) is None
        assert [(pin.snapshot_id, pin.owner) for pin in active_pins(connection, table.spec)] == [(agreed[0].until, "follow run")]


def test_a_stream_is_over_where_nobody_went_on_and_goes_on_later(make_lake: MakeLake) -> None:
    table = create(make_lake())
    table.append(rows(0, 5))
    table.append(rows(5, 9))
    spec, end = table.spec, End(until=2, is_flush=True)
    with table.lake.database.write(spec.id) as connection:
        assert ends.propose_over(connection, spec.id, "run", 1)
        assert ends.is_over(connection, spec.id, "run", 1, 0)
        assert ends.propose(connection, spec, "run", 1, end, 0) is None, "who began before it was said ends there"
        mark = ends.last_mark(connection, spec.id, "run")
        assert not ends.is_over(connection, spec.id, "run", 1, mark), "who begins after it goes on"
        assert ends.propose_over(connection, spec.id, "run", 1) and ends.is_over(connection, spec.id, "run", 1, mark), "and can be told again"
        mark = ends.last_mark(connection, spec.id, "run")
        assert ends.propose(connection, spec, "run", 1, end, mark) == end
        assert not ends.propose_over(connection, spec.id, "run", 1), "the increment is under way"


def test_pins_and_marks_do_not_pile_up(make_lake: MakeLake) -> None:
    table = create(make_lake())
    table.append(rows(0, 5))
    with table.lake.database.write(table.spec.id) as connection:
        for since in range(1, 60):
            ends.propose(connection, table.spec, "run", since, End(until=1, is_flush=False), 0)
        assert len(active_pins(connection, table.spec)) == ends.KEPT_PINS
        connection.execute("update follow_ends set made_at = 0, number = number + ?", (ends.FORGETS_EVERY - 60,))
        ends.propose(connection, table.spec, "run", 60, End(until=1, is_flush=False), 0)
        assert connection.execute("select count(*) from follow_ends").fetchone()[0] == 1, "after a week they go"


def test_ranks_follow_beside_a_writer_of_another_handle(make_lake: MakeLake) -> None:
    table, total = create(make_lake()), 400
    table.append(rows(0, 30))
    settings = loader.Follow(name="run", poll_seconds=0.01, max_wait_seconds=0.0, idle_seconds=1.0)

    def write() -> None:
        other = make_lake().table("samples")
        for start in range(30, total, 37):
            other.append(rows(start, min(start + 37, total)))
            if start % 2:
                other.compact()

    def read(rank: int) -> tuple[list[list[Any]], dict[str, Any]]:
        scan = make_lake().table("samples").scan(columns=["user", "item"], snapshot=1, follow=settings)
        with loader.DataLoader(scan, global_batch_size=20, rank=rank, world_size=2, output="numpy") as batches:
            return [list(zip(batch["user"].tolist(), batch["item"].tolist(), strict=True)) for batch in batches], batches.state_dict()

    with ThreadPoolExecutor(3) as pool:
        writing = pool.submit(write)
        (first, mine), (second, its) = pool.map(read, [0, 1])
        writing.result()
    assert mine == its and len(first) == len(second) == total // 20
    seen = [row for part in (*first, *second) for row in part]
    assert len(set(seen)) == len(seen) == total
