"""Restoring a generation of a backup to an empty place: its objects, then the catalog in one transaction, then the lake's marker, which makes it a lake.

Kill it anywhere: the same command goes on. A restored lake is a copy: it has the original's history and snapshots, and an identity of its own, so that
neither's catalog is ever used with the other's files.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from loader import failpoints
from loader.backup.copying import copy_object, in_bounds
from loader.backup.dump import finish, load, rows_of
from loader.backup.layout import OBJECTS, Generation, newest_number, origin_of_backup, read_generation
from loader.backup.save import object_list
from loader.catalog.connection import Database
from loader.catalog.database import open_database
from loader.catalog.migrations import CATALOG_VERSION
from loader.catalog.version import origin
from loader.doctor.checks import Finding
from loader.errors import AlreadyExistsError, NotFoundError, UnsupportedVersionError
from loader.lake import BUSY_TIMEOUT_SECONDS, catalog_place, connect, read_marker, write_marker
from loader.storage import Storage, make_folders

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestoreReport:
    """What a restore did.

    Attributes:
        generation: That was restored.
        lake_id: Of the restored lake.
        tables: Name -> the head's number and its live rows.
        num_objects, num_bytes: Restored.
        findings: Of the doctor, after it; empty when all is well.
        seconds: How long it took.
    """

    generation: int
    lake_id: str
    tables: dict[str, dict[str, int]]
    num_objects: int
    num_bytes: int
    findings: tuple[Finding, ...]
    seconds: float


def generations(source: str | os.PathLike[str]) -> list[Generation]:
    """The generations of a backup that can be restored, the newest last.

    Raises:
        NotFoundError: There is no backup at this place.
    """
    storage = Storage.open(source)
    if origin_of_backup(storage) is None:
        raise NotFoundError(f"no backup at {storage.url}: give the place that `headrace backup` was given")
    number = newest_number(storage)
    return [read_generation(storage, kept) for kept in read_generation(storage, number).kept] if number else []


def restore(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    catalog: str | None = None,
    generation: int | None = None,
    progress: Progress | None = None,
) -> RestoreReport:
    """Restore a backup of a lake to an empty place.

    Tables, snapshots, tags, source offsets and waiting labels are as they were. Pins of running jobs, leases and what writers had staged are not restored.
    The restored lake is another one than the original, though a loader's state goes on in it: stop the writers of one before those of the other go on
    from the same source offsets.

    Args:
        source: Folder or url of the backup.
        destination: Folder or url of the new lake.
        catalog: As for `connect`; the kind of database may be another one than the original's.
        generation: Its number; default the newest.
        progress: Called with (done, total) objects.

    Raises:
        NotFoundError: There is no backup, or no such generation.
        AlreadyExistsError: There is a lake, or a catalog, already.
        UnsupportedVersionError: A newer Headrace wrote it.
        StorageError: The backup is damaged.
    """
    started = time.monotonic()
    storage, files, text = Storage.open(source), Storage.open(destination), os.fspath(destination)
    chosen = _choose(source, generation)
    if read_marker(files) is not None:
        raise AlreadyExistsError(f"{files.url} holds a lake: restore to an empty place")
    place = catalog_place(files, text, catalog)
    if isinstance(place, Path):
        make_folders(place.parent, sync=True)
    database = open_database(place, create=True, busy_timeout_seconds=BUSY_TIMEOUT_SECONDS)
    try:
        is_filled = _check_empty(database, chosen)
        num_objects, num_bytes = _copy_objects(storage, files, chosen, progress)
        lake_id = database.lake_id if is_filled else _fill(database, storage, chosen, is_sqlite=isinstance(place, Path))
    finally:
        database.close()
    write_marker(files, lake_id)
    failpoints.hit("restore.marked")
    with connect(destination, catalog, create=False) as lake:
        findings = lake.doctor().findings
    return RestoreReport(
        generation=chosen.number,
        lake_id=lake_id,
        tables=chosen.tables,
        num_objects=num_objects,
        num_bytes=num_bytes,
        findings=findings,
        seconds=time.monotonic() - started,
    )


def _choose(source: str | os.PathLike[str], number: int | None) -> Generation:
    kept = generations(source)
    if not kept:
        raise NotFoundError(f"the backup {os.fspath(source)} has no generation yet: none was finished")
    chosen = next((one for one in kept if one.number == number), None) if number is not None else kept[-1]
    if chosen is None:
        numbers = ", ".join(str(one.number) for one in kept)
        raise NotFoundError(f"the backup {os.fspath(source)} has no generation {number} that is kept: there are {numbers}")
    if chosen.catalog_version > CATALOG_VERSION:
        raise UnsupportedVersionError(
            f"generation {chosen.number} is of a catalog of version {chosen.catalog_version}; this Headrace reads up to version {CATALOG_VERSION}: "
            "upgrade with `pip install --upgrade headrace`"
        )
    return chosen


def _copy_name(chosen: Generation) -> str:
    """What the lake ids of copies of a generation begin with."""
    return f"{origin(chosen.lake_id)}.{chosen.number}-"


def _check_empty(database: Database, chosen: Generation) -> bool:
    """Whether the catalog was filled by this restore already, which was stopped before its end; else it must be empty."""
    with database.read() as connection:
        used = connection.execute("select count(*) from tables").fetchone()[0]
    if database.lake_id.startswith(_copy_name(chosen)):
        return True
    if used:
        raise AlreadyExistsError(f"catalog {database.place} describes a lake already: restore to an empty one")
    return False


def _copy_objects(storage: Storage, files: Storage, chosen: Generation, progress: Progress | None) -> tuple[int, int]:
    objects = object_list(storage, chosen)
    tasks = (
        (size, functools.partial(copy_object, storage, OBJECTS + path, files, path, checksum=checksum, least_bytes=size, failpoint="restore.copied"))
        for path, size, checksum in zip(*(objects[name].to_pylist() for name in ("path", "num_bytes", "checksum")), strict=True)
    )
    done, num_bytes = 0, 0
    for size, _ in in_bounds(tasks):
        done, num_bytes = done + 1, num_bytes + size
        if progress is not None:
            progress(done, objects.num_rows)
    return done, num_bytes


def _fill(database: Database, storage: Storage, chosen: Generation, *, is_sqlite: bool) -> str:
    """Load the catalog's rows in one transaction; no object is read while it is open. Returns the id of the lake that it describes."""
    lake_id = _copy_name(chosen) + uuid.uuid4().hex[:8]
    with tempfile.TemporaryDirectory(prefix="headrace-restore-") as folder:
        local = []
        for number, part in enumerate(chosen.parts):
            local.append((part.table, Path(folder) / f"{number:08d}.arrow"))
            local[-1][1].write_bytes(part.read(storage))
        with database.write() as connection:
            for table, file in local:
                load(connection, table, rows_of(file))
            finish(connection, chosen.sequences, version=chosen.catalog_version, is_sqlite=is_sqlite)
            connection.execute("update catalog_version set lake_id = ?", (lake_id,))
            failpoints.hit("restore.loaded")
    failpoints.hit("restore.filled")
    return lake_id
