"""Writes that come together share a transaction and its sync; each keeps its own snapshot, its own error, and its place after a crash."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import loader
import loader.table.files
from loader import Snapshot, SourceOffsets, failpoints
from loader.catalog.commit import STAGED_LEASE_SECONDS, LeaseLostError, now_micros
from loader.catalog.garbage import collect
from loader.errors import ConflictError, FencedError, KeyExistsError, SchemaError, StorageError, StorageFullError
from loader.table.append import Append
from loader.table.commits import together
from loader.table.patch import Patch
from loader.table.table import Table
from tests.table import processes
from tests.table.samples import create, labels, rows


def queued(table: Table, *writes: Callable[[], Future[Snapshot]]) -> tuple[list[Future[Snapshot]], int]:
    """Writes that all wait in the queue before the first is taken, and the number of transactions that they took."""
    transactions = itertools.count()
    with failpoints.armed("commit.begun", lambda: next(transactions) and None):
        with table._context.lock:
            futures = [write() for write in writes]
        for future in futures:
            future.exception()
    return futures, next(transactions)


def patched(table: Table, items: list[int], **columns: list[Any]) -> Future[Snapshot]:
    patch = Patch(
        table._context, labels(items, **columns), columns=None, order=None, on_missing="hold", watermark=None, offsets=None, commit_id=None
    )  # fmt: skip
    return table._context.commits.submit(patch)


def test_appends_that_wait_together_take_one_transaction_and_have_a_snapshot_each(lake: Any) -> None:
    table = create(lake, buckets=4)
    futures, transactions = queued(table, *(lambda at=at: table.append_async(rows(10 * at, 10 * at + 10)) for at in range(20)))
    snapshots = [future.result() for future in futures]
    assert transactions == 1
    assert [snapshot.id for snapshot in snapshots] == list(range(1, 21))
    assert [snapshot.num_rows for snapshot in snapshots] == list(range(10, 201, 10))
    assert table.history() == snapshots
    for snapshot in snapshots[::7]:
        assert sorted(table.to_arrow(["item"], snapshot=snapshot)["item"].to_pylist()) == list(range(10 * snapshot.id))


def test_each_append_of_a_group_has_its_own_error(lake: Any) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    futures, _ = queued(
        table,
        lambda: table.append_async(rows(100, 110)),
        lambda: table.append_async(rows(5, 15)),
        lambda: table.append_async(rows(20, 30).drop_columns(["ts"])),
        lambda: table.append_async(pa.concat_tables([rows(30, 32), rows(31, 33)])),
        lambda: table.append_async(rows(110, 120), commit_id="twice"),
        lambda: table.append_async(rows(110, 120), commit_id="twice"),
        lambda: table.append_async(rows(120, 125)),
    )
    errors = [type(future.exception()) for future in futures]
    assert errors == [type(None), KeyExistsError, SchemaError, KeyExistsError, type(None), type(None), type(None)]
    assert futures[4].result() == futures[5].result()
    assert sorted(table.to_arrow(["item"])["item"].to_pylist()) == [*range(10), *range(100, 125)]
    assert [snapshot.id for snapshot in table.history()] == [1, 2, 3, 4]


def test_of_two_appends_of_one_key_in_a_group_the_first_wins(lake: Any) -> None:
    table = create(lake)
    (first, second, third), transactions = queued(
        table, lambda: table.append_async(rows(0, 10)), lambda: table.append_async(rows(9, 12)), lambda: table.append_async(rows(12, 14))
    )
    assert first.result().id == 1
    assert isinstance(second.exception(), KeyExistsError)
    assert third.result().num_rows == 12
    assert transactions == 1, "the second is resolved after the first, and refused before it is committed"


def test_a_label_and_its_row_in_one_group_meet(lake: Any) -> None:
    table = create(lake)
    futures, _ = queued(
        table, lambda: patched(table, [3, 40], clicks=[5, 7]), lambda: table.append_async(rows(0, 10)), lambda: patched(table, [3, 4], clicks=[1, 1])
    )
    for future in futures:
        future.result()
    table.append(rows(40, 41))
    clicks = dict(zip(*(table.to_arrow()[name].to_pylist() for name in ("item", "clicks")), strict=True))
    assert (clicks[3], clicks[4], clicks[40]) == (6, 1, 7)


def test_patches_of_one_row_share_a_transaction_and_all_count(lake: Any) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    futures, transactions = queued(table, *(lambda by=by: patched(table, [2, 3], clicks=[by, 1]) for by in (1, 10, 100)))
    assert [future.result().id for future in futures] == [2, 3, 4]
    assert transactions == 1
    clicks = dict(zip(*(table.to_arrow()[name].to_pylist() for name in ("item", "clicks")), strict=True))
    assert (clicks[2], clicks[3]) == (111, 3)


def test_offsets_go_on_inside_a_group_and_replays_are_answered(lake: Any) -> None:
    table = create(lake)

    def append(start: int, stop: int, epoch: int = 1) -> Callable[[], Future[Snapshot]]:
        return lambda: table.append_async(rows(start, stop), offsets=SourceOffsets("pipe", "events", {0: (start, stop)}, epoch=epoch))

    futures, _ = queued(table, append(0, 5), append(5, 9), append(0, 5), append(20, 25), append(9, 12, epoch=0))
    assert [future.result().id for future in futures[:2]] == [1, 2]
    assert futures[2].result() == futures[1].result(), "a replay is dropped: the newest snapshot of these offsets is its answer"
    assert isinstance(futures[3].exception(), ConflictError)
    assert isinstance(futures[4].exception(), FencedError)
    assert table.offsets("pipe", "events") == {"0": 9}
    assert table.view().num_rows == 9


def test_offsets_of_writes_on_their_way_go_on_whatever_round_each_is_committed_in(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.table.files.INLINE_BYTES", 16 * 1024)  # the second writes a file, and so is committed alone
    table = create(lake)

    def append(start: int, stop: int) -> Callable[[], Future[Snapshot]]:
        return lambda: table.append_async(rows(start, stop), offsets=SourceOffsets("pipe", "events", {0: (start, stop)}, epoch=1))

    append(0, 5)().result()
    futures, _ = queued(table, append(5, 9), append(9, 5000), append(5000, 5004), append(5004, 5009), append(6000, 6001))
    for future in futures[:4]:
        future.result()
    assert isinstance(futures[4].exception(), ConflictError)
    assert table.offsets("pipe", "events") == {"0": 5009}
    assert table.view().num_rows == 5009


def test_what_lost_its_lease_before_its_turn_came_is_refused(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stood still for longer than its lease, with two writes of one group staged: the files of both are collected."""
    monkeypatch.setattr("loader.table.files.INLINE_BYTES", 0)
    table = create(lake)

    def collected() -> None:
        failpoints._armed.pop("append.resolved", None)
        collect(lake.database, lake.storage.files, now=now_micros() + 2 * STAGED_LEASE_SECONDS * 1_000_000)

    with failpoints.armed("append.resolved", collected):
        futures, _ = queued(table, lambda: table.append_async(rows(0, 10)), lambda: table.append_async(rows(10, 20)))
    assert [type(future.exception()) for future in futures] == [LeaseLostError, LeaseLostError]
    assert table.to_arrow().num_rows == 0
    assert table.append(rows(0, 20)).num_rows == 20
    assert table.to_arrow().num_rows == 20


def test_a_file_that_cannot_be_written_is_the_error_of_its_own_append(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.table.files.INLINE_BYTES", 16 * 1024)
    table = create(lake)

    def full(*_: Any) -> str:
        raise StorageFullError("no space left")

    monkeypatch.setattr("loader.table.files.Stage.put", full)
    futures, _ = queued(table, lambda: table.append_async(rows(0, 5)), lambda: table.append_async(rows(5, 5000)), lambda: table.append_async(rows(5000, 5004)))
    assert [type(future.exception()) for future in futures] == [type(None), StorageFullError, type(None)]
    assert table.view().num_rows == 9


def test_a_write_that_was_given_up_does_not_stop_those_behind_it(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.table.commits.MAX_QUEUED", 1)
    table, done = create(lake), list[Future[Snapshot]]()
    waiting = threading.Thread(target=lambda: done.append(table.append_async(rows(1, 2))))
    with table._context.lock:
        assert table.append_async(rows(0, 1)).cancel()
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive(), "it waits for its place"
    waiting.join()
    assert done[0].result().num_rows == 1


def test_after_an_interrupted_append_those_in_the_background_are_committed(lake: Any) -> None:
    table, go_on = create(lake), threading.Event()
    table.append_async(rows(0, 1)).result()
    background = table._context.commits._background
    assert background is not None
    background.submit(go_on.wait)

    def interrupt() -> None:
        failpoints._armed.pop("append.resolved")
        go_on.set()
        background.submit(lambda: None).result()  # by now it has seen that others took the write along
        raise KeyboardInterrupt

    with failpoints.armed("append.resolved", interrupt):
        future = table.append_async(rows(1, 2))
        with pytest.raises(KeyboardInterrupt):
            table.append(rows(2, 3))
    assert future.result(timeout=20).num_rows == 2


def test_threads_that_append_and_patch_lose_nothing(lake: Any) -> None:
    table = create(lake, buckets=3)
    table.append(rows(0, 20))
    failed: list[Exception] = []

    def work(number: int) -> None:
        try:
            for turn in range(6):
                table.append(rows(1000 * (number + 1) + 5 * turn, 1000 * (number + 1) + 5 * turn + 5))
                table.patch(labels(list(range(20)), clicks=[1] * 20))
        except Exception as error:  # noqa: BLE001 (the test says which)
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    clicks = dict(zip(*(table.to_arrow()[name].to_pylist() for name in ("item", "clicks")), strict=True))
    assert len(clicks) == 20 + 6 * 6 * 5
    assert {clicks[item] for item in range(20)} == {36}
    assert [snapshot.id for snapshot in table.history()] == list(range(1, 74))


def test_a_transaction_that_fails_fails_all_of_its_group_and_nothing_is_written(lake: Any) -> None:
    table = create(lake)

    def fail() -> None:
        raise StorageError("the disk went away")

    with table._context.lock, failpoints.armed("commit.written", fail):
        futures = [table.append_async(rows(at, at + 1)) for at in range(3)]
        table._context.commits._drain()
    assert [type(future.exception()) for future in futures] == [StorageError] * 3
    assert table.history() == []
    assert table.append(rows(0, 3)).num_rows == 3


def test_an_interrupted_leader_leaves_the_writes_of_others_to_be_committed_once(lake: Any) -> None:
    table = create(lake)

    def interrupt() -> None:
        raise KeyboardInterrupt

    for place in ("append.resolved", "commit.written", "commit.committed"):
        before = len(table.history())
        with table._context.lock:
            queue = table._context.commits._queue
            writes = [
                Append(table._context, rows(100 * before + at, 100 * before + at + 1), on_conflict="check", watermark=None, offsets=None, commit_id=None)
                for at in range(3)
            ]
            queue.extend(writes)
            with failpoints.armed(place, interrupt), pytest.raises(KeyboardInterrupt):
                table._context.commits._lead()
            assert list(queue) == writes
        table.append(rows(100 * before + 50, 100 * before + 51))
        assert sorted(write.future.result().id for write in writes) == [before + 1, before + 2, before + 3]
        assert len(table.history()) == before + 4


def test_closing_commits_what_was_appended_in_the_background(make_lake: Callable[..., Any]) -> None:
    lake = make_lake()
    table = create(lake)
    futures = [table.append_async(rows(at, at + 1)) for at in range(30)]
    lake.close()
    assert all(future.done() for future in futures)
    assert make_lake().table("samples").view().num_rows == 30


def test_files_and_exact_writes_are_committed_alone(lake: Any) -> None:
    table = create(lake)
    plans, writes = {}, []
    for start, stop in ((0, 3), (3, 6), (6, 9)):
        write = Append(table._context, rows(start, stop), on_conflict="check", watermark=None, offsets=None, commit_id=None)
        write.stage()
        plans[write] = write.attempt()
        writes.append(write)
    assert together(writes, plans, lambda plan: False) == writes
    assert together(writes, plans, lambda plan: plan is plans[writes[1]]) == [writes[0], writes[2]]
    assert together(writes, plans, lambda plan: plan is plans[writes[0]]) == [writes[0]]


def test_a_group_of_many_writes_with_files_comes_to_its_end(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.table.files.INLINE_BYTES", 0)
    table = create(lake)
    futures, transactions = queued(table, *(lambda at=at: table.append_async(rows(10 * at, 10 * at + 10)) for at in range(24)))
    assert [future.result().id for future in futures] == list(range(1, 25))
    assert transactions == 24
    assert len(table.to_arrow(["item"])) == 240


@pytest.mark.parametrize(("failpoint", "times"), [("commit.begun", 3), ("commit.written", 2), ("commit.committed", 2), ("append.resolved", 25)])
def test_killed_in_a_group_nothing_acknowledged_is_lost_and_nothing_is_half_there(tmp_path: Path, catalog: str | None, failpoint: str, times: int) -> None:
    with loader.connect(tmp_path, catalog=catalog) as lake:
        create(lake, buckets=4)

    def work() -> None:
        left = [times]

        def count_down() -> None:
            left[0] -= 1
            if left[0] == 0:
                processes.kill_self()

        table = loader.connect(tmp_path, catalog=catalog).table("samples")
        with failpoints.armed(failpoint, count_down), open(tmp_path / "acknowledged", "a", buffering=1) as log:
            for start in range(0, 60, 10):
                with table._context.lock:
                    futures = [table.append_async(rows(10 * at, 10 * at + 10), commit_id=str(at)) for at in range(start, start + 10)]
                for future in futures:
                    log.write(f"{future.result().commit_id}\n")

    assert processes.wait(processes.start(work)) == -9
    acknowledged = {int(line) for line in (tmp_path / "acknowledged").read_text().split()}
    with loader.connect(tmp_path, catalog=catalog, create=False) as lake:
        table = lake.table("samples")
        committed = [int(snapshot.commit_id) for snapshot in table.history()]
        assert acknowledged <= set(committed)
        assert len(committed) % 10 == 0, "a transaction is there whole or not at all"
        assert sorted(table.to_arrow(["item"])["item"].to_pylist()) == sorted(10 * at + row for at in committed for row in range(10))
        for at in range(60):
            table.append_async(rows(10 * at, 10 * at + 10), commit_id=str(at))
        table.append(rows(5000, 5001))
        assert table.view().num_rows == 601


def test_many_processes_on_one_bucket_all_come_to_their_turn(tmp_path: Path, catalog: str | None) -> None:
    writers, turns, keys = 8, 4, list(range(6))
    with loader.connect(tmp_path, catalog=catalog) as lake:
        create(lake, buckets=1).append(rows(0, 3))

    def work() -> None:
        table = loader.connect(tmp_path, catalog=catalog).table("samples")
        for _ in range(turns):
            table.upsert(rows(0, 6).select(["user", "item", "ts"]).append_column("clicks", pa.array([1] * 6)))

    children = [processes.start(work) for _ in range(writers)]
    assert [processes.wait(child) for child in children] == [0] * writers
    with loader.connect(tmp_path, catalog=catalog) as lake:
        read = lake.table("samples").to_arrow()
        assert dict(zip(read["item"].to_pylist(), read["clicks"].to_pylist(), strict=True)) == dict.fromkeys(keys, writers * turns)


def test_a_committed_file_outlives_its_dead_writer_whatever_else_of_the_group_was_not_committed(tmp_path: Path, catalog: str | None) -> None:
    """A refused append leaves a file with a lower number behind, and the process is killed before any commit accounts for it."""
    with loader.connect(tmp_path, catalog=catalog) as lake:
        create(lake).append(rows(0, 10))

    def work() -> None:
        loader.table.files.INLINE_BYTES = 0
        table = loader.connect(tmp_path, catalog=catalog).table("samples")
        with failpoints.armed("commit.committed", processes.kill_self):
            queued(table, *(lambda start=start: table.append_async(rows(start, start + 10)) for start in (5, 20, 40)))

    assert processes.wait(processes.start(work)) == -9
    with loader.connect(tmp_path, catalog=catalog, create=False) as lake:
        assert collect(lake.database, lake.storage.files, now=now_micros() + 2 * STAGED_LEASE_SECONDS * 1_000_000).expired_stages == 1
        assert sorted(lake.table("samples").to_arrow(["item"])["item"].to_pylist()) == [*range(10), *range(20, 30)]
        assert not lake.doctor(deep=True).findings
        assert len(list(tmp_path.glob("data/**/*.hr"))) == 1, "what nobody committed is gone"
