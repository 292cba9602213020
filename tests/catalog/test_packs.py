"""Claims about packed segments: a plan from packs is the plan from rows, whatever was written, removed, forgotten or read in between."""

from __future__ import annotations

import datetime
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loader
from loader.catalog import sealing
from loader.catalog.manifest import load_segments
from loader.catalog.packed import Packed, pack
from loader.catalog.segments import Segments
from loader.errors import StorageError
from loader.table import sealer
from tests import postgres
from tests.table.samples import create, labels, rows


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40), st.integers(0, 2**16), st.binary(max_size=50))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_arrays_come_back_from_a_pack(values: list[int], spread: int, text: bytes) -> None:
    wide, narrow = np.array(values, np.int64), np.arange(spread % 300) * (spread // 300) - 7
    packed = Packed(pack({"wide": wide, "narrow": narrow}, {"text": text}))
    assert np.array_equal(packed.array("wide"), wide) and np.array_equal(packed.array("narrow"), narrow) and packed.string("text") == text
    assert [packed.value("wide", at) for at in range(len(wide))] == values


def test_a_damaged_pack_is_an_error() -> None:
    data = pack({"a": np.arange(100)})
    for broken in (b"", data[:3], data[:-1], b"XXXX" + data[4:], data[:20]):
        with pytest.raises(StorageError, match="a pack of the catalog cannot be read"):
            Packed(broken)


@pytest.fixture(params=["sqlite", "postgresql"])
def small_packs(request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens a lake in which ten segments are a pack."""
    monkeypatch.setattr(sealing, "PACK_SEGMENTS", 10)
    monkeypatch.setattr(sealer, "EVERY_SEGMENTS", 4)
    catalog = postgres.new_catalog() if request.param == "postgresql" else None
    opened = []

    def connect() -> loader.Lake:
        opened.append(loader.connect(tmp_path / "lake", catalog=catalog))
        return opened[-1]

    yield connect
    for lake in opened:
        lake.close()
    if catalog:
        postgres.drop_catalog(catalog)


def from_rows(lake: loader.Lake, table: Any, snapshot: int) -> list[Any]:
    """The live segments of a snapshot with no help of packs."""
    from loader.catalog.read import load_segments_by_id

    with lake.database.read() as connection:
        ids = [one for (one,) in connection.execute("select id from segments where table_id = ?", (table.spec.id,))]
        return load_segments_by_id(connection, table.spec.id, ids, snapshot)


def packs_of(lake: loader.Lake, table: Any) -> tuple[int, int]:
    """(packs, segments in them)."""
    with lake.database.read() as connection:
        assert sealing.check(connection, table.spec.id) == []
        count, total = connection.execute("select count(*), coalesce(sum(num_segments), 0) from segment_packs where table_id = ?", (table.spec.id,)).fetchone()
    return int(count), int(total)


def test_plans_from_packs_are_plans_from_rows(small_packs: Callable[[], loader.Lake]) -> None:
    """Random writes, compactions and expiries; after each, the handle that follows, a fresh one, and every kept snapshot agree with the rows."""
    lake = small_packs()
    table, rng, at = create(lake, durability="relaxed"), np.random.default_rng(7), 0
    for step in range(40):
        kind = rng.choice(["append", "append", "append", "patch", "delete", "compact", "expire"])
        if kind == "append" or not at:
            table.append(rows(at, at + 12), on_conflict="trust")
            at += 12
        elif kind == "patch":
            items = sorted(rng.choice(at, min(at, 5), replace=False).tolist())
            table.patch(labels(items, clicks=[1] * len(items)))
        elif kind == "delete":
            low = int(rng.integers(0, at))
            table.delete(f"item >= {low} and item < {low + 4}")
        elif kind == "compact":
            table.compact(full=bool(rng.integers(2)))
        else:
            table.expire(older_than=datetime.timedelta(0), keep=3)
        head = table.view()
        want = from_rows(lake, table, head.snapshot_id)
        assert list(head.segments) == want, f"step {step}, {kind}: the handle that follows"
        assert head.num_rows == sum(ref.live_rows for ref in want)
        if step % 5 == 4:
            with lake.database.read() as connection:
                for snapshot in table.history():
                    assert list(load_segments(connection, table.spec.id, snapshot.id)) == from_rows(lake, table, snapshot.id)
    assert packs_of(lake, table)[0] >= 2, "the test packs nothing"
    fresh = small_packs()
    assert fresh.table("samples").view().segments == table.view().segments


@pytest.mark.usefixtures("in_buckets")
def test_packs_shrink_with_what_is_forgotten(small_packs: Callable[[], loader.Lake]) -> None:
    lake = small_packs()
    table = create(lake, durability="relaxed")
    for start in range(0, 150, 5):
        table.append(rows(start, start + 5), on_conflict="trust")
    assert packs_of(lake, table)[0] >= 5
    table.compact(full=True)
    table.expire(older_than=datetime.timedelta(0))
    count, held = packs_of(lake, table)
    assert count <= 1 and held < 10, "packs of segments that are gone stay"
    assert table.to_arrow().num_rows == 150 == small_packs().table("samples").view().num_rows


def test_a_changed_row_is_seen_once_its_pack_is_made_anew(small_packs: Callable[[], loader.Lake]) -> None:
    lake = small_packs()
    table = create(lake, durability="relaxed")
    for start in range(0, 60, 5):
        table.append(rows(start, start + 5), on_conflict="trust")
    victim = table.view().segments[2]
    with lake.database.write(table.spec.id) as connection:
        connection.execute("update segments set path = 'data/moved', stats = null where id = ?", (victim.segment_id,))
        (problem,) = sealing.check(connection, table.spec.id)
        assert f"the first {victim.segment_id}" in problem
        sealing.repack(connection, table.spec.id, [victim.segment_id])
        assert sealing.check(connection, table.spec.id) == []
    assert small_packs().table("samples").view().segments[2].path == "data/moved"


def test_segments_are_a_sequence(small_packs: Callable[[], loader.Lake]) -> None:
    lake = small_packs()
    table = create(lake, durability="relaxed")
    for start in range(0, 60, 5):
        table.append(rows(start, start + 5), on_conflict="trust")
    table.patch(labels([1, 2], clicks=[3, 4]))
    table.delete(pa.table({"user": [3], "item": [3]}))
    segments = table.view().segments
    assert isinstance(segments, Segments)
    refs = list(segments)
    assert [segments[at] for at in range(len(segments))] == refs and segments[-1] == refs[-1] and segments[2:5] == tuple(refs[2:5])
    with pytest.raises(IndexError):
        segments[len(segments)]
    for name in ("segment_id", "live_rows", "num_rows", "bucket", "time_min", "key_max", "added_in"):
        assert segments.field(name).tolist() == [getattr(ref, name) for ref in refs]
    assert segments.block_rows().tolist() == [rows for ref in refs for rows in ref.block_rows]
    assert Segments.of(refs) == segments == pickle.loads(pickle.dumps(segments))
    odd = np.arange(len(refs)) % 2 == 1
    assert list(segments.where(odd)) == refs[1::2] and segments.where(odd).where(np.ones(len(refs[1::2]), bool)).field("num_rows").sum() > 0
