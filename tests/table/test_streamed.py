"""Appends of inputs larger than the memory they may take: one commit, whatever the parts, checked and resolved as small ones are."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import loader
from loader import failpoints
from loader.catalog.commit import STAGED_LEASE_SECONDS, now_micros
from loader.catalog.garbage import collect
from loader.errors import CatalogBusyError, KeyExistsError, SchemaError
from loader.segment.key_index import Keys
from loader.table.parts import parts_of
from loader.table.spill import KeySpill
from loader.table.streamed import StreamedAppend
from tests.table import processes
from tests.table.samples import SCHEMA, create, labels, rows

SMALL = 64 * 1024  # parts of about 8 KiB


@pytest.fixture
def small(make_lake: Callable[..., Any]) -> Any:
    return make_lake(memory_bytes=SMALL)


def reader(*tables: pa.Table) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(SCHEMA, (batch for table in tables for batch in table.to_batches()))


def files(lake: Any) -> list[Path]:
    return [path for path in Path(lake.location).glob("data/**/*") if path.is_file()]


def kept_rows(table: Any) -> pa.Table:
    return table.to_arrow().sort_by("item")


@pytest.mark.parametrize("form", ["table", "reader", "parquet"])
def test_a_large_input_of_any_form_is_one_snapshot(small: Any, tmp_path: Path, form: str) -> None:
    data, told = rows(0, 1000), list[int]()
    pq.write_table(data, tmp_path / "data.parquet")
    table = create(small)
    snapshot = table.append({"table": data, "reader": reader(data), "parquet": tmp_path / "data.parquet"}[form], progress=told.append)
    assert (snapshot.id, snapshot.num_rows, snapshot.summary["rows_appended"]) == (1, 1000, 1000)
    assert kept_rows(table).equals(data.cast(SCHEMA))
    assert len(told) > 3 and told[-1] == 1000 and told == sorted(told)
    table.patch(labels([5, 995], clicks=[1, 2]))
    assert table.lookup(labels([995]), ["clicks"])["clicks"].to_pylist() == [2]
    with pytest.raises(KeyExistsError):
        table.append(rows(999, 1001))


def test_a_key_in_two_parts_is_named_and_nothing_stays(small: Any) -> None:
    table = create(small)
    with pytest.raises(KeyExistsError, match=r"key \(user 3, item 17\) stands twice in the data, in its parts 1 and \d+ of"):
        table.append(reader(rows(0, 500), rows(17, 18), rows(500, 600)))
    assert table.history() == []
    collect(small.database, small.storage.files, now=now_micros() + 2 * STAGED_LEASE_SECONDS * 1_000_000)
    assert files(small) == []


def test_a_key_that_exists_is_named_whichever_part_it_is_in(small: Any) -> None:
    table = create(small)
    table.append(rows(900, 901))
    with pytest.raises(KeyExistsError, match=r"1 of the keys in part \d+ of \d+ are in table 'samples' already, the first is \(user 4, item 900\)"):
        table.append(reader(rows(0, 1000)))
    assert table.append(reader(rows(0, 1000)), on_conflict="trust").num_rows == 1001, "whoever says trust is trusted"


def test_a_part_that_does_not_fit_refuses_the_whole(small: Any) -> None:
    table = create(small)
    late = pa.table({name: rows(0, 1000)[name] for name in SCHEMA.names if name != "ts"}).append_column("ts", pa.array([None] * 1000, pa.timestamp("s")))
    with pytest.raises(SchemaError, match="ts"):
        table.append(pa.concat_tables([rows(1000, 2000), late.select(SCHEMA.names)]))
    assert table.history() == []


def test_labels_that_wait_meet_rows_of_all_parts(small: Any) -> None:
    table = create(small)
    table.patch(labels([2, 450, 999, 5000], clicks=[1, 10, 100, 7]))
    table.patch(labels([999, 3], clicks=[1000, 5]))
    assert table.append(reader(rows(0, 1000))).summary["labels_met"] == 5
    clicks = dict(zip(*(table.to_arrow(["item", "clicks"])[name].to_pylist() for name in ("item", "clicks")), strict=True))
    assert {item: value for item, value in clicks.items() if value} == {2: 1, 3: 5, 450: 10, 999: 1100}
    assert table.describe()["num_pending"] == 1


def test_others_write_in_between(small: Any, make_lake: Callable[..., Any]) -> None:
    table, other, left = create(small), make_lake().table("samples"), [(2000, 2001), (2001, 2002), (700, 701)]

    def interfere() -> None:
        if left:
            start, stop = left.pop(0)
            failpoints._armed.pop("append.resolved")
            other.append(rows(start, stop))
            failpoints._armed["append.resolved"] = interfere

    with failpoints.armed("append.resolved", interfere), pytest.raises(KeyExistsError, match="item 700"):
        table.append(reader(rows(0, 1000)))
    assert sorted(table.to_arrow(["item"])["item"].to_pylist()) == [700, 2000, 2001]


def test_beside_small_appends_of_its_own_process_it_comes_to_its_turn(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the queue of writers once others came between too often, and needs the handle's lock, which another thread has that waits for the queue."""
    monkeypatch.setattr("loader.table.context.OPTIMISTIC_TRIES", 0)
    table, is_in_queue, has_lock, resolve = create(small), threading.Event(), threading.Event(), StreamedAppend._resolved

    def resolved(self: StreamedAppend) -> Any:
        is_in_queue.set()
        has_lock.wait(1)
        return resolve(self)

    def prepared() -> None:
        if threading.current_thread().name == "small":
            has_lock.set()
            is_in_queue.wait(1)

    monkeypatch.setattr(StreamedAppend, "_resolved", resolved)
    threads = [
        threading.Thread(target=lambda: table.append(reader(rows(0, 1000))), daemon=True),
        threading.Thread(target=lambda: table.append(rows(2000, 2001)), daemon=True, name="small"),
    ]
    with failpoints.armed("append.prepared", prepared):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert table.view().num_rows == 1001


@pytest.mark.parametrize("afterwards", ["loader.table.files.Stage.close", "loader.table.sealer.Sealer.run"])
def test_once_it_is_committed_nothing_makes_it_fail(small: Any, monkeypatch: pytest.MonkeyPatch, afterwards: str) -> None:
    def busy(*_: Any) -> None:
        raise CatalogBusyError("another process is writing")

    monkeypatch.setattr("loader.table.sealer.EVERY_SEGMENTS", 1)
    monkeypatch.setattr(afterwards, busy)
    assert create(small).append(reader(rows(0, 1000)), on_conflict="trust").num_rows == 1000


def test_the_same_commit_again_is_the_first_one(small: Any) -> None:
    table = create(small)
    first = table.append(reader(rows(0, 1000)), commit_id="load")
    assert table.append(reader(rows(0, 1000)), commit_id="load") == first
    assert len(table.history()) == 1


@pytest.mark.parametrize(("failpoint", "times"), [("append.prepared", 3), ("append.staged", 1), ("commit.written", 1), ("commit.committed", 1)])
def test_killed_anywhere_it_is_there_whole_or_not_at_all(tmp_path: Path, catalog: str | None, failpoint: str, times: int) -> None:
    with loader.connect(tmp_path, catalog=catalog) as lake:
        create(lake)

    def work() -> None:
        left = [times]

        def count_down() -> None:
            left[0] -= 1
            if left[0] == 0:
                processes.kill_self()

        table = loader.connect(tmp_path, catalog=catalog, memory_bytes=SMALL).table("samples")
        with failpoints.armed(failpoint, count_down):
            table.append(reader(rows(0, 600)), commit_id="load")

    assert processes.wait(processes.start(work)) == -9
    with loader.connect(tmp_path, catalog=catalog, memory_bytes=SMALL) as lake:
        table = lake.table("samples")
        assert len(table.history()) == (failpoint == "commit.committed")
        assert table.append(reader(rows(0, 600)), commit_id="load").num_rows == 600
        assert kept_rows(table).equals(rows(0, 600))
        collect(lake.database, lake.storage.files, now=now_micros() + 2 * STAGED_LEASE_SECONDS * 1_000_000)
        assert kept_rows(table).equals(rows(0, 600))
        assert {str(path.relative_to(lake.location)) for path in files(lake)} == {ref.path for ref in table.view().segments if ref.path.startswith("data/")}


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    """Four times the input, of which every part passes through: the peak of the process stays where it was."""

    def batches(num_parts: int) -> Iterator[pa.RecordBatch]:
        for part in range(num_parts):
            rng, keys = np.random.default_rng(part), np.arange(part * 50_000, (part + 1) * 50_000)
            yield pa.record_batch({"id": keys, **{f"c{at}": rng.integers(0, 1 << 40, 50_000) for at in range(7)}})

    def peak(num_parts: int) -> int:
        read_end, write_end = os.pipe()

        def work() -> None:
            lake = loader.connect(tmp_path / str(num_parts), memory_bytes=24 << 20)
            schema = next(batches(1)).schema
            table = lake.create_table("t", schema, primary_key=["id"], buckets=2)
            table.append(pa.RecordBatchReader.from_batches(schema, batches(num_parts)))
            os.write(write_end, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024).encode())

        assert processes.wait(processes.start(work)) == 0
        return int(os.read(read_end, 100))

    few, many = peak(6), peak(24)  # 19 and 77 MB
    assert many - few < 20 << 20, f"the peak rose from {few / 1e6:.0f} to {many / 1e6:.0f} MB with 58 MB more of input"


@pytest.mark.parametrize("wide", [False, True])
def test_spilled_keys_find_what_stands_in_two_parts(wide: bool) -> None:
    rng = np.random.default_rng(17)
    for _ in range(20):
        num_parts = int(rng.integers(1, 7))
        every = rng.permutation(40_000).astype(np.uint64)[: int(rng.integers(0, 9_000))]
        parts = np.split(every, np.sort(rng.integers(0, len(every) + 1, num_parts - 1)))
        planted = bool(rng.integers(2)) and num_parts > 1 and len(parts[0]) > 0
        if planted:
            parts[-1] = np.append(parts[-1], rng.choice(parts[0]))
        if rng.integers(2):
            parts = [np.sort(part) for part in parts]
        keys = [Keys(part // np.uint64(7), part % np.uint64(7)) if wide else Keys(part, None) for part in parts]
        spill = KeySpill(memory_bytes=64 * 1024)
        for part in keys:
            spill.add(part)
        found = spill.first_twice()
        assert (found is not None) == planted
        if found is not None:
            (first, second) = (spill.read(part)[0].take(np.array([place])) for part, place in found)
            assert found[0][0] != found[1][0]
            assert first.low == second.low and (not wide or first.high == second.high)
        spill.close()


def test_parts_are_small_and_whole() -> None:
    data = rows(0, 1000)
    for form in (data, data.to_batches()[0], reader(data), reader(*(rows(at, at + 10) for at in range(0, 1000, 10)))):
        parts = list(parts_of(form, SMALL))
        assert pa.concat_tables(parts).equals(data)
        assert len(parts) > 3 and max(part.nbytes for part in parts) <= SMALL // 4
    assert [part.num_rows for part in parts_of(rows(0, 0), SMALL)] == [0]
