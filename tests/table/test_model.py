"""Appends, patches, compactions and time travel in any order give what a plain in-memory model gives."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import tempfile
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import loader
from loader import CompactionOptions
from tests import postgres
from tests.table.model import RULES, SCHEMA, Model, by_key

KEYS = [(user, item) for user in range(4) for item in ("a", "bb", "a long item name")]
SMALL = CompactionOptions(min_segments=2, max_segments=2, memory_bytes=2_000, max_overlays=1)
FOLDS = [  # nothing is rewritten: patches become one, or column files
    dataclasses.replace(SMALL, max_segments=1_000, min_segments=1_000, dead_fraction=2.0, overlay_fraction=2.0, max_overlays=0),
    dataclasses.replace(SMALL, max_segments=1_000, min_segments=1_000, dead_fraction=2.0, overlay_fraction=0.0, fold_rows=1),
]
START = datetime.datetime(2024, 1, 1)

value = {
    "latest": st.integers(-(1 << 40), 1 << 40),
    "oldest": st.integers(0, 100),
    "peak": st.floats(-10, 10, width=32),
    "low": st.integers(-100, 100),
    "total": st.integers(-1000, 1000),
    "hits": st.integers(0, 5),
    "seen": st.booleans(),
    "tags": st.lists(st.integers(0, 9), max_size=4),
}
keys = st.sampled_from(KEYS)


def row_of(key: tuple[int, str], draw: Any) -> dict[str, Any]:
    row = {"user": key[0], "item": key[1], "ts": START + datetime.timedelta(hours=draw(st.integers(0, 60)))}
    return row | {name: draw(st.none() | value[name]) for name in RULES}


def check_same(got: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    assert got.keys() == wanted.keys()
    for key, row in wanted.items():
        assert got[key] == row, f"row {key}"


class TableMachine(RuleBasedStateMachine):
    def new_catalog(self) -> str | None:
        return None

    @initialize(buckets=st.sampled_from([1, 3]), by_user=st.booleans(), partition=st.sampled_from([None, "day"]))
    def create(self, buckets: int, by_user: bool, partition: str | None) -> None:
        self.folder = tempfile.mkdtemp(prefix="headrace-model-")
        self.catalog = self.new_catalog()
        self.lake = loader.connect(self.folder, catalog=self.catalog)
        self.table = self.lake.create_table(
            "t",
            SCHEMA,
            primary_key=["user", "item"],
            bucket_by=["user"] if by_user else None,
            buckets=buckets,
            cluster_by=["user", "ts"],
            time_column="ts",
            partition_by=partition,
            merge={name: rule for name, rule in RULES.items() if rule != "last"},
            durability="relaxed",
        )
        self.model = Model()

    def teardown(self) -> None:
        if hasattr(self, "lake"):
            assert [str(finding) for finding in self.lake.doctor(deep=True).findings] == []
            self.lake.close()
            if self.catalog is not None:
                postgres.drop_catalog(self.catalog)
            shutil.rmtree(self.folder)

    @rule(data=st.data(), chosen=st.lists(keys, min_size=1, max_size=6, unique=True), trust=st.booleans())
    def append(self, data: Any, chosen: list[tuple[int, str]], trust: bool) -> None:
        new = [key for key in chosen if key not in self.model.rows]
        rows = [row_of(key, data.draw) for key in new]
        self.table.append(pa.Table.from_pylist(rows, SCHEMA), on_conflict="trust" if trust else "check")
        self.model.append(rows)

    @rule(
        data=st.data(),
        chosen=st.lists(keys, min_size=1, max_size=6),
        ordered=st.booleans(),
        drop=st.booleans(),
        names=st.sets(st.sampled_from(sorted(RULES)), min_size=1),
    )
    def patch(self, data: Any, chosen: list[tuple[int, str]], ordered: bool, drop: bool, names: set[str]) -> None:
        labels = []
        for user, item in chosen:
            label = {"user": user, "item": item} | {name: data.draw(st.none() | value[name]) for name in names}
            labels.append(label | ({"at": data.draw(st.integers(0, 20))} if ordered else {}))
        fields = [SCHEMA.field(name) for name in ("user", "item", *sorted(names))] + ([pa.field("at", pa.int64())] if ordered else [])
        order = "at" if ordered else None
        self.table.patch(pa.Table.from_pylist(labels, pa.schema(fields)), order=order, on_missing="drop" if drop else "hold")
        self.model.patch(labels, order=order, drop=drop)

    @rule(full=st.booleans(), options=st.sampled_from([SMALL, *FOLDS]))
    def compact(self, full: bool, options: CompactionOptions) -> None:
        report = self.table.compact(full=full, options=options)
        assert report.num_abandoned == 0
        self.model.compact(len(report.snapshots))

    @rule(
        data=st.data(),
        chosen=st.lists(keys, min_size=1, max_size=6),
        ordered=st.booleans(),
        names=st.sets(st.sampled_from(sorted(RULES)), min_size=1),
    )
    def upsert(self, data: Any, chosen: list[tuple[int, str]], ordered: bool, names: set[str]) -> None:
        rows, times = [], {}
        for user, item in chosen:
            time = times.setdefault((user, item), START + datetime.timedelta(hours=data.draw(st.integers(0, 60))))
            row = {"user": user, "item": item, "ts": time} | {name: data.draw(st.none() | value[name]) for name in names}
            rows.append(row | ({"at": data.draw(st.integers(0, 20))} if ordered else {}))
        fields = [SCHEMA.field(name) for name in ("user", "item", "ts", *sorted(names))] + ([pa.field("at", pa.int64())] if ordered else [])
        order = "at" if ordered else None
        self.table.upsert(pa.Table.from_pylist(rows, pa.schema(fields)), order=order)
        self.model.upsert(rows, order=order)

    @rule(chosen=st.lists(keys, max_size=4))
    def delete_keys(self, chosen: list[tuple[int, str]]) -> None:
        self.table.delete(pa.table({"user": [key[0] for key in chosen], "item": pa.array([key[1] for key in chosen], pa.string())}))
        self.model.delete(chosen)

    @rule(data=st.data(), chosen=st.lists(keys, min_size=1, max_size=4, unique=True), low=st.integers(-5, 100))
    def overwrite(self, data: Any, chosen: list[tuple[int, str]], low: int) -> None:
        gone = [key for key, row in self.model.shown().items() if row["oldest"] is not None and row["oldest"] < low]
        new = [row_of(key, data.draw) for key in chosen if key not in self.model.rows or key in gone]
        self.table.overwrite(pa.Table.from_pylist(new, SCHEMA), f"oldest < {low}")
        self.model.overwrite(gone, new)

    @rule(low=st.integers(-5, 100))
    def delete_where(self, low: int) -> None:
        self.table.delete(f"oldest >= {low} and item <> 'bb'")
        shown = self.model.shown()
        self.model.delete([key for key, row in shown.items() if row["oldest"] is not None and row["oldest"] >= low and key[1] != "bb"])

    @rule()
    def reopen(self) -> None:
        self.lake.close()
        self.lake = loader.connect(self.folder, catalog=self.catalog, create=False)
        self.table = self.lake.table("t")

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def head_is_right(self) -> None:
        check_same(by_key(self.table.to_arrow()), self.model.shown())
        assert self.table.view().num_rows == len(self.model.rows)

    @rule(data=st.data())
    def time_travel(self, data: Any) -> None:
        snapshot = data.draw(st.sampled_from(sorted(self.model.snapshots)))
        check_same(by_key(self.table.to_arrow(snapshot=snapshot)), self.model.snapshots[snapshot])
        assert [entry.id for entry in self.table.history()] == list(range(1, self.model.sequence + 1))


class SharedTableMachine(TableMachine):
    def new_catalog(self) -> str | None:
        return postgres.new_catalog()


TestTable = TableMachine.TestCase
pytestmark = pytest.mark.timeout(600)  # every example ends with the doctor reading all of it
TestTable.settings = settings(max_examples=25, stateful_step_count=14, deadline=None, derandomize=True)
TestSharedTable = SharedTableMachine.TestCase
TestSharedTable.settings = settings(max_examples=10, stateful_step_count=14, deadline=None, derandomize=True)
