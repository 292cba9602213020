"""All operations of a table in any order, from several handles, some of which write in parts, with races in between: every snapshot is what a plain model says.

Columns come, go and change their names; rows are erased or grow too old; snapshots expire beside tags and readers' pins; writes share commits.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

import loader
from loader import failpoints
from loader.catalog.records import Pin
from loader.errors import ConflictError, KeyExistsError, NotFoundError, SnapshotNotFoundError
from tests import postgres
from tests.table.model import SCHEMA, by_key
from tests.table.test_model import FOLDS, KEYS, SMALL, START, TableMachine, check_same, keys, row_of, value
from tests.table.wide_model import WideModel

STREAMED_BYTES = 1_500  # memory of a handle that puts inputs of a few rows in parts
NAMES = ("alpha", "beta", "gamma")
NONE = datetime.timedelta(0)
numbers = st.none() | st.integers(-50, 50)
STREAMED = ("streamed.spilled", "streamed.resolved")  # passed where the handle in use puts inputs in parts
RACES = {
    "patch": ("patch.resolved", "patch.staged", *STREAMED),
    "upsert": ("upsert.resolved", "upsert.staged", *STREAMED),
    "delete": ("delete.resolved", "delete.staged", *STREAMED),
    "compact": ("compaction.picked", "compaction.rewritten", "compaction.before_commit", "fold.staged"),
}


def key_table(chosen: list[tuple[int, str]]) -> pa.Table:
    return pa.table({"user": pa.array([key[0] for key in chosen], pa.int32()), "item": pa.array([key[1] for key in chosen], pa.string())})


class WideMachine(TableMachine):
    @initialize(buckets=st.sampled_from([1, 3]), by_user=st.booleans(), partition=st.sampled_from([None, "day"]))
    def create(self, buckets: int, by_user: bool, partition: str | None) -> None:
        super().create(buckets, by_user, partition)
        self.model = WideModel()
        self.lakes = [self.lake, self._open(0), self._open(STREAMED_BYTES)]
        self.pins: list[Pin] = []
        self.tags: dict[str, int] = {}

    def _open(self, memory_bytes: int) -> loader.Lake:
        options = {"memory_bytes": memory_bytes} if memory_bytes else {}
        return loader.connect(self.folder, catalog=self.catalog, create=False, **options)

    def teardown(self) -> None:
        for lake in getattr(self, "lakes", [])[1:]:
            lake.close()
        super().teardown()

    @rule(which=st.sampled_from([0, 1, 2]))
    def take_another_handle(self, which: int) -> None:
        self.table = self.lakes[which].table("t")

    @rule()
    def reopen(self) -> None:
        self.lakes[1].close()
        self.lakes[1] = self._open(0)
        self.table = self.lakes[1].table("t")

    def _others(self) -> Any:
        """The table in a lake that is not the one in use."""
        return next(lake for lake in self.lakes if lake is not self.table.lake).table("t")

    @rule(data=st.data(), chosen=st.lists(st.lists(keys, min_size=1, max_size=3, unique=True), min_size=2, max_size=4))
    def append_together(self, data: Any, chosen: list[list[tuple[int, str]]]) -> None:
        batches = [[row_of(key, data.draw) for key in group] for group in chosen]
        with self.table._context.lock:  # nobody leads before all are queued
            futures = [self.table.append_async(pa.Table.from_pylist(rows, SCHEMA)) for rows in batches]
        done: list[tuple[int, list[dict[str, Any]]]] = []
        for rows, future in zip(batches, futures, strict=True):
            try:
                done.append((future.result().id, rows))
            except KeyExistsError:
                continue
        for number, rows in sorted(done, key=lambda pair: pair[0]):
            assert all((row["user"], row["item"]) not in self.model.rows for row in rows)
            self.model.append(rows)
            assert self.model.sequence == number
        refused = [rows for rows in batches if not any(rows is other for _, other in done)]
        assert all(any((row["user"], row["item"]) in self.model.rows for row in rows) for rows in refused)

    @rule(name=st.sampled_from(NAMES), default=st.none() | st.integers(-5, 5))
    def add_column(self, name: str, default: int | None) -> None:
        if name not in self.model.extra_names:
            self.table.add_column(pa.field(name, pa.int64()), default=default)
            self.model.add_column(name, default)

    @rule(name=st.sampled_from(NAMES))
    def drop_column(self, name: str) -> None:
        if name in self.model.extra_names:
            self.table.drop_column(name)
            self.model.drop_column(name)

    @rule(old=st.sampled_from(NAMES), new=st.sampled_from(NAMES))
    def rename_column(self, old: str, new: str) -> None:
        if old in self.model.extra_names and new not in self.model.extra_names:
            self.table.rename_column(old, new)
            self.model.rename_column(old, new)

    @rule()
    def widen_column(self) -> None:
        if self.table.schema.column("low").type == pa.int16():
            self.table.widen_column("low", pa.int32())
            self.model.follow(self.model.sequence + 1)

    @rule(data=st.data(), chosen=st.lists(keys, min_size=1, max_size=8, unique=True), name=st.sampled_from([*NAMES, "hits", "oldest", "total"]))
    def backfill_by_key(self, data: Any, chosen: list[tuple[int, str]], name: str) -> None:
        if name in NAMES and name not in self.model.extra_names:
            return
        values = [data.draw(numbers if name in NAMES else st.none() | value[name]) for _ in chosen]
        kind = pa.int64() if name in NAMES else SCHEMA.field(name).type
        self.table.backfill(key_table(chosen).append_column(name, pa.array(values, kind)))
        self.model.backfill({key: {name: one} for key, one in zip(chosen, values, strict=True)})

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def backfill_by_position(self, data: Any, name: str) -> None:
        if name not in self.model.extra_names or not self.model.rows:
            return
        order = list(by_key(self.table.to_arrow(["user", "item"])))
        values = [data.draw(numbers) for _ in order]
        self.table.backfill(pa.table({name: pa.array(values, pa.int64())}), snapshot=self.model.sequence)
        self.model.backfill({key: {name: one} for key, one in zip(order, values, strict=True)})

    @rule(chosen=st.lists(keys, min_size=1, max_size=3, unique=True), due=st.sampled_from([NONE, datetime.timedelta(hours=1)]))
    def erase(self, chosen: list[tuple[int, str]], due: datetime.timedelta) -> None:
        proof = self.table.erase(chosen, due=due)
        assert proof.verify(self.table.lake, keys=chosen) == []
        self.model.erase(chosen)
        self.model.follow(self._head())

    @rule(hours=st.integers(0, 30))
    def drop_old_rows(self, hours: int) -> None:
        before = START + datetime.timedelta(hours=hours)
        self.table.expire(older_than=datetime.timedelta(days=1), ttl=before)
        self.model.drop_old(before)
        self.model.follow(self._head())

    @rule(keep=st.integers(1, 4), collect=st.booleans())
    def expire(self, keep: int, collect: bool) -> None:
        gone = set(self.table.expire(older_than=NONE, keep=keep, grace_seconds=0).snapshots)
        newest = set(range(max(self.model.sequence - keep, 0) + 1, self.model.sequence + 1)) & set(self.model.snapshots)
        kept = {entry.id for entry in self.table.history()}
        assert {pin.snapshot_id for pin in self.pins} | set(self.tags.values()) | newest <= kept and not gone & kept
        self.model.expire(kept)
        if collect:
            self.table.lake.collect_garbage()
        for number in sorted(gone)[:1]:
            with pytest.raises(SnapshotNotFoundError):
                self.table.to_arrow(snapshot=number)

    @precondition(lambda self: self.model.sequence > 0)
    @rule(tag=st.sampled_from(["", "one", "two"]))
    def hold(self, tag: str) -> None:
        """A reader's pin, or a tag."""
        if not tag:
            self.pins.append(self.table.lake.pin("t", None, "reader", 3600))
            assert self.pins[-1].snapshot_id == self.model.sequence
        elif tag not in self.tags:
            self.tags[tag] = self.table.tag(tag)
        assert self.table.tags() == self.tags

    @precondition(lambda self: self.pins)
    @rule(at=st.integers(0, 10))
    def let_go(self, at: int) -> None:
        self.table.lake.unpin(self.pins.pop(at % len(self.pins)))

    @rule(
        data=st.data(), chosen=st.lists(keys, min_size=1, max_size=5), names=st.none() | st.sets(st.sampled_from(["latest", "tags", "ts", "total"]), min_size=1)
    )
    def look_up(self, data: Any, chosen: list[tuple[int, str]], names: set[str] | None) -> None:
        snapshot = data.draw(st.none() | st.sampled_from(sorted(set(self.model.snapshots) - {0}) or [None]))
        rows = self.model.shown() if snapshot is None else self.model.snapshots[snapshot]
        found = self.table.lookup(chosen, None if names is None else sorted(names), snapshot=snapshot).to_pylist()
        for key, got in zip(chosen, found, strict=True):
            wanted = {name: rows[key][name] if key in rows else None for name in got}
            assert got == wanted, f"look-up of {key} at {snapshot}"

    @rule(data=st.data())
    def compare_snapshots(self, data: Any) -> None:
        known = sorted(set(self.model.snapshots) - {0})
        if not known:
            return
        first, second = data.draw(st.sampled_from(known)), data.draw(st.sampled_from(known))
        names = ["latest", "total", "tags", "oldest"]
        old, new = ({key: [row[name] for name in names] for key, row in self.model.snapshots[number].items()} for number in (first, second))
        found = self.table.diff(first, second, columns=names)
        assert set(by_key(found.added)) == new.keys() - old.keys()
        assert set(by_key(found.removed)) == old.keys() - new.keys()
        assert set(by_key(found.after)) == {key for key in old.keys() & new.keys() if old[key] != new[key]}

    @rule(
        data=st.data(),
        outer=st.sampled_from(sorted(RACES)),
        inner=st.sampled_from(["patch", "upsert", "delete", "compact", "append", "expire", "erase"]),
        chosen=st.lists(keys, min_size=1, max_size=4, unique=True),
        others=st.lists(keys, min_size=1, max_size=4, unique=True),
    )
    def race(self, data: Any, outer: str, inner: str, chosen: list[tuple[int, str]], others: list[tuple[int, str]]) -> None:
        """A write of another handle is committed between the resolving and the commit of one: it comes first, and both count."""
        place = data.draw(st.sampled_from(RACES[outer]))
        first = self._write(data, inner, self._others(), others)
        second = self._write(data, outer, self.table, chosen)
        waiting: list[Callable[[], None]] = [first]

        def meanwhile() -> None:
            if waiting:
                self.model.follow(self._head())  # a compaction may have made commits
                waiting.pop()()

        with failpoints.armed(place, meanwhile):
            try:
                second()
            except (NotFoundError, ConflictError):  # a file that it needs is gone, for there is no grace here; then it has not happened
                assert inner in ("expire", "erase") and not waiting
        self.model.follow(self._head())

    def _write(self, data: Any, kind: str, table: Any, chosen: list[tuple[int, str]]) -> Callable[[], None]:
        """A write that is drawn now, and done to the table and the model when it is called."""
        model = self.model
        rows = [row_of(key, data.draw) for key in chosen]
        label_names = ["user", "item", "latest", "oldest", "total"]

        def patch() -> None:
            labels = [{name: row[name] for name in label_names} for row in rows]
            table.patch(pa.Table.from_pylist(rows, SCHEMA).select(label_names))
            model.patch(labels, order=None, drop=False)

        def upsert() -> None:
            names = [*label_names, "ts"]
            table.upsert(pa.Table.from_pylist(rows, SCHEMA).select(names))
            model.upsert([{name: row[name] for name in names} for row in rows], order=None)

        def append() -> None:
            new = [row for row in rows if (row["user"], row["item"]) not in model.rows]
            table.append(pa.Table.from_pylist(new, SCHEMA))
            model.append(new)

        def delete() -> None:
            table.delete(key_table(chosen))
            model.delete(chosen)

        def compact() -> None:
            table.compact(full=True, options=dataclasses.replace(SMALL, threads=1))
            model.follow(self._head())

        def expire() -> None:
            table.compact(full=True, options=dataclasses.replace(SMALL, threads=1))
            model.follow(self._head())
            table.expire(older_than=NONE, keep=1, grace_seconds=0)
            table.lake.collect_garbage()
            model.expire({entry.id for entry in table.history()})

        def erase() -> None:
            table.erase(chosen, due=NONE)
            model.erase(chosen)
            model.follow(self._head())

        return {"patch": patch, "upsert": upsert, "append": append, "delete": delete, "compact": compact, "expire": expire, "erase": erase}[kind]

    @rule(full=st.booleans(), options=st.sampled_from([SMALL, *FOLDS]))
    def compact(self, full: bool, options: loader.CompactionOptions) -> None:
        self.table.compact(full=full, options=options)
        self.model.follow(self._head())

    def _head(self) -> int:
        return int(self.table.view().snapshot_id)

    @precondition(lambda self: hasattr(self, "pins"))
    @invariant()
    def what_is_held_stays(self) -> None:
        for number in {*(pin.snapshot_id for pin in self.pins[-2:]), *self.tags.values()}:
            check_same(by_key(self.table.to_arrow(snapshot=number)), self.model.snapshots[number])

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def head_is_right(self) -> None:
        check_same(by_key(self.table.to_arrow()), self.model.shown())

    @rule(data=st.data())
    def time_travel(self, data: Any) -> None:
        kept = sorted(set(self.model.snapshots) - {0})
        if kept:
            snapshot = data.draw(st.sampled_from(kept))
            check_same(by_key(self.table.to_arrow(snapshot=snapshot)), self.model.snapshots[snapshot])


class SharedWideMachine(WideMachine):
    def new_catalog(self) -> str | None:
        return postgres.new_catalog()


assert len(KEYS) == 12, "few enough for writes to meet"
TestWideTable = WideMachine.TestCase
pytestmark = pytest.mark.timeout(600)
TestWideTable.settings = settings(max_examples=25, stateful_step_count=16, deadline=None, derandomize=True)
TestSharedWideTable = SharedWideMachine.TestCase
TestSharedWideTable.settings = settings(max_examples=10, stateful_step_count=16, deadline=None, derandomize=True)
