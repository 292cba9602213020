"""Backup and restore: the copy reads as the lake did, on either database, whatever was killed in between; what is new is copied and nothing else."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import loader
from loader import SourceOffsets, failpoints
from loader.backup.layout import newest_number
from loader.backup.restore import generations
from loader.catalog.migrations import CATALOG_VERSION
from loader.errors import AlreadyExistsError, NotFoundError, StorageError, UnsupportedVersionError
from loader.storage import Storage
from tests import postgres
from tests.table import processes
from tests.table.samples import create, labels, rows


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.table.files.INLINE_BYTES", 3000)


@pytest.fixture
def new_catalog() -> Iterator[Callable[[str], str | None]]:
    made = []

    def make(kind: str) -> str | None:
        if kind == "sqlite":
            return None
        made.append(postgres.new_catalog())
        return made[-1]

    yield make
    for url in made:
        postgres.drop_catalog(url)


def fill(lake: Any) -> Any:
    table = create(lake, partition_by="day")
    table.append(rows(0, 300), watermark=100, offsets=SourceOffsets("pipe", "events", {0: (0, 300)}))
    table.patch(labels([1, 2, 5000], clicks=[1, 2, 3]))
    table.compact(full=True)
    table.tag("baseline")
    table.patch(labels(list(range(0, 300, 2)), clicks=list(range(150))))
    table.delete("item in (7, 9)")
    lake.create_table("empty", pa.schema([("id", pa.string())]), primary_key=["id"])
    return table


def shown(lake: Any) -> dict[Any, Any]:
    """All that a reader can ask of the table."""
    table = lake.table("samples")
    found = {snapshot.id: table.to_arrow(snapshot=snapshot).sort_by("item") for snapshot in table.history()}
    return {"rows": found, "tags": table.tags(), "offsets": table.offsets("pipe", "events"), "history": table.history(), "tables": lake.tables()}


@pytest.mark.parametrize(("first", "second"), [("sqlite", "sqlite"), ("sqlite", "postgresql"), ("postgresql", "sqlite")])
def test_a_restored_lake_reads_and_writes_as_the_original(tmp_path: Path, new_catalog: Callable[[str], str | None], first: str, second: str) -> None:
    catalog, steps = new_catalog(first), []
    with loader.connect(tmp_path / "lake", catalog=catalog) as lake:
        fill(lake)
        lake.pin("samples", 2, "a running job", 600)
        report = lake.backup(tmp_path / "backup", progress=lambda done, total: steps.append((done, total)))
        assert (report.generation, report.copied_objects) == (1, report.num_objects)
        assert steps[-1] == (report.num_objects, report.num_objects)
        before, lake_id = shown(lake), lake.database.lake_id
        assert [pin.owner for pin in held(lake)] == ["a running job"]
    other = new_catalog(second)
    restored = loader.restore(tmp_path / "backup", tmp_path / "copy", catalog=other)
    assert restored.findings == ()
    assert restored.num_objects == report.num_objects
    with loader.connect(tmp_path / "copy", catalog=other, create=False) as copy:
        assert shown(copy) == before
        assert held(copy) == []
        assert copy.doctor(deep=True).findings == ()
        assert copy.database.lake_id == restored.lake_id != lake_id
        table = copy.table("samples")
        assert table.append(rows(5000, 5001)).summary["labels_met"] == 1
        table.append(rows(300, 310), offsets=SourceOffsets("pipe", "events", {0: (300, 310)}))
        assert table.to_arrow(where="item = 5000")["clicks"].to_pylist() == [3]
        table.compact(full=True)
        assert copy.doctor(deep=True).findings == ()


def held(lake: Any) -> list[Any]:
    from loader.catalog.admin import active_pins
    from loader.catalog.read import load_spec

    with lake.database.read() as connection:
        return active_pins(connection, load_spec(connection, "samples"))


def test_numbers_are_not_given_again_on_a_restored_lake(tmp_path: Path, new_catalog: Callable[[str], str | None]) -> None:
    with loader.connect(tmp_path / "lake") as lake:
        table = fill(lake)
        table.compact(full=True)
        table.expire(older_than=datetime.timedelta(0), keep=1, grace_seconds=0)
        with lake.database.read() as connection:
            before = dict(connection.execute("select name, seq from sqlite_sequence").fetchall())
        lake.backup(tmp_path / "backup")
    for kind in ("sqlite", "postgresql"):
        catalog = new_catalog(kind)
        loader.restore(tmp_path / "backup", tmp_path / kind, catalog=catalog)
        with loader.connect(tmp_path / kind, catalog=catalog) as copy:
            copy.table("samples").append(rows(900, 901))
            with copy.database.read() as connection:
                assert connection.execute("select max(id) from segments").fetchone()[0] > before["segments"]


def test_a_second_backup_copies_what_is_new_and_old_generations_are_retired(tmp_path: Path) -> None:
    place = tmp_path / "backup"
    with loader.connect(tmp_path / "lake") as lake:
        table = fill(lake)
        first = lake.backup(place)
        assert lake.backup(place).copied_objects == 0
        table.append(rows(300, 900))
        third = lake.backup(place)
        assert 0 < third.copied_objects < third.num_objects
        table.compact(full=True)
        table.expire(older_than=datetime.timedelta(0), keep=1, grace_seconds=0)
        lake.collect_garbage()
        fourth = lake.backup(place, keep=2)
        assert fourth.retired == (1, 2)
        assert [one.number for one in generations(place)] == [3, 4]
        lake.backup(place, keep=1)
        wanted = {path.relative_to(lake.location) for path in Path(lake.location).glob("data/**/*.hr")}
        before = {number: shown(lake) for number in (5,)}
    loader.restore(place, tmp_path / "copy")
    with loader.connect(tmp_path / "copy") as copy:
        assert shown(copy) == before[5]
    assert first.num_objects > 0
    left = {path.relative_to(place / "objects") for path in (place / "objects").rglob("*.hr")}
    assert left <= wanted, "what only retired generations needed is gone"
    with pytest.raises(NotFoundError, match="no generation 3 that is kept: there are 5"):
        loader.restore(place, tmp_path / "older", generation=3)


def test_an_earlier_generation_is_restored(tmp_path: Path) -> None:
    with loader.connect(tmp_path / "lake") as lake:
        table = fill(lake)
        lake.backup(tmp_path / "backup")
        before = shown(lake)
        table.delete("item < 100")
        lake.backup(tmp_path / "backup")
    report = loader.restore(tmp_path / "backup", tmp_path / "copy", generation=1)
    assert report.generation == 1
    with loader.connect(tmp_path / "copy") as copy:
        assert shown(copy) == before


def test_what_expires_while_it_is_copied_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expiry and collection between the reading of the catalog and the copying: the catalog is read again."""
    with loader.connect(tmp_path / "lake") as lake:
        table = fill(lake)
        table.tags()
        with lake.database.write() as connection:
            connection.execute("delete from pins")

        def expire() -> None:
            table.compact(full=True)
            table.expire(older_than=datetime.timedelta(0), keep=1, grace_seconds=0)
            with lake.database.write() as connection:
                connection.execute("delete from pins")  # as if the backup's own had lapsed
            table.expire(older_than=datetime.timedelta(0), keep=1, grace_seconds=0)
            lake.collect_garbage()

        with failpoints.armed("backup.dumped", once(expire)):
            lake.backup(tmp_path / "backup")
        before = shown(lake)
    assert loader.restore(tmp_path / "backup", tmp_path / "copy").findings == ()
    with loader.connect(tmp_path / "copy") as copy:
        assert shown(copy) == before


def once(action: Callable[[], None]) -> Callable[[], None]:
    left = [action]
    return lambda: left.pop()() if left else None


@pytest.mark.parametrize("failpoint", ["backup.dumped", "backup.copied", "backup.uploaded", "backup.written", "backup.collected"])
def test_a_killed_backup_goes_on(tmp_path: Path, failpoint: str) -> None:
    place = tmp_path / "backup"
    with loader.connect(tmp_path / "lake") as lake:
        table = fill(lake)
        lake.backup(place)
        table.append(rows(300, 900))
        table.append(rows(900, 1500))

    def work() -> None:
        with loader.connect(tmp_path / "lake") as lake, failpoints.armed(failpoint, processes.kill_self):
            lake.backup(place, keep=1)

    assert processes.wait(processes.start(work)) == -9
    with loader.connect(tmp_path / "lake") as lake:
        report = lake.backup(place, keep=1)
        assert [one.number for one in generations(place)] == [report.generation]
        before = shown(lake)
        used = {path.relative_to(lake.location) for path in Path(lake.location).glob("data/**/*.hr")}
    assert {path.relative_to(place / "objects") for path in (place / "objects").rglob("*.hr")} <= used
    assert len({path.parent for path in place.glob("catalogs/*/*.arrow")}) <= 2, "at most an attempt that died is left, until its number is retired"
    loader.restore(place, tmp_path / "copy")
    with loader.connect(tmp_path / "copy") as copy:
        assert shown(copy) == before


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("failpoint", ["restore.copied", "restore.loaded", "restore.filled"])
def test_a_killed_restore_goes_on(tmp_path: Path, new_catalog: Callable[[str], str | None], failpoint: str, kind: str) -> None:
    catalog = new_catalog(kind)
    with loader.connect(tmp_path / "lake") as lake:
        fill(lake)
        lake.backup(tmp_path / "backup")
        before = shown(lake)

    def work() -> None:
        with failpoints.armed(failpoint, processes.kill_self):
            loader.restore(tmp_path / "backup", tmp_path / "copy", catalog=catalog)

    assert processes.wait(processes.start(work)) == -9
    with pytest.raises((NotFoundError, StorageError)):
        loader.connect(tmp_path / "copy", catalog=catalog, create=False)
    assert loader.restore(tmp_path / "backup", tmp_path / "copy", catalog=catalog).findings == ()
    with loader.connect(tmp_path / "copy", catalog=catalog, create=False) as copy:
        assert shown(copy) == before
    with pytest.raises(AlreadyExistsError, match="holds a lake"):
        loader.restore(tmp_path / "backup", tmp_path / "copy", catalog=catalog)


def test_a_restore_that_is_killed_once_it_is_whole_needs_no_other(tmp_path: Path) -> None:
    with loader.connect(tmp_path / "lake") as lake:
        fill(lake)
        lake.backup(tmp_path / "backup")
        before = shown(lake)

    def work() -> None:
        with failpoints.armed("restore.marked", processes.kill_self):
            loader.restore(tmp_path / "backup", tmp_path / "copy")

    assert processes.wait(processes.start(work)) == -9
    with loader.connect(tmp_path / "copy", create=False) as copy:
        assert shown(copy) == before


def test_a_restore_overwrites_nothing(tmp_path: Path) -> None:
    with loader.connect(tmp_path / "lake") as lake:
        fill(lake)
        lake.backup(tmp_path / "backup")
        with pytest.raises(ValueError, match="is the lake itself"):
            lake.backup(tmp_path / "lake")
    with pytest.raises(AlreadyExistsError, match="holds a lake"):
        loader.restore(tmp_path / "backup", tmp_path / "lake")
    with loader.connect(tmp_path / "other", catalog=f"sqlite:///{tmp_path}/other.sqlite") as other:
        create(other)
        with pytest.raises(AlreadyExistsError, match="a backup of another lake"):
            other.backup(tmp_path / "backup")
    with pytest.raises(AlreadyExistsError, match="describes a lake already"):
        loader.restore(tmp_path / "backup", tmp_path / "new", catalog=f"sqlite:///{tmp_path}/other.sqlite")
    with pytest.raises(NotFoundError, match="no backup at"):
        loader.restore(tmp_path / "lake", tmp_path / "new")


def test_neither_copys_catalog_is_used_with_the_others_files(tmp_path: Path) -> None:
    with loader.connect(tmp_path / "lake") as lake:
        fill(lake)
        lake.backup(tmp_path / "backup")
    loader.restore(tmp_path / "backup", tmp_path / "copy")
    with pytest.raises(StorageError, match="belongs to another lake"):
        loader.connect(tmp_path / "copy", catalog=f"sqlite:///{tmp_path}/lake/catalog.sqlite")
    with loader.connect(tmp_path / "copy") as copy:
        copy.table("samples").append(rows(900, 910))
        assert copy.backup(tmp_path / "backup").generation == 2, "a restored lake goes on with the backup that it came from"


@pytest.mark.parametrize("victim", ["objects/data/**/*.hr", "catalogs/*/*.arrow"])
def test_a_damaged_backup_is_named(tmp_path: Path, victim: str) -> None:
    with loader.connect(tmp_path / "lake") as lake:
        fill(lake)
        lake.backup(tmp_path / "backup")
    path = max((tmp_path / "backup").glob(victim), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match=path.name):
        loader.restore(tmp_path / "backup", tmp_path / "copy")
    assert not (tmp_path / "copy" / "headrace-lake.json").exists()


def test_a_lake_that_misses_a_file_is_not_backed_up(tmp_path: Path) -> None:
    with loader.connect(tmp_path / "lake") as lake:
        fill(lake)
        next(Path(lake.location).glob("data/**/*.hr")).unlink()
        with pytest.raises(NotFoundError, match=r"\.hr"):
            lake.backup(tmp_path / "backup")
        assert newest_number(Storage.open(tmp_path / "backup")) == 0


def test_a_newer_backup_is_refused_by_name(tmp_path: Path) -> None:
    with loader.connect(tmp_path / "lake") as lake:
        fill(lake)
        lake.backup(tmp_path / "backup")
    path = tmp_path / "backup" / "generations" / "00000001.json"
    whole = path.read_text()
    path.write_text(whole.replace(f'"catalog_version": {CATALOG_VERSION}', '"catalog_version": 99'))
    with pytest.raises(UnsupportedVersionError, match="catalog of version 99"):
        loader.restore(tmp_path / "backup", tmp_path / "copy")
    path.write_text(whole.replace('"version": 1', '"version": 2'))
    with pytest.raises(UnsupportedVersionError, match="has version 2"):
        loader.restore(tmp_path / "backup", tmp_path / "copy")
