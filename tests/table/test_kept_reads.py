"""What reads keep in memory changes how fast they are, never what is read: every snapshot reads the same with it and without, while everything happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loader import CompactionOptions
from tests.table.samples import create, labels, rows

FOLD = CompactionOptions(max_overlays=2, overlay_fraction=2.0, max_segments=1_000, dead_fraction=2.0)
TO_COLUMNS = CompactionOptions(max_overlays=2, overlay_fraction=0.0, max_segments=1_000, dead_fraction=2.0)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_lake_that_keeps_reads_as_one_that_keeps_nothing(make_lake: Callable[..., Any], seed: int) -> None:
    random = np.random.default_rng(seed)
    writer = create(make_lake(), buckets=2)
    writer.append(rows(0, 200))
    keeping, keeping_nothing = (make_lake(read_cache_bytes=size).table("samples") for size in (1 << 20, 0))
    steps: list[Callable[[], object]] = [
        lambda: writer.patch(labels(random.choice(200, 20).tolist(), label=[1] * 20, clicks=[1] * 20, at=random.integers(0, 9, 20).tolist()), order="at"),
        lambda: writer.patch(labels([int(random.integers(200))], clicks=[5])),
        lambda: writer.delete(rows(first := int(random.integers(190)), first + 3).select(["user", "item"])),
        lambda: writer.upsert(rows(first := int(random.integers(190)), first + 20)),
        lambda: writer.compact(options=FOLD),
        lambda: writer.compact(options=TO_COLUMNS),
        lambda: writer.erase(rows(first := int(random.integers(190)), first + 2).select(["user", "item"])),
    ]
    for turn in range(25):
        steps[int(random.choice(len(steps), p=[0.4, 0.15, 0.1, 0.1, 0.1, 0.1, 0.05]))]()
        for columns in (None, ["item", "clicks"], ["label", "ts"]):
            for _ in range(2):  # the second time out of memory
                assert keeping.to_arrow(columns).equals(keeping_nothing.to_arrow(columns)), f"turn {turn}"
        assert keeping.lake.storage.kept.num_bytes <= 1 << 20
    assert keeping.lake.storage.kept.num_bytes > 0
    assert keeping_nothing.lake.storage.kept.num_bytes == 0


def test_a_second_read_opens_and_folds_nothing(make_lake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    table = create(make_lake(), buckets=1)
    table.append(rows(0, 100))
    for turn in range(4):
        table.patch(labels([turn, 50], clicks=[1, 1]))
    table.delete(rows(7, 9).select(["user", "item"]))
    once = table.to_arrow()
    assert once.num_rows == 98

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("opened again")

    monkeypatch.setattr("loader.table.segments.open_segment", refuse)
    monkeypatch.setattr("loader.table.resolve.open_segment", refuse)
    assert table.to_arrow().equals(once)


def test_erasure_leaves_nothing_in_memory(make_lake: Callable[..., Any]) -> None:
    table = create(make_lake(), buckets=1)
    table.append(rows(0, 100))
    table.patch(labels([3, 50], clicks=[10, 20]))
    table.to_arrow()
    kept = table.lake.storage.kept
    assert kept.num_bytes > 0
    table.erase(pa.table({"user": rows(3, 4)["user"], "item": rows(3, 4)["item"]}))
    assert 3 not in table.to_arrow(["item"])["item"].to_pylist()
    values = [held for held, _ in kept._held.values() if hasattr(held, "values")]
    assert all(10 not in held.values.to_pylist() for held in values)  # the erased row's patch
