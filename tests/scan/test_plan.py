"""Claims about plans: exact counts, pruning that loses nothing, selections shared through the catalog, and fetchers rebuilt from plain data."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loader
from loader.errors import SnapshotNotFoundError, StateMismatchError
from loader.scan import plan as planning
from loader.scan.encoded import FetchRequest
from loader.scan.fetch import BlockFetcher, FetchSpec
from loader.scan.plan import open_fetcher
from loader.scan.selection import BLOCK_KEY, Selection
from loader.scan.stream import ThreadBlockStream
from loader.segment import writer

quick = settings(max_examples=20, deadline=None, derandomize=True, database=None)
NUM_ROWS, COMMIT_ROWS = 900, 150
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("ts", pa.timestamp("s"), nullable=False),
        pa.field("a", pa.int32()),
        pa.field("b", pa.float64()),
        pa.field("label", pa.int8()),
    ]
)


def table_rows(start, stop):
    rng = np.random.default_rng(start)
    step, count = np.arange(start, stop), stop - start
    return pa.table(
        {
            "id": step,
            "ts": pa.array(step * 60, pa.timestamp("s")),
            "a": pa.array((step // 10).astype(np.int32), mask=rng.random(count) < 0.1),
            "b": pa.array(rng.normal(size=count), mask=rng.random(count) < 0.1),
            "label": pa.nulls(count, pa.int8()),
        },
        schema=SCHEMA,
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Six segments of five blocks each, in time order; labels of every third row, and `a` of some rows, come as patches."""
    patcher = pytest.MonkeyPatch()
    patcher.setattr(writer, "MAX_BLOCK_ROWS", 30)
    patcher.setattr(writer.WriteOptions.__init__, "__kwdefaults__", {**writer.WriteOptions.__init__.__kwdefaults__, "block_rows": 30})
    lake = loader.connect(str(tmp_path_factory.mktemp("plan") / "lake"))
    table = lake.create_table(
        "events",
        SCHEMA,
        primary_key=["id"],
        cluster_by=["ts"],
        time_column="ts",
        attribution=loader.Attribution(column="label", window_seconds=3600, default=0),
        durability="relaxed",
    )
    for start in range(0, NUM_ROWS, COMMIT_ROWS):
        table.append(table_rows(start, start + COMMIT_ROWS), on_conflict="trust", watermark=start * 60)
    patcher.undo()
    hits = np.arange(0, NUM_ROWS, 3)
    table.patch(pa.table({"id": hits, "label": pa.array(np.ones(len(hits), np.int8))}), watermark=(NUM_ROWS - 1) * 60)
    table.patch(pa.table({"id": [5, 6], "a": pa.array([777, 778], pa.int32())}))
    yield table
    lake.close()


def fetched(monkeypatch):
    """Records the (segment, block) of every fetch."""
    seen = []
    real = BlockFetcher.fetch_place
    monkeypatch.setattr(
        BlockFetcher, "fetch_place", lambda self, request, place: (seen.append((place.ref.segment_id, place.block)), real(self, request, place))[1]
    )
    return seen


def test_a_plan_lists_every_block_with_its_rows_without_reading_any(table, monkeypatch):
    seen = fetched(monkeypatch)
    plan = table.scan(columns=["id"]).plan()
    assert plan.num_rows == NUM_ROWS and plan.num_blocks == 30 and not seen
    assert plan.row_starts.tolist() == [0, 30, 60, 90, 120] * 6 and set(plan.blocks["num_rows"]) == {30}


conditions = st.sampled_from(
    [
        "a > 31", "a between 12 and 40", "a = 777", "a is null", "b < 0", "b > 0.5 and a < 80", "not (a < 20)", "label = 1", "label = 0", "label is null",
        "ts >= '1970-01-01T10:00:00'", "ts < TIMESTAMP '1970-01-01 03:00:00' and b > 0", "id in (3, 4, 500)", "a > 1000", "a + b > 50", "id < 31 or id > 880",
    ]
)  # fmt: skip


@quick
@given(conditions, conditions, st.sampled_from([None, "watermark", 20_000, 7_000]))
def test_a_plan_counts_exactly_what_the_table_selects(table, one, other, closed_before):
    where = f"({one}) and ({other})"
    want = table.to_arrow(["id"], where=where, closed_before=closed_before)
    plan = table.scan(columns=["id"], where=where, closed_before=closed_before).plan()
    assert plan.num_rows == want.num_rows
    if want.num_rows:
        batches = loader.DataLoader(table.scan(columns=["id"], where=where, closed_before=closed_before), global_batch_size=64, remainder="uneven")
        assert sorted(int(i) for batch in batches for i in batch["id"]) == sorted(want["id"].to_pylist())


def test_time_and_statistics_keep_blocks_from_being_read(table, monkeypatch):
    seen = fetched(monkeypatch)
    plan = table.scan(columns=["id"], where="ts >= '1970-01-01T12:30:00' and ts < '1970-01-01T13:00:00'").plan()
    assert plan.num_rows == 30 and len(seen) == 1
    seen.clear()
    assert table.scan(columns=["id"], closed_before=20_000).plan().num_rows == (20_000 - 3600) // 60 + 1
    assert len(seen) <= 5, "only the segment in which the cut falls is read, and of it only blocks before the cut"
    seen.clear()
    assert table.scan(columns=["id"], where="a = 777").plan().num_rows == 1
    assert {segment for segment, _ in seen} == {table.view().segments[0].segment_id}, "a patched column's statistics say nothing in that segment alone"


def test_closed_before_takes_numbers_text_and_the_watermark(table):
    scans = [table.scan(columns=["id"], closed_before=value) for value in (20_000, "20000", "1970-01-01T05:33:20")]
    assert len({scan.plan().selection_hash for scan in scans}) == 1
    plan = table.scan(columns=["id"], closed_before="watermark").plan()
    assert plan.closed_before == (NUM_ROWS - 1) * 60 and plan.num_rows == NUM_ROWS - 60


def test_a_fetcher_rebuilt_from_json_fetches_the_same_bytes(table, monkeypatch):
    plan = table.scan(columns=["id", "a", "label"], where="b > 0").plan()
    spec = FetchSpec.from_json(json.dumps(json.loads(plan.fetch_spec().to_json())))
    monkeypatch.setattr(planning, "select", lambda *_: pytest.fail("the selection was counted again"))
    remote = open_fetcher(spec)
    for block in range(plan.num_blocks):
        request = FetchRequest(sequence=block, shard=0, block=block)
        ours, theirs = plan.fetcher().fetch(request), remote.fetch(request)
        assert [bytes(memoryview(part)) for part in ours.to_buffers()] == [bytes(memoryview(part)) for part in theirs.to_buffers()]


def test_a_spec_of_another_plan_is_refused(table):
    spec = table.scan(columns=["id"]).plan().fetch_spec()
    with pytest.raises(StateMismatchError, match="selects 900 rows.*901"):
        open_fetcher(FetchSpec.from_json(spec.to_json().replace("900", "901")))


def test_any_stream_gives_the_same_batches(table):
    scan = table.scan(columns=["id"], where="a > 3")
    ours = [batch["id"].tolist() for batch in loader.DataLoader(scan, global_batch_size=50)]
    theirs = loader.DataLoader(scan, global_batch_size=50, stream=lambda spec: ThreadBlockStream(open_fetcher(spec).fetch, threads=1))
    assert [batch["id"].tolist() for batch in theirs] == ours


def test_plans_of_old_snapshots_and_tags(table):
    table.tag("second", 2)
    assert table.scan(columns=["id"], snapshot="second").plan().num_rows == table.scan(columns=["id"], snapshot=2).plan().num_rows == 2 * COMMIT_ROWS
    with pytest.raises(SnapshotNotFoundError):
        table.scan(snapshot=99).plan()


def test_selections_survive_the_catalog_and_refuse_other_versions():
    blocks = np.array([(1, 0, 10, 10), (1, 1, 10, 3), (2, 0, 9, 0)], BLOCK_KEY)
    bits = np.packbits(np.arange(10) < 3, bitorder="little")
    again = Selection.from_bytes(Selection(blocks=blocks, bits={1: bits}).to_bytes())
    assert (again.blocks == blocks).all() and list(again.bits) == [1] and (again.bits[1] == bits).all()
    data = Selection(blocks=blocks, bits={1: bits}).to_bytes()
    for broken in (b"\x09" + data[1:], data[:20], data[:-1], data[:-2], data + b"\x00", b""):
        with pytest.raises(StateMismatchError):
            Selection.from_bytes(broken)
