"""Look-ups by key give what a read gives, at the head and at snapshots, while others write, and from whatever a row is made of."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from loader.errors import ColumnNotFoundError, SchemaError, SnapshotNotFoundError
from loader.lake import Lake
from loader.table.lookup import LookUp
from loader.table.table import Table
from tests.table.samples import create, labels, rows


def check(table: Table, items: list[int], columns: list[str] | None = None, **options: Any) -> None:
    """A look-up of these items, and of keys that are nowhere, against a whole read."""
    whole = table.to_arrow(**options)
    by_item = {row["item"]: row for row in whole.to_pylist()}
    names = columns or whole.column_names
    user_of = dict(zip(rows(0, 200)["item"].to_pylist(), rows(0, 200)["user"].to_pylist(), strict=True))
    keys = [(user_of[item], item) for item in items] + [(-1, -1)]
    found = table.lookup(keys, columns, **options)
    assert found.column_names == names
    wanted = [{name: by_item[item][name] if item in by_item else None for name in names} for item in [*items, -1]]
    assert found.to_pylist() == wanted


def test_rows_as_they_stand_at_the_head_and_at_snapshots(lake: Lake) -> None:
    table = create(lake)
    check(table, [1, 2])
    table.append(rows(0, 50), watermark=4000)
    table.append(rows(50, 80))
    items = [3, 77, 12, 3, 199, 60]
    check(table, items)
    table.patch(labels([3, 60], clicks=[5, 6], label=[1, 1]))
    check(table, items, ["clicks", "label"])
    table.delete("item = 12")
    table.upsert(rows(90, 95).select(["user", "item", "ts"]))
    check(table, [*items, 92])
    table.add_column(pa.field("price", pa.float32()), default=2.5)
    table.backfill(rows(0, 10).select(["user", "item"]).append_column("score", pa.array(range(10))))
    check(table, [*items, 92, 7])
    table.widen_column("label", pa.int32())
    table.append(rows(100, 105))
    check(table, [*items, 101, 92, 7], ["label", "price", "score", "item"])
    table.compact(full=True)
    check(table, [*items, 101, 92, 7])
    for snapshot in (1, 3, 4, 6):
        check(table, items, snapshot=snapshot)
    table.expire(older_than=datetime.timedelta(0))
    check(table, items)
    with pytest.raises(SnapshotNotFoundError):
        table.lookup([(0, 0)], snapshot=1)


def test_a_look_up_follows_other_writers_and_forgets_what_they_change(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 20))
    check(table, [1, 2, 3])
    for round in range(3):
        other.patch(labels([1, 2], clicks=[10, 20]))
        check(table, [1, 2, 3])
        other.append(rows(100 + round, 101 + round))
        check(table, [1, 100 + round])
        other.compact(full=True)
        check(table, [1, 2, 100 + round])
    other.delete(rows(1, 2))
    check(table, [1, 2])


def test_a_look_up_follows_a_schema_that_others_changed(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 20))
    check(table, [3, 4])
    other.rename_column("label", "clicked")
    other.widen_column("clicked", pa.int64())
    other.patch(labels([3], clicked=[1000]))
    check(table, [3, 4])
    other.drop_column("history")
    check(table, [3, 4], ["clicked", "item"])
    with pytest.raises(ColumnNotFoundError):
        table.lookup([(3, 3)], ["history"])
    check(table, [3, 4], snapshot=1)


def test_segments_that_go_while_they_are_looked_up(lake: Lake, make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch) -> None:
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 10))
    table.append(rows(10, 20))
    real, left = LookUp._refresh, [1]

    def refresh(self: LookUp) -> None:
        real(self)
        if left:
            left.pop()
            other.compact(full=True)
            other.expire(older_than=datetime.timedelta(0))

    monkeypatch.setattr(LookUp, "_refresh", refresh)
    check(table, [3, 14])
    left.append(1)
    with pytest.raises(SnapshotNotFoundError):
        old = table.append(rows(20, 21))
        table.lookup([(6, 20)], snapshot=old)


def test_keys_in_every_form(lake: Lake) -> None:
    schema = pa.schema([("name", pa.string()), ("value", pa.int64())])
    table = lake.create_table("named", schema, primary_key=["name"])
    table.append(pa.table({"name": ["a", "b", "c"], "value": [1, 2, 3]}))
    for keys in (["c", "x", "a"], pa.array(["c", "x", "a"]), pa.table({"name": ["c", "x", "a"]}), pa.record_batch({"name": ["c", "x", "a"]})):
        assert table.lookup(keys, ["value"])["value"].to_pylist() == [3, None, 1]
    assert table.lookup([], ["value"]).num_rows == 0
    with pytest.raises(SchemaError, match="keys of table 'named' do not fit"):
        table.lookup([1, 2])
    with pytest.raises(ColumnNotFoundError, match="'valu_e'"):
        table.lookup(["a"], ["valu_e"])
    with pytest.raises(ValueError, match="names each column once"):
        table.lookup(["a"], ["value", "value"])
    samples = create(lake)
    with pytest.raises(SchemaError, match=r"the data lacks \['user'\]"):
        samples.lookup(pa.table({"item": [1]}))


def test_threads_share_a_handle_while_it_writes(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 40))
    failed: list[BaseException] = []
    stop = threading.Event()

    def look() -> None:
        try:
            while not stop.is_set():
                found = table.lookup(rows(5, 9), ["item", "clicks"]).to_pylist()
                assert [row["item"] for row in found] == [5, 6, 7, 8]
                assert len({row["clicks"] for row in found}) == 1, "a patch shows whole or not at all"
        except BaseException as error:  # noqa: BLE001 - reported by the test
            failed.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        table.patch(labels([5, 6, 7, 8], clicks=[1] * 4))
    table.compact(full=True)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed
