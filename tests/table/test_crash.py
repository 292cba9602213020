"""A process killed (SIGKILL) anywhere in a commit or a compaction: what was acknowledged is there once, nothing half-done shows, and work goes on."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import loader
from loader import CompactionOptions, SourceOffsets, failpoints
from loader.catalog.commit import STAGED_LEASE_SECONDS, TABLES_WITH_PATHS, now_micros
from loader.catalog.garbage import collect
from loader.lake import Lake
from loader.table.table import Table
from tests.table import processes
from tests.table.samples import create, labels, rows

Clicks = dict[int, int]


@dataclasses.dataclass(frozen=True)
class Step:
    """One write, and what it does to a dict of clicks by item. None compacts."""

    write: Callable[[Table, str], object]
    apply: Callable[[Clicks], object]
    commits: bool = True


def appended(start: int, stop: int) -> Step:
    def write(table: Table, commit_id: str) -> None:
        offsets = SourceOffsets("pipe", "events", {0: (5, 6)}) if start == 80 else None
        table.append(rows(start, stop), commit_id=commit_id, offsets=offsets)

    return Step(write, lambda clicks: clicks.update(dict.fromkeys(range(start, stop), 0)))


def raised(items: list[int], by: int) -> Step:
    def apply(clicks: Clicks) -> None:
        clicks.update({item: clicks[item] + by for item in items if item in clicks})

    return Step(lambda table, commit_id: table.patch(labels(items, clicks=[by] * len(items)), commit_id=commit_id, on_missing="drop"), apply)


def upserted(start: int, stop: int, by: int, shift: int) -> Step:
    """Raises, inserts, and moves: the time of those that are there changes where `shift` is not 0."""

    def write(table: Table, commit_id: str) -> None:
        new = rows(start, stop).select(["user", "item", "ts"])
        times = pa.compute.add(new["ts"], pa.scalar(shift, pa.duration("s")))
        table.upsert(new.set_column(2, "ts", times).append_column("clicks", pa.array([by] * new.num_rows)), commit_id=commit_id)

    return Step(write, lambda clicks: clicks.update({item: clicks.get(item, 0) + by for item in range(start, stop)}))


def deleted(items: list[int]) -> Step:
    def apply(clicks: Clicks) -> None:
        for item in items:
            clicks.pop(item, None)

    return Step(lambda table, commit_id: table.delete(f"item in ({', '.join(map(str, items))})", commit_id=commit_id), apply)


def overwritten(start: int, stop: int) -> Step:
    """Rows of these items go and come again, without their clicks."""

    def write(table: Table, commit_id: str) -> None:
        table.overwrite(rows(start, stop), f"item >= {start} and item < {stop}", commit_id=commit_id)

    return Step(write, lambda clicks: clicks.update(dict.fromkeys(range(start, stop), 0)))


def expired() -> Step:
    return Step(lambda table, commit_id: table.expire(older_than=datetime.timedelta(0), keep=2, grace_seconds=0), lambda clicks: None, commits=False)


def evolved(name: str) -> Step:
    return Step(lambda table, commit_id: table.add_column(pa.field(name, pa.int8()), default=3, commit_id=commit_id), lambda clicks: None)


def backfilled(start: int, stop: int, name: str) -> Step:
    data = rows(start, stop).select(["user", "item"]).append_column(name, pa.array(range(start, stop)))
    return Step(lambda table, commit_id: table.backfill(data, commit_id=commit_id), lambda clicks: None)


def folded(overlay_fraction: float) -> Step:
    options = CompactionOptions(max_overlays=0, overlay_fraction=overlay_fraction, max_segments=1_000)
    return Step(lambda table, commit_id: table.compact(options=options), lambda clicks: None, commits=False)


STEPS: list[Step | None] = [
    appended(0, 40),
    raised([1, 2, 45], 1),
    appended(40, 80),
    None,
    raised(list(range(0, 80, 5)), 10),
    appended(80, 100),
    None,
    upserted(90, 120, 3, 0),
    expired(),
    evolved("later"),
    backfilled(30, 70, "place"),
    deleted([2, 95, 110]),
    raised([1, 7, 99], 5),
    raised([7, 50], 2),
    folded(2.0),
    raised([1, 50], 1),
    folded(0.0),
    upserted(100, 105, 7, 3600),
    overwritten(60, 70),
    raised([3, 45, 65, 99, 101], 100),
    None,
]


def run_step(table: Table, number: int) -> None:
    step = STEPS[number]
    if step is None:
        table.compact(full=True)
    else:
        step.write(table, f"step-{number}")


def expected(steps: set[int]) -> Clicks:
    """Clicks by item after some of the steps."""
    clicks: Clicks = {}
    for number in sorted(steps):
        step = STEPS[number]
        if step is not None:
            step.apply(clicks)
    return clicks


def found(table: Table) -> dict[int, int]:
    read = table.to_arrow(["item", "clicks"])
    assert len(set(read["item"].to_pylist())) == read.num_rows, "a row stands twice"
    return dict(zip(read["item"].to_pylist(), read["clicks"].to_pylist(), strict=True))


def work(folder: Path, catalog: str | None, failpoint: str, times: int) -> Callable[[], None]:
    """Do the steps one by one, noting each that was acknowledged, and die at the failpoint."""

    def run() -> None:
        left = [times]

        def count_down() -> None:
            left[0] -= 1
            if left[0] == 0:
                processes.kill_self()

        table = loader.connect(folder, catalog=catalog).table("samples")
        with failpoints.armed(failpoint, count_down), open(folder / "acknowledged", "a", buffering=1) as log:
            for number in range(len(STEPS)):
                run_step(table, number)
                log.write(f"{number}\n")

    return run


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.table.row_groups.MIN_ROWS", 20)
    monkeypatch.setattr("loader.table.files.INLINE_BYTES", 1000)  # so that files are written, and some commits lie inline


def committed_steps(lake: Lake) -> list[int]:
    """Numbers of the steps that were committed, in expired snapshots too."""
    with lake.database.read() as connection:
        return [int(commit_id[5:]) for (commit_id,) in connection.execute("select commit_id from snapshots where commit_id like 'step-%'")]


def check_files(lake: Lake, table: Table) -> None:
    """After the leases of the dead ran out, exactly the files that something refers to are there."""
    collect(lake.database, lake.storage.files, now=now_micros() + 2 * STAGED_LEASE_SECONDS * 1_000_000)
    with lake.database.read() as connection:
        known = {path for name in TABLES_WITH_PATHS for (path,) in connection.execute(f"select path from {name} where path like 'data/%'")}
    assert {str(path.relative_to(lake.location)) for path in Path(lake.location).glob("data/**/*") if path.is_file()} == known
    for snapshot in table.history():
        table.to_arrow(snapshot=snapshot)


def check_health(lake: Lake) -> None:
    """The doctor finds nothing, not even something to clean up."""
    assert [str(finding) for finding in lake.doctor(deep=True).findings] == []


ELSEWHERE = ("garbage.deleted", "ingest.", "backup.", "restore.", "erase.", "export.", "streamed.", "ttl.")  # passed by no step; killed in tests of their own
PLACES = [(name, 1) for name in failpoints.NAMES if not name.startswith(ELSEWHERE)]
PLACES += [("commit.begun", 6), ("commit.written", 4), ("commit.written", 7), ("commit.committed", 5)]  # the commits of compactions and later writes too


@pytest.mark.parametrize(("failpoint", "times"), PLACES)
@pytest.mark.usefixtures("small_files")
def test_killed_anywhere_nothing_acknowledged_is_lost_and_nothing_is_doubled(tmp_path: Path, catalog: str | None, failpoint: str, times: int) -> None:
    with loader.connect(tmp_path, catalog=catalog) as lake:
        create(lake, buckets=1, lookup_columns=["clicks"])
    code = processes.wait(processes.start(work(tmp_path, catalog, failpoint, times)))
    assert code == -9, "the failpoint was passed"
    acknowledged = {int(line) for line in (tmp_path / "acknowledged").read_text().split()}
    lake = loader.connect(tmp_path, catalog=catalog, create=False)
    table = lake.table("samples")
    check_health(lake)
    committed = committed_steps(lake)
    assert len(committed) == len(set(committed))
    steps = {number for number, step in enumerate(STEPS) if step is not None and step.commits}
    assert acknowledged & steps <= set(committed)
    assert found(table) == expected(set(committed))
    for number in range(len(STEPS)):
        run_step(table, number)
    assert found(table) == expected(set(range(len(STEPS))))
    assert table.offsets("pipe", "events") == {"0": 6}
    check_files(lake, table)
    check_health(lake)
    lake.close()


@pytest.mark.usefixtures("small_files")
def test_killed_while_garbage_is_deleted(tmp_path: Path, catalog: str | None) -> None:
    with loader.connect(tmp_path, catalog=catalog) as lake:
        table = create(lake)
        table.append(rows(0, 100))
        lake.drop_table("samples")
    later = now_micros() + 2 * STAGED_LEASE_SECONDS * 1_000_000

    def collecting() -> None:
        lake = loader.connect(tmp_path, catalog=catalog)
        with failpoints.armed("garbage.deleted", processes.kill_self):
            collect(lake.database, lake.storage.files, now=later)

    assert processes.wait(processes.start(collecting)) == -9
    with loader.connect(tmp_path, catalog=catalog) as lake:
        check_health(lake)
        assert collect(lake.database, lake.storage.files, now=later).deleted_paths == 1
        assert create(lake).to_arrow().num_rows == 0


def test_a_failpoint_can_be_armed_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def child(text: str) -> Callable[[], None]:
        def run() -> None:
            failpoints._arm_from_environment(text)
            failpoints.hit("commit.begun")
            failpoints.hit("commit.begun")

        return run

    assert processes.wait(processes.start(child("commit.begun=kill:2"))) == -9
    assert processes.wait(processes.start(child("commit.begun=kill:3"))) == 0
    with pytest.raises(ValueError, match="no failpoint"):
        failpoints._arm_from_environment("commit.bgun=kill")


def test_two_writers_on_one_lake_lose_no_update(tmp_path: Path, catalog: str | None) -> None:
    turns, keys = 8, list(range(30))
    with loader.connect(tmp_path, catalog=catalog) as lake:
        create(lake).append(rows(0, 20))

    def writer(number: int) -> Callable[[], None]:
        def run() -> None:
            table = loader.connect(tmp_path, catalog=catalog).table("samples")
            for turn in range(turns):
                table.patch(labels(keys, clicks=[10**number] * len(keys)))
                start = 1000 * (number + 1) + turn * 5
                table.append(rows(start, start + 5))

        return run

    def compactor() -> None:
        table = loader.connect(tmp_path, catalog=catalog).table("samples")
        for _ in range(3):
            table.compact(full=True)

    children = [processes.start(writer(0)), processes.start(writer(1)), processes.start(compactor)]
    assert [processes.wait(child) for child in children] == [0, 0, 0]
    with loader.connect(tmp_path, catalog=catalog) as lake:
        table = lake.table("samples")
        table.append(rows(20, 30))  # the labels of these rows were all waiting
        clicks = found(table)
        assert {item: clicks[item] for item in keys} == dict.fromkeys(keys, turns * 11)
        assert len(clicks) == 30 + 2 * turns * 5
        history = table.history()
        assert [entry.id for entry in history] == list(range(1, len(history) + 1))
        assert history[-1].num_rows == len(clicks) == table.view().num_rows


def test_two_writers_of_the_same_new_keys_do_not_both_write_them(tmp_path: Path, catalog: str | None) -> None:
    with loader.connect(tmp_path, catalog=catalog) as lake:
        create(lake)

    def writer() -> None:
        table = loader.connect(tmp_path, catalog=catalog).table("samples")
        for start in range(0, 60, 3):
            try:
                table.append(rows(start, start + 3))
                os.write(log, b"w")
            except loader.errors.KeyExistsError:
                os.write(log, b"r")

    log = os.open(tmp_path / "log", os.O_CREAT | os.O_APPEND | os.O_RDWR)
    children = [processes.start(writer) for _ in range(2)]
    assert [processes.wait(child) for child in children] == [0, 0]
    assert sorted((tmp_path / "log").read_text()) == sorted("wr" * 20), "each key was written by one and refused to the other"
    with loader.connect(tmp_path, catalog=catalog) as lake:
        assert sorted(found(lake.table("samples"))) == list(range(60))


def test_many_lakes_opened_at_once_are_one(tmp_path: Path, catalog: str | None) -> None:
    def opener() -> None:
        loader.connect(tmp_path / "new", catalog=catalog).close()

    children = [processes.start(opener) for _ in range(4)]
    assert [processes.wait(child) for child in children] == [0] * 4
    assert _tables(tmp_path / "new", catalog) == []


def _tables(folder: Path, catalog: str | None) -> list[Any]:
    with loader.connect(folder, catalog=catalog, create=False) as lake:
        return lake.tables()
