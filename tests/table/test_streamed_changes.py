"""Changes by key of inputs larger than the memory they may take: whatever the parts, the table is what one small piece would have made of it."""

from __future__ import annotations

import functools
import os
import resource
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
from loader.errors import ColumnNotFoundError, HeadraceError, SchemaError
from loader.segment.key_index import Keys
from loader.table.key_ranges import KeyRanges
from tests.table import processes

SMALL = 96 * 1024  # parts of 12 KiB
RULES = {"last": pa.string(), "first": pa.int64(), "max": pa.float64(), "min": pa.int32(), "sum": pa.int64(), "count": pa.int32(), "any": pa.bool_()}
ORDERED: dict[str, dict[str, str]] = {"patch": {"order": "at"}, "upsert": {"order": "at"}, "delete": {}}
SCHEMA = pa.schema([("user", pa.int64()), ("item", pa.string()), ("ts", pa.timestamp("s")), *RULES.items()])


def create(lake: Any, name: str) -> Any:
    merge = {rule: rule for rule in RULES if rule != "last"}
    return lake.create_table(name, SCHEMA, primary_key=["user", "item"], bucket_by=["user"], buckets=3, time_column="ts", cluster_by=["ts"], merge=merge)


def keys(chosen: np.ndarray) -> dict[str, Any]:
    return {"user": chosen % 5, "item": [f"item {at}" for at in chosen.tolist()]}


def values(rng: np.random.Generator, count: int) -> dict[str, pa.Array]:
    """Operands, a third of them null, equal orders among them."""
    plain = {
        "last": [f"{at}" for at in rng.integers(0, 1000, count)],
        "first": rng.integers(0, 1000, count),
        "max": rng.normal(size=count),
        "min": rng.integers(0, 1000, count).astype(np.int32),
        "sum": rng.integers(0, 1000, count),
        "count": rng.integers(0, 9, count).astype(np.int32),
        "any": rng.random(count) < 0.3,
    }
    return {name: pa.array(one, RULES[name], mask=rng.random(count) < 0.3) for name, one in plain.items()}


def some_rows(rng: np.random.Generator, chosen: np.ndarray) -> pa.Table:
    return pa.table({**keys(chosen), "ts": pa.array(chosen * 60).cast(pa.timestamp("s")), **values(rng, len(chosen))}, schema=SCHEMA)


def operands(rng: np.random.Generator, chosen: np.ndarray) -> pa.Table:
    return pa.table({**keys(chosen), **values(rng, len(chosen)), "at": rng.integers(0, 6, len(chosen))})


def upserts(rng: np.random.Generator, chosen: np.ndarray) -> pa.Table:
    times = pa.array((chosen + rng.integers(0, 2, len(chosen)) * 1440) * 60).cast(pa.timestamp("s"))  # some move their row
    return operands(rng, chosen).append_column("ts", times)


def state(table: Any) -> pa.Table:
    return table.to_arrow().sort_by([("user", "ascending"), ("item", "ascending")])


def reader(data: pa.Table) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(data.schema, data.to_batches(max_chunksize=97))


@pytest.fixture
def pair(make_lake: Callable[..., Any]) -> tuple[Any, Any]:
    """Two tables alike: one takes inputs in many parts, the other whole."""
    return create(make_lake(memory_bytes=SMALL), "parts"), create(make_lake(), "whole")


@pytest.mark.parametrize("ordered", [False, True])
def test_in_parts_as_in_one_piece(pair: tuple[Any, Any], ordered: bool) -> None:
    rng, told = np.random.default_rng(17 + ordered), list[int]()
    options = {"order": "at"} if ordered else {}
    base = some_rows(rng, rng.permutation(700)[:500])
    for table in pair:
        table.append(base.slice(0, 400))
    works: list[tuple[str, pa.Table, dict[str, Any]]] = [
        ("patch", operands(rng, rng.integers(0, 900, 700)), options),
        ("upsert", upserts(rng, rng.integers(0, 800, 600)), options),
        ("delete", pa.table(keys(rng.integers(100, 2_000, 1500))), {}),
        ("patch", operands(rng, rng.integers(0, 900, 700)), options | {"on_missing": "drop", "columns": ["sum", "last"]}),
        ("upsert", upserts(rng, rng.integers(0, 1200, 600)), options),
    ]
    for name, data, more in works:
        data = data if ordered or name == "delete" else data.drop_columns(["at"])
        in_parts = getattr(pair[0], name)(reader(data), progress=told.append, **more)
        in_one = getattr(pair[1], name)(data, **more)
        assert (in_parts.summary, in_parts.num_rows) == (in_one.summary, in_one.num_rows), name
        assert state(pair[0]).equals(state(pair[1])), name
        assert len(told) > 1 and told == sorted(told) and told[-1] == data.num_rows
        told.clear()
    held = some_rows(rng, np.arange(1200, 1300))
    for table in pair:
        table.append(held)
        table.compact(full=True)
    assert state(pair[0]).equals(state(pair[1]))
    assert [table.describe()["num_pending"] > 0 for table in pair] == [True, True]
    assert len(pair[0].history()) == len(pair[1].history()), "each is one commit"


def test_labels_that_wait_meet_their_rows_and_each_once(pair: tuple[Any, Any]) -> None:
    rng = np.random.default_rng(5)
    labels, rows = operands(rng, rng.integers(0, 300, 2000)), some_rows(rng, np.arange(300))
    for table in pair:
        assert table.patch(labels, order="at").summary["labels_held"] == 2000
    for table, data in zip(pair, (reader(rows), rows), strict=True):
        assert table.upsert(data).summary["rows_inserted"] == 300
        assert table.describe()["num_pending"] == 0
    assert state(pair[0]).equals(state(pair[1]))


@pytest.mark.parametrize("form", ["table", "reader", "parquet", "tuples"])
def test_any_form_of_keys_is_deleted(pair: tuple[Any, Any], tmp_path: Path, form: str) -> None:
    data, gone = some_rows(np.random.default_rng(1), np.arange(600)), np.arange(50, 650)
    table, chosen = pair[0], pa.table(keys(gone))
    table.append(data)
    pq.write_table(chosen, tmp_path / "keys.parquet")
    forms = {"table": chosen, "reader": reader(chosen), "parquet": tmp_path / "keys.parquet", "tuples": list(zip(*chosen.to_pydict().values(), strict=True))}
    assert table.delete(forms[form]).summary == {"rows_deleted": 550, "keys_missing": 50}
    assert state(table).equals(state_of(data.slice(0, 50)))


def state_of(data: pa.Table) -> pa.Table:
    return data.sort_by([("user", "ascending"), ("item", "ascending")])


@pytest.mark.parametrize(
    ("name", "change", "options"),
    [
        ("patch", lambda data: data.drop_columns(["user"]), {}),
        ("patch", lambda data: data, {"columns": ["absent"]}),
        ("patch", lambda data: data, {"order": "absent"}),
        ("patch", lambda data: data, {"order": "max"}),
        ("patch", lambda data: data, {"on_missing": "keep"}),
        ("upsert", lambda data: data.drop_columns(["ts"]), {}),
        ("upsert", lambda data: data.rename_columns(["absent" if one == "sum" else one for one in data.column_names]), {}),
        ("delete", lambda data: data.drop_columns(["item"]), {}),
        ("delete", lambda data: data.set_column(0, "user", pa.nulls(data.num_rows, pa.int64())), {}),
    ],
)
def test_what_is_refused_whole_is_refused_in_parts(pair: tuple[Any, Any], name: str, change: Callable[[pa.Table], pa.Table], options: dict[str, Any]) -> None:
    data = change(upserts(np.random.default_rng(1), np.arange(400)).drop_columns(["at"] if name == "upsert" else ["at", "ts"]))
    raised = []
    for table in pair:
        with pytest.raises((HeadraceError, ValueError)) as caught:
            getattr(table, name)(data, **options)
        raised.append(type(caught.value))
        assert table.history() == []
    assert raised[0] is raised[1]
    assert raised[0] in (SchemaError, ColumnNotFoundError, ValueError)


def test_others_write_in_between(pair: tuple[Any, Any], make_lake: Callable[..., Any]) -> None:
    """Rows come, go, move and are compacted while ranges are resolved: the outcome is that of a change after all of them."""
    rng, (table, whole) = np.random.default_rng(3), pair
    other = make_lake().table("parts")
    first, more = some_rows(rng, np.arange(400)), some_rows(rng, np.arange(400, 500))
    data, few = upserts(rng, rng.integers(0, 600, 1200)), upserts(rng, np.arange(7, 19))
    steps: list[Callable[[Any], Any]] = [
        lambda one: one.append(more),
        lambda one: one.delete(pa.table(keys(np.arange(30, 60)))),
        lambda one: one.compact(full=True),
        lambda one: one.upsert(few, order="at"),
    ]
    left, passed = list(steps), [0]

    def interfere() -> None:
        passed[0] += 1
        if left and passed[0] % 7 == 5:
            left.pop(0)(other)

    table.append(first)
    with failpoints.armed("streamed.resolved", interfere):
        table.upsert(reader(data), order="at")
    assert not left
    whole.append(first)
    for step in steps:
        step(whole)
    whole.upsert(data, order="at")
    assert state(table).equals(state(whole))


def test_others_of_the_process_write_in_between(pair: tuple[Any, Any]) -> None:
    rng, table, left = np.random.default_rng(3), pair[0], [some_rows(np.random.default_rng(9), np.arange(at, at + 3)) for at in range(5000, 5040, 4)]
    with failpoints.armed("streamed.resolved", lambda: left and table.append(left.pop())):
        table.patch(reader(operands(rng, rng.integers(0, 600, 1200))), order="at")
    assert table.describe()["num_rows"] == 30


@pytest.mark.parametrize("name", ["patch", "upsert", "delete"])
def test_the_same_commit_again_is_the_first_one(pair: tuple[Any, Any], name: str) -> None:
    table, data = pair[0], upserts(np.random.default_rng(1), np.arange(500))
    table.append(some_rows(np.random.default_rng(2), np.arange(500)))
    data, change = data if name == "upsert" else data.drop_columns(["ts"]), functools.partial(getattr(table, name), **ORDERED[name])
    first = change(reader(data), commit_id="load")
    assert change(reader(data), commit_id="load") == first
    assert len(table.history()) == 2
    offsets = loader.SourceOffsets(pipeline="p", source="s", epoch=1, ranges={"0": (0, 500)})
    second = change(reader(data), offsets=offsets)
    assert change(reader(data), offsets=offsets) == second
    assert table.offsets("p", "s") == {"0": 500}


@pytest.mark.parametrize("name", ["patch", "upsert", "delete"])
@pytest.mark.parametrize(("failpoint", "times"), [("streamed.spilled", 3), ("streamed.resolved", 1), ("commit.written", 1), ("commit.committed", 1)])
def test_killed_anywhere_it_is_there_whole_or_not_at_all(tmp_path: Path, catalog: str | None, name: str, failpoint: str, times: int) -> None:
    rng = np.random.default_rng(4)
    rows, data = some_rows(rng, np.arange(300)), upserts(rng, rng.integers(0, 400, 600))
    data = data if name == "upsert" else data.drop_columns(["ts"])
    with loader.connect(tmp_path / "lake", catalog=catalog) as lake:
        for each in ("parts", "whole"):
            create(lake, each).append(rows)
        getattr(lake.table("whole"), name)(data, **ORDERED[name])

    def work() -> None:
        left = [times]

        def count_down() -> None:
            left[0] -= 1
            if left[0] == 0:
                processes.kill_self()

        table = loader.connect(tmp_path / "lake", catalog=catalog, memory_bytes=SMALL).table("parts")
        with failpoints.armed(failpoint, count_down):
            getattr(table, name)(reader(data), commit_id="load", **ORDERED[name])

    assert processes.wait(processes.start(work)) == -9
    with loader.connect(tmp_path / "lake", catalog=catalog, memory_bytes=SMALL) as lake:
        table = lake.table("parts")
        assert len(table.history()) == 1 + (failpoint == "commit.committed")
        assert state(table).equals(state(lake.table("whole"))) == (failpoint == "commit.committed")
        getattr(table, name)(reader(data), commit_id="load", **ORDERED[name])
        collect(lake.database, lake.storage.files, now=now_micros() + 2 * STAGED_LEASE_SECONDS * 1_000_000)
        assert state(table).equals(state(lake.table("whole")))
        assert [problem for problem in lake.doctor().findings if problem.severity == "error"] == []


@pytest.mark.parametrize("name", ["patch", "upsert", "delete"])
def test_memory_does_not_grow_with_the_input(tmp_path: Path, name: str) -> None:
    """Four times the input: the peak of the process stays where it was."""

    def batches(num_parts: int) -> Iterator[pa.RecordBatch]:
        for part in range(num_parts):
            rng = np.random.default_rng(part)
            chosen = rng.integers(0, 20_000, 50_000) if name != "upsert" else np.arange(part * 50_000, (part + 1) * 50_000)
            yield pa.record_batch({"id": chosen, **{f"c{at}": rng.integers(0, 1 << 40, 50_000) for at in range(7)}})

    def peak(num_parts: int) -> int:
        read_end, write_end = os.pipe()

        def work() -> None:
            lake = loader.connect(tmp_path / f"{name}{num_parts}", memory_bytes=24 << 20)
            schema = next(batches(1)).schema
            table = lake.create_table("t", schema, primary_key=["id"], buckets=2)
            if name != "upsert":
                table.append(pa.table({"id": np.arange(20_000), **{f"c{at}": np.zeros(20_000, np.int64) for at in range(7)}}))
            getattr(table, name)(pa.RecordBatchReader.from_batches(schema, batches(num_parts)))
            os.write(write_end, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024).encode())

        assert processes.wait(processes.start(work)) == 0
        return int(os.read(read_end, 100))

    few, many = peak(6), peak(24)  # 19 and 77 MB
    assert many - few < 25 << 20, f"the peak rose from {few / 1e6:.0f} to {many / 1e6:.0f} MB with 58 MB more of input"


@pytest.mark.parametrize("wide", [False, True])
def test_ranges_hold_every_row_once_and_each_key_together_in_its_order(wide: bool) -> None:
    rng = np.random.default_rng(11)
    for num_rows in (1, 50, 9000):
        chosen = rng.integers(0, max(num_rows // 3, 1), num_rows).astype(np.uint64)
        words = Keys(chosen % np.uint64(2), chosen) if wide else Keys(chosen, None)  # hardly a difference in the low word
        table = pa.table({"key": chosen, "place": np.arange(num_rows)})
        ranges = KeyRanges(memory_bytes=64 * 1024)
        for start in range(0, num_rows, 700):
            ranges.add(words.slice(start, start + 700), table.slice(start, 700))
        read = [ranges.read(number) for number in range(len(ranges))]
        ranges.close()
        assert sum(one.num_rows for one in read) == num_rows and max(one.nbytes for one in read) <= 3 * 8 * 1024
        assert len(pa.concat_tables(read)["place"].unique()) == num_rows
        seen = [set(one["key"].to_pylist()) for one in read]
        assert sum(map(len, seen)) == len(set(chosen.tolist())), "no key is in two ranges"
        for one in read:
            for places in one.group_by("key", use_threads=False).aggregate([("place", "list")])["place_list"].to_pylist():
                assert places == sorted(places)
