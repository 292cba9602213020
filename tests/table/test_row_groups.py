"""Row groups answer look-ups as columns do: patched, deleted, filled in later, compacted, erased or damaged."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loader.errors import CorruptSegmentError, SchemaError, UnsupportedVersionError
from loader.lake import Lake
from loader.segment import lookup_rows
from loader.segment.layout import Section
from loader.segment.lookup_rows import HEADER, LookupRows, RowLayout, encode_rows
from loader.segment.reader import SegmentReader
from loader.table import row_groups
from loader.table.lookup import LookUp
from loader.table.segments import LOOKUP_ROWS_IDS, group_of
from loader.table.table import Table

TYPES = {
    "key": pa.int64(),
    "user": pa.string(),
    "clicks": pa.int32(),
    "watch": pa.float32(),
    "seen": pa.timestamp("us"),
    "is_new": pa.bool_(),
    "price": pa.float64(),
    "vector": pa.list_(pa.float32()),
    "raw": pa.large_binary(),
    "digest": pa.binary(6),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "MIN_ROWS", 1)
    monkeypatch.setattr(row_groups, "PIECE_ROWS", 70)


def data(start: int, stop: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed + start)
    count = stop - start

    def some(values: list[Any]) -> list[Any]:
        return [None if hidden else value for value, hidden in zip(values, (rng.random(count) < 0.2).tolist(), strict=True)]

    numbers = rng.integers(0, 1000, count).tolist()
    columns = {
        "key": list(range(start, stop)),
        "user": some([f"user {'é' * (n % 4)} {n}" for n in numbers]),
        "clicks": some(numbers),
        "watch": some([n / 7 for n in numbers]),
        "seen": some([datetime.datetime(2020, 1, 1) + datetime.timedelta(seconds=n) for n in numbers]),
        "is_new": some([n % 2 == 0 for n in numbers]),
        "price": some([n / 3 for n in numbers]),
        "vector": some([[n / 3] * (n % 5) for n in numbers]),
        "raw": some([bytes(n % 9) for n in numbers]),
        "digest": some([n.to_bytes(6, "little") for n in numbers]),
    }
    return pa.table({name: pa.array(values, TYPES[name]) for name, values in columns.items()}, schema=schema())


def schema() -> pa.Schema:
    return pa.schema([pa.field(name, kind, name != "key") for name, kind in TYPES.items()])


def create(lake: Lake, **options: Any) -> Table:
    return lake.create_table("rows", schema(), primary_key=["key"], buckets=2, **options)


def by_columns(table: Table, keys: list[int], columns: list[str] | None = None) -> pa.Table:
    """The same look-up without groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loader.table.opened_segment.group_of", lambda ref: None)
        context = table._context
        return LookUp(context.spec, context.catalog, context.storage).take(keys, columns)


def groups(table: Table) -> int:
    return sum(group_of(ref) is not None for ref in table.view().segments)


@pytest.mark.usefixtures("in_buckets")
def test_rows_are_those_of_the_columns_through_patches_deletes_backfills_and_compaction(lake: Lake) -> None:
    table = create(lake, lookup_columns=list(TYPES))
    table.append(data(0, 150))
    table.append(data(150, 300))
    report = table.build_lookup()
    assert (report.num_segments, report.num_rows) == (4, 300)
    assert table.build_lookup().num_segments == 0, "built once"
    keys = [*range(0, 320, 3), 7, 299, 0]

    def check() -> pa.Table:
        for columns in (None, ["clicks"], ["vector", "key"], ["user", "is_new", "digest"]):
            assert table.lookup(keys, columns).equals(by_columns(table, keys, columns))
        return table.lookup(keys)

    before = check()
    assert before["key"].to_pylist() == [key if key < 300 else None for key in keys]
    table.patch(pa.table({"key": [0, 3, 299], "clicks": pa.array([-1, -2, -3], pa.int32()), "user": ["a", "b", "c"]}))
    assert check()["clicks"].to_pylist()[:2] == [-1, -2]
    table.delete(pa.table({"key": [6, 9]}))
    assert check()["key"].to_pylist()[2:4] == [None, None]
    table.backfill(pa.table({"key": list(range(300)), "watch": pa.array([5.0] * 300, pa.float32()), "late": pa.array(range(300))}))
    assert table.lookup([12], ["watch", "late"]).to_pylist() == [{"watch": by_columns(table, [12])["watch"][0].as_py(), "late": 12}]
    check()
    first = table.history()[0].id
    assert table.lookup(keys, snapshot=first)["clicks"].to_pylist()[0] != -1
    table.compact(full=True)
    assert groups(table) == len(table.view().segments) > 0, "compaction keeps them up"
    assert check()["clicks"].to_pylist()[:2] == [-1, -2]


def test_a_group_is_what_is_read(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = create(lake)
    table.append(data(0, 100))
    table.build_lookup(["key", "clicks", "user"])
    expected = by_columns(table, [5, 50], ["key", "user"])
    monkeypatch.setattr("loader.table.opened_segment.open_columns", None)  # nothing else is opened
    assert table.lookup([5, 50], ["key", "user"]).equals(expected)
    with pytest.raises(TypeError):
        table.lookup([5], ["watch"])


def test_a_wider_type_is_read_from_columns(lake: Lake) -> None:
    table = create(lake, lookup_columns=["key", "clicks"])
    table.append(data(0, 100))
    table.build_lookup()
    table.widen_column("clicks", pa.int64())
    found = table.lookup([1, 2, 3], ["key", "clicks"])
    assert found.schema.field("clicks").type == pa.int64() and found.equals(by_columns(table, [1, 2, 3], ["key", "clicks"]))


def test_lists_with_null_items_are_left_to_columns(lake: Lake) -> None:
    table = create(lake, lookup_columns=["key", "vector"])
    rows = data(0, 10).set_column(7, "vector", pa.array([[1.0, None]] * 10, pa.list_(pa.float32())))
    table.append(rows)
    assert table.build_lookup().num_segments == 1
    assert table.lookup([4], ["vector"])["vector"].to_pylist() == [[1.0, None]]


def test_what_rows_cannot_hold_is_refused(lake: Lake) -> None:
    nested = pa.schema([pa.field("key", pa.int64(), False), pa.field("tree", pa.list_(pa.list_(pa.int8())))])
    with pytest.raises(SchemaError, match="lookup column 'tree'"):
        lake.create_table("nested", nested, primary_key=["key"], lookup_columns=["tree"])
    table = create(lake)
    with pytest.raises(ValueError, match="list of column names"):
        table.build_lookup("clicks")
    assert table.build_lookup().num_segments == 0, "no columns, no groups"


def test_a_scan_does_not_open_groups_and_expiry_collects_them(lake: Lake, tmp_path: Path) -> None:
    table = create(lake, lookup_columns=list(TYPES))
    table.append(data(0, 3000))
    table.build_lookup()
    paths = {file.path for ref in table.view().segments for file in ref.column_files if file.column_ids == LOOKUP_ROWS_IDS}
    stored = [tmp_path / "lake" / path for path in paths]
    assert stored and all(path.exists() for path in stored)
    moved = [(path, path.with_suffix(".away")) for path in stored]
    for path, away in moved:
        path.rename(away)
    assert table.to_arrow().num_rows == 3000
    for path, away in moved:
        away.rename(path)
    table.append(data(3000, 3100))
    table.compact(full=True)
    table.expire(older_than=datetime.timedelta(0), grace_seconds=0)
    lake.collect_garbage()
    assert not any(path.exists() for path in stored)
    assert table.lookup([7])["key"].to_pylist() == [7]


def test_pages_stay_within_the_cache(lake: Lake) -> None:
    table = create(lake, lookup_columns=list(TYPES))
    table.append(data(0, 6000))
    table.build_lookup()
    context = table._context
    cold = LookUp(context.spec, context.catalog, context.storage, cache_bytes=40_000)
    rng = np.random.default_rng(4)
    for _ in range(10):
        keys = rng.integers(0, 6000, 50).tolist()
        assert cold.take(keys, None)["key"].to_pylist() == keys
        assert cold._pages.num_bytes + cold._cache.num_bytes <= 40_000


def section_of(rows: pa.Table) -> bytes:
    layout = RowLayout.of(rows.schema, list(range(1, rows.num_columns + 1)))
    return encode_rows(layout, [[column.combine_chunks() for column in rows.columns]])


class InMemory:
    """Pages of a section that lies in memory."""

    def __init__(self, data: bytes) -> None:
        self._data, self.num_bytes, self.loaded_bytes = data, len(data), 0
        self.content = np.frombuffer(data, np.uint8)

    def slice(self, start: int, stop: int) -> memoryview:
        return memoryview(self._data)[start:stop]

    def missing(self, starts: Any, stops: Any) -> Any:
        return np.zeros(0, np.int64)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 20), count=st.integers(1, 200), offset=st.integers(0, 5))
def test_any_rows_come_back_as_they_went_in(seed: int, count: int, offset: int) -> None:
    from loader.schema import Column
    from loader.table.row_reads import GroupPages, GroupPart, take_rows

    rows = data(0, count + offset, seed).slice(offset)
    pages: Any = InMemory(section_of(rows))
    group = LookupRows(pages, "rows")
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, count, 30)
    columns = [Column(id=at + 1, name=field.name, type=field.type) for at, field in enumerate(rows.schema)]
    places = rng.permutation(40)[:30]
    taken = take_rows(GroupPages(), [GroupPart(group=group, numbers=numbers, places=places)], columns, 40)
    index = np.full(40, -1)
    index[places] = numbers
    expected = rows.take(pa.array(index, mask=index < 0))
    for array, column in zip(taken, expected.columns, strict=True):
        array.validate(full=True)
        assert array.to_pylist() == column.to_pylist()


def test_a_damaged_group_is_named(lake: Lake, tmp_path: Path) -> None:
    table = create(lake, lookup_columns=list(TYPES))
    table.append(data(0, 3000))
    table.build_lookup()
    file = table.view().segments[0].column_files[0]
    path = tmp_path / "lake" / file.path
    raw = bytearray(path.read_bytes())
    reader = SegmentReader(bytes(raw[file.offset : file.offset + file.num_bytes]))
    pages = reader.pages(Section.LOOKUP_ROWS)
    assert pages is not None
    at = file.offset + int(pages._offset)
    raw[at + 60_000] ^= 255
    path.write_bytes(raw)
    with pytest.raises(CorruptSegmentError, match="section LOOKUP_ROWS"):
        table.lookup(list(range(3000)))


def test_headers_that_lie_are_refused() -> None:
    good = section_of(data(0, 20))
    newer = bytearray(good)
    newer[0] = lookup_rows.LOOKUP_ROWS_VERSION + 1
    pages: Any = InMemory(bytes(newer))
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        LookupRows(pages, "rows")
    for name in ("num_rows", "heap_bytes", "schema_bytes", "num_columns"):
        header = np.frombuffer(good[: HEADER.itemsize], HEADER).copy()
        header[name] += 10_000
        pages = InMemory(header.tobytes() + good[HEADER.itemsize :])
        with pytest.raises(CorruptSegmentError, match="LOOKUP_ROWS"):
            LookupRows(pages, "rows")
    short: Any = InMemory(good[:30])
    with pytest.raises(CorruptSegmentError, match="header alone"):
        LookupRows(short, "rows")
