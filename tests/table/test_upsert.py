"""Upsert and delete as a caller sees them, and what other writers may do between resolving and committing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import loader
from loader import failpoints
from loader.catalog.commit import SchemaChangedError
from loader.errors import ColumnNotFoundError, KeyExistsError, SchemaError
from loader.lake import Lake
from loader.table.table import Table
from tests.table import processes
from tests.table.samples import create, labels, rows


def clicks(table: Table) -> dict[int, int | None]:
    read = table.to_arrow(["item", "clicks"])
    assert len(set(read["item"].to_pylist())) == read.num_rows, "a row stands twice"
    assert table.view().num_rows == read.num_rows == table.history()[-1].num_rows
    return dict(zip(read["item"].to_pylist(), read["clicks"].to_pylist(), strict=True))


def events(start: int, stop: int, by: int) -> pa.Table:
    new = rows(start, stop).select(["user", "item", "ts"])
    return new.append_column("clicks", pa.array([by] * new.num_rows))


def once(action: Callable[[], object]) -> Callable[[], None]:
    left = [action]

    def run() -> None:
        if left:
            left.pop()()

    return run


def test_an_upsert_inserts_and_changes_and_takes_a_key_several_times(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    twice = pa.concat_tables([events(5, 15, 1), events(12, 15, 10)])
    snapshot = table.upsert(twice)
    assert snapshot.summary == {"rows_inserted": 5, "rows_patched": 5, "rows_moved": 0}
    assert clicks(table) == dict.fromkeys(range(5), 0) | dict.fromkeys(range(5, 12), 1) | dict.fromkeys(range(12, 15), 11)
    table.compact(full=True)
    assert clicks(table)[14] == 11


def test_a_row_whose_place_changes_keeps_what_it_held(lake: Lake) -> None:
    table = create(lake, partition_by="hour")
    table.append(rows(0, 10))
    table.patch(labels([3], clicks=[5], label=[1], at=[50]), order="at")
    before = table.to_arrow(where="item = 3").to_pylist()[0]
    later = pa.compute.add(rows(3, 4)["ts"], pa.scalar(86400, pa.duration("s")))
    moved = events(3, 4, 2).set_column(2, "ts", later)
    assert table.upsert(moved).summary["rows_moved"] == 1
    after = table.to_arrow(where="item = 3").to_pylist()[0]
    assert after == before | {"ts": later[0].as_py(), "clicks": 7}
    table.patch(labels([3], label=[0], at=[49]), order="at")
    assert table.to_arrow(where="item = 3")["label"].to_pylist() == [1], "the moved value kept its order"
    assert clicks(table)[3] == 7


def test_an_order_decides_whatever_arrives_first(lake: Lake) -> None:
    table = create(lake)
    new = rows(0, 1).select(["user", "item", "ts"]).append_column("label", pa.array([1], pa.int8())).append_column("at", pa.array([10]))
    table.upsert(new, order="at")
    older = new.set_column(3, "label", pa.array([0], pa.int8())).set_column(4, "at", pa.array([9]))
    table.upsert(older, order="at")
    assert table.to_arrow()["label"].to_pylist() == [1]
    table.compact(full=True)
    table.upsert(older, order="at")
    assert table.to_arrow()["label"].to_pylist() == [1]


def test_labels_that_waited_meet_an_inserted_row(lake: Lake) -> None:
    table = create(lake)
    table.patch(labels([7], clicks=[5]))
    table.upsert(events(5, 9, 1))
    assert clicks(table) == {5: 1, 6: 1, 7: 6, 8: 1}


@pytest.mark.parametrize("place", ["upsert.resolved", "upsert.staged"])
def test_what_others_write_meanwhile_counts_too(lake: Lake, make_lake: Callable[..., Lake], place: str) -> None:
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 20))
    later = pa.compute.add(rows(0, 30)["ts"], pa.scalar(3600, pa.duration("s")))
    shifted = events(0, 30, 1).set_column(2, "ts", later)  # moves 20 rows, inserts 10

    def meanwhile() -> None:
        other.patch(labels([1], clicks=[100]))
        other.upsert(events(25, 28, 1000))
        other.delete("item = 5")
        other.compact(full=True)

    with failpoints.armed(place, once(meanwhile)):
        table.upsert(shifted)
    wanted = dict.fromkeys(range(30), 1) | {1: 101} | dict.fromkeys(range(25, 28), 1001)
    assert clicks(table) == wanted


def test_rows_that_a_compaction_took_before_they_were_read_are_moved_all_the_same(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 10))
    table.append(rows(10, 20))
    later = pa.compute.add(rows(3, 13)["ts"], pa.scalar(86400, pa.duration("s")))
    with failpoints.armed("upsert.resolved", once(lambda: other.compact(full=True))):
        assert table.upsert(events(3, 13, 2).set_column(2, "ts", later)).summary == {"rows_inserted": 0, "rows_patched": 0, "rows_moved": 10}
    assert clicks(table) == dict.fromkeys(range(20), 0) | dict.fromkeys(range(3, 13), 2)


def test_a_delete_by_expression_sees_values_that_came_without_a_patch(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 10))
    table.add_column(pa.field("score", pa.int64()))
    with failpoints.armed("delete.resolved", once(lambda: make_lake().table("samples").backfill(labels([1, 2], score=[9, 9])))):
        assert table.delete("score > 5").summary == {"rows_deleted": 2}
    with failpoints.armed("delete.resolved", once(lambda: make_lake().table("samples").append(rows(100, 101), watermark=86400))):
        assert table.delete("label = 0").summary == {"rows_deleted": 9}, "labels whose window was closed meanwhile"
    assert other.to_arrow().num_rows == 0


@pytest.mark.parametrize("place", ["delete.resolved", "delete.staged"])
def test_a_delete_by_expression_sees_the_very_snapshot_before_it(lake: Lake, make_lake: Callable[..., Lake], place: str) -> None:
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 10))
    other.patch(labels([1, 2], clicks=[5, 5]))

    def meanwhile() -> None:
        other.patch(labels([1, 3], clicks=[-5, 5]))
        other.upsert(events(20, 22, 9))

    with failpoints.armed(place, once(meanwhile)):
        snapshot = table.delete("clicks >= 5")
    assert snapshot.summary == {"rows_deleted": 4}
    assert sorted(clicks(table)) == [0, 1, 4, 5, 6, 7, 8, 9]


def test_deleted_keys_are_free_and_their_history_is_not(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    table.patch(labels([4], clicks=[3]))
    table.tag("before")
    summary = table.delete(rows(3, 12).select(["user", "item"])).summary
    assert summary == {"rows_deleted": 7, "keys_missing": 2}
    assert table.delete(rows(3, 12)).summary == {"rows_deleted": 0, "keys_missing": 9}
    table.patch(labels([4], clicks=[1]))  # waits for the next row of this key
    table.append(rows(4, 5))
    assert clicks(table) == {0: 0, 1: 0, 2: 0, 4: 1}
    assert table.to_arrow(snapshot="before").num_rows == 10
    scanned = [len(batch) for batch in loader.DataLoader(table.scan(columns=["item"]), global_batch_size=2, remainder="uneven")]
    assert sum(scanned) == 4
    table.compact(full=True)
    assert clicks(table) == {0: 0, 1: 0, 2: 0, 4: 1}


def test_an_overwrite_swaps_rows_in_one_commit(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 20))
    table.patch(labels([12], clicks=[4]))
    with pytest.raises(KeyExistsError, match=r"1 of 6 keys are in table 'samples' already, the first is \(user \d+, item 9\)"):
        table.overwrite(rows(9, 15), "item >= 10")

    def meanwhile() -> None:
        other.append(rows(30, 35))
        other.patch(labels([11, 31], clicks=[1, 1]))

    with failpoints.armed("overwrite.resolved", once(meanwhile)):
        summary = table.overwrite(rows(10, 15), "item >= 10").summary
    assert summary == {"rows_deleted": 15, "rows_appended": 5, "labels_met": 0}
    assert clicks(table) == dict.fromkeys(range(15), 0)


def test_the_same_overwrite_by_two_is_one(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 10))
    with failpoints.armed("overwrite.resolved", once(lambda: other.overwrite(rows(20, 25), "item = 3", commit_id="mine"))):
        assert table.overwrite(rows(20, 25), "item = 3", commit_id="mine").id == 2
    assert len(clicks(table)) == 14


def test_an_overwrite_knows_its_rows_after_a_compaction(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 10))
    table.append(rows(10, 20))
    with failpoints.armed("overwrite.resolved", once(lambda: other.compact(full=True))):
        assert table.overwrite(rows(5, 15), "item >= 5 and item < 15").summary == {"rows_deleted": 10, "rows_appended": 10, "labels_met": 0}
    assert clicks(table) == dict.fromkeys(range(20), 0)


def test_concurrent_upserts_of_the_same_new_keys_all_count(tmp_path: Path, catalog: str | None) -> None:
    with loader.connect(tmp_path, catalog=catalog) as lake:
        create(lake)

    def writer() -> None:
        table = loader.connect(tmp_path, catalog=catalog).table("samples")
        for start in range(0, 40, 4):
            table.upsert(events(start, start + 12, 1))

    children = [processes.start(writer) for _ in range(3)]
    assert [processes.wait(child) for child in children] == [0, 0, 0]
    with loader.connect(tmp_path, catalog=catalog) as lake:
        found = clicks(lake.table("samples"))
    assert found == {item: 3 * sum(start <= item < start + 12 for start in range(0, 40, 4)) for item in range(48)}


def test_what_is_wrong_is_named(lake: Lake) -> None:
    table = create(lake)
    with pytest.raises(SchemaError, match=r"an upsert into table 'samples' .*the data lacks \['ts'\]"):
        table.upsert(labels([1], clicks=[1]))
    with pytest.raises(ColumnNotFoundError, match="'clacks'"):
        table.upsert(events(0, 1, 1).rename_columns(["user", "item", "ts", "clacks"]))
    with pytest.raises(SchemaError, match=r"a delete from table 'samples' finds its rows by \['user', 'item'\]: the data lacks \['item'\]"):
        table.delete(pa.table({"user": [1]}))
    with pytest.raises(ColumnNotFoundError, match="colour"):
        table.delete("colour = 'red'")
    assert table.history() == []


def test_a_write_that_is_refused_leaves_the_catalog_free_for_the_next(lake: Any, make_lake: Callable[..., Any]) -> None:
    """Its error, which the caller may keep, holds no question open that was not read to its end: on SQLite that would keep an old state of the catalog."""
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 10))

    def evolve() -> None:
        failpoints._armed.pop("upsert.staged")
        other.add_column(pa.field("score", pa.float32()))

    with failpoints.armed("upsert.staged", evolve), pytest.raises(SchemaChangedError) as kept:
        table.upsert(rows(3, 4).set_column(2, "ts", pa.array([0]).cast(pa.timestamp("s"))))
    assert kept.value.__traceback__ is not None
    other = make_lake().table("samples")
    other.append(rows(10, 20).append_column("score", pa.nulls(10, pa.float32())))
    assert lake.table("samples").append(rows(20, 21).append_column("score", pa.nulls(1, pa.float32()))).num_rows == 21


AGED = pa.schema(
    [
        ("item", pa.int64()),
        ("ts", pa.timestamp("s")),
        pa.field("oldest", pa.int64(), nullable=False),
        ("latest", pa.int64()),
        ("kept", pa.string()),
        ("tags", pa.list_(pa.int32())),
        ("total", pa.int64()),
    ]
)


def aged(lake: Lake, **options: Any) -> Table:
    """A table with columns in which the age of an operand decides."""
    settings: dict[str, Any] = {"primary_key": ["item"], "time_column": "ts", "merge": {"oldest": "first", "kept": "first", "total": "sum"}}
    return lake.create_table("aged", AGED, **settings | options)


def aged_rows(items: list[int], **columns: Any) -> pa.Table:
    names = ["item", *columns]
    schema = pa.schema([AGED.field(name) if name in AGED.names else pa.field(name, pa.int64()) for name in names])
    return pa.table({"item": items, **columns}, schema=schema)


def shown(table: Table) -> dict[int, tuple[Any, ...]]:
    read = table.to_arrow(["item", "oldest", "latest", "kept", "tags", "total"]).to_pylist()
    return {row["item"]: (row["oldest"], row["latest"], row["kept"], row["tags"], row["total"]) for row in read}


STAMPS = pa.array([0, 0], pa.timestamp("s"))


@pytest.mark.parametrize("memory_bytes", [None, 1 << 16])
def test_a_label_that_waited_is_older_than_the_upsert_that_it_meets(lake: Lake, make_lake: Callable[..., Lake], memory_bytes: int | None) -> None:
    """Without orders the later operand is the last one and the earlier the first one, whether a row was there in between or not."""
    aged(lake)
    table = make_lake().table("aged") if memory_bytes is None else make_lake(memory_bytes=memory_bytes).table("aged")
    table.patch(aged_rows([1], oldest=[10], latest=[10], kept=["label"], tags=[[1]], total=[10]))
    times = {"ts": STAMPS[:1]} if memory_bytes is None else {"ts": pa.array([0] * 3000, pa.timestamp("s"))}
    count = len(times["ts"])
    new = aged_rows([*range(1, count + 1)], oldest=[20] * count, latest=[20] * count, kept=["row"] * count, tags=[[2]] * count, total=[20] * count)
    table.upsert(new.append_column("ts", times["ts"]))
    wanted = {item: (20, 20, "row", [2], 20) for item in range(2, count + 1)} | {1: (10, 20, "label", [2], 30)}
    assert shown(table) == wanted
    assert table.lookup([1], ["oldest", "latest", "kept", "total"]).to_pylist() == [{"oldest": 10, "latest": 20, "kept": "label", "total": 30}]
    table.compact(full=True)
    assert shown(table) == wanted
    table.upsert(aged_rows([1], oldest=[30], latest=[30], kept=["more"], tags=[[]], total=[1]).append_column("ts", STAMPS[:1]))
    assert shown(table)[1] == (10, 30, "label", [], 31)


@pytest.mark.parametrize(("label_at", "row_at", "oldest", "latest"), [(5, 5, 10, 20), (6, 5, 20, 10), (5, 6, 10, 20), (None, 5, 10, 20), (5, None, 20, 10)])
def test_orders_decide_between_a_label_that_waited_and_the_upsert(lake: Lake, label_at: int | None, row_at: int | None, oldest: int, latest: int) -> None:
    """An operand without an order is older than any with one; of equal orders the one that came first is older."""
    table = aged(lake)

    def give(value: int, at: int | None, write: Callable[..., Any], **columns: Any) -> None:
        columns |= {"oldest": [value], "latest": [value], "kept": [str(value)], "tags": [[value]], "total": [value]} | ({} if at is None else {"at": [at]})
        write(aged_rows([1], **columns), order=None if at is None else "at")

    give(10, label_at, table.patch)
    give(20, row_at, table.upsert, ts=STAMPS[:1])
    wanted = {1: (oldest, latest, str(oldest), [latest], 30)}
    assert shown(table) == wanted
    table.compact(full=True)
    assert shown(table) == wanted
    give(30, 5, table.patch)
    both = {10: label_at, 20: row_at, 30: 5}
    aged_by = sorted(both, key=lambda value: -1 if both[value] is None else both[value])
    assert shown(table) == {1: (aged_by[0], aged_by[-1], str(aged_by[0]), [aged_by[-1]], 60)}


def test_a_label_counts_before_each_row_of_an_upsert_and_default_values_after_all(lake: Lake) -> None:
    table = aged(lake)
    table.add_column(pa.field("score", pa.int64()), default=7)
    table.patch(pa.table({"item": [1, 2], "oldest": [10, 10], "score": pa.array([3, None], pa.int64()), "latest": pa.array([None, 5], pa.int64())}))
    new = aged_rows([1, 2, 1, 2], oldest=[20, 21, 22, 23], latest=[20, None, None, None], kept=[None, None, "c", "d"])
    table.upsert(new.append_column("ts", pa.concat_arrays([STAMPS, STAMPS])))
    assert shown(table) == {1: (10, 20, "c", None, None), 2: (10, 5, "d", None, None)}
    assert dict(zip(*table.to_arrow(["item", "score"]).to_pydict().values(), strict=True)) == {1: 3, 2: 7}


@pytest.mark.parametrize("place", ["upsert.resolved", "upsert.staged"])
def test_a_label_that_comes_while_an_upsert_is_written_is_the_older_one(lake: Lake, make_lake: Callable[..., Lake], place: str) -> None:
    table = aged(lake)
    other = make_lake().table("aged")
    with failpoints.armed(place, once(lambda: other.patch(aged_rows([2], oldest=[10], latest=[10], kept=["label"])))):
        table.upsert(aged_rows([1, 2], oldest=[20, 20], latest=[20, 20], kept=["row", "row"]).append_column("ts", STAMPS))
    assert shown(table) == {1: (20, 20, "row", None, None), 2: (10, 20, "label", None, None)}
    assert [str(finding) for finding in lake.doctor(deep=True).findings] == []
