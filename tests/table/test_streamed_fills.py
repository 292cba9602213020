"""Overwrites and backfills from inputs larger than the memory they may take: whatever the parts, the table is what one piece would have made of it."""

from __future__ import annotations

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
from loader.errors import ColumnNotFoundError, ConflictError, KeyExistsError, SchemaError
from tests.table import processes
from tests.table.samples import create, labels, rows

SMALL = 64 * 1024  # parts of about 8 KiB


@pytest.fixture
def pair(make_lake: Callable[..., Any]) -> tuple[Any, Any]:
    """Two tables alike: one takes inputs in many parts, the other whole."""
    return create(make_lake(memory_bytes=SMALL), "parts"), create(make_lake(), "whole")


@pytest.fixture
def small(make_lake: Callable[..., Any]) -> Any:
    return make_lake(memory_bytes=SMALL)


def reader(data: pa.Table) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(data.schema, data.to_batches(max_chunksize=97))


def state(table: Any) -> pa.Table:
    return table.to_arrow().sort_by("item")


def fills(rng: np.random.Generator, items: np.ndarray) -> pa.Table:
    """Values of an old column and of two new ones, a third of them null, by key."""
    count = len(items)
    columns = {
        "clicks": pa.array(rng.integers(0, 9, count), mask=rng.random(count) < 0.3),
        "price": pa.array(rng.normal(size=count), mask=rng.random(count) < 0.3),
        "tags": pa.array([["x"] * int(size) if size < 3 else None for size in rng.integers(0, 4, count)], pa.list_(pa.string())),
    }
    return pa.table({"user": items % 7, "item": items, **columns})


def shake(rng: np.random.Generator, table: Any) -> None:
    """What a table may have been through: deletions, patches, segments of several compactions."""
    for start in range(0, 600, 200):
        table.append(rows(start, start + 200))
    table.delete(f"item >= {int(rng.integers(0, 200))} and item < {int(rng.integers(300, 400))}")
    if rng.integers(2):
        table.compact(full=True)
    table.patch(labels(rng.integers(0, 600, 50).tolist(), clicks=[1] * 50))
    table.append(rows(600, 700))


@pytest.mark.parametrize("seed", range(2))
def test_a_backfill_by_key_in_parts_is_one_in_a_piece(pair: tuple[Any, Any], seed: int) -> None:
    summaries = []
    for table in pair:
        rng = np.random.default_rng(seed)
        shake(rng, table)
        done = [table.backfill(reader(fills(rng, rng.permutation(800)[:750])))]
        table.append(rows(800, 850))
        done.append(table.backfill(fills(rng, rng.permutation(900))))  # now all of its columns are there
        summaries.append([(one.summary, one.num_rows) for one in done])
    assert state(pair[0]).equals(state(pair[1])) and summaries[0] == summaries[1]
    assert pair[0].lake.doctor(deep=True).findings == ()
    for table in pair:
        table.compact(full=True)
    assert state(pair[0]).equals(state(pair[1]))


@pytest.mark.parametrize("seed", range(2))
def test_a_backfill_by_place_in_parts_is_one_in_a_piece(pair: tuple[Any, Any], seed: int) -> None:
    told: list[int] = []
    for table in pair:
        rng = np.random.default_rng(seed)
        shake(rng, table)
        for column in ("clicks", "price"):
            here = table.to_arrow(["item"])
            values = pa.table({column: pa.compute.multiply(here["item"], 2), f"note of {column}": [f"{item:080}" for item in here["item"].to_pylist()]})
            snapshot = table.backfill(reader(values), snapshot=table.history()[-1].id, progress=told.append)
            assert snapshot.summary["rows_filled"] == len(here) == snapshot.num_rows
    assert state(pair[0]).equals(state(pair[1]))
    read = state(pair[0])
    assert read["price"].to_pylist() == [2 * item for item in read["item"].to_pylist()]
    assert read["note of price"].to_pylist() == [f"{item:080}" for item in read["item"].to_pylist()]
    assert len(told) > 3, "it came in parts"
    assert pair[0].lake.doctor(deep=True).findings == ()


def test_rows_by_place_must_be_as_many_and_of_the_newest_snapshot(small: Any) -> None:
    table = create(small)
    table.append(rows(0, 1000))
    for count in (999, 1001, 3000):
        with pytest.raises(SchemaError, match=f"{count:,} rows without a key for snapshot 1 of 1,000"):
            table.backfill(pa.table({"price": np.arange(4 * count) / 1.0}).slice(0, count).append_column("wide", pa.array(["x" * 40] * count)), snapshot=1)
    table.append(rows(1000, 1001))
    with pytest.raises(ConflictError, match="snapshot 1 of table 'samples', and it stands at 2"):
        table.backfill(pa.table({"price": [1.0] * 1000, "wide": ["x" * 40] * 1000}), snapshot=1)
    assert len(table.history()) == 2


def test_a_key_that_stands_in_two_parts_is_named(small: Any) -> None:
    table = create(small)
    table.append(rows(0, 1000))
    rng = np.random.default_rng(3)
    with pytest.raises(KeyExistsError, match=r"key \(user 3, item 17\) stands twice"):
        table.backfill(reader(fills(rng, np.append(np.arange(1000), 17))))
    assert len(table.history()) == 1


@pytest.mark.parametrize("meanwhile", ["compact", "delete", "append", "patch"])
def test_a_backfill_that_others_write_beside_finds_the_rows_where_they_are(pair: tuple[Any, Any], meanwhile: str) -> None:
    first, second = pair
    done: list[bool] = []

    def write(table: Any) -> None:
        if meanwhile == "compact":
            table.compact(full=True)
        elif meanwhile == "delete":
            table.delete("item < 100")
        elif meanwhile == "append":
            table.append(rows(1000, 1010))
        else:
            table.patch(labels([4], clicks=[7]))

    def interfere() -> None:
        if not done:
            done.append(True)
            write(first)

    data = fills(np.random.default_rng(4), np.arange(0, 1010))
    for table in pair:
        for start in range(0, 1000, 250):
            table.append(rows(start, start + 250))
    with failpoints.armed("backfill.staged", interfere):
        first.backfill(reader(data))
    write(second)
    second.backfill(data)
    assert done and state(first).equals(state(second))
    assert first.lake.doctor(deep=True).findings == ()


@pytest.mark.parametrize("seed", range(2))
def test_an_overwrite_in_parts_is_one_in_a_piece(pair: tuple[Any, Any], tmp_path: Path, seed: int) -> None:
    summaries = []
    for table in pair:
        rng = np.random.default_rng(seed)
        shake(rng, table)
        table.patch(labels([900, 1100], clicks=[3, 4]))  # wait for their rows
        low, high = sorted(rng.integers(0, 700, 2).tolist())
        data = pa.concat_tables([rows(low, high), rows(850, 1200)])
        pq.write_table(data, tmp_path / "data.parquet")
        done = table.overwrite(tmp_path / "data.parquet" if seed else reader(data), f"item >= {low} and item < {high}", watermark=100)
        summaries.append((done.kind, done.summary, done.num_rows, done.watermark))
    assert state(pair[0]).equals(state(pair[1])) and summaries[0] == summaries[1]
    assert summaries[0][1]["labels_met"] == 2
    assert pair[0].lake.doctor(deep=True).findings == ()


def test_an_overwrite_names_what_stays_and_writes_nothing(small: Any) -> None:
    table = create(small)
    table.append(rows(0, 1000))
    with pytest.raises(KeyExistsError, match=r"in table 'samples' already, the first is \(user 2, item 800\)"):
        table.overwrite(rows(0, 801), "item < 800")
    with pytest.raises(ColumnNotFoundError, match="nope"):
        table.overwrite(rows(2000, 3000), "nope < 800")
    assert len(table.history()) == 1
    told: list[int] = []
    assert table.overwrite(rows(0, 801), "item <= 800", commit_id="o", progress=told.append).num_rows == 1000 and told[-1] == 801
    assert table.overwrite(rows(0, 801), "item <= 800", commit_id="o").id == 2 and len(table.history()) == 2


@pytest.mark.parametrize("failpoint", ["backfill.resolved", "backfill.staged", "overwrite.resolved", "overwrite.staged", "commit.written", "commit.committed"])
def test_killed_anywhere_it_is_there_whole_or_not_at_all(tmp_path: Path, catalog: str | None, failpoint: str) -> None:
    is_overwrite = failpoint.startswith("overwrite")
    data = rows(0, 600) if is_overwrite else fills(np.random.default_rng(5), np.arange(600))
    with loader.connect(tmp_path, catalog=catalog) as lake:
        create(lake).append(rows(0, 600))

    def write(table: Any) -> Any:
        return table.overwrite(data, "item < 600", commit_id="load") if is_overwrite else table.backfill(data, commit_id="load")

    def work() -> None:
        table = loader.connect(tmp_path, catalog=catalog, memory_bytes=SMALL).table("samples")
        with failpoints.armed(failpoint, processes.kill_self):
            write(table)

    assert processes.wait(processes.start(work)) == -9
    with loader.connect(tmp_path, catalog=catalog, memory_bytes=SMALL) as lake:
        table = lake.table("samples")
        assert len(table.history()) == 1 + (failpoint == "commit.committed")
        assert write(table).num_rows == 600
        collect(lake.database, lake.storage.files, now=now_micros() + 2 * STAGED_LEASE_SECONDS * 1_000_000)
        if is_overwrite:
            assert state(table).equals(rows(0, 600))
        else:
            assert state(table)["price"].to_pylist() == data["price"].to_pylist()
        assert [one for one in lake.doctor(deep=True).findings if one.level != "notice"] == []


@pytest.mark.parametrize("name", ["overwrite", "by key", "by place"])
def test_memory_does_not_grow_with_the_input(tmp_path: Path, name: str) -> None:
    """Four times the input, of which every part passes through: the peak of the process stays where it was."""
    part_rows = 50_000

    def batches(num_parts: int) -> Iterator[pa.RecordBatch]:
        for part in range(num_parts):
            rng, keys = np.random.default_rng(part), np.arange(part * part_rows, (part + 1) * part_rows)
            own = {} if name == "by place" else {"id": keys}
            yield pa.record_batch({**own, **{f"c{at}": rng.integers(0, 1 << 40, part_rows) for at in range(7)}})

    def peak(num_parts: int) -> int:
        read_end, write_end = os.pipe()

        def work() -> None:
            lake = loader.connect(tmp_path / f"{name}{num_parts}", memory_bytes=24 << 20)
            schema = next(batches(1)).schema
            columns = schema if name == "overwrite" else pa.schema([("id", pa.int64()), ("flag", pa.int64())])
            table = lake.create_table("t", columns, primary_key=["id"], buckets=2)
            for part in range({"overwrite": 1, "by key": 16, "by place": num_parts}[name]):  # keys of the table are held, whatever the input
                keys = np.arange(part * part_rows, (part + 1) * part_rows)
                table.append(pa.table({field.name: keys for field in columns}))
            data = pa.RecordBatchReader.from_batches(schema, batches(num_parts))
            if name == "overwrite":
                table.overwrite(data, "id < 25000 or id >= 25000")
            else:
                table.backfill(data, snapshot=num_parts if name == "by place" else None)
            os.write(write_end, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024).encode())

        assert processes.wait(processes.start(work)) == 0
        return int(os.read(read_end, 100))

    few, many = peak(4), peak(16)  # 13 and 51 MB
    assert many - few < 22 << 20, f"the peak rose from {few / 1e6:.0f} to {many / 1e6:.0f} MB with 38 MB more of input"
