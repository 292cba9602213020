"""Claims about loaders that follow a table: each row once, in increments that all ranks share, through crashes, patches, deletes and compaction."""

from __future__ import annotations

import datetime
import json
import os
import signal
import threading

import numpy as np
import pyarrow as pa
import pytest

import loader
from loader.catalog.admin import active_pins
from loader.errors import StateMismatchError
from loader.train.follow import Follower

from .device import compare, host_runtime
from .sample_table import TENSOR_COLUMNS, as_rows, create, ids, rows

BATCH = 24
FAST = {"poll_seconds": 0.005, "max_wait_seconds": 0.0}


@pytest.fixture
def table(tmp_path):
    with loader.connect(str(tmp_path / "lake")) as lake:
        yield create(lake, num_rows=120, patch=False)


def make(table, batch=BATCH, columns=("id",), follow=None, where=None, closed_before=None, **options):
    settings = loader.Follow(**{"name": "run", "idle_seconds": 0.0, **FAST, **(follow or {})})
    scan = table.scan(columns=list(columns), where=where, closed_before=closed_before, follow=settings)
    return loader.DataLoader(scan, global_batch_size=batch, **{"window_rows": 40, **options})


def append(table, start, stop, **options):
    table.append(rows(start, stop), on_conflict="trust", watermark=start, **options)


def drain(batches):
    return [ids(batch) for batch in batches]


def flat(parts):
    return [row for part in parts for row in part]


def test_the_snapshot_comes_first_and_then_what_was_added_each_row_once(table):
    with make(table) as batches:
        begun = flat(drain(batches))
        assert sorted(begun) == list(range(120)), "it ends where nothing has come for idle_seconds"
        append(table, 120, 180)
        append(table, 180, 200)
        added = flat(drain(batches))
        assert len(added) == 72 and set(added) < set(range(120, 200)), "80 rows: three batches, and eight rows wait"
        append(table, 200, 220)
        more = flat(drain(batches))
        assert sorted(added + more) == sorted(set(added + more)) and set(range(120, 200)) <= set(added + more)
        assert len(more) == 24 and batches.epoch == 2


def test_compaction_and_patches_make_nothing_new_and_deleted_rows_do_not_come(table):
    with make(table) as batches:
        drain(batches)
        append(table, 120, 192)
        table.patch(pa.table({"id": np.arange(0, 192, 3), "price": pa.array(np.ones(64), pa.float32())}))
        table.delete("id in (5, 130, 131)")
        append(table, 192, 219)
        table.compact(full=True)
        assert table.view().segments[0].sequence_min <= 2 and len(table.view().segments) <= 2, "old and new rows lie in one segment"
        seen = flat(drain(batches))
        assert len(seen) == len(set(seen)) == 4 * BATCH and set(seen) < set(range(120, 219)) - {130, 131}
        assert batches.plan.left == 97 - 4 * BATCH


def test_compacted_rows_come_with_the_values_of_the_end_of_their_increment(table):
    with make(table, columns=TENSOR_COLUMNS, remainder="pad") as batches:
        list(batches)
        append(table, 120, 160)
        table.compact(full=True)
        table.patch(pa.table({"id": [150], "price": pa.array([7.5], pa.float32())}))
        seen = {row["id"]: row for batch in batches for row in as_rows(batch)}
    want = {row["id"]: row for row in table.to_arrow(TENSOR_COLUMNS, where="id >= 120").to_pylist()}
    assert seen.keys() == want.keys() and seen[150]["price"] == 7.5
    assert all({**seen[key], "price": 0} == {**want[key], "price": 0} for key in want)


def test_a_row_whose_window_was_open_comes_when_it_closes(table):
    with make(table, 10, ["id", "label"], closed_before="watermark") as batches:
        first = flat(drain(batches))
        assert len(first) == 10 and set(first) < set(range(11)), "the watermark is 60, the window 50: rows 0 to 10 are closed, in batches of 10"
        table.patch(pa.table({"id": [20], "label": pa.array([1], pa.int8())}), watermark=100)
        second = [row for batch in batches for row in as_rows(batch)]
        found = {row["id"]: row["label"] for row in second}
        assert len(second) == len(found) == 40 and not set(found) & set(first), "11 to 50 and one that waited, but for one that waits now"
        assert all(label == int(key == 20) for key, label in found.items())
        append(table, 120, 150)
        table.compact(full=True)
        table.patch(pa.table({"id": [0], "label": pa.array([1], pa.int8())}), watermark=149)
        third = flat(drain(batches))
        assert len(third) == 50 and {*first, *found, *third} == set(range(100)), "99 + 50 is the watermark"


def test_where_is_judged_when_a_row_comes(table):
    with make(table, 4, ["id"], where="user < 4 and price > 0.5", remainder="uneven") as batches:
        before = set(flat(drain(batches)))
        append(table, 120, 200)
        table.patch(pa.table({"id": np.arange(0, 200), "price": pa.array(np.full(200, 0.9), pa.float32())}))
        after = set(flat(drain(batches)))
    assert before == set(loader_ids(table, "user < 4 and price > 0.5", 2)) and not before & after
    assert after == {row for row in loader_ids(table, "user < 4") if row >= 120}


def loader_ids(table, where, snapshot=None):
    return table.to_arrow(["id"], where=where, snapshot=snapshot)["id"].to_pylist()


@pytest.mark.parametrize("remainder", ["drop", "pad", "uneven"])
@pytest.mark.parametrize("seed", range(2))
def test_resume_after_a_crash_at_another_world_size_gives_what_is_left(tmp_path, seed, remainder):
    """Writers, ranks and crashes at random: over all lives of the run every committed row comes once, in the global batches of a run that never stopped."""
    rng = np.random.default_rng(seed)
    with loader.connect(str(tmp_path / "lake")) as lake:
        table = create(lake, num_rows=int(rng.integers(30, 120)), commit_rows=30, patch=False)
        state, seen, written = None, [], table.view().spec and table.to_arrow(["id"]).num_rows
        for _ in range(6):
            world = int(rng.choice([1, 2, 3, 4]))
            ranks = [make(table, rank=rank, world_size=world, remainder=remainder, prefetch_bytes=int(rng.choice([1, 1 << 20]))) for rank in range(world)]
            if state is not None:
                for rank in ranks:
                    rank.load_state_dict(json.loads(json.dumps(state)))
            for _ in range(int(rng.integers(0, 3))):
                count = int(rng.integers(1, 60))
                append(table, written, written + count)
                written += count
                if rng.random() < 0.4:
                    table.compact(full=True)
                if rng.random() < 0.4:
                    table.patch(pa.table({"id": [0], "price": pa.array([rng.random()], pa.float32())}))
            crash = int(rng.integers(0, 6)) if rng.random() < 0.7 else None
            for number, parts in enumerate(zip(*ranks, strict=True)):
                seen += [ids(part) for part in parts]
                assert len({json.dumps(rank.state_dict(), sort_keys=True) for rank in ranks}) == 1, "one state for all ranks"
                state = ranks[-1].state_dict()
                if crash == number:
                    break
            else:
                state = ranks[0].state_dict()
            for rank in ranks:
                rank.close()
        got = flat(seen)
        assert len(got) == len(set(got)) and set(got) <= set(range(written))
        with make(table, remainder=remainder) as last:
            last.load_state_dict(state)
            got += flat(drain(last))
        assert len(got) == len(set(got))
        left = written - len(got)
        assert left < BATCH if remainder == "drop" else left == 0
        with lake.database.read() as connection:
            assert all(pin.owner == "follow run" for pin in active_pins(connection, table.spec)), "loaders that are closed hold nothing"


def test_global_batches_are_the_same_sets_for_every_world_size(tmp_path):
    def run(world):
        with loader.connect(str(tmp_path / f"lake{world}")) as lake:
            table = create(lake, num_rows=100, commit_rows=50, patch=False)
            ranks = [make(table, rank=rank, world_size=world, canonical_shards=4) for rank in range(world)]
            found = []
            for start, stop in [(100, 190), (190, 230), (230, 300)]:
                found += [sorted(flat(ids(part) for part in parts)) for parts in zip(*ranks, strict=True)]
                append(table, start, stop)
            found += [sorted(flat(ids(part) for part in parts)) for parts in zip(*ranks, strict=True)]
            for rank in ranks:
                rank.close()
            return found

    want = run(1)
    assert len(want) == 300 // BATCH and all(len(batch) == BATCH for batch in want)
    assert [run(world) for world in (2, 3)] == [want] * 2


def test_a_rank_that_is_slow_gets_the_increments_that_a_fast_one_agreed_on(table):
    fast, slow = (make(table, rank=rank, world_size=2, follow={"min_rows": 1}) for rank in (0, 1))
    from_fast = []
    for start in (120, 150, 200):
        append(table, start, start + 50 if start > 120 else 150)
        from_fast += drain(fast)
    table.compact(full=True)
    table.expire(older_than=datetime.timedelta(0), keep=1)
    from_slow = drain(slow)
    assert len(from_slow) == len(from_fast) == 10 and not set(flat(from_fast)) & set(flat(from_slow))
    fast.close()
    slow.close()


def test_expiry_leaves_what_a_state_needs_and_lets_go_of_what_is_behind(table):
    lake = table.lake
    with make(table) as batches:
        states = []
        for start in range(120, 500, 50):
            drain(batches)
            states.append(batches.state_dict())
            append(table, start, start + 50)
        drain(batches)
        with lake.database.read() as connection:
            held = {pin.snapshot_id for pin in active_pins(connection, table.spec)}
        assert len(held) <= 8 and min(held) > 4, "pins move forward with the stream"
        table.expire(older_than=datetime.timedelta(0), keep=1)
        lake.collect_garbage()
        state = batches.state_dict()
        append(table, 520, 560)
        with make(table) as again:
            again.load_state_dict(states[-1])
            first = flat(drain(again))
    with make(table) as last:
        last.load_state_dict(state)
        assert set(flat(drain(last))) <= set(first)


def test_rows_wait_at_most_so_long_and_no_batch_waits_for_min_rows_then(table):
    with make(table, follow={"min_rows": 1000, "max_wait_seconds": 1e9}) as batches:
        drain(batches)
        append(table, 120, 160)
        assert drain(batches) == [], "40 rows are fewer than min_rows"
        batches._follower._settings = loader.Follow(name="run", min_rows=1000, idle_seconds=0.2, **FAST)
        assert len(flat(drain(batches))) == BATCH, "so many are a batch, and have waited long enough"


def test_with_padding_the_last_rows_come_when_they_have_waited(table):
    with make(table, remainder="pad", follow={"idle_seconds": 0.2}) as batches:
        drain(batches)
        append(table, 120, 130)
        (batch,) = list(batches)
        assert sorted(ids(batch)) == list(range(120, 130)) and batch.num_rows == BATCH
        assert batches.plan.left == 0


def test_stop_ends_at_once_alone_and_behind_the_increment_with_others(table):
    with make(table, follow={"idle_seconds": None}) as alone:
        seen = []
        for batch in alone:
            seen += ids(batch)
            alone.stop()
        assert len(seen) == BATCH
        append(table, 120, 130)
        timer = threading.Timer(0.3, alone.stop)
        timer.start()
        seen += flat(drain(alone))
        timer.join()
        assert sorted(seen) == list(range(120)), "the next iteration goes on, and a stop ends its wait"
    ranks = [make(table, rank=rank, world_size=2, follow={"name": "two", "idle_seconds": None}) for rank in range(2)]
    found = []
    for parts in zip(*ranks, strict=True):
        found += flat(ids(part) for part in parts)
        ranks[1].stop()
    assert len(found) == len(set(found)) == 120 and {json.dumps(rank.state_dict()) for rank in ranks} == {json.dumps(ranks[0].state_dict())}
    append(table, 130, 160)
    for rank in ranks:
        rank._follower._settings = loader.Follow(name="two", idle_seconds=0.3, **FAST)
    more = [flat(ids(part) for part in parts) for parts in zip(*ranks, strict=True)]
    assert len(flat(more)) == BATCH, "an end that was said before is not the end of a run that goes on"
    for rank in ranks:
        rank.close()


def test_a_stream_ends_at_a_time(table):
    with make(table, follow={"idle_seconds": None, "end": datetime.datetime.now(datetime.UTC)}) as batches:
        assert sorted(flat(drain(batches))) == list(range(120))
    with pytest.raises(ValueError, match="without a time zone"):
        loader.Follow(end=datetime.datetime(2026, 1, 1))


def test_it_goes_on_beside_a_writer_that_patches_and_compacts(table):
    """A writer thread commits while the loader reads; then nothing is missing and nothing came twice."""
    errors = []

    def write():
        try:
            for number, start in enumerate(range(120, 720, 40)):
                append(table, start, start + 40)
                if number % 3 == 1:
                    table.patch(pa.table({"id": [start], "price": pa.array([0.5], pa.float32())}))
                if number % 5 == 4:
                    table.compact()
        except Exception as error:  # noqa: BLE001 (the test shows it)
            errors.append(error)

    writer = threading.Thread(target=write)
    with make(table, follow={"idle_seconds": 1.0}) as batches:
        writer.start()
        seen = []
        for batch in batches:
            seen += ids(batch)
        writer.join()
        stats = batches.stats()
    assert not errors and sorted(seen) == list(range(720))
    assert stats.behind_rows == 0 and stats.behind_seconds == 0.0 and stats.blocked_seconds["follow"] > 0


def test_stats_say_how_far_behind_the_head_it_is(table):
    now = [0.0]
    with make(table) as batches:
        batches._follower = Follower(batches._scan, batches.options, clock=lambda: now[0])
        iterator = iter(batches)
        next(iterator)
        assert batches.stats().behind_rows == 96 and batches.stats().behind_seconds > 0
        append(table, 120, 150)
        assert batches.stats().behind_rows == 96, "the catalog is asked once a second at most"
        now[0] = 2.0
        assert batches.stats().behind_rows == 126


def test_an_increment_looks_at_what_was_added_and_not_at_the_table(table, monkeypatch):
    from loader.scan import fetch

    with make(table, where="price >= 0 or price is null") as batches:
        drain(batches)
        old = {ref.path for ref in table.view().segments}
        append(table, 120, 180)
        table.patch(pa.table({"id": [3], "price": pa.array([0.5], pa.float32())}))
        opened, read = [], fetch.BlockFetcher.fetch_place

        def noted(self, request, place, empty=None):
            opened.append(place.ref.path)
            return read(self, request, place, empty)

        monkeypatch.setattr(fetch.BlockFetcher, "fetch_place", noted)
        assert len(flat(drain(batches))) == 48
        assert opened and not old & set(opened)


def test_a_gpu_gives_the_same_batches_and_states(tmp_path):
    with loader.connect(str(tmp_path / "lake")) as lake:
        table = create(lake, num_rows=80, patch=False)
        settings = loader.Follow(name="run", idle_seconds=0.0, **FAST)
        scan = table.scan(columns=TENSOR_COLUMNS, follow=settings)

        def on(device):
            return loader.DataLoader(scan, global_batch_size=BATCH, device=device, window_rows=40, remainder="pad")

        with on("cpu") as batches:
            list(batches)
            state = batches.state_dict()
        append(table, 80, 200)
        append(table, 200, 330)

        def resumed(device):
            made = on(device)
            made.load_state_dict(state)
            return made

        assert compare(resumed, host_runtime()) >= 10


def test_a_state_belongs_to_its_stream(table):
    with make(table) as batches:
        drain(batches)
        append(table, 120, 160)
        drain(batches)
        state = batches.state_dict()
        assert len(json.dumps(state)) < 1200 and state["follow"]["number"] == 1
    with make(table, follow={"name": "other"}) as other, pytest.raises(StateMismatchError, match="follow.name: state 'run', loader 'other'"):
        other.load_state_dict(state)
    with (
        loader.DataLoader(table.scan(columns=["id"]), global_batch_size=BATCH) as plain,
        pytest.raises(StateMismatchError, match="follow.name: state 'run', loader None"),
    ):
        plain.load_state_dict(state)
    with make(table) as batches:
        with loader.DataLoader(table.scan(columns=["id"]), global_batch_size=BATCH) as plain, pytest.raises(StateMismatchError, match="follows nothing"):
            batches.load_state_dict(plain.state_dict())
        assert sorted(flat(drain(batches))) != [], "a loader that refused a state goes on without it"


def test_another_batch_size_waits_for_the_end_of_the_increment_or_comes_uneven(table):
    with make(table) as batches:
        next(iter(batches))
        state = batches.state_dict()
    with make(table, 36) as other, pytest.raises(StateMismatchError, match="global_batch_size: 96 rows are left.*no multiple of 36"):
        other.load_state_dict(state)
    for batch, remainder in [(48, "drop"), (36, "uneven")]:
        with make(table, batch, remainder=remainder) as other:
            other.load_state_dict(state)
            assert len(flat(drain(other))) == 96


def test_what_cannot_be_followed_is_refused(table):
    with pytest.raises(ValueError, match="follow needs a name where world_size is 2"):
        loader.DataLoader(table.scan(columns=["id"], follow=True), global_batch_size=4, rank=0, world_size=2)
    with make(table) as batches, pytest.raises(TypeError, match="has no length"):
        len(batches)
    with pytest.raises(ValueError, match="mix.*follow|follow.*mix"):
        loader.mix([(table.scan(columns=["id"], follow=True), 1)])
    with loader.DataLoader(table.scan(columns=["id"]), global_batch_size=4) as plain, pytest.raises(RuntimeError, match="leave the loop"):
        plain.stop()


def test_ranks_that_begin_at_different_heads_agree_on_the_first_snapshot(table):
    first = make(table, rank=0, world_size=2)
    append(table, 120, 200)
    second = make(table, rank=1, world_size=2)
    assert first.plan.snapshot < second.plan.snapshot
    seen = [flat(ids(part) for part in parts) for parts in zip(first, second, strict=True)]
    assert len(seen) == 200 // BATCH and len(flat(seen)) == len(set(flat(seen)))
    assert first.state_dict() == second.state_dict()
    first.close()
    second.close()


def test_carried_rows_do_not_wait_for_news_when_padding_is_allowed(table):
    with make(table, remainder="pad", follow={"max_wait_seconds": 0.3, "idle_seconds": 1.0}) as batches:
        drain(batches)
        append(table, 120, 150)
        parts = drain(batches)
        assert [len(part) for part in parts] == [24, 6] and sorted(flat(parts)) == list(range(120, 150))
        state = batches.state_dict()
        append(table, 150, 174)
        assert sorted(flat(drain(batches))) == list(range(150, 174))
    with make(table, remainder="pad") as again:
        again.load_state_dict(state)
        assert sorted(flat(drain(again))) == list(range(150, 174)), "the stream stands behind the rows that came by themselves"


def test_a_schema_that_changes_between_increments_is_read_by_the_newer_one(table):
    with make(table, columns=["id", "user"]) as batches:
        drain(batches)
        append(table, 120, 150)
        drain(batches)
        assert batches.plan.left == 6
        table.widen_column("user", pa.int64())
        append(table, 150, 170)
        (batch,) = list(batches)
    want = dict(table.to_arrow(["id", "user"]).to_pandas().itertuples(index=False))
    assert dict(zip(ids(batch), batch["user"].tolist(), strict=True)) == {key: want[key] for key in ids(batch)}
    assert len([row for row in ids(batch) if row < 150]) == 6


def test_a_watermark_that_comes_later_says_from_then_on_which_labels_are_closed(tmp_path):
    with loader.connect(str(tmp_path / "lake")) as lake:
        table = create(lake, num_rows=30, patch=False)
        late = lake.create_table(
            "late", table.schema.to_arrow(), primary_key=["id"], time_column="ts", attribution=loader.Attribution(column="label", window_seconds=50, default=0)
        )
        late.append(rows(0, 30))
        with make(late, columns=["id", "label"]) as batches:
            assert all(row["label"] is None for batch in batches for row in as_rows(batch))
            late.append(rows(30, 60), watermark=75)
            seen = {row["id"]: row["label"] for batch in batches for row in as_rows(batch)}
        assert len(seen) == 24 and all(label == (0 if key <= 25 else None) for key, label in seen.items())


def test_a_signal_stops_it(table):
    previous = signal.signal(signal.SIGUSR1, lambda *_: batches.stop())
    try:
        with make(table, follow={"idle_seconds": None, "poll_seconds": 60.0}) as batches:
            timer = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGUSR1])
            timer.start()
            assert sorted(flat(drain(batches))) == list(range(120))
            timer.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_ends_of_an_older_run_of_the_name_that_are_gone_are_passed_over(table):
    table.tag("begin", 2)
    with make(table) as first:
        drain(first)
        append(table, 120, 150)
        append(table, 150, 180)
        drain(first)
        append(table, 180, 220)
        drain(first)
    with table.lake.database.write() as connection:
        connection.execute("delete from pins where kind = 'pin'")  # a day later
    table.compact(full=True)
    table.expire(older_than=datetime.timedelta(0), keep=1)
    scan = table.scan(columns=["id"], snapshot="begin", follow=loader.Follow(name="run", idle_seconds=0.0, **FAST))
    with loader.DataLoader(scan, global_batch_size=BATCH, window_rows=40) as again:
        assert len(set(flat(drain(again)))) == 216


def test_a_sample_is_drawn_of_what_comes_and_carried_rows_keep_their_weights(table):
    rules = [("user = 3", 1.0), (None, 0.5)]
    scan = table.scan(columns=["id"], sample=rules, follow=loader.Follow(name="run", idle_seconds=0.0, **{**FAST, "max_wait_seconds": 1e9}))
    kept, carried = {}, 0
    with loader.DataLoader(scan, global_batch_size=BATCH, remainder="pad", window_rows=40) as batches:
        for start in range(120, 480, 90):
            for batch in batches:
                kept |= dict(zip(ids(batch), batch.weights.tolist(), strict=False))
                carried += bool(batches.plan.ranges)
            append(table, start, start + 90)
        kept |= {key: weight for batch in batches for key, weight in zip(ids(batch), batch.weights.tolist(), strict=False)}
    whole = table.scan(columns=["id"], sample=rules)
    with loader.DataLoader(whole, global_batch_size=BATCH, remainder="uneven") as batches:
        want = {key: weight for batch in batches for key, weight in zip(ids(batch), batch.weights.tolist(), strict=True)}
    assert set(kept) <= set(want) and len(want) - len(kept) < BATCH and carried > 0
    assert all(want[key] == weight for key, weight in kept.items())
