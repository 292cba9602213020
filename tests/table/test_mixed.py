"""Small commits are one section with rows of all buckets: read, pruned and changed as any other, and sorted into buckets by compaction."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from loader import CompactionOptions, failpoints
from loader.catalog.records import ALL_BUCKETS, SegmentRef
from loader.lake import Lake
from loader.segment.key_index import bucket_of, keys_of
from loader.table.rows import MIXED_ROWS
from loader.table.segments import open_segment
from loader.table.table import Table
from tests.table.samples import create, labels, rows

BUCKETS = 3


def by_item(table: Table, **read: object) -> pa.Table:
    return table.to_arrow(**read).sort_by("item")


def bucket_counts(table: Table) -> Counter[int]:
    return Counter(ref.bucket for ref in table.view().segments)


def check_buckets(lake: Lake, refs: list[SegmentRef]) -> None:
    """Each segment holds rows of its own bucket alone, in cluster order."""
    for ref in refs:
        part = open_segment(lake.storage, ref).read(columns=["user", "ts"])
        assert set(bucket_of(keys_of([part["user"]], hashed=True), BUCKETS).tolist()) == {ref.bucket}
        assert part.equals(part.sort_by([("user", "ascending"), ("ts", "ascending")]))


def test_a_small_commit_is_one_section_and_a_large_one_lies_in_buckets(lake: Lake) -> None:
    table = create(lake, partition_by="hour")
    table.append(rows(0, 100))
    assert [(ref.bucket, ref.partition, ref.num_rows) for ref in table.view().segments] == [(ALL_BUCKETS, 0, 60), (ALL_BUCKETS, 1, 40)]
    single = create(lake, "one", buckets=1)
    single.append(rows(0, 100))
    assert [ref.bucket for ref in single.view().segments] == [0]
    large = create(lake, "large")
    large.append(rows(0, MIXED_ROWS))
    assert set(bucket_counts(large)) == {0, 1, 2}
    check_buckets(lake, list(large.view().segments))


def test_a_group_of_small_and_large_commits_keeps_them_apart(lake: Lake) -> None:
    table = create(lake)
    bounds = [0, 10, 10 + MIXED_ROWS, 20 + MIXED_ROWS, 60 + MIXED_ROWS]
    with lake.database.queue(table.spec.id):  # nothing commits before all are asked
        asked = [table.append_async(rows(start, stop)) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
    snapshots = [one.result() for one in asked]
    for snapshot, start, stop in zip(snapshots, bounds[:-1], bounds[1:], strict=True):
        assert by_item(table, snapshot=snapshot.id).equals(rows(0, stop))
        added = [ref for ref in table.view(snapshot.id).segments if ref.added_in == snapshot.id]
        assert {ref.bucket for ref in added} == ({0, 1, 2} if stop - start >= MIXED_ROWS else {ALL_BUCKETS})
        assert {(ref.sequence_min, ref.sequence_max) for ref in added} == {(snapshot.id, snapshot.id)}
    assert lake.doctor(deep=True).findings == ()


def test_a_scan_of_a_bucket_reads_the_small_segments_too(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 2 * MIXED_ROWS))
    for start in range(2 * MIXED_ROWS, 2 * MIXED_ROWS + 300, 100):
        table.append(rows(start, start + 100))
    everything = table.to_arrow(["item", "user"])
    for user in range(7):
        found = table.to_arrow(["item"], where=f"user = {user}")["item"].to_pylist()
        assert sorted(found) == sorted(everything.filter(pa.compute.equal(everything["user"], user))["item"].to_pylist())
    steps = {step.name: step.segments for step in table.scan(columns=["item"], where="user = 3").explain().steps}
    assert steps["bucket (user)"] == 4, "one of the three buckets, and the three small segments"


def test_compaction_sorts_rows_into_buckets(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, MIXED_ROWS))
    for start in range(MIXED_ROWS, MIXED_ROWS + 200, 20):
        table.append(rows(start, start + 20))
    table.patch(labels(list(range(0, MIXED_ROWS + 200, 5)), clicks=list(range(-(-(MIXED_ROWS + 200) // 5)))))
    table.delete("item >= 40 and item < 60")
    before, head = by_item(table), table.history()[-1].id
    options = CompactionOptions(memory_bytes=8 * 1024)  # several pieces
    report = table.compact(full=True, options=options)
    assert report.num_abandoned == 0 and by_item(table).equals(before) and by_item(table, snapshot=head).equals(before)
    assert set(bucket_counts(table)) == {0, 1, 2}
    check_buckets(lake, list(table.view().segments))
    assert not any(ref.overlays for ref in table.view().segments)
    assert table.compact(full=True).num_tasks == 0 and table.compact().num_tasks == 0, "there is nothing left to do"
    assert lake.doctor(deep=True).findings == ()


def test_a_stream_of_small_commits_leaves_few_segments_to_look_into(lake: Lake) -> None:
    table = create(lake, buckets=4, durability="relaxed")
    options, written = CompactionOptions(max_segments=6), 0
    for number in range(60):
        table.append(rows(10 * number, 10 * number + 10), on_conflict="trust")
        written += table.compact(options=options).rows_written
        counts = bucket_counts(table)
        assert counts[ALL_BUCKETS] + max(counts[bucket] for bucket in range(4)) <= 6
    assert written <= 4 * 600, "a row is written again a few times only"
    assert by_item(table).equals(rows(0, 600))


@pytest.mark.parametrize("change", ["patch", "delete", "upsert"])
def test_what_changes_while_rows_are_sorted_into_buckets_is_carried_over(lake: Lake, change: str) -> None:
    table = create(lake)
    for start in range(0, 100, 10):
        table.append(rows(start, start + 10))
    done: list[bool] = []

    def meanwhile() -> None:
        if done:
            return
        done.append(True)
        if change == "patch":
            table.patch(labels([5, 50, 95], clicks=[7, 8, 9]))
        elif change == "delete":
            table.delete(pa.table({"user": [5, 50 % 7], "item": [5, 50]}))
        else:
            table.upsert(rows(95, 105))

    with failpoints.armed("compaction.rewritten", meanwhile):
        table.compact(full=True)
    assert done
    clicks = np.zeros(105, np.int64)
    if change == "patch":
        clicks[[5, 50, 95]] = [7, 8, 9]
    items = [item for item in range(105 if change == "upsert" else 100) if change != "delete" or item not in (5, 50)]
    after = by_item(table)
    assert after["item"].to_pylist() == items and after["clicks"].to_pylist() == clicks[items].tolist()
    assert lake.doctor(deep=True).findings == ()


def test_rows_of_all_buckets_are_leased_as_a_bucket_is(lake: Lake) -> None:
    table = create(lake)
    for start in range(0, 100, 10):
        table.append(rows(start, start + 10))
    with lake.database.write(table.spec.id) as connection:
        connection.execute("delete from buckets where bucket = ?", (ALL_BUCKETS,))  # as an older Headrace made the table
    from loader.table.compaction.lease import holding, new_owner

    with holding(lake.database, table.spec.id, new_owner() + "elsewhere", [ALL_BUCKETS]) as lease:
        assert lease.buckets == (ALL_BUCKETS,)
        assert table.compact(full=True).num_busy == 1
    assert table.compact(full=True).num_tasks == 1 and by_item(table).equals(rows(0, 100))
    assert lake.doctor(deep=True).findings == ()
