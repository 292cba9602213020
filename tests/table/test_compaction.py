"""Compaction changes where rows lie and nothing else, whatever happens meanwhile."""

from __future__ import annotations

import gc
import socket
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loader import CompactionOptions, failpoints
from loader.catalog.commit import commit, now_micros
from loader.catalog.garbage import collect
from loader.catalog.leases import leased_buckets, take_buckets
from loader.catalog.records import CommitPlan, NewOverlay
from loader.lake import Lake
from loader.segment.key_index import KeyIndex
from loader.segment.layout import SEQUENCE_COLUMN_ID
from loader.table.files import place
from loader.table.keys import KeyDirectory
from loader.table.segments import encode_overlay, open_segment, read_by_id
from tests.table import processes
from tests.table.samples import create, labels, rows


def by_item(table: Any, **read: Any) -> pa.Table:
    return table.to_arrow(**read).sort_by("item")


def test_the_same_rows_in_fewer_segments_in_order(lake: Lake) -> None:
    table = create(lake)
    for start in range(0, 300, 30):
        table.append(rows(start, start + 30))
    table.patch(labels(list(range(0, 300, 3)), clicks=list(range(100))))
    before = by_item(table)
    seen: list[tuple[int, int]] = []
    report = table.compact(full=True, progress=lambda done, total: seen.append((done, total)))
    assert by_item(table).equals(before)
    assert (report.segments_before, report.segments_after, report.rows_written, report.num_abandoned) == (10, 3, 300, 0)
    assert seen[-1] == (300, 300) and seen == sorted(seen)
    view = table.view()
    assert all(not ref.overlays and ref.live_rows == ref.num_rows for ref in view.segments)
    for ref in view.segments:
        part = open_segment(lake.storage, ref).read(columns=["user", "ts"])
        assert part.equals(part.sort_by([("user", "ascending"), ("ts", "ascending")]))
    assert table.compact(full=True).num_tasks == 0 and table.compact().num_tasks == 0, "there is nothing left to do"


def test_rows_keep_the_sequence_of_their_commit(lake: Lake) -> None:
    table = create(lake, buckets=1)
    for start in (0, 20, 10):
        table.append(rows(start, start + 10))
    table.compact(full=True)
    table.append(rows(30, 31))
    table.compact(full=True)
    (ref,) = table.view().segments
    assert (ref.sequence_min, ref.sequence_max) == (1, 5)
    read = read_by_id(open_segment(lake.storage, ref), [2, SEQUENCE_COLUMN_ID])
    found = dict(zip(read[2].to_pylist(), read[SEQUENCE_COLUMN_ID].to_pylist(), strict=True))
    assert [found[item] for item in (0, 9, 10, 20, 30)] == [1, 1, 3, 2, 5]


def test_memory_bounds_the_pieces_and_keys_still_resolve(lake: Lake) -> None:
    table = create(lake, buckets=1)
    for start in range(0, 3000, 500):
        table.append(rows(start, start + 500))
    before = by_item(table)
    report = table.compact(full=True, options=CompactionOptions(memory_bytes=40_000))
    assert report.segments_after > 5
    for full in (True, False):
        assert table.compact(full=full, options=CompactionOptions(memory_bytes=40_000)).num_tasks == 0, "the pieces are one run and stay as they are"
    assert by_item(table).equals(before)
    users = table.to_arrow(["user"])["user"].to_pylist()
    assert users == sorted(users), "the pieces are one sorted run"
    table.patch(labels([0, 1499, 2999], clicks=[1, 2, 3]))
    assert table.to_arrow(["clicks"])["clicks"].to_numpy().sum() == 6


@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)  # it is about memory, and slow
def test_what_a_task_held_is_let_go_with_it(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = create(lake, buckets=1, partition_by="hour")
    data = rows(0, 3000)
    for part in (data.take(list(range(at, 3000, 2))) for at in (0, 1)):
        table.append(part)
    monkeypatch.setattr(table._context, "directory", KeyDirectory(lake.storage, memory_bytes=20_000))
    gc.collect()
    held: list[int] = []

    def count(*_: int) -> None:
        held.append(sum(isinstance(found, KeyIndex) for found in gc.get_objects()))

    report = table.compact(full=True, progress=count)
    assert report.num_tasks == 50 and max(held) - held[0] < 10


@pytest.mark.parametrize("place", ["compaction.picked", "compaction.rewritten", "compaction.before_commit"])
def test_patches_that_arrive_meanwhile_are_carried_over(lake: Lake, place: str) -> None:
    table = create(lake, buckets=1)
    for start in (0, 50):
        table.append(rows(start, start + 50))
    table.patch(labels([3], label=[1], at=[5]), order="at")

    def meanwhile() -> None:
        table.patch(labels([3, 70, 99], label=[2, 2, 2], at=[4, 1, 1]), order="at")
        table.patch(labels([3], clicks=[10]))

    with failpoints.armed(place, _once(meanwhile)):
        report = table.compact(full=True)
    assert report.num_abandoned == 0 and report.num_tasks == 1
    table.patch(labels([3, 70], clicks=[1, 1]))
    found = {row["item"]: row for row in table.to_arrow().to_pylist()}
    assert (found[3]["label"], found[3]["clicks"]) == (1, 11), "an earlier order does not win because it came later"
    assert (found[70]["label"], found[70]["clicks"], found[99]["label"]) == (2, 1, 2)
    assert table.to_arrow(["clicks"])["clicks"].to_numpy().sum() == 12


def test_a_patch_resolved_before_a_compaction_finds_where_its_rows_went(lake: Lake) -> None:
    table = create(lake)
    for start in (0, 50):
        table.append(rows(start, start + 50))
    with failpoints.armed("patch.resolved", _once(lambda: other(lake).compact(full=True))):
        table.patch(labels(list(range(100)), clicks=[1] * 100))
    assert table.to_arrow(["clicks"])["clicks"].to_pylist() == [1] * 100


def test_a_label_that_races_its_row_meets_it(lake: Lake) -> None:
    table = create(lake)
    with failpoints.armed("patch.resolved", _once(lambda: other(lake).append(rows(0, 10)))):
        assert table.patch(labels([4], clicks=[3])).summary == {"rows_patched": 1, "labels_held": 0, "labels_dropped": 0}
    with failpoints.armed("append.resolved", _once(lambda: other(lake).patch(labels([14], clicks=[3])))):
        assert table.append(rows(10, 20)).summary["labels_met"] == 1
    with failpoints.armed("append.resolved", _once(lambda: other(lake).patch(labels([24], clicks=[3])))):
        assert table.append(rows(20, 30), on_conflict="trust").summary["labels_met"] == 1
    assert sorted(table.to_arrow(["item"], where="clicks = 3")["item"].to_pylist()) == [4, 14, 24]
    assert table.describe()["num_pending"] == 0


def test_two_compactions_of_the_same_segments_do_not_both_happen(lake: Lake) -> None:
    table = create(lake, buckets=1)
    for start in (0, 50):
        table.append(rows(start, start + 50))
    reports = []
    with failpoints.armed("compaction.rewritten", _once(lambda: reports.append(other(lake).compact(full=True)))):
        report = table.compact(full=True)
    assert (report.num_tasks, report.num_abandoned, report.num_busy) == (1, 0, 0)
    assert (reports[0].num_tasks, reports[0].num_busy) == (0, 1), "it left the bucket to the one that was at work"
    assert table.to_arrow().num_rows == 100 and len(table.view().segments) == 1


def test_a_compactor_that_lost_its_lease_commits_nothing(lake: Lake) -> None:
    table = create(lake, buckets=1)
    for start in (0, 50):
        table.append(rows(start, start + 50))
    before = by_item(table)

    def lapse_and_take_over() -> None:
        with lake.database.write() as connection:
            connection.execute("update buckets set lease_until = 1")
        assert other(lake).compact(full=True).num_tasks == 1

    with failpoints.armed("compaction.before_commit", _once(lapse_and_take_over)):
        report = table.compact(full=True)
    assert (report.num_tasks, report.num_abandoned) == (0, 1)
    assert by_item(table).equals(before) and len(table.view().segments) == 1
    assert not leases(lake), "nobody holds a bucket for longer than the work"


def test_the_bucket_of_a_dead_process_is_taken_over_at_once(lake: Lake) -> None:
    table = create(lake, buckets=1)
    for start in (0, 50):
        table.append(rows(start, start + 50))
    child = processes.start(lambda: None)
    processes.wait(child)
    for owner, num_tasks in ((f"another-host:{child}:a", 0), (f"{socket.gethostname()}:{child}:a", 1)):
        with lake.database.write(table.spec.id) as connection:
            take_buckets(connection, table.spec.id, owner, [0], is_dead=lambda _: True)
        assert table.compact(full=True).num_tasks == num_tasks
    assert not leases(lake)


def test_a_handle_from_before_a_schema_change_compacts(lake: Lake) -> None:
    table = create(lake, buckets=1)
    for start in (0, 50):
        table.append(rows(start, start + 50))
    other(lake).add_column(pa.field("later", pa.int8()), default=3)
    assert table.compact(full=True).num_tasks == 1
    assert table.to_arrow(["later"])["later"].to_pylist() == [3] * 100
    table.append(rows(100, 150))
    with failpoints.armed("compaction.rewritten", _once(lambda: other(lake).drop_column("history"))):
        assert table.compact(full=True).num_abandoned == 1
    assert table.compact(full=True).num_tasks == 1 and "history" not in table.to_arrow().column_names


def leases(lake: Lake) -> dict[int, tuple[str, int]]:
    with lake.database.read() as connection:
        return leased_buckets(connection, lake.table("samples").spec.id)


def test_stopped_by_the_user_it_goes_on_later(lake: Lake) -> None:
    table = create(lake)
    for start in (0, 2000):
        table.append(rows(start, start + 2000))
    before = by_item(table)

    def stop() -> None:
        raise KeyboardInterrupt

    for name in ("compaction.picked", "compaction.rewritten", "compaction.before_commit", "commit.written", "compaction.committed"):
        with failpoints.armed(name, stop), pytest.raises(KeyboardInterrupt):
            table.compact(full=True)
        assert by_item(table).equals(before)
    table.compact(full=True)
    assert by_item(table).equals(before) and len(table.view().segments) == 3


def test_deleted_rows_are_masked_dropped_and_carried_over(lake: Lake) -> None:
    table = create(lake, buckets=1)
    for start in (0, 10):
        table.append(rows(start, start + 10))
    _delete(table, [2, 5])
    assert table.to_arrow().num_rows == table.view().num_rows == table.history()[-1].num_rows == 18
    before = by_item(table)
    with failpoints.armed("compaction.rewritten", _once(lambda: _delete(other(lake), [0, 7]))):
        report = table.compact(full=True)
    assert report.rows_written == 18
    assert table.to_arrow().num_rows == table.view().num_rows == table.history()[-1].num_rows == 16
    assert by_item(table, snapshot=3).equals(before)
    table.compact(full=True)
    assert by_item(table)["item"].to_pylist() == sorted(set(range(20)) - set(_deleted_items(lake, before)))


def _delete(table: Any, rows_of_first: list[int]) -> None:
    """What a delete commits: a deletion vector on the first segment."""
    context, ref = table._context, table.view().segments[0]
    inline: dict[str, bytes] = {}
    section = encode_overlay(pa.table({}), [], np.array(rows_of_first), None)
    placed = place([section], context.stage, inline)
    overlay = NewOverlay(
        segment_id=ref.segment_id,
        kind="deletes",
        path=placed.path,
        offset=0,
        num_bytes=len(section),
        num_rows=len(rows_of_first),
        num_deleted=len(rows_of_first),
        column_ids=(),
    )
    commit(context.catalog, CommitPlan(spec=context.spec, kind="delete", commit_id=uuid.uuid4().hex, base=0, overlays=[overlay], inline=inline))


def _deleted_items(lake: Lake, left: pa.Table) -> list[int]:
    """Items of rows 0, 2, 5 and 7 of the first segment, in its order of user and time."""
    first = sorted(range(10), key=lambda item: (item % 7, item))
    return [first[row] for row in (0, 2, 5, 7)]


def test_interrupted_right_after_its_commit_nothing_live_becomes_garbage(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.table.files.INLINE_BYTES", 0)
    table = create(lake)

    def stop() -> None:
        raise KeyboardInterrupt

    for write in (
        lambda: table.append(rows(0, 20)),
        lambda: table.patch(labels([1, 2], clicks=[1, 1])),
        lambda: table.append(rows(20, 40)),
        lambda: table.compact(full=True),
    ):
        with failpoints.armed("commit.committed", stop), pytest.raises(KeyboardInterrupt):
            write()
    table.patch(labels([30], clicks=[1]))
    collect(lake.database, lake.storage.files, now=now_micros() * 2)
    for snapshot in table.history():
        table.to_arrow(snapshot=snapshot)
    assert table.to_arrow(["clicks"])["clicks"].to_numpy().sum() == 3


def other(lake: Lake) -> Any:
    """A handle of a second opening of the lake: shares nothing with the first."""
    import loader

    return loader.connect(lake.location, catalog=lake.catalog_url, create=False).table("samples")


def _once(action: Any) -> Any:
    left = [action]

    def run() -> None:
        if left:
            left.pop()()

    return run
