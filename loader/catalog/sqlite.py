"""The embedded catalog: one SQLite file. Owns the connection, the queue of writers, transactions and the version check.

Writers of all processes line up at a file lock before BEGIN IMMEDIATE, because the kernel wakes the one that has waited longest at once where SQLite's
own handler sleeps, and a busy writer would always be first again. The write-ahead log is synced at every commit (synchronous=FULL). A connection is
never used by a forked child.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loader.catalog.connection import check_process
from loader.catalog.version import VERSION, check_still, open_version
from loader.errors import CatalogBusyError, CommitError, NotFoundError, StorageError, StorageFullError
from loader.storage import full_message, sync_folder

QUEUE_SUFFIX = "-queue"
_open_catalogs: weakref.WeakSet[SqliteCatalog] = weakref.WeakSet()
_never_closed: list[sqlite3.Connection] = []


class _Turn:
    """A place in the queue of writers. Another thread waits for it, since a wait for a file lock has no time-out; one that comes too late is given up again."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)  # of its own: locks of one opened file are one lock
        self._come = threading.Event()
        self._guard = threading.Lock()
        self._is_wanted = True
        threading.Thread(target=self._take, name="headrace-queue", daemon=True).start()

    def _take(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with self._guard:
            if self._is_wanted:
                self._come.set()
            else:
                self._close()

    def wait(self, seconds: float) -> bool:
        """Whether it came in time."""
        try:
            self._come.wait(seconds)
        finally:
            with self._guard:
                if not self._come.is_set():
                    self._is_wanted = False
        return self._come.is_set()

    def end(self) -> None:
        """Let the next one come."""
        with self._guard:
            self._is_wanted = False
            if self._come.is_set():
                self._close()

    def _close(self) -> None:
        if self._file >= 0:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # first, for a forked child may hold a copy of the opened file
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.end()  # an interrupt came before anybody knew of it


class _Connection(sqlite3.Connection):
    """Knows its cursors, so that they end with their transaction.

    A statement that was not read to its end holds the state of the catalog that it began with, past a rollback and for as long as something refers to its
    cursor, an error's traceback for one: later transactions would read that old state, and be refused to write at once, as if the catalog were locked.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()

    def execute(self, statement: str, parameters: Any = (), /) -> sqlite3.Cursor:
        cursor = super().execute(statement, parameters)
        self._cursors.add(cursor)
        return cursor

    def end_statements(self) -> None:
        """End every statement that ran, read to its end or not."""
        for cursor in list(self._cursors):
            cursor.close()
        self._cursors.clear()


class SqliteCatalog:
    """A connection to a catalog file. Thread-safe: one transaction at a time in a process.

    Attributes:
        path, place: The file, on a local disk.
        lake_id: Of the lake it describes.
        busy_timeout_seconds: How long a writer waits for the ones before it.
    """

    def __init__(self, path: Path, *, create: bool, busy_timeout_seconds: float) -> None:
        self.path = path
        self.place = str(path)
        self.busy_timeout_seconds = busy_timeout_seconds
        self._pid = os.getpid()
        self._threads = threading.RLock()
        self._queue_threads = threading.RLock()
        self._queue_depth = 0
        self._queue_path = str(path) + QUEUE_SUFFIX
        self._turn: _Turn | None = None
        self._in_transaction = False
        self._closed = False
        self._is_checked = False
        self._synchronous = "full"
        self._watch: sqlite3.Connection | None = None
        self._watch_lock = threading.Lock()
        if not path.exists() and not create:
            raise NotFoundError(f"no catalog at {path}: check the location, or create the lake with connect(create=True)")
        try:
            self._queue_file = os.open(self._queue_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._close_queue = weakref.finalize(self, os.close, self._queue_file)
            self._connection = sqlite3.connect(
                path, isolation_level=None, timeout=busy_timeout_seconds, check_same_thread=False, cached_statements=256, factory=_Connection
            )
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"cannot open the catalog {path}: {error}") from error
        _open_catalogs.add(self)
        with self._translated():
            self._connection.execute("pragma journal_mode = wal")
            self._connection.execute("pragma synchronous = full")
            self._connection.execute("pragma secure_delete = on")  # deleted bytes are overwritten: what was erased is not to be found in free pages
            self._connection.execute("pragma foreign_keys = off")  # rows go by table; checked by the doctor, not by every insert
        self.lake_id = open_version(self, "sqlite", create=create)
        self._is_checked = True
        if create:
            sync_folder(path.parent)

    def check_process(self) -> None:
        """See `connection.Database`."""
        check_process(self.place, self._pid, closed=self._closed)

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the catalog."""
        self.check_process()
        with self._threads, self._translated():
            if self._in_transaction:
                yield self._connection
                return
            try:  # Ctrl-C waits while a statement runs and is raised right after it: what is open then is asked from SQLite
                self._in_transaction = True
                self._connection.execute("begin")
                self._check_version(writes=False)
                yield self._connection
            finally:
                self._in_transaction = False
                self._end()

    def state(self) -> int:
        """See `connection.Database`. SQLite's own counter, as a connection that never writes and waits for nobody sees it."""
        self.check_process()
        with self._watch_lock, self._translated():
            if self._watch is None:
                self._watch = sqlite3.connect(self.path, isolation_level=None, timeout=self.busy_timeout_seconds, check_same_thread=False)
            return int(self._watch.execute("pragma data_version").fetchall()[0][0])

    @contextlib.contextmanager
    def write(self, table_id: int | None = None, *, durability: str = "strict", as_reader: bool = False) -> Iterator[sqlite3.Connection]:
        """The one write transaction, whatever table it is about; committed when the block ends, rolled back when it raises.

        Raises:
            CatalogBusyError: Other processes hold the lock for longer than the time-out.
            UnsupportedVersionError: See `connection.Database`.
        """
        with self.queue(), self._threads, self._translated():
            if self._in_transaction:
                raise CommitError("a catalog transaction cannot begin inside another")
            synchronous = "normal" if durability == "relaxed" else "full"
            if synchronous != self._synchronous:
                self._synchronous = ""  # whatever becomes of the statement
                self._connection.execute(f"pragma synchronous = {synchronous}")
                self._synchronous = synchronous
            try:
                self._in_transaction = True
                self._connection.execute("begin immediate")
                self._check_version(writes=not as_reader)
                yield self._connection
                self._connection.execute("commit")
            finally:
                self._in_transaction = False
                self._end()

    @contextlib.contextmanager
    def queue(self, table_id: int | None = None) -> Iterator[None]:
        """Hold the place at the head of the queue of writers, without a transaction. May be nested.

        Raises:
            CatalogBusyError: Other processes hold it for longer than the time-out.
        """
        self.check_process()
        with self._queue_threads:
            try:
                self._queue_depth += 1
                if self._queue_depth == 1:
                    self._wait_in_queue()
                yield
            finally:
                self._queue_depth -= 1
                if self._queue_depth == 0:
                    self._leave_queue()

    def _end(self) -> None:
        """Roll back whatever is open, statements too."""
        self._connection.end_statements()
        if self._connection.in_transaction:
            self._connection.execute("rollback")
            self._connection.end_statements()

    def outcome(self, table_id: int) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """A transaction that sees what became of a lost write: here none outlives its statement."""
        return self.read()

    def scrub(self) -> None:
        """See `connection.Database`. Deleted bytes are overwritten as they go; here the log's older copies of pages go too, unless a reader holds them."""
        with self.queue(), self._threads, self._translated():
            self._connection.execute("pragma wal_checkpoint(truncate)").fetchall()

    def _check_version(self, *, writes: bool) -> None:
        if self._is_checked:
            check_still(self.place, self._connection.execute(VERSION).fetchone(), writes=writes)

    def _wait_in_queue(self) -> None:
        try:
            fcntl.flock(self._queue_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._turn = _Turn(self._queue_path)
            if not self._turn.wait(self.busy_timeout_seconds):
                self._turn = None
                raise CatalogBusyError(self._busy_message()) from None

    def _leave_queue(self) -> None:
        if self._turn is None:
            fcntl.flock(self._queue_file, fcntl.LOCK_UN)
        else:
            turn, self._turn = self._turn, None
            turn.end()

    def _busy_message(self) -> str:
        return (
            f"another process is writing to the catalog {self.path} and has held its lock for more than {self.busy_timeout_seconds:g} s: "
            "wait for it to end (or stop it) and try again, or connect with a longer busy_timeout_seconds"
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "full" in text:
                raise StorageFullError(full_message(self.path, None)) from error
            if "locked" in text or "busy" in text:
                raise CatalogBusyError(self._busy_message()) from error
            raise StorageError(f"catalog {self.path}: {text}") from error
        except sqlite3.DatabaseError as error:
            raise StorageError(f"catalog {self.path}: {error}") from error

    def close(self) -> None:
        """Close the connection; the object is of no use after it."""
        self._closed = True
        if self._pid == os.getpid():
            self._connection.close()
            if self._watch is not None:
                self._watch.close()
        self._close_queue()

    def _forked(self) -> None:
        # The child shares the parent's lock: an open descriptor here would keep it held after the parent died.
        self._close_queue()
        _never_closed.append(self._connection)  # closing a carried-over connection is not safe either
        if self._watch is not None:
            _never_closed.append(self._watch)


def _after_fork() -> None:
    for catalog in list(_open_catalogs):
        catalog._forked()


os.register_at_fork(after_in_child=_after_fork)
