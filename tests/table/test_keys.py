"""The key directory: keys are found wherever their index is kept, within the memory it was given."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loader.errors import KeyExistsError
from loader.lake import Lake
from loader.segment.key_index import keys_of
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


KEY_TYPES = {
    "int64": (pa.int64(), lambda n: (n - 20) * (1 << 58)),
    "uint64": (pa.uint64(), lambda n: (1 << 64) - 1 - n * (1 << 55)),
    "string": (pa.string(), lambda n: f"user {n} of a key that is longer than eight bytes"),
}
STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "delete", "move", "compact", "full", "expire", "reopen"]), st.integers(0, 25), st.integers(1, 12)),
    min_size=2,
    max_size=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, kind=st.sampled_from(sorted(KEY_TYPES)), warm=st.sampled_from([2, 65_536]), memory_bytes=st.sampled_from([100, 1 << 20]))
def test_the_directory_knows_what_a_dict_knows(
    make_lake: Callable[..., Lake], steps: list[tuple[str, int, int]], kind: str, warm: int, memory_bytes: int
) -> None:
    lake = make_lake()
    type_, value = KEY_TYPES[kind]
    name = f"t{uuid.uuid4().hex}"
    schema = pa.schema([pa.field("key", type_, False), pa.field("user", pa.int64(), False), pa.field("clicks", pa.int64())])
    table = lake.create_table(name, schema, primary_key=["key"], bucket_by=["user"], buckets=2)
    model: dict[int, int] = {}
    everyone = pa.array([value(n) for n in range(40)], type_)
    seen, earlier = 0, None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "ALWAYS_WARM_KEYS", warm)
        kept = KeyDirectory(lake.storage, memory_bytes=memory_bytes)
        table._context.directory = kept
        for step, first, count in steps:
            chosen = range(first, first + count)
            data = {"key": pa.array([value(n) for n in chosen], type_), "user": pa.array([n % 5 + (step == "move") for n in chosen])}
            if step == "append":
                new = [n for n in chosen if n not in model]
                table.append(pa.table(data | {"clicks": pa.nulls(count, pa.int64())}, schema=schema).filter(pa.array([n in new for n in chosen])))
                model |= dict.fromkeys(new, 0)
            elif step == "delete":
                table.delete(pa.table({"key": data["key"]}))
                model = {n: clicks for n, clicks in model.items() if n not in chosen}
            elif step == "move":
                table.upsert(pa.table(data | {"clicks": pa.array([1] * count)}, schema=schema))
                model |= dict.fromkeys(chosen, 1)
            elif step in ("compact", "full"):
                table.compact(full=step == "full")
            elif step == "expire":
                table.expire(older_than=datetime.timedelta(0), grace_seconds=0)
            else:
                kept = table._context.directory = KeyDirectory(lake.storage, memory_bytes=memory_bytes)
                seen, earlier = 0, None
            table._context.refresh()
            kept = table._context.directory
            keys = keys_of([everyone])
            hits = kept.probe(keys)
            assert hits.found.tolist() == [n in model for n in range(40)]
            rows = table.view().segments
            assert {segment.segment_id for segment in rows} >= set(hits.segment_ids[hits.found].tolist())
            if earlier is not None and len(kept) >= seen:
                again = kept.probe_again(keys, earlier, seen)
                assert again.found.tolist() == hits.found.tolist()
            seen, earlier = len(kept), hits
        found = table.lookup(everyone, ["key", "clicks"])
        assert found["clicks"].to_pylist() == [(model[n] or None) if n in model else None for n in range(40)]
        assert found["key"].null_count == 40 - len(model)


def test_a_cold_handle_writes_a_few_rows_without_reading_all_keys(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table = create(lake, buckets=1)
    table.append(rows(0, 80_000))
    cold = make_lake().table("samples")
    cold.append(rows(80_000, 80_010))
    assert cold._context.directory.num_bytes < 80_000 * 2, "a Bloom filter takes 1.5 bytes a key, the keys would take twelve more"
    with pytest.raises(KeyExistsError):
        cold.append(rows(79_990, 80_011))
    assert cold.patch(labels([5, 79_999, 80_005], clicks=[1, 1, 1])).summary["rows_patched"] == 3
