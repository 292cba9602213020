"""What lies where in a backup: its marker, its generations, and how the newest is found without listing. Every object is written once.

headrace-backup.json                     whose backup it is
objects/<path of the lake>               the lake's files, shared by the generations that refer to them
catalogs/<number>-<attempt>/<part>.arrow the catalog's rows and the list of objects, in parts
generations/<number>.json                a generation, written last: what has none did not happen
collected/<number>                       the generation was retired, and what only it needed is deleted
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from loader.errors import AlreadyExistsError, NotFoundError, StorageError, UnsupportedVersionError
from loader.segment.checksum import crc32c
from loader.storage import Storage

MARKER = "headrace-backup.json"
OBJECTS = "objects/"
BACKUP_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of one catalog table, or of the list of objects, in one file.

    Attributes:
        table: Its name.
        path: In the backup.
        rows: How many.
        num_bytes, checksum: Of the file; CRC32C.
    """

    table: str
    path: str
    rows: int
    num_bytes: int
    checksum: int

    def read(self, storage: Storage) -> memoryview:
        """Its bytes.

        Raises:
            StorageError: They are not those that were written.
        """
        data = storage.read(self.path)
        if crc32c(data) != self.checksum or data.nbytes != self.num_bytes:
            raise StorageError(f"{storage.url}/{self.path} is damaged: its checksum does not match; restore an earlier generation (headrace restore --list)")
        return data


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """One backup of a lake.

    Attributes:
        number: From 1.
        lake_id: Of the lake.
        catalog_version: Of its catalog.
        created_at: ISO time of the state that it holds.
        tables: Name -> the head's number and its live rows.
        sequences: Catalog table -> the last number that was given to a row.
        parts: Of the catalog's tables, in the order they are loaded.
        objects: Parts of the list of objects: path, num_bytes, checksum.
        num_objects, num_bytes: Of the objects.
        kept: Numbers of the generations that can be restored, this one included, as of this one.
        leaving: Numbers of the retired ones whose objects may not be deleted yet.
    """

    number: int
    lake_id: str
    catalog_version: int
    created_at: str
    tables: dict[str, dict[str, int]]
    sequences: dict[str, int]
    parts: tuple[Part, ...]
    objects: tuple[Part, ...]
    num_objects: int
    num_bytes: int
    kept: tuple[int, ...]
    leaving: tuple[int, ...]

    def write(self, storage: Storage) -> None:
        """Make it happen.

        Raises:
            AlreadyExistsError: Another backup took this number first.
        """
        storage.put(_path(self.number), json.dumps({"version": BACKUP_VERSION, **dataclasses.asdict(self)}, indent=1).encode())


def _path(number: int) -> str:
    return f"generations/{number:08d}.json"


def attempt_folder(number: int, attempt: int) -> str:
    return f"catalogs/{number:08d}-{attempt}/"


def collected_path(number: int) -> str:
    return f"collected/{number:08d}"


def origin_of_backup(storage: Storage) -> str | None:
    """The lake that a backup is of; None where there is no backup.

    Raises:
        UnsupportedVersionError: A newer Headrace wrote it.
        StorageError: The marker is damaged.
    """
    try:
        raw = storage.read(MARKER)
    except NotFoundError:
        return None
    try:
        found = json.loads(bytes(raw))
        version, origin = int(found["version"]), str(found["origin"])
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{storage.url}/{MARKER} is not a backup's marker ({error}): give the folder of a backup") from error
    _check_version(storage, version)
    return origin


def claim(storage: Storage, origin: str) -> None:
    """Begin a backup at a place, or go on with the one that is there.

    Raises:
        AlreadyExistsError: It is of another lake.
    """
    found = origin_of_backup(storage)
    if found is None:
        try:
            storage.put(MARKER, json.dumps({"format": "headrace-backup", "version": BACKUP_VERSION, "origin": origin}).encode())
        except AlreadyExistsError:
            found = origin_of_backup(storage)
    if found not in (None, origin):
        raise AlreadyExistsError(f"{storage.url} holds a backup of another lake ({found}): give this one ({origin}) a place of its own")


def newest_number(storage: Storage) -> int:
    """The number of the newest generation, 0 where there is none. Numbers have no gaps, so it is found by halving."""
    low, high = 0, 1
    while storage.exists(_path(high)):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if storage.exists(_path(middle)) else (low, middle)
    return low


def read_generation(storage: Storage, number: int) -> Generation:
    """A generation by its number, retired ones too.

    Raises:
        NotFoundError: There is none.
    """
    found: dict[str, Any] = json.loads(bytes(storage.read(_path(number))))
    _check_version(storage, int(found.pop("version")))
    for name in ("parts", "objects"):
        found[name] = tuple(Part(**part) for part in found[name])
    return Generation(**found | {"kept": tuple(found["kept"]), "leaving": tuple(found["leaving"])})


def _check_version(storage: Storage, version: int) -> None:
    if version > BACKUP_VERSION:
        raise UnsupportedVersionError(
            f"backup {storage.url} has version {version}; this Headrace reads up to version {BACKUP_VERSION}: upgrade with `pip install --upgrade headrace`"
        )
