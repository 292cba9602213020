"""The shared catalog: tables in a PostgreSQL database, for many writers on many hosts. Owns connections, locks, transactions and what their errors mean.

Writers of one table line up at an advisory lock, taken in the same round trip as what they read; writers of different tables go side by side, and what
concerns no single table shuts out both. A write transaction is one pipeline: its statements are sent without waiting, except where an answer is
needed. A connection is never used by a forked child; one that broke is replaced.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from loader.catalog.connection import check_process
from loader.catalog.version import VERSION, check_still, open_version
from loader.errors import CatalogBusyError, CatalogUnavailableError, CommitError, StorageError, StorageFullError
from loader.extras import require

ALL_TABLES = 0  # the lock that shuts out everybody; tables are numbered from 1
IDLE_SECONDS = 1.0  # a connection that was idle for longer is asked whether it still stands
CONNECT_SECONDS = 10
MAX_IDLE = 8
_RETRY_SECONDS = 0.1
_open_catalogs: weakref.WeakSet[PostgresCatalog] = weakref.WeakSet()
_never_closed: list[Any] = []


def redacted(url: str) -> str:
    """A url without its password, for messages."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    user = parts.username
    return urlunsplit((parts.scheme, f"{user}@{host}" if user else host, parts.path, "", ""))


@functools.lru_cache(maxsize=512)
def _translated_statement(statement: str) -> str:
    return statement.replace("%", "%%").replace("?", "%s")


class _Answer:
    """A cursor whose numbers are there when they are asked for, also inside a pipeline."""

    def __init__(self, session: _Session, cursor: Any) -> None:
        self._session, self._cursor = session, cursor

    @property
    def rowcount(self) -> int:
        self._session.sync()
        return int(self._cursor.rowcount)

    def fetchone(self) -> Any:
        return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        rows: list[Any] = self._cursor.fetchall()
        return rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchall())


class _Session:
    """One connection of one thread at a time."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.used_at = time.monotonic()
        self.pipeline: Any = None
        self.in_transaction = False
        self.num_queued = 0  # how many blocks of `queue` it is in: their locks are the session's

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> _Answer:
        return _Answer(self, self.connection.execute(_translated_statement(statement), parameters))

    def executemany(self, statement: str, rows: list[Sequence[Any]]) -> None:
        if rows:
            self.connection.cursor().executemany(_translated_statement(statement), rows)

    def sync(self) -> None:
        if self.pipeline is not None:
            self.pipeline.sync()

    @property
    def is_usable(self) -> bool:
        return not self.connection.closed and self.connection.info.transaction_status == 0  # idle

    def end(self) -> None:
        """Roll back whatever is open."""
        if not self.connection.closed and self.connection.info.transaction_status != 0:
            self.connection.execute("rollback")


class PostgresCatalog:
    """Connections to a catalog in PostgreSQL. Thread-safe: a thread has a connection of its own while it is in a transaction.

    Args:
        url: `postgresql://user@host/database`, as libpq takes it; the tables lie in the first schema of the search path.
        create: Create the tables if they are not there.
        busy_timeout_seconds: How long a writer waits for the ones before it, and for a server that does not answer.

    Raises:
        MissingDependencyError: psycopg is not installed.
        CatalogUnavailableError: The server cannot be reached.
    """

    def __init__(self, url: str, *, create: bool, busy_timeout_seconds: float) -> None:
        self._psycopg: Any = require("psycopg", extra="postgres")
        self._url = url
        self.place = redacted(url)
        self.busy_timeout_seconds = busy_timeout_seconds
        self._pid = os.getpid()
        self._idle: list[_Session] = []
        self._lock = threading.Lock()
        self._mine = threading.local()
        self._closed = False
        self._is_checked = False
        _open_catalogs.add(self)
        self.lake_id = open_version(self, "postgresql", create=create)
        self._is_checked = True

    def check_process(self) -> None:
        """See `connection.Database`."""
        check_process(self.place, self._pid, closed=self._closed)

    @contextlib.contextmanager
    def read(self) -> Iterator[_Session]:
        """See `connection.Database`."""
        with self._session() as session, self._translated():
            if session.in_transaction:
                yield session
                return
            try:
                session.in_transaction = True
                self._begin_read(session)
                yield session
            finally:
                session.in_transaction = False
                session.end()

    def state(self) -> None:
        """See `connection.Database`. To ask is a round trip, as a read is."""
        self.check_process()

    def _begin_read(self, session: _Session) -> None:
        try:
            self._read_on(session)
        except self._psycopg.OperationalError:
            if session.num_queued:
                raise  # the queue was lost with the connection
            self._reconnect(session)
            self._read_on(session)

    def _read_on(self, session: _Session) -> None:
        begin = "begin isolation level repeatable read read only"
        if not self._is_checked:
            session.execute(begin)
            return
        cursor = session.connection.execute(f"{begin}; {VERSION}", prepare=False)  # one round trip
        cursor.nextset()
        check_still(self.place, cursor.fetchone(), writes=False)

    @contextlib.contextmanager
    def write(self, table_id: int | None = None, *, durability: str = "strict", as_reader: bool = False) -> Iterator[_Session]:
        """See `connection.Database`."""
        with self._session() as session, self._translated():
            if session.in_transaction:
                raise CommitError("a catalog transaction cannot begin inside another")
            try:
                session.in_transaction = True
                with self._pipeline(session):
                    session.execute("begin")
                    session.execute(f"set local synchronous_commit = {'off' if durability == 'relaxed' else 'on'}")
                    if table_id is not None:
                        session.execute("select pg_advisory_xact_lock_shared(hashtext(current_schema()), ?)", (ALL_TABLES,))
                    session.execute("select pg_advisory_xact_lock(hashtext(current_schema()), ?)", (ALL_TABLES if table_id is None else table_id,))
                    version = session.execute(VERSION) if self._is_checked else None
                    yield session
                    if version is not None:  # it came with the first answer that the block asked for
                        check_still(self.place, version.fetchone(), writes=not as_reader)
                    session.execute("commit")
            finally:
                session.in_transaction = False
                session.end()

    @contextlib.contextmanager
    def _pipeline(self, session: _Session) -> Iterator[None]:
        with session.connection.pipeline() as pipeline:
            session.pipeline = pipeline
            try:
                yield
            finally:
                session.pipeline = None

    @contextlib.contextmanager
    def queue(self, table_id: int | None = None) -> Iterator[None]:
        """See `connection.Database`. The lock goes with the connection, so this thread keeps it for as long as the block lasts.

        Locks are taken in the order of `write`: all tables first. A queue that took only its table's would wait, at its first write, behind one that waits for
        all tables, and that one for the writers that wait for this table.
        """
        locks = [(ALL_TABLES, "")] if table_id is None else [(ALL_TABLES, "_shared"), (table_id, "")]
        taken: list[tuple[int, str]] = []
        with self._session() as session, self._translated():
            session.num_queued += 1
            try:
                for key, mode in locks:
                    taken.append((key, mode))
                    session.execute(f"select pg_advisory_lock{mode}(hashtext(current_schema()), ?)", (key,))
                yield
            finally:
                session.num_queued -= 1
                if session.is_usable:
                    for key, mode in reversed(taken):
                        session.execute(f"select pg_advisory_unlock{mode}(hashtext(current_schema()), ?)", (key,))

    @contextlib.contextmanager
    def outcome(self, table_id: int) -> Iterator[_Session]:
        """See `connection.Database`. The table's lock is free only once the server has ended the lost transaction."""
        deadline = time.monotonic() + self.busy_timeout_seconds
        with contextlib.ExitStack() as held:
            while True:
                try:
                    session = held.enter_context(self._session())
                    if not self._stands(session):
                        self._reconnect(session)  # what was lost with one connection was lost with others too, and with it a queue
                    break
                except CatalogUnavailableError:
                    held.close()
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_RETRY_SECONDS)
            with self.write(table_id) as session:
                yield session

    def scrub(self) -> None:
        """See `connection.Database`: a vacuum lets dead rows be overwritten. The server's own log and backups are not reached."""
        with self._session() as session, self._translated():
            session.execute("vacuum inline_data, pending, overlays, erasures")

    @contextlib.contextmanager
    def _session(self) -> Iterator[_Session]:
        """This thread's connection; the same one for as long as it is inside a block of this catalog."""
        self.check_process()
        held: _Session | None = getattr(self._mine, "session", None)
        if held is not None:
            yield held
            return
        session = self._take()
        self._mine.session = session
        try:
            yield session
        finally:
            self._mine.session = None
            self._give_back(session)

    def _take(self) -> _Session:
        while True:
            with self._lock:
                session = self._idle.pop() if self._idle else None
            if session is None:
                return self._connect()
            if time.monotonic() - session.used_at < IDLE_SECONDS or self._stands(session):
                return session
            self._discard(session)

    def _give_back(self, session: _Session) -> None:
        session.used_at = time.monotonic()
        with self._lock:
            if session.is_usable and not session.num_queued and len(self._idle) < MAX_IDLE and not self._closed:
                self._idle.append(session)
                return
        self._discard(session)

    def _stands(self, session: _Session) -> bool:
        """Whether the server still answers on a connection."""
        with contextlib.suppress(self._psycopg.Error):
            session.execute("select 1").fetchone()
            return True
        return False

    def _reconnect(self, session: _Session) -> None:
        self._discard(session)
        session.connection = self._connect().connection

    def _discard(self, session: _Session) -> None:
        with contextlib.suppress(self._psycopg.Error):
            session.connection.close()

    def _connect(self) -> _Session:
        with self._translated():
            connection = self._psycopg.connect(
                self._url, autocommit=True, connect_timeout=CONNECT_SECONDS, application_name="headrace", keepalives_idle=30, prepare_threshold=2
            )
            connection.execute("select set_config('lock_timeout', %s, false)", (str(max(1, int(self.busy_timeout_seconds * 1000))),))
            return _Session(connection)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        errors = self._psycopg.errors
        try:
            yield
        except errors.LockNotAvailable as error:
            raise CatalogBusyError(
                f"another process is writing to the catalog {self.place} and has held its lock for more than {self.busy_timeout_seconds:g} s: "
                "wait for it to end (or stop it) and try again, or connect with a longer busy_timeout_seconds"
            ) from error
        except errors.DiskFull as error:
            raise StorageFullError(f"no space left at the catalog {self.place}: free some on the server, then try again") from error
        except (self._psycopg.OperationalError, self._psycopg.InterfaceError) as error:
            raise CatalogUnavailableError(
                f"the catalog {self.place} does not answer ({_one_line(error)}): check that the server runs and can be reached"
            ) from error
        except self._psycopg.Error as error:
            raise StorageError(f"catalog {self.place}: {_one_line(error)}") from error

    def close(self) -> None:
        """See `connection.Database`."""
        self._closed = True
        with self._lock:
            sessions, self._idle = self._idle, []
        if self._pid == os.getpid():
            for session in sessions:
                self._discard(session)

    def _forked(self) -> None:
        # Closing would end the parent's session at the server, so the child keeps what it inherited and never touches it.
        _never_closed.extend(self._idle)
        _never_closed.append(getattr(self._mine, "session", None))
        self._idle = []


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _after_fork() -> None:
    for catalog in list(_open_catalogs):
        catalog._forked()


os.register_at_fork(after_in_child=_after_fork)
