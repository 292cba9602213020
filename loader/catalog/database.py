"""Opening the catalog of a lake by url, and the stored selections that planners share through it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from loader.catalog import admin
from loader.catalog.read import load_spec
from loader.catalog.sqlite import SqliteCatalog

CATALOG_FILE = "catalog.sqlite"


def catalog_path(catalog: str) -> Path:
    """The file of a `sqlite:///…` url or of a plain path.

    Raises:
        ValueError: Another kind of database.
    """
    if catalog.startswith("sqlite:///"):
        return Path(unquote(catalog.removeprefix("sqlite:///"))).absolute()  # a fourth slash begins an absolute path
    if "://" in catalog:
        raise ValueError(f"catalog {catalog.split('://', 1)[0]}://… is not supported by this version: use sqlite:///path on a local disk")
    return Path(catalog).expanduser().absolute()


class Catalog:
    """What planners use of a catalog: counted predicates, stored once under their hash so that other ranks load them."""

    def __init__(self, database: SqliteCatalog) -> None:
        self._database = database

    def load_selection(self, table: str, snapshot_id: int, selection_hash: str) -> bytes | None:
        """The stored bytes, or None."""
        with self._database.read() as connection:
            return admin.load_selection(connection, load_spec(connection, table).id, snapshot_id, selection_hash)

    def save_selection(self, table: str, snapshot_id: int, selection_hash: str, data: bytes, pin_id: int | None = None) -> None:
        """Store bytes under a hash; the first stay where there are some already."""
        with self._database.write() as connection:
            admin.save_selection(connection, load_spec(connection, table).id, snapshot_id, selection_hash, data, pin_id)
