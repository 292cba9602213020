"""What a catalog's database must offer: connections inside transactions, and the two places to get them. SQLite and PostgreSQL fill these names.

Statements are parameterised with `?` and written so that both understand them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from loader.errors import ForkedProcessError, StorageError


class Cursor(Protocol):
    """The answer to one statement."""

    @property
    def rowcount(self) -> int:
        """Rows that it changed."""

    def fetchone(self) -> Any:
        """The next row as a sequence, or None."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """A connection inside a transaction. A batching one sends statements on as they come and waits for the server where an answer is asked for."""

    def execute(self, statement: str, parameters: Sequence[Any] = ..., /) -> Cursor: ...

    def executemany(self, statement: str, rows: list[Sequence[Any]], /) -> object: ...


class Database(Protocol):
    """An open catalog. Safe to share between threads; refuses to work in a forked child.

    Attributes:
        place: Where it is, for messages, without a password.
        lake_id: Of the lake that it describes.
        busy_timeout_seconds: How long a writer waits for the ones before it.
    """

    place: str
    lake_id: str
    busy_timeout_seconds: float

    def check_process(self) -> None:
        """Raise ForkedProcessError in a forked child, StorageError once closed."""

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state of the catalog. Inside another of this thread, that one.

        Raises:
            UnsupportedVersionError: A newer Headrace has migrated the catalog since it was opened, to what this one cannot read.
        """

    def state(self) -> object | None:
        """Another value after each commit of whatever process, told in microseconds and without a wait for writers; None where there is no such thing."""

    def write(self, table_id: int | None = None, *, durability: str = "strict", as_reader: bool = False) -> AbstractContextManager[Connection]:
        """A write transaction: committed when the block ends, rolled back when it raises.

        Args:
            table_id: The one table that it is about; others may be written meanwhile. None shuts out all other writers.
            durability: "relaxed" does not wait for the disk.
            as_reader: It writes what readers write: pins and stored selections. A Headrace that is too old to commit, because a newer one has migrated the
                catalog since it was opened, may go on with these for as long as it may read.

        Raises:
            UnsupportedVersionError: A newer Headrace has migrated the catalog since it was opened; nothing was written.
            CatalogBusyError: Others hold the lock for longer than the time-out.
        """

    def queue(self, table_id: int | None = None) -> AbstractContextManager[None]:
        """Shut out other writers without a transaction, so that nobody can come between what this thread reads and writes. May be nested."""

    def outcome(self, table_id: int) -> AbstractContextManager[Connection]:
        """A transaction in which an earlier write to the table, whose answer was lost, has ended one way or the other."""

    def scrub(self) -> None:
        """Overwrite, as far as the database can, what was deleted from its own files. Its write-ahead logs and backups on a server are not reached."""

    def close(self) -> None:
        """Close all connections; the object is of no use after it."""


def check_process(place: str, pid: int, *, closed: bool) -> None:
    """Refuse to work in a forked child of the process that opened a catalog, or once it was closed.

    Raises:
        ForkedProcessError: This process is not the one with `pid`.
        StorageError: It was closed.
    """
    if pid != os.getpid():
        raise ForkedProcessError(
            f"the lake with catalog {place} was opened in process {pid} and is used in its forked child {os.getpid()}: "
            "call loader.connect in the child, or start workers with spawn"
        )
    if closed:
        raise StorageError(f"the lake with catalog {place} was closed: open it again with loader.connect")
