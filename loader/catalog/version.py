"""The catalog's version: created once, checked at every opening, migrated where it is older, refused by name where it is newer."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from loader.catalog.connection import Connection, Database
from loader.catalog.migrations import CATALOG_VERSION, MIGRATIONS
from loader.errors import NotFoundError, UnsupportedVersionError

WRITTEN_BY = "headrace"
VERSION = "select version, reads_since from catalog_version"


def open_version(database: Database, dialect: str, *, create: bool) -> str:
    """Create an empty catalog's tables, or check what is there; returns the lake's id.

    Raises:
        NotFoundError: It is no catalog, and `create` is False.
        UnsupportedVersionError: A newer Headrace wrote it.
    """
    with database.read() as connection:
        there = _has_version(connection, dialect)
    if not there and not create:
        raise NotFoundError(f"{database.place} is not a Headrace catalog: check the location")
    if not there:
        _create(database, dialect)
    with database.read() as connection:
        version, lake_id, written_by = connection.execute("select version, lake_id, written_by from catalog_version").fetchone()
    if version < CATALOG_VERSION:
        version = migrate(database)
    if version > CATALOG_VERSION:
        raise UnsupportedVersionError(
            f"catalog {database.place} has version {version}, written by {written_by}; this Headrace reads up to version {CATALOG_VERSION}: "
            "upgrade with `pip install --upgrade headrace`"
        )
    return str(lake_id)


def origin(lake_id: str) -> str:
    """The lake that a lake is a copy of, by `loader.restore`; itself where it is none."""
    return lake_id.partition(".")[0]


def check_still(place: str, found: Sequence[int], *, writes: bool) -> None:
    """Refuse to go on with a catalog that a newer Headrace has migrated since this process opened it.

    Args:
        place: Of the catalog.
        found: The row of `VERSION`.
        writes: Whether data or metadata is to be written. To read, it is enough that the newer version is read alike.

    Raises:
        UnsupportedVersionError: It does not hold.
    """
    version, reads_since = found
    if version <= CATALOG_VERSION or (not writes and reads_since <= CATALOG_VERSION):
        return
    raise UnsupportedVersionError(
        f"a newer Headrace brought catalog {place} to version {version} while this process, which knows version {CATALOG_VERSION}, had it open: "
        f"nothing was {'written' if writes else 'read'}; upgrade with `pip install --upgrade headrace` and start the process again"
    )


def migrate(database: Database) -> int:
    """Bring an older catalog to the present version, all steps in one transaction; returns the version that stands then."""
    with database.write() as connection:
        (version,) = connection.execute("select version from catalog_version").fetchone()
        for step in range(version, CATALOG_VERSION):
            for statement in MIGRATIONS[step]:
                connection.execute(statement)
        if version < CATALOG_VERSION:
            connection.execute("update catalog_version set version = ?, written_by = ?", (CATALOG_VERSION, WRITTEN_BY))
    return max(int(version), CATALOG_VERSION)


def _has_version(connection: Connection, dialect: str) -> bool:
    if dialect == "sqlite":
        return connection.execute("select 1 from sqlite_master where name = 'catalog_version'").fetchone() is not None
    # a query of the table itself: to_regclass may answer from a cache that another process's commit has not reached
    found = connection.execute("select 1 from pg_catalog.pg_tables where schemaname = current_schema() and tablename = 'catalog_version'")
    return found.fetchone() is not None


def _create(database: Database, dialect: str) -> None:
    from loader.catalog.tables import ddl

    with database.write() as connection:
        if _has_version(connection, dialect):
            return  # another process was first
        for statement in ddl(dialect):
            connection.execute(statement)
        connection.execute(
            "insert into catalog_version (id, version, lake_id, written_by) values (1, ?, ?, ?)", (CATALOG_VERSION, uuid.uuid4().hex, WRITTEN_BY)
        )
