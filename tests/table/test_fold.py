"""Folding overlays changes what is read from, never what is read, whatever is written meanwhile."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loader import CompactionOptions, failpoints
from loader.lake import Lake
from loader.table.compaction.fold import join_operands
from loader.table.merge import NO_ORDER, Folded
from loader.table.resolve import scatter
from tests.table.samples import create, labels, rows
from tests.table.test_compaction import _once, by_item, other

FOLD = CompactionOptions(max_overlays=2, overlay_fraction=2.0, max_segments=1_000, dead_fraction=2.0)
TO_COLUMNS = dataclasses.replace(FOLD, overlay_fraction=0.0)
BOTH = pytest.mark.parametrize("options", [FOLD, TO_COLUMNS], ids=["patch", "columns"])


def lake_table(lake: Lake, **options: Any) -> Any:
    table = create(lake, buckets=1, **options)
    table.append(rows(0, 100))
    return table


def shown(table: Any) -> dict[int, tuple[Any, Any]]:
    read = table.to_arrow(["item", "label", "clicks"]).to_pylist()
    return {row["item"]: (row["label"], row["clicks"]) for row in read}


@BOTH
def test_every_rule_reads_the_same_after_a_fold_and_goes_on_from_there(lake: Lake, options: CompactionOptions) -> None:
    table, twin = lake_table(lake), lake_table(lake, name="twin")
    random = np.random.default_rng(3)
    for turn in range(12):
        items = random.choice(110, 15, replace=False).tolist()  # some have no row and are held
        patch = labels(items, label=[turn] * 15, clicks=[turn] * 15, at=random.integers(0, 9, 15).tolist())
        for one in (table, twin):
            one.patch(patch, order="at")
            one.patch(labels(items[:3], clicks=[100] * 3))
        table.compact(options=options)
        assert by_item(table).equals(by_item(twin)), f"turn {turn}"
    for one in (table, twin):
        one.append(rows(100, 110))
        one.compact(full=True)
    assert by_item(table).equals(by_item(twin))


@BOTH
def test_overlays_are_bounded_and_earlier_snapshots_stand(lake: Lake, options: CompactionOptions) -> None:
    table = lake_table(lake)
    before, folds = {}, 0
    for turn in range(9):
        snapshot = table.patch(labels([turn, 50], clicks=[1, 1]))
        before[snapshot.id] = shown(table)
        report = table.compact(options=options)
        (ref,) = table.view().segments
        assert len(ref.overlays) <= options.max_overlays + 1 and len(ref.column_files) <= 1
        assert report.num_tasks == 0, "the segment itself is not rewritten"
        folds += report.segments_folded
    assert folds >= 3
    for snapshot_id, wanted in before.items():
        read = table.to_arrow(["item", "label", "clicks"], snapshot=snapshot_id).to_pylist()
        assert {row["item"]: (row["label"], row["clicks"]) for row in read} == wanted
    assert shown(table)[50] == (None, 9)
    table.expire(older_than=datetime.timedelta(0), grace_seconds=0)
    lake.collect_garbage()
    assert shown(table)[50] == (None, 9) and table.lookup(pa.table({"user": [1], "item": [50]}), ["clicks"])["clicks"].to_pylist() == [9]


@BOTH
def test_what_is_written_while_a_fold_runs_lies_on_top_of_it(lake: Lake, options: CompactionOptions) -> None:
    table = lake_table(lake)
    for _ in range(3):
        table.patch(labels([3, 4], label=[1, 1], clicks=[1, 1], at=[5, 5]), order="at")

    def meanwhile() -> None:
        second = other(lake)
        second.patch(labels([3, 4, 5], label=[2, 2, 2], clicks=[10, 10, 10], at=[4, 5, 1]), order="at")
        second.delete(pa.table({"user": [5 % 7], "item": [5]}))

    with failpoints.armed("fold.staged", _once(meanwhile)):
        report = table.compact(options=options)
    assert (report.segments_folded, report.num_abandoned) == (1, 0)
    assert shown(table)[3] == (1, 13), "a lower order does not win because it came later"
    assert shown(table)[4] == (2, 13), "of equal orders the later commit wins"
    assert 5 not in shown(table) and table.view().num_rows == table.history()[-1].num_rows == 99


def test_deletion_vectors_become_one_and_rows_are_counted_once(lake: Lake) -> None:
    table = lake_table(lake)
    for item in range(5):
        table.delete(pa.table({"user": [item % 7], "item": [item]}))
    with failpoints.armed("fold.staged", _once(lambda: other(lake).delete(pa.table({"user": [6], "item": [6]})))):
        report = table.compact(options=FOLD)
    assert report.segments_folded == 1 and len(table.view().segments[0].overlays) == 2
    assert table.view().num_rows == table.history()[-1].num_rows == table.to_arrow().num_rows == 94
    table.append(rows(0, 5))  # the keys are free again, in a handle that has seen the deletes before and after
    assert other(lake).to_arrow().num_rows == 99
    table.compact(full=True)
    assert table.view().num_rows == table.history()[-1].num_rows == table.to_arrow().num_rows == 99


def lapse(lake: Lake) -> None:
    with lake.database.write() as connection:
        connection.execute("update buckets set lease_until = 1")


@BOTH
@pytest.mark.parametrize("first", ["fold", "compaction"])
def test_a_fold_and_a_compaction_of_one_segment_do_not_both_happen(lake: Lake, options: CompactionOptions, first: str) -> None:
    """Also where a lease lapsed: an operand is never counted twice, nor lost."""
    table = lake_table(lake)
    for _ in range(4):
        table.patch(labels([3, 4], clicks=[1, 1]))

    def meanwhile() -> None:
        lapse(lake)
        done = other(lake).compact(options=options) if first == "fold" else other(lake).compact(full=True)
        assert done.num_abandoned == 0 and done.snapshots
        other(lake).patch(labels([3], clicks=[10]))

    place = "compaction.rewritten" if first == "fold" else "fold.staged"
    with failpoints.armed(place, _once(meanwhile)):
        report = table.compact(full=True) if first == "fold" else table.compact(options=options)
    assert report.num_abandoned == 1 and not report.snapshots
    assert (shown(table)[3], shown(table)[4]) == ((None, 14), (None, 4))
    table.compact(full=True)
    assert (shown(table)[3], shown(table)[4]) == ((None, 14), (None, 4))


def test_even_where_the_lease_still_stands_a_compaction_notices_a_fold(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.table.compaction.lease.is_dead", lambda owner: True)
    monkeypatch.setattr("loader.table.compaction.run.new_owner", lambda: "host:1:both")  # two that take each other for themselves
    table = lake_table(lake)
    for _ in range(4):
        table.patch(labels([3], clicks=[1]))

    def meanwhile() -> None:
        assert other(lake).compact(options=FOLD).segments_folded == 1

    with failpoints.armed("compaction.before_commit", _once(meanwhile)):
        table.compact(full=True)
    assert shown(table)[3] == (None, 4)


def test_a_backfill_that_races_a_fold_keeps_both(lake: Lake) -> None:
    table = lake_table(lake)
    for _ in range(3):
        table.patch(labels([3], clicks=[1]))
    data = rows(0, 100).select(["user", "item"]).append_column("clicks", pa.array([1000] * 100)).append_column("new", pa.array(range(100)))
    with failpoints.armed("backfill.staged", _once(lambda: other(lake).compact(options=TO_COLUMNS))):
        table.backfill(data)
    read = table.to_arrow(["item", "clicks", "new"], where="item = 3").to_pylist()
    assert read == [{"item": 3, "clicks": 1003, "new": 3}]


def test_operands_side_by_side() -> None:
    def folded(rows: list[int], values: list[int], orders: list[int] | None) -> Folded:
        return Folded(np.array(rows, np.uint32), pa.array(values), None if orders is None else np.array(orders))

    rows_, orders, values = join_operands(
        {1: folded([2, 5], [10, 11], [7, 7]), 2: folded([2, 5, 6], [20, 21, 22], [7, 8, NO_ORDER]), 3: folded([1, 5], [30, 31], None)}
    )
    assert rows_.tolist() == [1, 2, 5, 5, 6]
    assert orders is not None and orders.tolist() == [NO_ORDER, 7, 7, 8, NO_ORDER]
    assert values[1].to_pylist() == [None, 10, 11, None, None]
    assert values[2].to_pylist() == [None, 20, None, 21, 22]
    assert values[3].to_pylist() == [30, None, 31, None, None]


def test_columns_that_were_dropped_are_not_folded(lake: Lake) -> None:
    table = lake_table(lake)
    for turn in range(4):
        table.patch(labels([3], history=[[turn]]))
    table.drop_column("history")
    report = table.compact(options=FOLD)
    assert report.segments_folded == 1 and not table.view().segments[0].overlays
    assert table.to_arrow(["history"], snapshot=5, where="item = 3")["history"].to_pylist() == [[3]]


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.uint16(), pa.float16(), pa.float32(), pa.int64(), pa.timestamp("us"), pa.date32(), pa.bool_(), pa.string()], ids=str
)
def test_scattering_plain_values_is_taking_from_both(kind: pa.DataType) -> None:
    numbers = pa.array([1, None, 0, 1, 0, 1, None, 1], pa.int64())
    base, values = _cast(numbers.slice(1), kind), _cast(pa.array([9, 0, None, 1]), kind).slice(1)
    for one in (base, base.drop_null()):
        wanted = one.to_pylist()
        for row, value in zip([4, 0, 2], values.to_pylist(), strict=True):
            wanted[row] = value
        assert scatter(one, np.array([4, 0, 2]), values).to_pylist() == wanted
    assert scatter(pa.nulls(3, kind), np.array([1]), values[:1]).to_pylist() == [None, values[0].as_py(), None]


def _cast(numbers: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_float16(kind):
        return pa.array([None if value is None else np.float16(value) for value in numbers.to_pylist()], kind)
    return numbers.cast(pa.int32()).cast(kind) if pa.types.is_date32(kind) else numbers.cast(kind)
