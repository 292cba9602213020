"""Claims about pruning: it never loses a row, whatever was patched, backfilled, deleted, widened, renamed or compacted; and it does prune."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loader
from loader.catalog import sealing
from loader.scan.explain import Explanation
from loader.table import reading, sealer

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("user", pa.string(), nullable=False),
        pa.field("ts", pa.timestamp("s"), nullable=False),
        pa.field("small", pa.int16()),
        pa.field("big", pa.uint64()),
        pa.field("price", pa.float32()),
        pa.field("name", pa.string()),
        pa.field("label", pa.int8()),
        pa.field("flag", pa.bool_()),
    ]
)
HOUR = 3600


def rows(start: int, stop: int, rng: np.random.Generator) -> pa.Table:
    """Rows whose values lie close together, with nulls, NaN, and numbers past what a signed word or a double holds."""
    count, ids = stop - start, np.arange(start, stop)
    price = (ids // 10 + rng.normal(size=count)).astype(np.float32)
    price[rng.random(count) < 0.2] = np.nan

    def some(values: Any, kind: pa.DataType, share: float = 0.3) -> pa.Array:
        return pa.array(values, kind, mask=rng.random(count) < share)

    return pa.table(
        {
            "id": ids,
            "user": [f"user-{one}" for one in rng.integers(0, 5, count)],
            "ts": pa.array(ids * 600, pa.timestamp("s")),
            "small": some((ids // 7 - 20).astype(np.int16), pa.int16(), 1.0 if rng.random() < 0.2 else 0.3),
            "big": some(ids.astype(np.uint64) + np.uint64(2**63 - 30), pa.uint64()),
            "price": some(price, pa.float32()),
            "name": some([("x" * 8 + f"{one:03d}", f"é{one % 3}", "")[one % 3] for one in ids.tolist()], pa.string()),
            "label": pa.nulls(count, pa.int8()),
            "flag": some(ids % 2 == 0, pa.bool_()),
        },
        schema=SCHEMA,
    )


leaves = st.one_of(
    st.builds("{} {} {}".format, st.just("id"), st.sampled_from(["=", "<", ">=", ">", "<>"]), st.integers(-5, 150)),
    st.builds("{} {} {}".format, st.just("small"), st.sampled_from(["=", "<", ">=", ">", "<="]), st.sampled_from([-20, -10, -3, 0, 2.5, 7, 40000, 1e9])),
    st.builds("big {} {}".format, st.sampled_from(["=", "<", ">="]), st.sampled_from([-1, 2**63 - 31, 2**63 - 1, 2**63, 2**63 + 40, 2**64])),
    st.builds("{} {} {}".format, st.just("price"), st.sampled_from(["=", "<", ">=", ">"]), st.sampled_from([-1, 0, 3.25, 7, 12.0001, 1e300])),
    st.builds("name {} '{}'".format, st.sampled_from(["=", "<", ">="]), st.sampled_from(["", "a", "xxxxxxxx", "xxxxxxxx003", "xxxxxxxx9", "é", "é1", "\x7f"])),
    st.builds("ts {} '1970-01-01 {:02d}:00:00'".format, st.sampled_from(["=", "<", ">=", ">", "<="]), st.integers(0, 23)),
    st.builds("user {} 'user-{}'".format, st.sampled_from(["=", ">"]), st.integers(0, 6)),
    st.builds("id in ({}, {}, 7.5)".format, st.integers(0, 120), st.integers(0, 120)),
    st.builds("user in ('user-{}', 'nobody') and id between {} and 99".format, st.integers(0, 5), st.integers(0, 120)),
    st.sampled_from(["small is null", "small is not null", "name is null", "label is null", "label = 0", "label = 1", "label > 0", "flag", "not flag"]),
    st.sampled_from(["price is null", "price is not null", "added is null", "added = 5", "added > 5", "flag is null", "big is not null"]),
)
predicates = st.one_of(leaves, st.builds("{} and {}".format, leaves, leaves), st.builds("({} or {}) and {}".format, leaves, leaves, leaves))
OPERATIONS = ["append", "append", "patch", "patch null", "delete", "backfill", "compact", "widen", "rename", "expire"]
operations = st.lists(st.sampled_from(OPERATIONS), min_size=4, max_size=9)


class History:
    """A table and what was done to it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng, self.at, self.renamed, self.widened = np.random.default_rng(seed), 0, False, False
        self.lake = loader.connect(folder)
        self.table = self.lake.create_table(
            "t",
            SCHEMA,
            primary_key=["id"],
            bucket_by=["user"],
            buckets=3,
            cluster_by=["user", "ts"],
            time_column="ts",
            partition_by="hour",
            attribution=loader.Attribution("label", window_seconds=HOUR),
            durability="relaxed",
        )
        self.table.add_column(pa.field("added", pa.int32()), default=5)
        self.table = self.lake.table("t")

    def run(self, operation: str) -> None:
        table, rng = self.table, self.rng
        ids = np.unique(rng.integers(0, max(self.at, 1), 6))
        price = "cost" if self.renamed else "price"
        if operation == "append" or not self.at:
            data = rows(self.at, self.at + 18, rng).append_column("added", pa.array(np.full(18, self.at % 9), pa.int32()))
            data = data.rename_columns([price if name == "price" else name for name in data.column_names])
            table.append(data.cast(table.schema.to_arrow()), watermark=self.at * 600)
            self.at += 18
        elif operation == "patch":
            table.patch(pa.table({"id": ids, "small": pa.array(rng.integers(-300, 300, len(ids)), pa.int16()), "label": pa.array([1] * len(ids), pa.int8())}))
        elif operation == "patch null":
            table.patch(pa.table({"id": ids, "name": ["zz"] * len(ids), price: pa.array([-7.5] * len(ids), pa.float32())}))
        elif operation == "delete":
            table.delete(pa.table({"id": ids}))
        elif operation == "backfill":
            table.backfill(pa.table({"id": ids, "added": pa.array(rng.integers(100, 200, len(ids)), pa.int32()), "flag": [True] * len(ids)}))
        elif operation == "compact":
            table.compact(full=True)
        elif operation == "expire":
            table.expire(older_than=datetime.timedelta(0))
        elif operation == "widen" and not self.widened:
            table.widen_column("small", pa.int64())
            self.widened = True
        elif operation == "rename" and not self.renamed:
            table.rename_column("price", "cost")
            self.renamed = True
        self.table = self.lake.table("t")


@given(operations, st.lists(predicates, min_size=6, max_size=6), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_a_pruned_scan_is_the_filter_of_the_whole(tmp_path_factory: pytest.TempPathFactory, done: list[str], wheres: list[str], seed: int) -> None:
    patcher = pytest.MonkeyPatch()
    patcher.setattr(sealing, "PACK_SEGMENTS", 8)
    patcher.setattr(sealer, "EVERY_SEGMENTS", 3)
    history = History(tmp_path_factory.mktemp("prune") / "lake", seed)
    try:
        for operation in done:
            history.run(operation)
        table, fresh = history.table, loader.connect(history.lake.location).table("t")
        view = table.view()
        for where in wheres:
            where = where.replace("price", "cost") if history.renamed else where
            want = reading.read_view(view, history.lake.storage, columns=["id"], where=where)["id"].to_pylist()
            assert table.to_arrow(["id"], where=where)["id"].to_pylist() == want, where
            assert table.to_batches(["id"], where=where).read_all()["id"].to_pylist() == want, where
            assert fresh.scan(columns=["id"], where=where).plan().num_rows == len(want), f"{where}: planned from a part of the catalog"
    finally:
        history.lake.close()
        patcher.undo()


@pytest.fixture
def ordered(tmp_path: Path) -> Any:
    """Twenty commits of a day each, over four buckets; `small` grows with time."""
    lake = loader.connect(tmp_path / "lake")
    table = lake.create_table("t", SCHEMA, primary_key=["id"], bucket_by=["user"], buckets=4, time_column="ts", partition_by="day", durability="relaxed")
    rng = np.random.default_rng(3)
    for day in range(20):
        table.append(rows(day * 144, day * 144 + 144, rng), on_conflict="trust")
    yield table
    lake.close()


def test_explain_says_what_each_step_left(ordered: Any) -> None:
    found: Explanation = ordered.scan(where="ts >= '1970-01-05' and ts < '1970-01-08' and user = 'user-1' and name > 'y' and id < 800").explain()
    left = {step.name: step.segments for step in found.steps}
    by_day = len(ordered.view().segments) // 20
    assert list(left) == [
        "the snapshot", "deleted rows", "time (ts)", "bucket (user)", "statistics of ts", "statistics of user", "statistics of name", "statistics of id",
        "statistics of blocks",
    ]  # fmt: skip
    assert left["time (ts)"] <= 3 * by_day and left["bucket (user)"] == 3 and left["statistics of id"] == 2
    assert all(a.rows >= b.rows for a, b in zip(found.steps, found.steps[1:], strict=False))
    assert "statistics of name" in str(found)


def test_a_range_of_time_is_planned_without_counting(ordered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from loader.scan.fetch import BlockFetcher

    monkeypatch.setattr(BlockFetcher, "fetch_place", lambda *_: pytest.fail("a block was read"))
    plan = ordered.scan(columns=["id"], where="ts >= '1970-01-05' and ts < '1970-01-08'").plan()
    assert plan.num_rows == 3 * 144 and len(plan.segments) * 20 == 3 * len(ordered.view().segments)


def test_statistics_are_kept_as_the_schema_asks(tmp_path: Path) -> None:
    """Of `off` columns none, of `on` columns past the first dozen too: seen by what explain prunes."""
    fields = [pa.field("id", pa.int64(), nullable=False)] + [pa.field(f"c{number:02d}", pa.int32()) for number in range(20)]
    fields[1] = fields[1].with_metadata({b"headrace.statistics": b"off"})
    fields[20] = fields[20].with_metadata({b"headrace.statistics": b"on"})
    with loader.connect(tmp_path / "lake") as lake:
        table = lake.create_table("t", pa.schema(fields), primary_key=["id"])
        for start in (0, 10):
            values = np.arange(start, start + 10)
            table.append(pa.table([values] + [values.astype(np.int32)] * 20, schema=pa.schema(fields)))
        left = {name: table.scan(where=f"{name} > 12").explain(footers=False).steps[-1].segments for name in ("c00", "c01", "c18", "c19")}
    assert left == {"c00": 2, "c01": 1, "c18": 2, "c19": 1}
