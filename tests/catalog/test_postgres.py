"""The catalog in PostgreSQL where it differs from a file: lost connections and answers, locks by table, crashes of the server, passwords."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loader
from loader import failpoints
from loader.catalog.postgres import PostgresCatalog, redacted
from loader.errors import (
    CatalogBusyError,
    CatalogUnavailableError,
    ForkedProcessError,
    NotFoundError,
    StorageError,
    UnknownOutcomeError,
    UnsupportedVersionError,
)
from loader.lake import Lake
from tests import postgres
from tests.table import processes
from tests.table.samples import create, rows


@pytest.fixture
def url() -> Iterator[str]:
    made = postgres.new_catalog()
    yield made
    postgres.drop_catalog(made)


@pytest.fixture
def lake(tmp_path: Path, url: str) -> Iterator[Lake]:
    with loader.connect(tmp_path / "lake", catalog=url) as opened:
        yield opened


def end_all_sessions() -> None:
    """What a failing network or an administrator does to the connections of this process."""
    import psycopg

    with psycopg.connect(postgres.server().get_uri(), autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'headrace'")


@pytest.mark.parametrize("failpoint", ["append.prepared", "append.resolved", "commit.begun", "commit.written", "commit.committed"])
def test_an_append_survives_a_connection_that_breaks(lake: Lake, failpoint: str) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    times = []

    def once() -> None:
        times.append(1)
        if len(times) == 1:
            end_all_sessions()

    with failpoints.armed(failpoint, once):
        try:
            table.append(rows(10, 20), commit_id="second")
        except CatalogUnavailableError:
            assert failpoint in ("append.prepared", "append.resolved"), "before the commit, a read may fail with its connection"
            table.append(rows(10, 20), commit_id="second")
    assert [entry.num_rows for entry in table.history()] == [10, 20]
    assert table.to_arrow().num_rows == 20


def test_a_commit_survives_when_every_connection_breaks(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 10))
    times = []

    def once() -> None:
        times.append(1)
        if len(times) == 1:
            thread = threading.Thread(target=table.history)  # a second connection, idle since a moment ago
            thread.start()
            thread.join()
            end_all_sessions()

    with failpoints.armed("commit.written", once):
        table.append(rows(10, 20))
    assert [entry.num_rows for entry in table.history()] == [10, 20]


def test_a_lost_answer_is_looked_up(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = create(lake)
    real = PostgresCatalog.write
    lost = []

    @contextlib.contextmanager
    def write(self: PostgresCatalog, table_id: int | None = None, **options: Any) -> Iterator[object]:
        with real(self, table_id, **options) as connection:
            yield connection
        if table_id is not None and not lost:
            lost.append(True)
            raise CatalogUnavailableError("the answer was lost")

    monkeypatch.setattr(PostgresCatalog, "write", write)
    table.append(rows(0, 10))
    assert lost
    assert [entry.num_rows for entry in table.history()] == [10]


def test_an_outcome_that_cannot_be_looked_up_is_not_guessed(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = create(lake)

    @contextlib.contextmanager
    def silent(self: PostgresCatalog, table_id: int) -> Iterator[object]:
        raise CatalogUnavailableError("nobody answers")
        yield

    monkeypatch.setattr(PostgresCatalog, "outcome", silent)
    with failpoints.armed("commit.written", end_all_sessions), pytest.raises(UnknownOutcomeError, match="'mine'.*repeat the same write with this commit_id"):
        table.append(rows(0, 10), commit_id="mine")
    table.append(rows(0, 10), commit_id="mine")
    assert table.to_arrow().num_rows == 10


def test_what_was_acknowledged_survives_a_crash_of_the_server(lake: Lake) -> None:
    table = create(lake)
    for start in range(0, 30, 10):
        table.append(rows(start, start + 10), commit_id=f"from-{start}")
        postgres.restart()
    assert [entry.commit_id for entry in table.history()] == ["from-0", "from-10", "from-20"]
    assert table.to_arrow().num_rows == 30


def test_writers_of_other_tables_do_not_wait(tmp_path: Path, url: str) -> None:
    with loader.connect(tmp_path / "lake", catalog=url, busy_timeout_seconds=0.2) as lake:
        one, other = create(lake, "one"), create(lake, "other")
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with lake.database.write(one.spec.id):
                held.set()
                done.wait(30)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(30)
        try:
            other.append(rows(0, 5))
            with pytest.raises(CatalogBusyError, match=r"held its lock for more than 0\.2 s"):
                one.append(rows(0, 5))
            with pytest.raises(CatalogBusyError):
                lake.create_table("third", one.schema, primary_key=["item"])
        finally:
            done.set()
            thread.join()
        one.append(rows(0, 5))
        assert lake.tables() == ["one", "other"]


def test_the_queue_shuts_others_out_and_lets_its_holder_write(tmp_path: Path, url: str) -> None:
    with loader.connect(tmp_path / "lake", catalog=url) as lake, loader.connect(tmp_path / "lake", catalog=url, busy_timeout_seconds=0.1) as second:
        table = create(lake)
        with lake.database.queue(table.spec.id), lake.database.queue(table.spec.id):
            table.append(rows(0, 5))
            with pytest.raises(CatalogBusyError):
                second.table("samples").append(rows(5, 10))
        second.table("samples").append(rows(5, 10))
        assert table.to_arrow().num_rows == 10


def test_a_queue_goes_on_beside_one_that_waits_for_all_tables(tmp_path: Path, url: str) -> None:
    """Whoever holds a table's queue writes; another waits for the table, and a third for all tables: nobody waits in a circle."""
    with loader.connect(tmp_path / "lake", catalog=url) as lake:
        table = create(lake)
        failed: list[Exception] = []

        def write(table_id: int | None) -> None:
            try:
                with lake.database.write(table_id):
                    pass
            except Exception as error:  # noqa: BLE001 (the test says which)
                failed.append(error)

        def waiting() -> int:
            with lake.database.read() as connection:
                return int(connection.execute("select count(*) from pg_locks where locktype = 'advisory' and not granted").fetchone()[0])

        threads = [threading.Thread(target=write, args=(table_id,)) for table_id in (table.spec.id, None)]
        with lake.database.queue(table.spec.id):
            for number, thread in enumerate(threads):
                thread.start()
                while waiting() <= number:
                    assert thread.is_alive()
            table.append(rows(0, 5))
        for thread in threads:
            thread.join()
        assert not failed
        assert table.to_arrow().num_rows == 5


def test_a_forked_child_refuses_and_the_parent_goes_on(lake: Lake) -> None:
    table = create(lake)

    def child() -> None:
        with pytest.raises(ForkedProcessError, match=r"call loader.connect in the child"):
            table.history()

    assert processes.wait(processes.start(child)) == 0
    table.append(rows(0, 5))
    assert table.to_arrow().num_rows == 5


def test_a_catalog_that_is_not_there(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "lake"
    with loader.connect(folder, catalog=url) as lake:
        create(lake)
    with pytest.raises(NotFoundError, match="is not a Headrace catalog"):
        loader.connect(folder, catalog=postgres.new_catalog())
    with pytest.raises(StorageError, match="belongs to another lake|describes another lake"):
        loader.connect(tmp_path / "second", catalog=url)


def test_a_newer_catalog_is_refused_by_name(tmp_path: Path, url: str) -> None:
    with loader.connect(tmp_path / "lake", catalog=url) as lake, lake.database.write() as connection:
        connection.execute("update catalog_version set version = 99, written_by = 'headrace 9.1'")
    with pytest.raises(UnsupportedVersionError, match=r"version 99, written by headrace 9\.1"):
        loader.connect(tmp_path / "lake", catalog=url)


def test_no_message_shows_a_password(tmp_path: Path) -> None:
    url = "postgresql://writer:s3cret@127.0.0.1:1/lake?password=s3cret"
    assert redacted(url) == "postgresql://writer@127.0.0.1:1/lake"
    with pytest.raises(CatalogUnavailableError, match="writer@127.0.0.1:1/lake does not answer") as caught:
        loader.connect(tmp_path, catalog=url)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in str(caught.value.__cause__)


def test_sessions_are_given_back(lake: Lake) -> None:
    table = create(lake)
    threads = [threading.Thread(target=table.history) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    database = lake.database
    assert isinstance(database, PostgresCatalog)
    assert 1 <= len(database._idle) <= 8
    lake.close()
    assert not database._idle
    with pytest.raises(StorageError, match=r"was closed: open it again"):
        table.history()
    assert os.getpid() == database._pid
