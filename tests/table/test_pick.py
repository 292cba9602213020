"""What compaction picks, from plain data: no catalog, no files."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from loader import CompactionOptions
from loader.catalog.records import OverlayRef, SegmentRef, SnapshotView
from loader.catalog.segments import Segments
from loader.table.compaction.pick import pick, pick_folds

MANY = 14  # runs that may not be


def segment(
    number: int, size: int, *, bucket: int = 0, partition: int = 0, level: int = 0, num_rows: int = 100, dead: int = 0, overlays: tuple[OverlayRef, ...] = ()
) -> SegmentRef:
    fields: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(SegmentRef)}
    fields |= {"segment_id": number, "path": "x", "num_bytes": size, "bucket": bucket, "partition": partition, "level": level, "num_rows": num_rows}
    fields |= {"added_in": number, "live_rows": num_rows - dead}
    return SegmentRef(**fields | {"block_rows": (num_rows,), "overlays": overlays, "column_files": ()})


def overlay(number: int, *, num_rows: int = 1, kind: str = "patch", level: int = 0) -> OverlayRef:
    return OverlayRef(overlay_id=number, kind=kind, path="x", offset=0, num_bytes=1, sequence=1, num_rows=num_rows, num_deleted=0, column_ids=(1,), level=level)


def view_of(segments: list[SegmentRef]) -> SnapshotView:
    return SnapshotView(spec=None, snapshot_id=1, watermark=None, segments=tuple(segments))  # type: ignore[arg-type]  # not looked at


def picked(segments: list[SegmentRef], **options: Any) -> list[list[int]]:
    full, buckets = options.pop("full", False), options.pop("buckets", None)
    return [[chosen.segment_id for chosen in task.segments] for task in pick(view_of(segments), CompactionOptions(**options), full=full, buckets=buckets)]


ONE = (overlay(1),)


@pytest.mark.parametrize(
    ("segments", "options", "wanted"),
    [
        ([segment(n, 100) for n in range(MANY - 1)], {}, []),
        ([segment(n, 100) for n in range(MANY)], {}, [list(range(MANY))]),
        ([segment(n, 100, bucket=n % 2) for n in range(MANY)], {}, []),
        ([segment(n, 100, bucket=n % 2) for n in range(2 * MANY)], {"buckets": [1]}, [list(range(1, 2 * MANY, 2))]),
        ([segment(n, 100) for n in range(3)], {"full": True}, [[0, 1, 2]]),
        ([segment(0, 100, overlays=ONE)], {"full": True}, [[0]]),
        ([segment(0, 100, overlays=ONE * 9)], {}, []),
        ([segment(0, 100, dead=12)], {}, []),
        ([segment(0, 100, dead=13)], {}, [[0]]),
        ([segment(n, 1 << 28) for n in range(30)], {}, []),
        ([segment(0, 1 << 28, level=1), segment(1, 1 << 28)], {"full": True}, [[0, 1]]),
        ([segment(0, 1 << 28, level=1), segment(1, 1 << 28)], {"full": True, "task_bytes": 1 << 28}, []),
        ([segment(n, 60) for n in range(5)], {"full": True, "task_bytes": 130}, [[0, 1], [2, 3]]),
        ([segment(n, 60, num_rows=100) for n in range(5)], {"full": True, "task_rows": 299}, [[0, 1], [2, 3]]),
        ([segment(n, 100 + n) for n in range(MANY)], {"task_bytes": 450}, [[0, 1, 2, 3]]),
    ],
)
def test_pick(segments: list[SegmentRef], options: dict[str, Any], wanted: list[list[int]]) -> None:
    assert picked(segments, **options) == wanted


def test_the_lowest_level_is_merged_first() -> None:
    lower, higher = [segment(n, 100) for n in range(5)], [segment(n, 1_000, level=1) for n in range(5, MANY)]
    assert picked([*lower, *higher]) == [[0, 1, 2, 3, 4]]
    assert picked([*lower[:1], *higher, segment(99, 1_000, level=1), *(segment(n, 10**6, level=2) for n in range(20, 24))]) == [[0, *range(5, MANY), 99]]


def test_a_run_in_pieces_counts_once() -> None:
    pieces = [dataclasses.replace(segment(n, 100, level=1), added_in=7) for n in range(MANY)]
    assert picked(pieces) == picked(pieces, full=True) == []


def test_a_partition_that_time_left_behind_is_merged_by_size() -> None:
    old, new = [segment(n, 100, partition=1) for n in range(4)], [segment(n, 100, partition=5) for n in range(4, 8)]
    assert picked([*old, *new]) == [[0, 1, 2, 3]]
    assert picked([*old[:3], *new]) == []
    assert picked([*old, segment(9, 10_000, partition=1), *new]) == [[0, 1, 2, 3]]
    late = [segment(n, 100, partition=4) for n in range(4)]
    assert picked([*late, *new]) == [], "rows may still come to the one before the newest"


@pytest.mark.parametrize(
    ("overlays", "num_rows", "folds"),
    [
        ([overlay(n) for n in range(4)], 10**6, []),
        ([overlay(0, level=1), *(overlay(n) for n in range(1, 5))], 10**6, []),
        ([overlay(n) for n in range(5)], 10**6, [(5, False, 0)]),
        ([overlay(n, num_rows=20_000) for n in range(5)], 10**6, [(5, True, 0)]),
        ([overlay(0, num_rows=99_999)], 10**6, []),
        ([overlay(0, num_rows=100_000)], 10**6, [(1, True, 0)]),
        ([overlay(0, num_rows=50)], 100, []),
        ([overlay(n, kind="deletes") for n in range(5)], 10**6, [(0, False, 5)]),
        ([overlay(n, kind="erased") for n in range(20)], 10**6, []),
    ],
)
def test_pick_folds(overlays: list[OverlayRef], num_rows: int, folds: list[tuple[int, bool, int]]) -> None:
    view = view_of([segment(3, 100, num_rows=num_rows, overlays=tuple(overlays))])
    assert [(len(task.patches), task.to_columns, len(task.deletes)) for task in pick_folds(view, CompactionOptions())] == folds
    assert pick_folds(view, CompactionOptions(), besides=[3]) == pick_folds(view, CompactionOptions(), buckets=[1]) == []


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="max_segments must be at least 2"):
        CompactionOptions(max_segments=1)
    with pytest.raises(ValueError, match="task_bytes must be at least 1"):
        CompactionOptions(task_bytes=0)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_looked_at_one_by_one_leaves_nothing_out(seed: int) -> None:
    random = np.random.default_rng(seed)
    made = []
    for number in range(1, int(random.integers(2, 160))):
        dead = int(random.integers(0, 40)) * int(random.integers(6) == 0)
        count = int(random.integers(0, 7)) * int(random.integers(4) == 0)
        own = tuple(overlay(1_000 * number + at, num_rows=int(random.integers(1, 30))) for at in range(count))
        bucket = -1 if seed % 3 == 0 and random.integers(9) == 0 else int(random.integers(0, 4))
        where: dict[str, Any] = {"bucket": bucket, "partition": int(random.integers(0, 1 + seed)), "level": int(random.integers(0, 2))}
        made.append(segment(number, int(random.integers(1, 5_000)), dead=dead, overlays=own, **where))
        if random.integers(3) == 0:  # of the compaction that wrote the one before
            made[-1] = dataclasses.replace(made[-1], added_in=max(1, number - 1))
    options = CompactionOptions(fold_rows=50, target_segment_bytes=4_000)
    one_by_one, by_column = view_of(made), dataclasses.replace(view_of([]), segments=Segments.of(made))
    for full in (False, True):
        for buckets in (None, [0, 2]):
            assert pick(by_column, options, full=full, buckets=buckets) == pick(one_by_one, options, full=full, buckets=buckets)
    assert pick_folds(by_column, options) == pick_folds(one_by_one, options)


def test_a_table_without_segments_has_nothing_to_do() -> None:
    empty = dataclasses.replace(view_of([]), segments=Segments())
    assert pick(empty, CompactionOptions(), full=True) == []
    assert pick_folds(empty, CompactionOptions()) == []
