"""Opening the catalog of a lake by url, and the stored selections that planners share through it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from loader.catalog import admin, quarantine
from loader.catalog.connection import Database
from loader.catalog.read import load_spec

CATALOG_FILE = "catalog.sqlite"
POSTGRES_SCHEMES = ("postgresql", "postgres")


def is_server(catalog: str) -> bool:
    """Whether a catalog lies in a database server, not in a file of this machine.

    Raises:
        ValueError: A kind of database that is not supported.
    """
    scheme, separator, _ = catalog.partition("://")
    if not separator or scheme == "sqlite":
        return False
    if scheme not in POSTGRES_SCHEMES:
        raise ValueError(f"catalog {scheme}://… is not supported: use sqlite:///path on a local disk, or postgresql://user@host/database")
    return True


def catalog_path(catalog: str) -> Path:
    """The file of a `sqlite:///…` url or of a plain path."""
    if catalog.startswith("sqlite:///"):
        return Path(unquote(catalog.removeprefix("sqlite:///"))).absolute()  # a fourth slash begins an absolute path
    return Path(catalog).expanduser().absolute()


def open_database(catalog: str | Path, *, create: bool, busy_timeout_seconds: float) -> Database:
    """Open the catalog at a file, or at the url of a server.

    Raises:
        NotFoundError: There is no catalog, and `create` is False.
        CatalogUnavailableError: The server cannot be reached.
        UnsupportedVersionError: A newer Headrace wrote it.
    """
    if isinstance(catalog, Path):
        from loader.catalog.sqlite import SqliteCatalog

        return SqliteCatalog(catalog, create=create, busy_timeout_seconds=busy_timeout_seconds)
    from loader.catalog.postgres import PostgresCatalog

    return PostgresCatalog(catalog, create=create, busy_timeout_seconds=busy_timeout_seconds)


class Catalog:
    """What planners use of a catalog: counted predicates, stored once under their hash so that other ranks load them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load_selection(self, table: str, snapshot_id: int, selection_hash: str) -> bytes | None:
        """The stored bytes, or None."""
        with self._database.read() as connection:
            return admin.load_selection(connection, load_spec(connection, table).id, snapshot_id, selection_hash)

    def save_selection(self, table: str, snapshot_id: int, selection_hash: str, data: bytes, pin_id: int | None = None) -> None:
        """Store bytes under a hash; the first stay where there are some already."""
        with self._database.write(as_reader=True) as connection:
            admin.save_selection(connection, load_spec(connection, table).id, snapshot_id, selection_hash, data, pin_id)

    def load_quarantine(self, table_id: int) -> list[quarantine.Quarantined]:
        """The blocks of a table that are in quarantine."""
        with self._database.read() as connection:
            return quarantine.load(connection, table_id)

    def add_quarantine(self, table_id: int, found: Sequence[quarantine.Quarantined]) -> None:
        """Put blocks of a table in quarantine; those that are stay as they are."""
        with self._database.write(as_reader=True) as connection:
            for each in found:
                quarantine.add(connection, table_id, each)
