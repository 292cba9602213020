"""The lake: a folder of files and the catalog that says what they are. Owns opening, the marker file, and the list of tables."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from loader.catalog import admin
from loader.catalog.connection import Database
from loader.catalog.database import CATALOG_FILE, Catalog, catalog_path, is_server, open_database
from loader.catalog.garbage import CollectionReport, collect
from loader.catalog.inline import LakeStorage
from loader.catalog.kept import READ_CACHE_BYTES
from loader.catalog.read import load_spec, resolve_snapshot, table_names
from loader.catalog.records import Attribution, Pin, Snapshot
from loader.errors import NotFoundError, StorageError, UnsupportedVersionError
from loader.schema import Schema
from loader.storage import LocalStorage, Storage, make_folders
from loader.table.audit import AuditReport, audit
from loader.table.context import MEMORY_BYTES, TableContext
from loader.table.definition import define
from loader.table.lookup import LOOKUP_CACHE_BYTES
from loader.table.table import Table

if TYPE_CHECKING:
    from loader.backup.save import BackupReport
    from loader.doctor.run import Report

MARKER = "headrace-lake.json"
LAKE_VERSION = 1
BUSY_TIMEOUT_SECONDS = 30.0


class Lake:
    """An open lake; make one with `loader.connect`. Picklable by its location; refuses to work in a forked child.

    Attributes:
        location: Folder or url of the files.
        catalog_url: Where the catalog is, as an absolute path or the url of a server, or None for the one inside the lake. May hold a password.
        storage: The lake's files, inline commits included.
        catalog: Selections stored for planners.
        database: The catalog's connection, for the modules that write it.
    """

    def __init__(
        self,
        location: str,
        catalog_url: str | None,
        files: Storage,
        database: Database,
        memory_bytes: int = MEMORY_BYTES,
        *,
        lookup_cache_bytes: int = LOOKUP_CACHE_BYTES,
        read_cache_bytes: int = READ_CACHE_BYTES,
    ) -> None:
        self.location = location
        self.catalog_url = catalog_url
        self.database = database
        self.memory_bytes = memory_bytes
        self.catalog = Catalog(database)
        self.storage = LakeStorage(files, database, (open_storage, (location, catalog_url)), read_cache_bytes=read_cache_bytes)
        self._lookup_cache_bytes = lookup_cache_bytes
        self._contexts: dict[int, TableContext] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., Lake], tuple[str, str | None, bool]]:
        return connect, (self.location, self.catalog_url, False)

    def __repr__(self) -> str:
        return f"Lake({self.location!r})"

    def __enter__(self) -> Lake:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_process(self) -> None:
        """Raise ForkedProcessError in a forked child."""
        self.database.check_process()

    def create_table(
        self,
        name: str,
        schema: pa.Schema | Schema,
        *,
        primary_key: Sequence[str],
        bucket_by: Sequence[str] | None = None,
        buckets: int = 1,
        cluster_by: Sequence[str] | None = None,
        time_column: str | None = None,
        partition_by: str | None = None,
        merge: Mapping[str, str] | None = None,
        attribution: Attribution | None = None,
        durability: str = "strict",
        lookup_columns: Sequence[str] = (),
        resolve_horizon_seconds: int | None = None,
    ) -> Table:
        """Create an empty table.

        Args:
            name: A letter, then letters, digits, `_`, `.` or `-`.
            schema: Columns; their ids are given here and never change.
            primary_key: Columns that name a row: integers, booleans, dates, timestamps, strings or binary.
            bucket_by: Columns whose hash places a row in a bucket; default the key. Samples of a user stay together by the user's column.
            buckets: How many, fixed for good.
            cluster_by: The order of rows inside a segment; put what repeats together (user, then time).
            time_column: A timestamp, a date, or an integer of seconds; not null.
            partition_by: hour, day, week or month of the time column (UTC): rows of different units never share a segment.
            merge: {column: last | first | max | min | sum | count | any}: how a patch meets a value; default last.
            attribution: When a label that never came reads as its default.
            durability: "strict": acknowledged means synced to disk. "relaxed": the last commits may be lost with the machine's power, none by a killed process.
            lookup_columns: Columns whose rows are kept side by side in large segments, for look-ups on cold data; see `Table.build_lookup`.
            resolve_horizon_seconds: A patch of a row so much older than the watermark is refused, by the time column.

        Raises:
            AlreadyExistsError: A table of this name is there.
            SchemaError, ColumnNotFoundError, ValueError: An argument does not fit.
        """
        spec = define(
            name,
            schema,
            primary_key=primary_key,
            bucket_by=bucket_by,
            buckets=buckets,
            cluster_by=cluster_by,
            time_column=time_column,
            partition_by=partition_by,
            merge=merge,
            attribution=attribution,
            durability=durability,
            lookup_columns=lookup_columns,
            resolve_horizon_seconds=resolve_horizon_seconds,
        )
        with self.database.write() as connection:
            admin.create_table(connection, spec)
        return self.table(name)

    def table(self, name: str) -> Table:
        """Open a table.

        Raises:
            TableNotFoundError: There is none of this name; the message names the closest.
        """
        return Table(self, self.context(name))

    def context(self, name: str) -> TableContext:
        """What all handles of a table in this process share, by its present schema."""
        with self.database.read() as connection:
            spec = load_spec(connection, name)
        with self._lock:
            context = self._contexts.get(spec.id)
            if context is None or context.spec.schema_id != spec.schema_id:
                context = self._contexts[spec.id] = TableContext(
                    spec=spec,
                    catalog=self.database,
                    storage=self.storage,
                    memory_bytes=self.memory_bytes,
                    lookup_cache_bytes=self._lookup_cache_bytes,
                )
            return context

    def tables(self) -> list[str]:
        """Names of the tables, sorted."""
        with self.database.read() as connection:
            return table_names(connection)

    def drop_table(self, name: str) -> None:
        """Forget a table and its history; its files are deleted by `collect_garbage` after a grace period.

        Raises:
            TableNotFoundError: There is none of this name.
            ConflictError: A running job holds a pin on it.
        """
        with self.database.write() as connection:
            spec = load_spec(connection, name)
            admin.drop_table(connection, spec)
        with self._lock:
            self._contexts.pop(spec.id, None)

    def pin(self, table: str, snapshot: int | str | Snapshot | None, owner: str, ttl_seconds: float | None) -> Pin:
        """Hold a snapshot, so that nothing it needs is deleted, for a time or until `unpin`."""
        with self.database.write(as_reader=True) as connection:
            spec = load_spec(connection, table)
            return admin.add_pin(connection, spec, resolve_snapshot(connection, spec, snapshot), owner, ttl_seconds)

    def renew(self, pin: Pin, ttl_seconds: float) -> None:
        """Hold a pinned snapshot for so long from now.

        Raises:
            SnapshotNotFoundError: The pin had lapsed, and the snapshot is gone.
        """
        with self.database.write(as_reader=True) as connection:
            spec = load_spec(connection, pin.table)
            resolve_snapshot(connection, spec, pin.snapshot_id)
            admin.renew_pin(connection, spec, pin, ttl_seconds)

    def unpin(self, pin: Pin) -> None:
        """Let a pinned snapshot go."""
        with self.database.write(as_reader=True) as connection:
            admin.release_pin(connection, pin.id)

    def sql(self, query: str, snapshots: Mapping[str, int | str] | None = None) -> pa.Table:
        """Query the lake's tables by SQL, with DuckDB.

        Args:
            query: Names tables as they are; `"table@tag"` or `"table@12"`, in double quotes, at a snapshot.
            snapshots: {table: number or tag} for tables that are named plainly; default the newest.

        Returns:
            All rows of the answer; `loader.query.run` streams them.

        Raises:
            MissingDependencyError: duckdb is not installed.
            QueryError: DuckDB refuses the query.
        """
        from loader.query import run  # it imports this module's neighbours

        with run(self, query, snapshots) as answer:
            return answer.to_arrow()

    def collect_garbage(self) -> CollectionReport:
        """Delete files that nothing refers to and whose grace period is over, and what writers that died left behind."""
        return collect(self.database, self.storage.files)

    def doctor(
        self,
        table: str | None = None,
        *,
        deep: bool = False,
        repair: bool = False,
        progress: Callable[[int, int], None] | None = None,
        state: Path | None = None,
    ) -> Report:
        """Check every invariant of the lake, or of one table.

        Args:
            table: Its name; default all of them.
            deep: Read every stored section too, compare it with its record, and look for keys that are live twice.
            repair: Mend what can be mended safely, each in a transaction of its own that the catalog records.
            progress: Called with (done, total).
            state: A file that remembers what was looked at, so that a run that was stopped goes on.

        Raises:
            TableNotFoundError: There is none of this name.
        """
        from loader.doctor.run import examine

        return examine(self, table, deep=deep, repair=repair, progress=progress, state=state)

    def backup(self, destination: str | os.PathLike[str], *, keep: int | None = None, progress: Callable[[int, int], None] | None = None) -> BackupReport:
        """Copy the lake, catalog and files, to one consistent point; restore it with `loader.restore`. Writers go on meanwhile.

        A place holds the generations of one lake. An object is copied once, whatever number of generations refer to it; every copy is read back.

        Args:
            destination: Folder or url of the backup.
            keep: So many generations stay, the newest; older ones are given up, and what only they need is deleted. Default all.
            progress: Called with (done, total) objects.

        Raises:
            AlreadyExistsError: The place holds a backup of another lake.
            NotFoundError, StorageError: A file of the lake is missing or cut off; `doctor` says what it hits.
        """
        from loader.backup.save import backup

        return backup(self, destination, keep=keep, progress=progress)

    def audit(self) -> AuditReport:
        """Objects in storage that nothing refers to, and what is referred to and not there. Deletes nothing."""
        return audit(self.database, self.storage.files)

    def close(self) -> None:
        """Commit what was appended in the background and close the catalog's connection; tables of this lake cannot be used after it."""
        with self._lock:
            contexts = list(self._contexts.values())
        for context in contexts:
            context.commits.close()
        self.database.close()


def connect(
    location: str | os.PathLike[str],
    catalog: str | None = None,
    create: bool = True,
    *,
    busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS,
    lookup_cache_bytes: int = LOOKUP_CACHE_BYTES,
    read_cache_bytes: int = READ_CACHE_BYTES,
    memory_bytes: int = MEMORY_BYTES,
) -> Lake:
    """Open a lake, or create it.

    Args:
        location: A local folder, or the url of an object store (s3://bucket/lake).
        catalog: `sqlite:///path` on a local disk, or `postgresql://user@host/database` for writers on many hosts; default `catalog.sqlite` in the lake's
            own folder.
        create: Make the lake if it is not there. With False, a missing lake is an error.
        busy_timeout_seconds: How long a writer waits for other processes' commits.
        lookup_cache_bytes: What look-ups of one table keep of it in memory, its keys (13.5 bytes each, at most 512 MiB) aside.
        read_cache_bytes: What `to_arrow` and other reads keep in memory of all tables, so that they do not open and fold it again: footers, folded patches.
        memory_bytes: What an append, patch, upsert or delete may hold of its input, about, copies and encoded form included; larger inputs go in parts.

    Raises:
        NotFoundError: There is no lake and `create` is False.
        UnsupportedVersionError: A newer Headrace wrote it.
        StorageError: The location cannot be read or written.
    """
    files = Storage.open(location)
    text = os.fspath(location)
    marker = read_marker(files)
    if marker is None and not create:
        raise NotFoundError(f"no lake at {text}: check the location, or create it with loader.connect({text!r})")
    where = catalog_place(files, text, catalog)
    if catalog is not None:
        catalog = str(where)  # a pickled lake is opened again in another working directory
    if isinstance(where, Path):
        if marker is not None and not where.exists():
            raise StorageError(f"lake {text} has files, but its catalog {where} is missing: restore it from a backup, or give catalog=…")
        if create:
            try:
                make_folders(where.parent, sync=True)
            except OSError as error:
                raise StorageError(f"cannot create {where.parent}: {error.strerror or error}") from error
    database = open_database(where, create=create and marker is None, busy_timeout_seconds=busy_timeout_seconds)
    if marker is None:
        with database.queue():  # several processes may create it at once
            marker = read_marker(files)
            if marker is None and catalog is not None:
                _check_unused(database, text)
            marker = marker or write_marker(files, database.lake_id)
    if marker["lake_id"] != database.lake_id:
        raise StorageError(f"catalog {database.place} belongs to another lake ({database.lake_id}) than {text} ({marker['lake_id']}): give the right catalog=…")
    if isinstance(files, LocalStorage):
        text = str(files.folder)
    return Lake(text, catalog, files, database, memory_bytes, lookup_cache_bytes=lookup_cache_bytes, read_cache_bytes=read_cache_bytes)


def catalog_place(files: Storage, location: str, catalog: str | None) -> Path | str:
    """The file of the catalog, or the url of its server."""
    if catalog is not None:
        return catalog if is_server(catalog) else catalog_path(catalog)
    if isinstance(files, LocalStorage):
        return files.folder / CATALOG_FILE
    raise ValueError(
        f"a lake at {location} needs a catalog: catalog='postgresql://…', or 'sqlite:///…' on a local disk for a single host; an object store holds no database"
    )


def open_storage(location: str, catalog: str | None) -> LakeStorage:
    """The storage of an existing lake, inline commits included; what a pickled one becomes."""
    return connect(location, catalog, create=False).storage


def read_marker(files: Storage) -> dict[str, Any] | None:
    """The marker of the lake at a place; None where there is no lake."""
    try:
        raw = files.read(MARKER)
    except NotFoundError:
        return None
    try:
        marker = json.loads(bytes(raw))
        version = int(marker["version"])
        marker["lake_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{files.url}/{MARKER} is not a lake's marker ({error}): restore it from a backup") from error
    if version > LAKE_VERSION:
        raise UnsupportedVersionError(
            f"lake {files.url} has version {version}; this Headrace reads up to version {LAKE_VERSION}: upgrade with `pip install --upgrade headrace`"
        )
    return dict(marker)


def _check_unused(database: Database, location: str) -> None:
    """Refuse to make a second lake of a catalog: each would write files that the other does not find."""
    with database.read() as connection:
        names = table_names(connection)
    if names:
        raise StorageError(f"catalog {database.place} describes another lake than {location}, with table {names[0]!r}: give this one a catalog=… of its own")


def write_marker(files: Storage, lake_id: str) -> dict[str, Any]:
    """Make a place a lake.

    Raises:
        AlreadyExistsError: It is one.
    """
    marker = {"format": "headrace-lake", "version": LAKE_VERSION, "lake_id": lake_id}
    files.put(MARKER, json.dumps(marker).encode())
    return marker
