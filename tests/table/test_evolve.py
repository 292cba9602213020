"""Schema evolution: old segments under the new schema, old snapshots under the old one, in reads, writes, compaction and training scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import loader
from loader import failpoints
from loader.errors import AlreadyExistsError, ColumnNotFoundError, ConflictError, KeyExistsError, SchemaError
from loader.lake import Lake
from loader.table.table import Table
from tests.table.samples import create, labels, rows


def scanned(table: Table, *names: str) -> dict[int, tuple[Any, ...]]:
    """What a training scan gives, by item."""
    found = {}
    for batch in loader.DataLoader(table.scan(columns=["item", *names]), global_batch_size=16, remainder="uneven", output="arrow"):
        for row in batch.to_pylist():
            found[row["item"]] = tuple(row[name] for name in names)
    return found


def read(table: Table, *names: str, **options: Any) -> dict[int, tuple[Any, ...]]:
    return {row["item"]: tuple(row[name] for name in names) for row in table.to_arrow(["item", *names], **options).to_pylist()}


def same(table: Table, *names: str) -> dict[int, tuple[Any, ...]]:
    """The same from a read and from a scan."""
    found = read(table, *names)
    assert scanned(table, *names) == found
    return found


def test_an_added_column_reads_as_its_default_and_takes_values(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    table.add_column(pa.field("price", pa.float32()), default=1.5)
    table.add_column(pa.field("tags", pa.list_(pa.int32())), default=[7, 8])
    table.add_column(pa.field("note", pa.int64()))
    table.add_column(pa.field("total", pa.int64(), nullable=False), default=100, merge="sum")
    assert same(table, "price", "tags", "note", "total") == dict.fromkeys(range(10), (1.5, [7, 8], None, 100))
    new = rows(10, 12).append_column("price", pa.array([2.0, None], pa.float32()))
    table.append(new)  # without tags, note and total
    table.patch(labels([3, 10], clicks=[1, 1]).append_column("total", pa.array([5, 5])))
    table.upsert(rows(3, 4).select(["user", "item", "ts"]).append_column("price", pa.array([9.0], pa.float32())))
    table.upsert(rows(12, 13).select(["user", "item", "ts"]).append_column("total", pa.array([4])))
    wanted = dict.fromkeys(range(10), (1.5, [7, 8], None, 100))
    wanted |= {3: (9.0, [7, 8], None, 105), 10: (2.0, [7, 8], None, 105), 11: (None, [7, 8], None, 100), 12: (1.5, [7, 8], None, 4)}
    assert same(table, "price", "tags", "note", "total") == wanted
    assert sorted(table.to_arrow(where="total > 100")["item"].to_pylist()) == [3, 10]
    table.compact(full=True)
    assert same(table, "price", "tags", "note", "total") == wanted
    with pytest.raises(ColumnNotFoundError):
        table.to_arrow(["price"], snapshot=1)


def test_old_snapshots_are_read_by_their_own_names(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 5), watermark=10_000_000)
    before = table.to_arrow()
    table.rename_column("label", "bought")
    table.rename_column("user", "household")
    table.drop_column("history")
    table.reorder_columns(["clicks", "item"])
    assert table.schema.names == ["clicks", "item", "household", "ts", "bought"]
    assert table.primary_key == ["household", "item"] and table.attribution is not None and table.attribution.column == "bought"
    assert table.to_arrow().column_names == table.schema.names
    assert table.to_arrow()["bought"].to_pylist() == before["label"].to_pylist()
    assert table.to_arrow(snapshot=1).equals(before)
    table.patch(pa.table({"household": before["user"][:1], "item": before["item"][:1], "clicks": [4]}))
    table.compact(full=True)
    assert table.to_arrow()["clicks"].to_numpy().sum() == 4
    table.add_column(pa.field("history", pa.int8()))
    assert table.to_arrow()["history"].null_count == 5, "a name that comes again is another column"
    assert table.to_arrow(snapshot=1).equals(before)


def test_widened_values_are_the_same(lake: Lake) -> None:
    schema = pa.schema([("id", pa.int32()), ("small", pa.int8()), ("ratio", pa.float16()), ("ids", pa.list_(pa.int32())), ("text", pa.string())])
    table = lake.create_table("wide", schema, primary_key=["id"], cluster_by=["text"])
    data = pa.table(
        {
            "id": pa.array(range(50), pa.int32()),
            "small": pa.array([None if i % 7 == 0 else i - 25 for i in range(50)], pa.int8()),
            "ratio": pa.array(np.linspace(-2, 2, 50).astype(np.float16)),
            "ids": pa.array([list(range(-i % 5)) for i in range(50)], pa.list_(pa.int32())),
            "text": [str(i) for i in range(50)],
        },
        schema=schema,
    )
    table.append(data)
    for name, kind in (("id", pa.int64()), ("small", pa.int32()), ("ratio", pa.float64()), ("ids", pa.list_(pa.int64())), ("text", pa.large_string())):
        table.widen_column(name, kind)
    wanted = {row["id"]: row for row in data.cast(table.schema.to_arrow()).to_pylist()}

    def check() -> None:
        found = table.to_arrow()
        assert found.schema.types == table.schema.to_arrow().types
        assert {row["id"]: row for row in found.to_pylist()} == wanted
        for batch in loader.DataLoader(table.scan(), global_batch_size=8, remainder="uneven", output="arrow"):
            assert all(row == wanted[row["id"]] for row in batch.to_pylist())

    check()
    table.patch(pa.table({"id": [3, 4], "small": [70_000, None]}))
    wanted[3]["small"] = 70_000
    check()
    assert table.to_arrow(where="small >= 70000")["id"].to_pylist() == [3]
    table.upsert(pa.table({"id": [1 << 40, 3], "text": ["new", "three"]}))
    wanted |= {1 << 40: {"id": 1 << 40, "small": None, "ratio": None, "ids": None, "text": "new"}, 3: wanted[3] | {"text": "three"}}
    check()
    table.compact(full=True)
    check()


def test_a_writer_under_the_schema_before_is_refused_and_can_repeat(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table, other = create(lake), make_lake().table("samples")
    other.add_column(pa.field("price", pa.float32()))
    with pytest.raises(ConflictError, match="the schema of table 'samples' changed while this commit was prepared: open the table again"):
        table.append(rows(0, 5))
    lake.table("samples").append(rows(0, 5))
    done: list[int] = []

    def meanwhile() -> None:
        if not done:
            done.append(1)
            other.add_column(pa.field("second", pa.int8()))

    with failpoints.armed("evolve.prepared", meanwhile):
        lake.table("samples").rename_column("price", "cost")
    assert lake.table("samples").schema.names[-2:] == ["cost", "second"]


def test_what_is_wrong_is_named(lake: Lake) -> None:
    table = create(lake)
    wrong: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: table.add_column(pa.field("item", pa.int8())), AlreadyExistsError, "has a column 'item' already"),
        (lambda: table.add_column(pa.field("x", pa.int8(), nullable=False)), SchemaError, "rows that are there need a value: give default="),
        (lambda: table.add_column(pa.field("x", pa.int8()), default="a"), SchemaError, "default 'a' is no int8"),
        (lambda: table.add_column(pa.field("x", pa.string()), merge="sum"), SchemaError, "needs a number"),
        (lambda: table.add_column(pa.field("__x", pa.int8())), SchemaError, "two underscores"),
        (lambda: table.drop_column("ts"), SchemaError, "is part of its cluster_by"),
        (lambda: table.drop_column("label"), SchemaError, "is part of its attribution"),
        (lambda: table.drop_column("colour"), ColumnNotFoundError, "colour"),
        (lambda: table.rename_column("ts", "item"), AlreadyExistsError, "'item' already"),
        (lambda: table.widen_column("clicks", pa.int32()), SchemaError, "is int64 and cannot become int32: wider types are none"),
        (lambda: table.widen_column("label", pa.uint16()), SchemaError, "wider types are int16, int32, int64"),
        (lambda: table.reorder_columns(["ts", "ts"]), ValueError, "named twice"),
    ]
    for action, kind, message in wrong:
        with pytest.raises(kind, match=message):
            action()
    assert table.history() == []


def test_an_unsigned_key_is_widened_only_as_far_as_its_rows_are_found(lake: Lake) -> None:
    table = lake.create_table("counted", pa.schema([("id", pa.uint8()), ("value", pa.int64())]), primary_key=["id"])
    table.append(pa.table({"id": [5, 250], "value": [1, 2]}))
    with pytest.raises(SchemaError, match="'id' is the key of table 'counted'.* is uint8 and cannot become uint64"):
        table.widen_column("id", pa.uint64())
    table.widen_column("id", pa.uint32())
    with pytest.raises(KeyExistsError):
        table.append(pa.table({"id": [250], "value": [3]}))
    assert table.lookup([250, 70_000])["value"].to_pylist() == [2, None]
