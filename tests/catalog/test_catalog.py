"""The catalog: versions, locks, markers, pins, selections, garbage; and tables that later parts need no migration for."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import gc
import json
import os
import pickle
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loader
from loader import failpoints
from loader.catalog.commit import GARBAGE_GRACE_SECONDS, STAGED_LEASE_SECONDS, now_micros
from loader.catalog.garbage import collect
from loader.catalog.migrations import CATALOG_VERSION
from loader.catalog.sqlite import QUEUE_SUFFIX
from loader.catalog.tables import ddl, metadata
from loader.errors import CatalogBusyError, ConflictError, KeyExistsError, NotFoundError, StorageError, StorageFullError, UnsupportedVersionError
from loader.lake import MARKER, Lake
from tests.table.samples import create, labels, rows

MakeLake = Callable[..., Lake]


def test_the_tables_that_the_design_names_are_there_on_both_databases() -> None:
    named = ["tables", "schemas", "snapshots", "segments", "segment_packs", "segment_stats", "column_files", "overlays", "inline_data", "buckets", "pending"]
    named += ["source_offsets", "staged", "selections", "pins", "garbage", "catalog_version", "repairs", "erasures", "follow_ends", "quarantine"]
    assert set(metadata.tables) == set(named)
    assert len(ddl("postgresql")) == len(ddl("sqlite"))


def test_a_newer_catalog_is_refused_by_name(make_lake: MakeLake) -> None:
    lake = make_lake()
    with lake.database.write() as connection:
        connection.execute("update catalog_version set version = 99, written_by = 'headrace 9.1'")
    lake.close()
    with pytest.raises(UnsupportedVersionError, match=rf"version 99, written by headrace 9.1; this Headrace reads up to version {CATALOG_VERSION}: upgrade"):
        make_lake()


UNDO = (
    "drop table follow_ends",
    "alter table inline_data drop column num_bytes",
    "drop table segment_packs",
    "drop table segment_stats",
    "create table segment_stats (id integer primary key, table_id integer, packed blob)",
    "alter table segments add column stats_group bigint",
    "alter table segments drop column stats",
    "drop index column_files_added",
    "drop index column_files_removed",
    "drop index overlays_removed",
    "alter table tables drop column erased_in",
    "drop table erasures",
    "drop table quarantine",
    "alter table tables drop column floor",
    "drop table repairs",
    "alter table catalog_version drop column reads_since",
)


def test_an_older_catalog_is_migrated(make_lake: MakeLake) -> None:
    lake = make_lake()
    create(lake).append(rows(0, 5))
    with lake.database.write() as connection:  # as version 1 made it
        for undo in UNDO:
            connection.execute(undo)
        connection.execute("update catalog_version set version = 1")
    lake.close()
    table = make_lake().table("samples")
    assert table.append(rows(5, 10)).num_rows == 10
    assert table.expire(older_than=datetime.timedelta(0)).snapshots == (1,)
    fresh = make_lake("fresh")
    assert columns_of(make_lake()) == columns_of(fresh)


def columns_of(lake: Lake) -> dict[str, list[str]]:
    """Names of the columns of all catalog tables."""
    with lake.database.read() as connection:
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table' and name not like 'sqlite%' order by name")]
        return {name: sorted(row[1] for row in connection.execute(f"pragma table_info({name})")) for name in names}


def test_a_newer_lake_is_refused_by_name(make_lake: MakeLake) -> None:
    lake = make_lake()
    marker = Path(lake.location) / MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": 7}))
    with pytest.raises(UnsupportedVersionError, match="version 7"):
        make_lake()


def test_readers_do_not_make_a_lake(make_lake: MakeLake, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no lake at"):
        make_lake("nowhere", create=False)
    assert not (tmp_path / "nowhere").exists()
    make_lake("here")
    assert make_lake("here", create=False).tables() == []


def test_a_lost_or_foreign_catalog_is_not_replaced_by_an_empty_one(make_lake: MakeLake) -> None:
    one, two = make_lake("one"), make_lake("two")
    with pytest.raises(StorageError, match="belongs to another lake"):
        loader.connect(one.location, catalog=f"sqlite:///{two.location}/catalog.sqlite")
    one.close()
    for file in Path(one.location).glob("catalog.sqlite*"):
        file.unlink()
    with pytest.raises(StorageError, match="is missing: restore it"):
        make_lake("one")


def test_a_catalog_beside_the_lake(make_lake: MakeLake, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/elsewhere/c.sqlite"
    lake = make_lake("files", catalog=url)
    create(lake).append(rows(0, 5))
    assert not (tmp_path / "files" / "catalog.sqlite").exists()
    assert loader.connect(tmp_path / "files", catalog=url, create=False).table("samples").to_arrow().num_rows == 5
    with pytest.raises(ValueError, match="mysql://… is not supported"):
        make_lake("files", catalog="mysql://host/db")
    with pytest.raises(ValueError, match="needs a catalog: catalog="):
        loader.connect("memory://objects")


def test_a_catalog_is_of_one_lake(tmp_path: Path) -> None:
    with loader.connect(tmp_path / "one", catalog=str(tmp_path / "c.sqlite")) as lake:
        create(lake)
        with pytest.raises(StorageError, match="describes another lake than .*two, with table 'samples'"):
            loader.connect(tmp_path / "two", catalog=str(tmp_path / "c.sqlite"))
        assert not (tmp_path / "two" / MARKER).exists()


def test_a_pickled_lake_finds_its_catalog_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with loader.connect("lake", catalog="catalogs/c.sqlite") as lake:
        create(lake)
        pickled = pickle.dumps(lake)
    monkeypatch.chdir("elsewhere")
    with pickle.loads(pickled) as again:
        assert again.tables() == ["samples"]


def test_files_may_lie_in_an_object_store(tmp_path: Path) -> None:
    lake = loader.connect(f"memory://{tmp_path.name}", catalog=f"sqlite:///{tmp_path}/c.sqlite")
    table = create(lake)
    table.append(rows(0, 40_000))
    table.compact(full=True)
    assert table.to_arrow(["item"]).num_rows == 40_000
    lake.close()


def test_a_second_writer_waits_and_then_says_who_it_waits_for(make_lake: MakeLake) -> None:
    lake = make_lake(busy_timeout_seconds=0.05)
    table = create(lake)
    queue = os.open(f"{lake.location}/catalog.sqlite-queue", os.O_RDWR)
    fcntl.flock(queue, fcntl.LOCK_EX)
    with pytest.raises(CatalogBusyError, match=r"another process is writing to the catalog .* more than 0.05 s"):
        table.append(rows(0, 3))
    assert table.to_arrow().num_rows == 0, "reading goes on meanwhile"
    os.close(queue)
    table.append(rows(0, 3))


def test_a_lock_by_another_program_is_reported_too(make_lake: MakeLake) -> None:
    lake = make_lake(busy_timeout_seconds=0.05)
    table = create(lake)
    other = sqlite3.connect(f"{lake.location}/catalog.sqlite", isolation_level=None)
    other.execute("begin immediate")
    with pytest.raises(CatalogBusyError, match="another process is writing"):
        table.append(rows(0, 3))
    other.execute("rollback")
    other.close()
    table.append(rows(0, 3))


class Interrupted:
    """A connection on which Ctrl-C comes while one statement runs: it is raised right after it, as Python does."""

    def __init__(self, connection: sqlite3.Connection, statement: str) -> None:
        self._connection, self._statement = connection, statement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        cursor = self._connection.execute(statement, *parameters)
        if statement == self._statement:
            self._statement = ""
            raise KeyboardInterrupt
        return cursor


@pytest.mark.parametrize("statement", ["begin", "rollback", "begin immediate", "commit"])
def test_interrupted_in_a_statement_neither_this_process_nor_another_is_locked_out(make_lake: MakeLake, statement: str) -> None:
    lake = make_lake()
    table = create(lake)
    real = lake.database._connection
    lake.database._connection = Interrupted(real, statement)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        table.append(rows(0, 3), commit_id="first")
    lake.database._connection = real
    other = make_lake(busy_timeout_seconds=0.05)
    other.table("samples").append(rows(3, 6))
    other.close()
    table.append(rows(0, 3), commit_id="first")
    assert sorted(table.to_arrow(["item"])["item"].to_pylist()) == list(range(6))


def test_interrupted_at_the_head_of_the_queue_it_makes_room(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, other = make_lake(), make_lake(busy_timeout_seconds=0.05)
    table = create(lake)
    real = fcntl.flock

    def interrupted(file: int, operation: int) -> None:
        real(file, operation)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.append(rows(0, 3))
    assert other.table("samples").append(rows(3, 6)).num_rows == 3


def test_a_closed_lake_says_so(make_lake: MakeLake) -> None:
    lake = make_lake()
    table = create(lake)
    lake.close()
    lake.close()
    for use in (table.to_arrow, lambda: table.append(rows(0, 1)), lambda: table.tag("v1"), lake.tables):
        with pytest.raises(StorageError, match=r"was closed: open it again with loader.connect"):
            use()


def test_what_is_forgotten_without_close_keeps_no_file_open(make_lake: MakeLake, tmp_path: Path) -> None:
    lake = make_lake()
    (tmp_path / "no_catalog").write_bytes(b"x" * 5000)
    for number in range(5):
        pickle.loads(pickle.dumps(lake.storage))
        with pytest.raises(StorageError, match="not a database"):
            make_lake(f"new-{number}", catalog=str(tmp_path / "no_catalog"))
    gc.collect()
    queues = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            queues.append(os.readlink(f"/proc/self/fd/{number}"))
    assert sum(path.startswith(str(tmp_path)) and path.endswith(QUEUE_SUFFIX) for path in queues) == 1


def test_a_full_disk_under_the_catalog_is_named(make_lake: MakeLake) -> None:
    lake = make_lake()
    table = create(lake)
    with lake.database.read() as connection:
        pages = connection.execute("pragma page_count").fetchone()[0]
        connection.execute(f"pragma max_page_count = {pages + 1}")
    with pytest.raises(StorageFullError, match="no space left to write .*catalog.sqlite"):
        table.append(rows(0, 1000))
    with lake.database.read() as connection:
        connection.execute("pragma max_page_count = 1000000")
    assert table.append(rows(0, 1000)).num_rows == 1000


def test_pins_hold_a_table_and_expire(lake: Lake) -> None:
    create(lake).append(rows(0, 3))
    pin = lake.pin("samples", None, "job 7", ttl_seconds=None)
    lake.pin("samples", 1, "short", ttl_seconds=-1)
    assert pin.snapshot_id == 1
    with pytest.raises(ConflictError, match="pinned by 'job 7' at snapshot 1"):
        lake.drop_table("samples")
    lake.unpin(pin)
    lake.drop_table("samples")


@pytest.mark.parametrize("ttl_seconds", [60, -1], ids=["held", "lapsed"])
def test_a_renewed_pin_holds_on_until_it_is_let_go(lake: Lake, ttl_seconds: float) -> None:
    create(lake).append(rows(0, 3))
    pin = lake.pin("samples", 1, "job 8", ttl_seconds=ttl_seconds)
    if ttl_seconds < 0:
        lake.collect_garbage()
    lake.renew(pin, 3600)
    with pytest.raises(ConflictError, match="pinned by 'job 8' at snapshot 1"):
        lake.drop_table("samples")
    lake.unpin(pin)
    lake.drop_table("samples")


def test_a_selection_is_stored_once(lake: Lake) -> None:
    create(lake).append(rows(0, 3))
    assert lake.catalog.load_selection("samples", 1, "abc") is None
    lake.catalog.save_selection("samples", 1, "abc", b"first")
    lake.catalog.save_selection("samples", 1, "abc", b"second")
    assert lake.catalog.load_selection("samples", 1, "abc") == b"first"


def test_threads_share_a_lake(lake: Lake) -> None:
    table = create(lake)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(4):
                start = (number * 4 + turn) * 10
                table.append(rows(start, start + 10))
                table.to_arrow(["item"])
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and table.to_arrow().num_rows == 120


def files_of(lake: Lake) -> set[str]:
    return {str(path.relative_to(lake.location)) for path in Path(lake.location).glob("data/**/*") if path.is_file()}


def test_a_dropped_table_goes_after_its_grace(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 40_000))
    table.append(rows(40_000, 40_010))
    lake.drop_table("samples")
    assert lake.collect_garbage().deleted_paths == 0 and len(files_of(lake)) == 1
    later = now_micros() + (GARBAGE_GRACE_SECONDS + 1) * 1_000_000
    assert collect(lake.database, lake.storage.files, now=later).deleted_paths == 2
    assert files_of(lake) == set()
    with lake.database.read() as connection:
        assert connection.execute("select (select count(*) from garbage) + (select count(*) from inline_data)").fetchone() == (0,)


def test_what_a_dead_writer_left_is_found_by_name_and_the_living_are_spared(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = make_lake()
    table = create(lake)
    table.append(rows(0, 20_000))

    def fail(*_: Any) -> None:
        raise RuntimeError("killed before the commit")

    monkeypatch.setattr("loader.table.commits.commit_group", fail)
    with pytest.raises(RuntimeError):
        table.append(rows(20_000, 40_000))
    monkeypatch.undo()
    kept = {ref.path for ref in table.view().segments}
    assert len(files_of(lake)) == 2
    assert collect(lake.database, lake.storage.files).expired_stages == 0 and len(files_of(lake)) == 2, "its lease runs"
    later = now_micros() + (STAGED_LEASE_SECONDS + 1) * 1_000_000
    assert collect(lake.database, lake.storage.files, now=later).expired_stages == 1
    assert files_of(lake) == kept
    with pytest.raises(ConflictError, match="lease .* ran out"):
        table.append(rows(20_000, 40_000))
    assert table.append(rows(20_000, 40_000)).num_rows == 40_000


def test_a_writer_that_was_idle_past_its_lease_goes_on(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = create(lake)
    table.append(rows(0, 20_000))
    later = now_micros() + (STAGED_LEASE_SECONDS + 1) * 1_000_000
    collect(lake.database, lake.storage.files, now=later)
    assert table.append(rows(20_000, 20_003)).num_rows == 20_003, "a commit without a file needs no lease"
    table = lake.table("samples")
    table._context.stage.forget()
    with pytest.raises(KeyExistsError):
        table.append(rows(0, 20_001))
    collect(lake.database, lake.storage.files, now=later)
    monkeypatch.setattr("time.monotonic", lambda now=time.monotonic: now() + STAGED_LEASE_SECONDS)
    with pytest.raises(ConflictError, match="repeat the write"):
        table.append(rows(30_000, 50_000))
    assert table.append(rows(30_000, 50_000)).num_rows == 40_003, "what it says to do works"


def test_an_interrupted_file_does_not_stand_in_the_way(lake: Lake) -> None:
    table = create(lake)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with failpoints.armed("storage.linked", interrupt), pytest.raises(KeyboardInterrupt):
        table.append(rows(0, 20_000))
    assert table.append(rows(0, 20_000)).num_rows == 20_000
    with lake.database.read() as connection:
        garbage = {path for (path,) in connection.execute("select path from garbage")}
    assert files_of(lake) == garbage | {ref.path for ref in table.view().segments} and len(garbage) == 1


def test_relaxed_tables_sync_their_files_before_the_catalog_names_them(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = create(lake, durability="relaxed")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    table.append(rows(0, 20_000))
    assert synced, "another table's strict commit makes this one's row in the catalog durable, whenever it comes"


def test_a_commit_that_went_another_way_leaves_its_file_to_garbage(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = create(lake)
    table.append(rows(0, 20_000))
    monkeypatch.setattr("loader.table.commits.commit_group", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError):
        table.append(rows(20_000, 40_000))
    monkeypatch.undo()
    table.patch(labels([1], clicks=[1]))
    with lake.database.read() as connection:
        garbage = [path for (path,) in connection.execute("select path from garbage")]
    assert len(garbage) == 1 and garbage[0] in files_of(lake) and garbage[0] not in {ref.path for ref in table.view().segments}


def test_a_lost_answer_is_looked_up(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = create(lake)
    table.append(rows(0, 3))
    real = type(lake.database).write

    @contextlib.contextmanager
    def lossy(self: Any, *table: Any, **options: Any) -> Any:
        with real(self, *table, **options) as connection:
            yield connection
        raise StorageError("the disk went away after the commit")

    monkeypatch.setattr(type(lake.database), "write", lossy)
    snapshot = table.append(rows(3, 6))
    monkeypatch.undo()
    assert snapshot.id == 2 and len(table.history()) == 2 and table.to_arrow().num_rows == 6


@pytest.mark.parametrize("kind", ["read", "write"])
def test_an_answer_that_was_not_read_to_its_end_holds_nothing_up(lake: Lake, make_lake: Callable[..., Lake], kind: str) -> None:
    """An error may keep a cursor alive for long: what comes after it sees the present state, and may write."""
    create(lake).append(rows(0, 10))
    kept = []
    with pytest.raises(StorageError, match="broke"), getattr(lake.database, kind)() as connection:
        kept.append(connection.execute("select bucket from buckets"))
        raise StorageError("it broke")
    with make_lake(busy_timeout_seconds=1) as other:
        other.table("samples").append(rows(10, 20))
    assert lake.table("samples").to_arrow().num_rows == 20
    lake.table("samples").append(rows(20, 30))
    assert kept and lake.table("samples").to_arrow().num_rows == 30


def test_a_collection_that_dies_in_a_dead_writers_files_is_continued(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = create(lake)._context.new_stage()
    paths = [stage.put(b"never committed") for _ in range(12)]
    real, left = type(lake.storage.files).delete, [9]

    def dying(self: Any, wanted: Any) -> None:
        for path in wanted:
            left[0] -= 1
            if left[0] < 0:
                raise StorageError("it died")
            real(self, [path])

    monkeypatch.setattr(type(lake.storage.files), "delete", dying)
    later = now_micros() + 2 * STAGED_LEASE_SECONDS * 1_000_000
    for _ in range(2):
        with pytest.raises(StorageError, match="it died"):
            collect(lake.database, lake.storage.files, now=later)
        left[0] = 9
    monkeypatch.undo()
    assert collect(lake.database, lake.storage.files, now=later).expired_stages == 1
    assert not any(lake.storage.files.exists(path) for path in paths)
