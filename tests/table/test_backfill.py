"""Backfill: columns beside segments are read as if they had always been there, by readers, scans, writers and compaction."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest

from loader import failpoints
from loader.errors import ConflictError, KeyExistsError, SchemaError
from loader.lake import Lake
from tests.table.samples import create, labels, rows
from tests.table.test_evolve import same
from tests.table.test_upsert import once


def keyed(start: int, stop: int, **columns: object) -> pa.Table:
    table = rows(start, stop).select(["user", "item"])
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def test_new_columns_by_key_meet_later_patches_and_compaction(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    table.append(rows(10, 20))
    segments = {ref.segment_id for ref in table.view().segments}
    summary = table.backfill(keyed(5, 25, price=[float(i) for i in range(5, 25)], ids=[[i, i + 1] for i in range(5, 25)])).summary
    assert summary == {"rows_filled": 15, "keys_missing": 5, "columns": ["price", "ids"]}
    assert {ref.segment_id for ref in table.view().segments} == segments, "no segment was rewritten"
    assert any(ref.column_files for ref in table.view().segments)
    wanted = {item: (float(item), [item, item + 1]) if item >= 5 else (None, None) for item in range(20)}
    assert same(table, "price", "ids") == wanted
    assert sorted(table.to_arrow(where="price >= 18")["item"].to_pylist()) == [18, 19]
    assert table.bytes_by_column()["price"] > 0
    table.patch(labels([3, 7], clicks=[1, 1]).append_column("price", pa.array([30.0, 70.0])))
    wanted |= {3: (30.0, None), 7: (70.0, [7, 8])}
    assert same(table, "price", "ids") == wanted
    moved = rows(8, 9).select(["user", "item", "ts"])
    table.upsert(moved.set_column(2, "ts", pa.compute.add(moved["ts"], pa.scalar(3600, pa.duration("s")))))
    assert same(table, "price", "ids") == wanted
    table.compact(full=True)
    assert not any(ref.column_files for ref in table.view().segments)
    assert same(table, "price", "ids") == wanted


def test_values_that_are_there_are_patched(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    table.add_column(pa.field("score", pa.int32()), default=-1)
    table.backfill(keyed(0, 5, score=[10, 11, 12, None, 14]))
    table.append(rows(10, 12))
    table.backfill(keyed(4, 12, score=range(104, 112)))
    wanted = {0: (10,), 1: (11,), 2: (12,), 3: (-1,)} | {item: (100 + item,) for item in range(4, 12)}
    assert same(table, "score") == wanted
    table.compact(full=True)
    assert same(table, "score") == wanted


@pytest.mark.parametrize("compacted", [False, True])
def test_a_merge_rule_holds_whether_a_segment_has_the_column_or_not(lake: Lake, compacted: bool) -> None:
    table = create(lake)
    table.append(rows(0, 3))
    table.append(rows(3, 5))
    for name, rule in (("events", "count"), ("total", "sum"), ("top", "max"), ("early", "first"), ("late", "last")):
        table.add_column(pa.field(name, pa.int64()), default=10, merge=rule)
    if compacted:
        table.append(rows(10, 20))
        table.compact(full=True)  # writes the defaults out
    table.backfill(labels([1, 4], **{name: [7, None] for name in ("events", "total", "top", "early", "late")}))
    read = table.to_arrow(["item", "events", "total", "top", "early", "late"], where="item = 1 or item = 4").sort_by("item").to_pylist()
    assert [list(row.values()) for row in read] == [[1, 11, 17, 10, 10, 7], [4, 10, 10, 10, 10, 10]]


def test_by_place(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    table.delete("item = 4")
    snapshot = table.history()[-1].id
    read = table.to_arrow(["item"])
    table.backfill(pa.table({"double": pa.compute.multiply(read["item"], 2)}), snapshot=snapshot)
    assert same(table, "double") == {item: (2 * item,) for item in range(10) if item != 4}
    with pytest.raises(ConflictError, match=r"by their place in snapshot 2 of table 'samples', and it stands at 3"):
        table.backfill(pa.table({"triple": read["item"]}), snapshot=snapshot)
    with pytest.raises(SchemaError, match="3 rows without a key for snapshot 3 of 9"):
        table.backfill(pa.table({"triple": [1, 2, 3]}), snapshot=3)


@pytest.mark.parametrize("place", ["backfill.resolved", "backfill.staged"])
def test_what_others_write_meanwhile(lake: Lake, make_lake: Callable[..., Lake], place: str) -> None:
    table, other = create(lake), make_lake().table("samples")
    table.append(rows(0, 10))
    table.append(rows(10, 20))
    table.add_column(pa.field("score", pa.int64()))
    other = make_lake().table("samples")

    def meanwhile() -> None:
        other.patch(labels([3], clicks=[1]).append_column("score", pa.array([-3])))
        other.compact(full=True)
        other.append(rows(20, 25))
        other.delete("item = 7")

    with failpoints.armed(place, once(meanwhile)):
        table.backfill(keyed(0, 30, score=range(30)))
    assert same(table, "score") == {item: (item,) for item in range(25) if item != 7}, "the backfill came last"


def test_a_compaction_that_did_not_see_a_backfill_gives_way(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table = create(lake, buckets=1)
    table.append(rows(0, 10))
    table.append(rows(10, 20))
    table.add_column(pa.field("score", pa.int64()))
    other = make_lake().table("samples")
    with failpoints.armed("compaction.rewritten", once(lambda: other.backfill(keyed(0, 20, score=range(20))))):
        assert table.compact(full=True).num_abandoned == 1
    assert same(table, "score") == {item: (item,) for item in range(20)}
    table.compact(full=True)
    assert same(table, "score") == {item: (item,) for item in range(20)}


def test_what_is_wrong_is_named(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 3))
    with pytest.raises(SchemaError, match=r"by place without any of it: \['user'\] is a part"):
        table.backfill(pa.table({"user": [1], "x": [1]}))
    with pytest.raises(SchemaError, match="'ts' decides where a row"):
        table.backfill(rows(0, 3).select(["user", "item", "ts"]))
    with pytest.raises(SchemaError, match="needs a column to fill"):
        table.backfill(rows(0, 3).select(["user", "item"]))
    with pytest.raises(KeyExistsError, match="stands twice in the data"):
        table.backfill(pa.concat_tables([keyed(0, 1, x=[1]), keyed(0, 1, x=[2])]))
    assert len(table.history()) == 1
