"""The difference of two snapshots is what a comparison of whole reads gives, whatever lies between them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.errors import SchemaError
from loader.lake import Lake
from loader.table.diff import equal_rows
from loader.table.table import Table
from tests.table.samples import create, labels, rows


def check(table: Table, a: int, b: int) -> None:
    old = {row["item"]: row for row in table.to_arrow(snapshot=a).to_pylist()}
    new = {row["item"]: row for row in table.to_arrow(snapshot=b).to_pylist()}
    found = table.diff(a, b)
    assert {row["item"]: row for row in found.added.to_pylist()} == {item: new[item] for item in new.keys() - old.keys()}
    assert {row["item"]: row for row in found.removed.to_pylist()} == {item: old[item] for item in old.keys() - new.keys()}
    changed = {item for item in old.keys() & new.keys() if old[item] != new[item]}
    assert {row["item"]: row for row in found.before.to_pylist()} == {item: old[item] for item in changed}
    assert [row["item"] for row in found.before.to_pylist()] == [row["item"] for row in found.after.to_pylist()]
    assert {row["item"]: row for row in found.after.to_pylist()} == {item: new[item] for item in changed}


@pytest.mark.usefixtures("in_buckets")
def test_every_kind_of_change(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 30), watermark=100)
    table.append(rows(30, 60))
    table.patch(labels([1, 40], clicks=[1, 2]))
    table.delete("item >= 25 and item < 35")
    table.overwrite(rows(25, 28), "item = 50")
    history = pa.array([[1, 2], []], pa.list_(pa.int32()))
    table.upsert(rows(2, 4).select(["user", "item", "ts"]).append_column("history", history))
    table.compact(full=True)
    table.append(rows(100, 101), watermark=10_000_000)
    for a, b in ((1, 9), (2, 3), (3, 6), (6, 7), (7, 8), (8, 9), (9, 4), (5, 5)):
        check(table, a, b)


def test_columns_that_both_have(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 5))
    table.add_column(pa.field("price", pa.float32()), default=1.0)
    table.patch(labels([1], clicks=[1]))
    with pytest.raises(SchemaError, match="snapshot 1 of table 'samples' has no column 'price': give columns="):
        table.diff(1)
    assert table.diff(1, columns=["clicks"]).after.to_pylist() == [{"user": rows(1, 2)["user"][0].as_py(), "item": 1, "clicks": 1}]


def test_a_name_that_went_to_another_column_and_one_that_was_widened(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 5))
    table.widen_column("label", pa.int64())
    table.patch(labels([1, 2], label=[1000, 1]))
    check(table, 1, 3)
    check(table, 3, 1)
    table.drop_column("history")
    table.add_column(pa.field("history", pa.list_(pa.int32())))
    check(table, 1, 5)
    check(table, 5, 3)


@given(st.lists(st.tuples(*[st.none() | st.lists(st.none() | st.sampled_from([0.0, 1.5, float("nan")]), max_size=3)] * 2), max_size=8))
def test_lists_are_equal_item_by_item(pairs: list[tuple[list[float | None] | None, list[float | None] | None]]) -> None:
    def same(one: object, other: object) -> bool:
        return repr(one) == repr(other)  # NaN equals NaN

    arrays = [pa.array([pair[side] for pair in pairs], pa.list_(pa.float64())) for side in (0, 1)]
    assert equal_rows(*arrays).tolist() == [same(*pair) for pair in pairs]
    nested = [pa.array([[pair[side]] for pair in pairs], pa.list_(pa.list_(pa.float64()))) for side in (0, 1)]
    assert equal_rows(*nested).tolist() == [same(*pair) for pair in pairs]


def test_maps_strings_and_halves() -> None:
    kind = pa.map_(pa.string(), pa.float32())
    one = pa.array([[("a", 1.0)], [("a", None)], None, []], kind)
    other = pa.array([[("a", 1.0)], [("a", 2.0)], None, [("b", 1.0)]], kind)
    assert equal_rows(one, other).tolist() == [True, False, True, False]
    halves = [pa.array(np.array([1.5, np.nan, 2], np.float16)), pa.array(np.array([1.5, np.nan, 3], np.float16))]
    assert equal_rows(*halves).tolist() == [True, True, False]
    assert equal_rows(pa.array(["x", None, "y"]), pa.array(["x", None, "z"])).tolist() == [True, True, False]


def test_a_key_that_was_renamed_is_the_same_key(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 5))
    table.rename_column("item", "number")
    renamed = [name if name != "item" else "number" for name in rows(0, 1).column_names]
    table.append(rows(5, 7).rename_columns(renamed))
    table.delete("number = 1")
    table.patch(labels([2], clicks=[4]).rename_columns(["user", "number", "clicks"]))
    for first, second, added, removed in ((1, None, [5, 6], [1]), (table.history()[-1].id, 1, [1], [5, 6])):
        found = table.diff(first, second, columns=["clicks"])
        name = "item" if second == 1 else "number"
        assert sorted(found.added[name].to_pylist()) == added and sorted(found.removed[name].to_pylist()) == removed
        assert found.before[name].to_pylist() == found.after[name].to_pylist() == [2]
        assert {found.before["clicks"][0].as_py(), found.after["clicks"][0].as_py()} == {0, 4}
    assert table.diff(1, 2, columns=["clicks"]).after.num_rows == 0
