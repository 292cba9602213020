"""Rows that are too old go, whole segments unread; the table says how old, and every other row stays."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import loader
from loader import failpoints
from loader.errors import SchemaError
from loader.lake import Lake
from loader.table.ttl import Retention
from tests.table import processes
from tests.table.samples import create, labels, rows

WEEK = datetime.timedelta(days=7)


def at(item: int) -> datetime.datetime:
    """The time of an item."""
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(minutes=item)


def items(lake: Lake, name: str = "samples") -> list[int]:
    return sorted(lake.table(name).to_arrow(["item"])["item"].to_pylist())


def test_whole_segments_and_rows_at_the_limit_go(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = create(lake, buckets=1)
    for start in range(0, 300, 100):
        table.append(rows(start, start + 100))
    table.patch(labels([20, 120, 220], clicks=[1, 2, 3]))
    table.delete([(130 % 7, 130), (160 % 7, 160)])
    table.tag("before")
    before = table.to_arrow(snapshot="before")
    opened: list[str] = []
    read = type(lake.storage).read_ranges
    monkeypatch.setattr(type(lake.storage), "read_ranges", lambda self, path, *a, **k: (opened.append(path), read(self, path, *a, **k))[1])
    first = table.view(1).segments[0].path
    report = table.expire(ttl=at(150), older_than=WEEK)
    assert first not in opened, "a segment that goes as a whole is not read"
    assert (report.rows_dropped, report.segments_dropped) == (100 + 49, 1)
    assert items(lake) == [item for item in range(150, 300) if item != 160]
    assert table.view().num_rows == table.to_arrow().num_rows == table.history()[-1].num_rows == 149
    assert table.expire(ttl=at(150), older_than=WEEK).rows_dropped == 0, "and again there is nothing to drop"
    assert table.to_arrow(snapshot="before").equals(before)
    table.append(rows(0, 10))
    table.patch(labels([220, 20], clicks=[10, 10]))
    assert table.lookup([(220 % 7, 220)], ["clicks"])["clicks"].to_pylist() == [13]
    table.compact(full=True)
    assert len(items(lake)) == 159
    assert [str(one) for one in lake.doctor(deep=True).findings] == []


def test_the_table_keeps_the_settings(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    table = create(lake)
    table.append(rows(0, 10))
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None, microsecond=0)
    fresh = rows(10, 20).set_column(2, "ts", pa.array([now] * 10, pa.timestamp("s")))
    table.append(fresh)
    table.set_retention(Retention(ttl_seconds=86_400, older_than_seconds=0, keep=2))
    report = make_lake().table("samples").expire()
    assert (report.rows_dropped, report.snapshots) == (10, (1,)) and items(lake) == list(range(10, 20))
    assert table.describe()["retention"]["ttl_seconds"] == 86_400
    bare = lake.create_table("bare", pa.schema([("key", pa.int64())]), primary_key=["key"])
    with pytest.raises(SchemaError, match="no time column"):
        bare.set_retention(Retention(ttl_seconds=1))
    with pytest.raises(SchemaError, match="no time column"):
        bare.expire(ttl=WEEK)
    with pytest.raises(ValueError, match="ttl_seconds is -1"):
        Retention(ttl_seconds=-1)


@pytest.mark.parametrize("failpoint", ["ttl.resolved", "ttl.staged", "commit.written"])
def test_killed_anywhere_the_next_run_goes_on(tmp_path: Path, catalog: str | None, failpoint: str) -> None:
    with loader.connect(tmp_path, catalog=catalog) as lake:
        create(lake, buckets=1).append(rows(0, 200))

    def dropping() -> None:
        table = loader.connect(tmp_path, catalog=catalog).table("samples")
        with failpoints.armed(failpoint, processes.kill_self):
            table.expire(ttl=at(50), older_than=WEEK)

    assert processes.wait(processes.start(dropping)) == -9
    with loader.connect(tmp_path, catalog=catalog) as lake:
        assert items(lake) == list(range(200)), "nothing half-done shows"
        lake.table("samples").expire(ttl=at(50), older_than=WEEK)
        assert items(lake) == list(range(50, 200))


def test_history_expires_in_small_batches_too(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.catalog.retention.BATCH_ROWS", 2)
    monkeypatch.setattr("loader.catalog.garbage.BATCH_PATHS", 2)
    table = create(lake, buckets=1)
    for start in range(0, 60, 10):
        table.append(rows(start, start + 10))
        table.patch(labels([start], clicks=[1]))
    table.tag("kept", 5)
    shown = table.to_arrow(snapshot="kept")
    table.compact(full=True)
    report = table.expire(older_than=datetime.timedelta(0), grace_seconds=0)
    assert report.snapshots == tuple(number for number in range(1, 13) if number != 5) and report.records > 6
    assert lake.collect_garbage().deleted_paths > 2
    assert table.to_arrow(snapshot="kept").equals(shown) and table.to_arrow().num_rows == 60
    assert table.expire(older_than=datetime.timedelta(0), grace_seconds=0).records == 0
