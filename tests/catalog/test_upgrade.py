"""Rolling upgrades: a process that had a catalog open when a newer Headrace migrated it reads on, or refuses by name, and never writes."""

from __future__ import annotations

import importlib.util
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import loader
from loader.catalog.migrations import CATALOG_VERSION
from loader.errors import UnsupportedVersionError
from tests import postgres
from tests.table import processes
from tests.table.samples import create, rows


@pytest.fixture(params=["sqlite", "postgresql"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    catalog = postgres.new_catalog() if request.param == "postgresql" else None
    with loader.connect(tmp_path / "lake", catalog=catalog) as opened:
        create(opened).append(rows(0, 30))
        yield opened
    if catalog is not None:
        postgres.drop_catalog(catalog)


def migrate(lake: Any, *, reads_since: int = 1) -> None:
    """What a newer Headrace does, from a connection of its own."""
    with loader.connect(lake.location, catalog=lake.catalog_url) as other, other.database.write() as connection:
        connection.execute("alter table snapshots add column later bigint")
        connection.execute("update catalog_version set version = version + 1, reads_since = ?", (reads_since,))


def test_an_open_handle_reads_on_and_is_refused_every_write(lake: Any) -> None:
    table = lake.table("samples")
    table.append(rows(50, 60))
    pin = lake.pin("samples", None, "job", 60)
    migrate(lake)
    assert table.to_arrow().num_rows == 40
    lake.renew(pin, 600)
    lake.unpin(pin)
    lake.unpin(lake.pin("samples", None, "another job", 60))
    writes = [
        lambda: table.append(rows(30, 40)),
        lambda: table.patch(pa.table({"user": [1], "item": [1], "clicks": [1]})),
        lambda: table.delete("item = 3"),
        lambda: table.compact(full=True),
        lambda: table.tag("late"),
        lambda: table.expire(),
        lambda: create(lake, "other"),
        lambda: lake.drop_table("samples"),
    ]
    for write in writes:
        with pytest.raises(UnsupportedVersionError, match=f"version {CATALOG_VERSION + 1} while this process, which knows version {CATALOG_VERSION}"):
            write()
    assert table.to_arrow().num_rows == 40
    assert [entry.id for entry in table.history()] == [1, 2]
    with pytest.raises(UnsupportedVersionError, match=f"has version {CATALOG_VERSION + 1}"):
        loader.connect(lake.location, catalog=lake.catalog_url)


def test_an_open_handle_is_refused_what_it_would_read_wrong(lake: Any) -> None:
    table = lake.table("samples")
    migrate(lake, reads_since=CATALOG_VERSION + 1)
    for read in (table.to_arrow, table.history, lambda: lake.pin("samples", None, "job", 60), lambda: table.append(rows(30, 31))):
        with pytest.raises(UnsupportedVersionError, match="had it open"):
            read()


def test_what_a_newer_writer_left_is_refused_by_name(lake: Any) -> None:
    table = lake.table("samples")
    table.patch(pa.table({"user": [1], "item": [1], "clicks": [1]}))
    with lake.database.write() as connection:
        connection.execute("update overlays set kind = 'merged'")
    with pytest.raises(UnsupportedVersionError, match="is of kind 'merged', which a newer Headrace wrote"):
        lake.table("samples").to_arrow()
    with lake.database.write() as connection:
        connection.execute("update overlays set kind = 'patch'")
        connection.execute("update schemas set json = replace(json, '\"version\": 1', '\"version\": 2')")
    with pytest.raises(UnsupportedVersionError, match="the schema has version 2"):
        lake.table("samples")


def test_a_newer_lake_is_refused_by_name(lake: Any) -> None:
    marker = Path(lake.location) / "headrace-lake.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": 2}))
    with pytest.raises(UnsupportedVersionError, match="has version 2; this Headrace reads up to version 1"):
        loader.connect(lake.location, catalog=lake.catalog_url)


def test_a_snapshot_of_a_kind_that_came_later_reads_like_any(lake: Any) -> None:
    """Kinds say what a commit was for; what it did stands in segments and overlays."""
    table = lake.table("samples")
    with lake.database.write() as connection:
        connection.execute("update snapshots set kind = 'rebalance'")
    assert table.history()[0].kind == "rebalance"
    assert table.to_arrow().num_rows == 30
    assert lake.doctor(deep=True).is_clean


GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(int(path.name.removeprefix("lake-v").removesuffix(".tar.gz")) for path in GOLDEN.glob("lake-v*.tar.gz"))


def golden(version: int, place: Path) -> tuple[Path, dict[int, pa.Table]]:
    """A lake as a version of the catalog left it, and what each of its snapshots showed."""
    with tarfile.open(GOLDEN / f"lake-v{version}.tar.gz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # which early 3.11 releases lack
        archive.extractall(place)
    with pa.OSFile(str(GOLDEN / f"lake-v{version}.arrow")) as file:
        shown = pa.ipc.open_file(file).read_all()
    snapshots = pa.compute.unique(shown["snapshot"]).to_pylist()
    return place / "lake", {number: shown.filter(pa.compute.field("snapshot") == number).drop_columns(["snapshot"]) for number in snapshots}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_lake_of_an_older_version_is_read_and_written(version: int, tmp_path: Path) -> None:
    place, shown = golden(version, tmp_path)
    with loader.connect(place, create=False) as lake:
        assert lake.doctor(deep=True).findings == ()
        table = lake.table("samples")
        for number, wanted in shown.items():
            assert table.to_arrow(snapshot=number).sort_by("item").equals(wanted), f"snapshot {number}"
        assert table.to_arrow(snapshot="baseline").num_rows == 260
        assert table.offsets("pipe", "events") == {"0": 200, "1": 9}
        assert lake.table("events").lookup(pa.table({"id": ["event 7"]}), ["value"])["value"].to_pylist() == [1.75]
        head = shown[max(shown)].num_rows
        assert table.append(rows_of_golden(500, 501)).num_rows == head + 1
        assert table.to_arrow(where="item = 500")["clicks"].to_pylist() == [3], "the label that waited since the older version"
        table.patch(pa.table({"user": [500 % 7], "item": [500], "clicks": [4]}))
        assert table.to_arrow(where="item = 500")["clicks"].to_pylist() == [7]
        table.compact(full=True)
        assert table.to_arrow().num_rows == head + 1
        assert lake.doctor(deep=True).findings == ()


def rows_of_golden(start: int, stop: int) -> pa.Table:
    """Rows by the schema of the golden table."""
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.rows(start, stop)


def test_every_version_but_the_newest_two_has_a_golden_lake() -> None:
    assert set(range(1, CATALOG_VERSION - 1)) <= set(VERSIONS)


def test_two_processes_that_open_an_older_lake_at_once_migrate_it_once(tmp_path: Path) -> None:
    place, _ = golden(1, tmp_path)

    def opener() -> None:
        with loader.connect(place, create=False) as lake:
            assert lake.table("samples").to_arrow().num_rows > 200

    children = [processes.start(opener) for _ in range(4)]
    assert [processes.wait(child) for child in children] == [0] * 4
    with loader.connect(place, create=False) as lake:
        assert lake.doctor().is_clean
