"""Walking through every section that any snapshot shows, in a deep run: opened once, its bytes verified, then given to the checks of its kind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from loader.catalog.connection import Connection
from loader.catalog.records import OverlayRef
from loader.doctor.checks import Check, Found, TableState, check, in_scope
from loader.doctor.content_checks import Opened
from loader.errors import FormatError, HeadraceError, StorageError
from loader.segment.reader import SegmentReader
from loader.segment.verify import verify_segment
from loader.storage import Storage, StoredSection

BATCH_ROWS = 1_000
_SECTION = ("id", "path", "section_offset", "num_bytes")
_COLUMNS: dict[str, tuple[str, ...]] = {
    "segments": (
        *_SECTION,
        *(
            "segment_uuid",
            "bucket",
            "time_partition",
            "num_rows",
            "sequence_min",
            "sequence_max",
            "key_min",
            "key_max",
            "time_min",
            "time_max",
            "block_rows",
            "stats",
        ),
    ),
    "overlays": (*_SECTION, "segment_id", "kind", "num_rows", "num_deleted", "column_ids"),
    "column_files": (*_SECTION, "segment_id", "column_ids"),
    "pending": (*_SECTION, "bucket", "num_held", "keys", "met", "column_ids"),
}
_OVERLAYS = (
    "select id, kind, path, section_offset, num_bytes, sequence, num_rows, num_deleted, column_ids from overlays "
    "where segment_id = ? and (removed_in is null or kind not in ('patch', 'deletes')) order by id"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One section's row in the catalog, with the rows that its checks need beside it."""

    kind: str
    row: Mapping[str, Any]
    segment: Mapping[str, Any] | None
    overlays: tuple[OverlayRef, ...]

    @property
    def name(self) -> str:
        """Of the record in messages, and in what an earlier run remembers: a section is written once, but may move to another path."""
        return f"{self.kind} {self.row['id']} at {self.row['path']}"


@check(
    "section-damaged",
    scope="section",
    explains="stored bytes changed since they were written, or cannot be read: a checksum, a bound or the structure does not hold",
    remedy="restore the file that was committed (headrace restore)",
)
def section_damaged(section: StoredSection) -> Iterator[Found]:
    """Every checksum and every chunk."""
    try:
        problems = verify_segment(section).problems
    except HeadraceError as error:
        problems = (str(error),)
    for problem in problems:
        yield Found(where=f"{section.path} at {section.offset}", what=problem, subject=(section.path,))


def count_records(connection: Connection, table: TableState) -> int:
    """How many sections a table has."""
    return sum(int(connection.execute(f"select count(*) from {kind} where table_id = ?", (table.id,)).fetchone()[0]) for kind in _COLUMNS)


def load_records(connection: Connection, table: TableState, kind: str, after: int) -> list[Record]:
    """The next records of a kind, by number."""
    names = _COLUMNS[kind]
    rows = connection.execute(
        f"select {', '.join(names)} from {kind} where table_id = ? and id > ? order by id limit {BATCH_ROWS}", (table.id, after)
    ).fetchall()
    found = []
    for values in rows:
        row = dict(zip(names, values, strict=True))
        if "column_ids" in row:
            row["column_ids"] = json.loads(row["column_ids"])
        segment: dict[str, Any] | None = None
        overlays: tuple[OverlayRef, ...] = ()
        if "segment_id" in row:
            shown = connection.execute("select id, num_rows, block_rows from segments where id = ?", (row["segment_id"],)).fetchone()
            if shown is not None:
                segment = dict(zip(("id", "num_rows", "block_rows"), shown, strict=True))
        if kind == "segments":
            overlays = tuple(_overlay(one) for one in connection.execute(_OVERLAYS, (row["id"],)))
        found.append(Record(kind=kind, row=row, segment=segment, overlays=overlays))
    return found


def kinds() -> tuple[str, ...]:
    """The tables of records, in the order they are walked."""
    return tuple(_COLUMNS)


def _overlay(row: Any) -> OverlayRef:
    return OverlayRef(
        overlay_id=row[0],
        kind=row[1],
        path=row[2],
        offset=row[3],
        num_bytes=row[4],
        sequence=row[5],
        num_rows=row[6],
        num_deleted=row[7],
        column_ids=tuple(json.loads(row[8])),
    )


def is_there(connection: Connection, record: Record) -> bool:
    """Whether the catalog still has a record where it was: it may have expired, or moved, while its bytes were read."""
    return connection.execute(f"select 1 from {record.kind} where id = ? and path = ?", (record.row["id"], record.row["path"])).fetchone() is not None


def examine(record: Record, table: TableState, storage: Storage) -> list[tuple[Check, Found]]:
    """Verify a section's bytes and, where they are whole, run the checks of its kind."""
    section = storage.section(record.row["path"], record.row["section_offset"], record.row["num_bytes"])
    (damaged,) = in_scope("section")
    found = [(damaged, one) for one in damaged.run(section)]
    if found:
        return found
    reader = SegmentReader(section)
    opened = Opened(record=record.row, reader=reader, spec=table.spec, segment=record.segment, overlays=record.overlays, storage=storage)
    for known in in_scope(record.kind):
        try:
            found += [(known, one) for one in known.run(opened)]
        except (FormatError, StorageError) as error:  # of an overlay that belongs to it
            found.append((known, Found(where=f"{section.path} at {section.offset}", what=f"it cannot be checked: {error}")))
    reader.close()
    return found
