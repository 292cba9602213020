"""Claims about the DataLoader over real tables: every sample exactly once, the same global batches anywhere, exact resume, and honest failure."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loader
from loader.catalog.admin import active_pins
from loader.errors import CatalogBusyError, ColumnNotFoundError, ConflictError, CorruptSegmentError, ForkedProcessError, SchemaError, StateMismatchError
from loader.scan import plan as planning
from loader.scan.fetch import BlockFetcher
from loader.train import pipeline, renewal
from loader.train.pipeline import Prefetcher
from loader.train.stats import StageClock

from .sample_table import TENSOR_COLUMNS, as_rows, create, delete_rows, ids

quick = settings(max_examples=20, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    lake = loader.connect(str(tmp_path_factory.mktemp("loader") / "lake"))
    yield create(lake)
    lake.close()


def make(table, batch=48, columns=("id",), scan=None, **options):
    return loader.DataLoader(scan or table.scan(columns=list(columns)), global_batch_size=batch, **{"window_rows": 80, **options})


def global_batches(table, world, batch=48, **options):
    """Ids of every global batch, each rank's part in order."""
    ranks = []
    for rank in range(world):
        with make(table, batch, rank=rank, world_size=world, **options) as batches:
            ranks.append([ids(part) for part in batches])
    assert len({len(parts) for parts in ranks}) == 1
    return [[parts[i] for parts in ranks] for i in range(len(ranks[0]))]


@quick
@given(
    world=st.sampled_from([1, 2, 3, 4]),
    shards=st.sampled_from([None, 1, 2, 3, 8]),
    batch=st.sampled_from([12, 36, 120]),
    window=st.sampled_from([1, 40, 100_000]),
    prefetch=st.sampled_from([1, 1 << 20]),
    mode=st.sampled_from(["none", "blocks", "windows", "full"]),
    run_rows=st.sampled_from([1, 4]),
    remainder=st.sampled_from(["drop", "pad", "uneven"]),
)
def test_the_union_over_ranks_is_the_plan_exactly_once(table, world, shards, batch, window, prefetch, mode, run_rows, remainder):
    options = {
        "canonical_shards": shards,
        "window_rows": window,
        "prefetch_bytes": prefetch,
        "shuffle": mode,
        "shuffle_run_rows": run_rows,
        "remainder": remainder,
    }
    parts = global_batches(table, world, batch, **options)
    seen = [row for rank_parts in parts for part in rank_parts for row in part]
    assert len(seen) == len(set(seen)) == (600 - 600 % batch if remainder == "drop" else 600)
    assert set(seen) <= set(range(600))


@pytest.mark.parametrize("where", [None, "user < 3 and price > 0.3"])
def test_global_batches_are_the_same_sets_for_every_world_size(table, where):
    def sets(world):
        scan = table.scan(columns=["id"], where=where)
        return [sorted(row for part in parts for row in part) for parts in global_batches(table, world, 24, scan=scan, canonical_shards=4, remainder="pad")]

    want = sets(1)
    for world in (2, 3, 4, 8):
        assert sets(world) == want


def test_batches_hold_what_the_table_holds(table):
    want = {row["id"]: row for row in table.to_arrow(TENSOR_COLUMNS).to_pylist()}
    seen = [row for batch in make(table, 100, TENSOR_COLUMNS) for row in as_rows(batch)]
    assert len(seen) == 600
    for row in seen:
        expected = want[row["id"]]
        assert {**row, "price": None} == {**expected, "price": None}
        assert row["price"] == pytest.approx(expected["price"])
    assert sum(row["label"] is None for row in seen) > 0 and sum(row["label"] == 0 for row in seen) > 0


def test_numpy_and_arrow_give_the_same_rows_with_strings(table):
    want = table.to_arrow().sort_by("id").to_pylist()
    arrow = pa.Table.from_batches(list(make(table, 100, scan=table.scan(), output="arrow"))).sort_by("id")
    assert arrow.to_pylist() == want
    names = {name: value for batch in make(table, 100, ["id", "name"], output="numpy") for name, value in zip(batch["id"].tolist(), batch["name"], strict=True)}
    assert names == {row["id"]: row["name"] for row in want}


def test_strings_in_a_tensor_batch_are_refused_with_a_cure(table):
    with pytest.raises(SchemaError, match="'name' is string, which no tensor holds.*output='numpy' or 'arrow'"):
        make(table, scan=table.scan())


def test_only_closed_rows_are_read_and_their_missing_labels_are_the_default(table):
    with make(table, 10, ["id", "label"], scan=table.scan(columns=["id", "label"], closed_before=400), remainder="uneven") as batches:
        seen = {row["id"]: row["label"] for batch in batches for row in as_rows(batch)}
    assert seen == {i: int(i % 5 == 0) for i in range(351)}
    latest = table.scan(columns=["id"], closed_before="watermark").plan()
    assert latest.closed_before == 599 and latest.num_rows == 550


def test_deleted_rows_are_not_read(tmp_path):
    lake = loader.connect(str(tmp_path / "lake"))
    table = create(lake, num_rows=200)
    ref = table.view().segments[1]
    gone = [0, 3, ref.num_rows - 1]
    before = {tuple(p) for batch in make(table, 10) for p in batch.positions().tolist()}
    delete_rows(lake, table, ref, gone)
    lake.close()
    lake = loader.connect(str(tmp_path / "lake"))  # a handle keeps what it has planned, and no commit told of these rows
    table = lake.table("samples")
    batches = make(table, 10, remainder="uneven")
    after = {tuple(p) for batch in batches for p in batch.positions().tolist()}
    assert batches.plan.num_rows == 197
    assert before - after == {(ref.segment_id, row) for row in gone}
    with make(table, 10, scan=table.scan(columns=["id"], where="user >= 0"), remainder="uneven") as counted:
        assert {tuple(p) for batch in counted for p in batch.positions().tolist()} == after
    lake.close()


@pytest.fixture(scope="module")
def whole(table):
    return [sorted(row for part in parts for row in part) for parts in global_batches(table, 1, canonical_shards=4, remainder="pad")]


@pytest.mark.parametrize("stop_at", range(13))
def test_resume_at_every_batch_gives_the_remaining_batches_at_any_world_size(table, whole, stop_at):
    first = make(table, rank=0, world_size=1, canonical_shards=4, remainder="pad")
    iterator = iter(first)
    done = [sorted(ids(next(iterator))) for _ in range(stop_at)]
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    assert done == whole[:stop_at] and len(json.dumps(state)) < 1000
    for world in (1, 2 + stop_at % 2):
        rest = []
        for rank in range(world):
            again = make(table, rank=rank, world_size=world, prefetch_bytes=1, remainder="pad")
            again.load_state_dict(state)
            assert len(again) == len(whole) - stop_at
            rest.append([ids(batch) for batch in again])
            again.close()
        assert [sorted(row for part in parts for row in part) for parts in zip(*rest, strict=True)] == whole[stop_at:]


def test_resume_may_change_the_batch_size(table):
    first = make(table, 48, canonical_shards=4)
    iterator = iter(first)
    seen = [row for _ in range(3) for row in ids(next(iterator))]
    state = first.state_dict()
    first.close()
    again = make(table, 33, remainder="uneven")
    again.load_state_dict(state)
    rest = [row for batch in again for row in ids(batch)]
    assert sorted(seen + rest) == list(range(600))


def test_the_state_counts_batches_yielded_and_not_prefetched(table):
    batches = make(table)
    assert batches.state_dict()["position"] == 0
    for number, _ in enumerate(batches, 1):
        assert batches.state_dict()["position"] == 48 * number and batches.state_dict()["order"]["epoch"] == 0
    assert (batches.state_dict()["position"], batches.state_dict()["order"]["epoch"]) == (0, 1)


def test_a_second_iteration_is_the_next_epoch_and_seeds_fix_the_order(table):
    batches, same, other = make(table), make(table), make(table, seed=18)
    first, second = [[ids(batch) for batch in batches] for _ in range(2)]
    assert first != second and first == [ids(batch) for batch in same]
    assert first != [ids(batch) for batch in other]
    same.set_epoch(1)
    assert [ids(batch) for batch in same] == second
    same.set_epoch(0)
    next(iter(same))
    assert [ids(batch) for batch in same] == second, "an epoch that was broken off is followed by the next one"


def test_an_unshuffled_loader_gives_the_order_of_the_table(table):
    got = [row for batch in make(table, 100, shuffle="none") for row in ids(batch)]
    assert got == table.to_arrow(["id"])["id"].to_pylist()
    assert got == [row for batch in make(table, 100, shuffle=False) for row in ids(batch)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 18}, "order.seed: state 17, loader 18"),
        ({"canonical_shards": 3}, "order.shards"),
        ({"window_rows": 81}, "order.window_rows"),
        ({"shuffle": "blocks"}, "order.mode"),
        ({"shuffle_run_rows": 2}, "order.run_rows"),
        ({"columns": ("id", "user")}, "columns"),
    ],
)
def test_a_state_of_another_loader_is_refused_by_the_field_that_differs(table, change, field):
    state = make(table, canonical_shards=4).state_dict()
    with pytest.raises(StateMismatchError, match=field):
        make(table, **change).load_state_dict(state)


def test_states_of_other_selections_versions_and_times_are_refused(table):
    state = make(table).state_dict()
    with pytest.raises(StateMismatchError, match="where: state None, loader 'user < 3'"):
        make(table, scan=table.scan(columns=["id"], where="user<3")).load_state_dict(state)
    with pytest.raises(StateMismatchError, match="snapshot"):
        make(table, scan=table.scan(columns=["id"], snapshot=3)).load_state_dict(state)
    with pytest.raises(StateMismatchError, match="order.version"):
        make(table).load_state_dict({**state, "order": {**state["order"], "version": 99}})
    with pytest.raises(StateMismatchError, match="not the state of a DataLoader"):
        make(table).load_state_dict({"position": 3})
    batches = make(table)
    next(iter(batches))
    with pytest.raises(StateMismatchError, match="after iteration began"):
        batches.load_state_dict(state)


def test_a_state_brings_its_snapshot_when_the_scan_names_none(tmp_path):
    lake = loader.connect(str(tmp_path / "lake"))
    table = create(lake, num_rows=120)
    first = make(table, 24)
    iterator = iter(first)
    seen = ids(next(iterator))
    state = first.state_dict()
    first.close()
    table.append(pa.Table.from_pylist([{**row, "id": row["id"] + 1000} for row in table.to_arrow().to_pylist()], schema=table.schema.to_arrow()))
    again = make(table, 24)
    again.load_state_dict(state)
    assert sorted(seen + [row for batch in again for row in ids(batch)]) == list(range(120))
    lake.close()


def test_a_state_of_another_lake_is_refused_however_alike(tmp_path):
    states = []
    for name in ("one", "two"):
        lake = loader.connect(str(tmp_path / name))
        with make(create(lake, num_rows=60), 10) as batches:
            states.append(batches.state_dict())
            if name == "two":
                with pytest.raises(StateMismatchError, match="^the state does not fit this loader: selection"):
                    batches.load_state_dict(states[0])
        lake.close()


def test_a_refused_state_leaves_the_loader_as_it_was(tmp_path):
    lake = loader.connect(str(tmp_path / "lake"))
    table = create(lake, num_rows=120)
    with make(table, 24, columns=("id", "user"), canonical_shards=3) as first:
        state = first.state_dict()
    table.append(pa.Table.from_pylist([{**row, "id": row["id"] + 1000} for row in table.to_arrow().to_pylist()], schema=table.schema.to_arrow()))
    with make(table, 24) as again, make(table, 24) as fresh:
        with pytest.raises(StateMismatchError, match="columns"):
            again.load_state_dict(state)
        assert again.state_dict() == fresh.state_dict()
        assert [ids(batch) for batch in again] == [ids(batch) for batch in fresh]
    lake.drop_table(table.name)  # no pin of the refused plan is left
    lake.close()


def test_padding_is_masked_and_never_counted(table):
    parts = []
    for rank in range(4):
        batches = list(make(table, 256, ["id", "history", "price"], rank=rank, world_size=4, remainder="pad"))
        assert [len(batch) for batch in batches] == [64, 64, 64]
        last = batches[-1]
        assert last.mask.tolist() == [i < last.num_samples for i in range(64)]
        assert not last.validity["price"][last.num_samples :].any() and last["history"].lengths()[last.num_samples :].sum() == 0
        parts += [len(batch.positions()) for batch in batches]
    assert sum(parts) == 600
    *_, last = make(table, 256, ["name"], remainder="pad", output="numpy")
    assert len(last["name"]) == 256 and set(last["name"][last.num_samples :]) == {None}


def test_rank_world_size_and_snapshot_come_from_torch_distributed_where_it_runs(table, monkeypatch):
    newest = make(table).plan.snapshot
    assert (make(table).options.rank, make(table).options.world_size) == (0, 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: tensor.fill_(newest - 2))  # rank 0 planned before somebody wrote
    batches = make(table)
    assert (batches.options.rank, batches.options.world_size, batches.plan.snapshot) == (2, 3, newest - 2)
    assert make(table, scan=table.scan(columns=["id"], snapshot=newest)).plan.snapshot == newest
    assert make(table, rank=0, world_size=1).plan.snapshot == newest
    batches.load_state_dict(make(table, rank=0, world_size=1).state_dict())
    assert batches.plan.snapshot == newest


def test_a_loader_carried_over_a_fork_says_to_spawn(table, monkeypatch):
    batches = make(table)
    monkeypatch.setattr(batches, "_process", -1)
    with pytest.raises(ForkedProcessError, match="start workers with spawn"):
        iter(batches)


def test_pins_are_held_while_a_loader_lives_and_let_go_when_it_closes(tmp_path):
    lake = loader.connect(str(tmp_path / "lake"))
    table = create(lake, num_rows=60)
    with make(table, 10), pytest.raises(ConflictError, match="plan"):
        lake.drop_table(table.name)
    lake.drop_table(table.name)
    lake.close()


def test_a_loader_renews_its_pin_and_outlives_a_busy_catalog(tmp_path, monkeypatch, caplog):
    lake = loader.connect(str(tmp_path / "lake"))
    table = create(lake, num_rows=60)

    def expiry():
        with lake.database.read() as connection:
            return [pin.expires_at for pin in active_pins(connection, table.spec)]

    monkeypatch.setattr(renewal, "RENEW_SECONDS", 0)
    with make(table, 10) as batches:
        before = expiry()
        next(iter(batches))
        assert len(before) == 1 and expiry() > before
        monkeypatch.setattr(type(lake), "renew", lambda *_: (_ for _ in ()).throw(CatalogBusyError("another process is writing")))
        assert len(list(batches)) == 6
        assert "could not be renewed" in caplog.text
    assert expiry() == []
    lake.close()


def test_a_loader_that_cannot_be_made_holds_no_pin(tmp_path):
    lake = loader.connect(str(tmp_path / "lake"))
    table = create(lake, num_rows=60)
    with pytest.raises(ValueError, match="leaves no batch"):
        make(table, 100)
    with pytest.raises(ValueError, match="cannot be evaluated"):
        table.scan(where="id + 9223372036854775807 > 5").plan()
    lake.drop_table(table.name)
    lake.close()


def test_changed_batches_do_not_pretend_to_be_arrow(table):
    batch = next(iter(make(table)))
    with pytest.raises(ValueError, match="convert before it"):
        batch.replace(id=batch["id"] * 2).to_arrow()


def test_positions_name_every_row_of_the_table_once(table):
    seen = np.concatenate([batch.positions() for batch in make(table, 100)])
    stored = [(ref.segment_id, row) for ref in table.view().segments for row in range(ref.num_rows)]
    assert sorted(map(tuple, seen.tolist())) == stored


def test_a_hundred_batches_stay_what_they_were(table):
    batches = make(table, 6, TENSOR_COLUMNS)
    kept, want = [], []
    for batch in batches:
        kept.append(batch)
        want.append(repr(as_rows(batch)))
    assert len(kept) == 100 and [repr(as_rows(batch)) for batch in kept] == want


def test_transforms_change_batches_in_turn(table):
    double = lambda batch: batch.replace(twice=batch["id"] * 2, user=None)  # noqa: E731
    for batch in make(table, 100, ["id", "user"], transforms=[double, lambda batch: batch.replace(four=batch["twice"] * 2)]):
        assert list(batch) == ["id", "twice", "four"] and (batch["four"] == batch["id"] * 4).all()


def test_every_rank_but_the_first_loads_the_selection(table, monkeypatch):
    scan = table.scan(columns=["id"], where="price > 0.25 and user <> 1")
    want = scan.plan()
    monkeypatch.setattr(planning, "select", lambda *_: pytest.fail("the selection was counted again"))
    again = table.scan(columns=["user"], where="price>0.25 AND user!=1").plan()
    assert again.selection_hash == want.selection_hash and again.num_rows == want.num_rows == table.to_arrow(["id"], where=scan.where).num_rows


def test_an_error_in_a_fetch_reaches_the_consumer_and_leaves_no_thread(table, monkeypatch):
    real = BlockFetcher.fetch

    def fail(self, request):
        if request.sequence == 4:
            raise CorruptSegmentError("block of bad bytes")
        return real(self, request)

    monkeypatch.setattr(BlockFetcher, "fetch", fail)
    before = threading.active_count()
    with pytest.raises(CorruptSegmentError, match="bad bytes") as error:
        list(make(table))
    assert any("request 4" in note for note in error.value.__notes__)
    assert threading.active_count() == before


def test_an_error_in_a_transform_reaches_the_consumer(table):
    with pytest.raises(ZeroDivisionError):
        list(make(table, transforms=lambda batch: 1 // 0))


def test_closing_and_breaking_off_leave_no_thread(table):
    before = threading.active_count()
    batches = make(table, 12)
    for _ in batches:
        break
    next(iter(batches))
    batches.close()
    with make(table, 12) as other:
        next(iter(other))
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        iter(batches)


def test_closing_ends_a_wait_for_a_slow_store():
    answer = threading.Event()

    def slow():
        answer.wait(10)
        yield 1

    prefetcher, errors = Prefetcher(slow, name="slow", ahead=2, clock=StageClock()), []

    def consume():
        with pytest.raises(RuntimeError, match="this iteration ended") as error:
            prefetcher.get()
        errors.append(error.value)

    threads = [threading.Thread(target=target, daemon=True) for target in (consume, prefetcher.close)]
    for thread in threads:
        thread.start()
    assert prefetcher._stop.wait(10)
    answer.set()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 1


def test_closing_does_not_wait_for_ever_for_a_store_that_never_answers(monkeypatch, caplog):
    monkeypatch.setattr(pipeline, "CLOSE_SECONDS", 0.1)
    answer = threading.Event()

    def stuck():
        answer.wait(30)
        yield 1

    prefetcher = Prefetcher(stuck, name="stuck", ahead=2, clock=StageClock())
    prefetcher.close()
    assert "stuck still waits for a block" in caplog.text
    with pytest.raises(RuntimeError, match="this iteration ended"):
        prefetcher.get()
    answer.set()
    prefetcher.close()
    assert not prefetcher._thread.is_alive()


def test_statistics_stand_still_once_the_loader_is_closed(table):
    batches = make(table, 12)
    iterator = iter(batches)
    next(iterator)
    batches.close()
    assert batches.stats() == batches.stats()
    with pytest.raises(RuntimeError, match="this iteration ended"):
        next(iterator)


def test_damaged_bytes_name_file_block_and_column(tmp_path):
    lake = loader.connect(str(tmp_path / "lake"))
    table = create(lake, num_rows=20_000, commit_rows=20_000, patch=False)
    ref = table.view().segments[0]
    stored = Path(lake.location) / ref.path
    data = bytearray(stored.read_bytes())
    data[ref.offset + 4096] ^= 0xFF
    stored.write_bytes(data)
    with pytest.raises(CorruptSegmentError, match=r"chunk of column '\w+' in block 0 .*checksum"):
        list(make(table, 100, TENSOR_COLUMNS))
    lake.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 50, "rank": 0, "world_size": 4}, "multiple of world_size 4, such as 48"),
        ({"rank": 4, "world_size": 4}, "rank is 4"),
        ({"rank": 1}, "give both or neither"),
        ({"batch": 1000}, "600 rows and global_batch_size is 1,000.*'pad' or 'uneven'"),
        ({"remainder": "keep"}, "must be one of drop, pad, uneven"),
        ({"shuffle": "random"}, "none, blocks, windows, full"),
        ({"device": "gpu"}, "auto, cpu, cuda or cuda:N"),
        ({"device": "cuda", "output": "numpy"}, "output is 'numpy': a GPU gives tensors; use output='dict', or device='cpu'"),
        ({"output": "list"}, "dict, kjt, nested, numpy, arrow"),
        ({"decode": "gpu"}, "rank, actor, cpu"),
        ({"memory_bytes": 1000}, r"windows need \d+ × \d+ rows × \d+ bytes = .* and memory_bytes is .*lower window_rows"),
    ],
)
def test_wrong_options_are_refused_in_one_line(table, options, message):
    with pytest.raises(ValueError, match=message) as error:
        make(table, **options)
    assert "\n" not in str(error.value)


def test_wrong_scans_are_refused_when_they_are_made(table):
    with pytest.raises(ColumnNotFoundError, match="did you mean price"):
        table.scan(columns=["prize"])
    with pytest.raises(ColumnNotFoundError, match="'cost > 3'"):
        table.scan(where="cost > 3")
    with pytest.raises(ValueError, match="closed_before.*not a time"):
        table.scan(closed_before="soon")
    with pytest.raises(ValueError, match="after the watermark 599"):
        table.scan(closed_before=10_000).plan()


def test_stats_say_what_was_read_and_who_waited(table):
    batches = make(table, 60, TENSOR_COLUMNS)
    for _ in batches:
        pass
    stats = batches.stats().to_dict()
    assert stats["rows"] == 600 and stats["batches"] == 10 == len(batches)
    assert stats["blocks"] >= batches.plan.num_blocks and stats["encoded_bytes"] > 0 and stats["peak_window_bytes"] > 0
    assert 0 <= stats["blocked_share"] <= 1 and set(stats["blocked_share_by_stage"]) <= set(stats["pipeline_seconds"])
    json.dumps(stats)
