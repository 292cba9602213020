"""The audit of a lake's storage against its catalog: objects that nothing refers to, and places that are referred to and empty. It reports; it deletes nothing.

What may be deleted is never decided by a listing: a listing may be old, and a writer may have begun since. An orphan is worth a look by a person, who may
delete it by hand from a list that was read. The listing is held in memory.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from pathlib import Path

from loader.catalog.commit import TABLES_WITH_PATHS, is_referred_to
from loader.catalog.connection import Connection, Database
from loader.catalog.records import INLINE_PREFIX
from loader.storage import Storage, StoredObject

DATA = "data/"  # where writers put their files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Orphan:
    """An object that no record refers to."""

    path: str
    num_bytes: int
    modified: datetime.datetime


@dataclasses.dataclass(frozen=True, kw_only=True)
class Missing:
    """A place that records refer to, with nothing there."""

    path: str
    records: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an audit found.

    Attributes:
        num_objects, num_bytes: Listed.
        staged_objects: Of writers that are at work, or whose lease has not been collected yet.
        garbage_objects: That wait to be deleted.
        orphans: By path.
        missing: By path.
    """

    num_objects: int
    num_bytes: int
    staged_objects: int
    garbage_objects: int
    orphans: tuple[Orphan, ...]
    missing: tuple[Missing, ...]

    def save_list(self, path: str | Path) -> None:
        """Write the orphans down, one line each (bytes, when it was written, path), for somebody to read before anything is deleted."""
        lines = [f"{orphan.num_bytes}\t{orphan.modified.isoformat()}\t{orphan.path}\n" for orphan in self.orphans]
        Path(path).write_text("".join(lines))


def audit(catalog: Database, files: Storage) -> AuditReport:
    """Compare what is stored under the lake's data with what the catalog knows."""
    with catalog.read() as connection:
        prefixes = _leased(connection)
    seen: dict[str, StoredObject] = {}
    num_bytes = 0
    for found in files.objects(DATA):
        seen[found.path] = found
        num_bytes += found.num_bytes
    with catalog.read() as connection:  # after the listing: what was committed meanwhile is known
        prefixes |= _leased(connection)
        garbage = {path for (path,) in connection.execute("select path from garbage")}
        referred = set(_referred(connection))
        staged = {path for path in seen if path not in referred and path.rpartition("/")[0] + "/" in prefixes}
        unknown = sorted(seen.keys() - referred - garbage - staged)
        orphans = [path for path in unknown if not is_referred_to(connection, path)]
        absent = sorted(path for path in referred if path not in seen and not files.exists(path))
        missing = [Missing(path=path, records=tuple(name for name in TABLES_WITH_PATHS if _has(connection, name, path))) for path in absent]
    return AuditReport(
        num_objects=len(seen),
        num_bytes=num_bytes,
        staged_objects=len(staged),
        garbage_objects=len(garbage & seen.keys()),
        orphans=tuple(Orphan(path=path, num_bytes=seen[path].num_bytes, modified=seen[path].modified) for path in orphans),
        missing=tuple(missing),
    )


def _leased(connection: Connection) -> set[str]:
    """Prefixes of writers."""
    return {prefix for (prefix,) in connection.execute("select prefix from staged")}


def _referred(connection: Connection) -> Iterator[str]:
    for name in TABLES_WITH_PATHS:
        for (path,) in connection.execute(f"select distinct path from {name}"):
            if not path.startswith(INLINE_PREFIX):
                yield path


def _has(connection: Connection, name: str, path: str) -> bool:
    return connection.execute(f"select 1 from {name} where path = ? limit 1", (path,)).fetchone() is not None
