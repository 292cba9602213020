"""The key directory: keys are found wherever their index is kept, within the memory it was given."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from loader.errors import KeyExistsError
from loader.lake import Lake
from loader.table import keys as directory
from loader.table.keys import KeyDirectory
from tests.table.samples import create, labels, rows


def test_keys_that_do_not_fit_in_memory_are_found_all_the_same(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "ALWAYS_WARM_KEYS", 50)
    table = create(lake, buckets=1)
    for start in range(0, 1000, 100):
        table.append(rows(start, start + 100))
    table._context.directory = KeyDirectory(lake.storage, memory_bytes=6_000)
    with pytest.raises(KeyExistsError, match="1 of 2 keys"):
        table.append(pa.concat_tables([rows(777, 778), rows(1000, 1001)]))
    assert len(table._context.directory._cold) == 10, "two keys are no reason to read whole indexes"
    snapshot = table.patch(labels([5, 405, 999, 2000, 2001], clicks=[1, 2, 3, 4, 5]))
    assert (snapshot.summary["rows_patched"], snapshot.summary["labels_held"]) == (3, 2)
    assert 0 < len(table._context.directory._cold) < 10, "some fit into memory"
    table.compact(full=True)
    table.patch(labels([5, 999], clicks=[10, 10]))
    found = table.to_arrow(["item", "clicks"]).sort_by("item")["clicks"].to_pylist()
    assert (found[5], found[405], found[999], sum(found)) == (11, 2, 13, 26)


def test_segments_that_died_are_forgotten(lake: Lake) -> None:
    table = create(lake, buckets=1)
    for start in range(0, 200, 10):
        table.append(rows(start, start + 10))
        table.compact(full=True)
    table.patch(labels([7, 150], clicks=[1, 1]))
    kept = table._context.directory
    assert [ref.segment_id for ref in kept._refs if ref is not None] == [ref.segment_id for ref in table.view().segments]
    assert np.array_equal(kept._ids[: len(kept)][kept._live[: len(kept)]], [ref.segment_id for ref in table.view().segments])
    assert sum(table.to_arrow(["clicks"])["clicks"].to_pylist()) == 2
