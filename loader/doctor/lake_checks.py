"""Checks of the lake as a whole: the catalog's file, its version, the marker, and rows that refer to rows that are not there."""

from __future__ import annotations

from collections.abc import Iterator

from loader.catalog.migrations import CATALOG_VERSION
from loader.catalog.tables import metadata
from loader.doctor.checks import Found, Patient, check
from loader.errors import HeadraceError

MAX_LINES = 20


@check(
    "catalog-damaged",
    scope="lake",
    explains="the file of the catalog itself is damaged: what it answers cannot be trusted",
    remedy="stop all writers and restore the lake from a backup (headrace restore); the files are whole unless other findings say so",
)
def catalog_damaged(patient: Patient) -> Iterator[Found]:
    """SQLite's own check; the whole one, with indexes, in a deep run. A PostgreSQL server checks its pages itself."""
    if not patient.is_sqlite:
        return
    pragma = "integrity_check" if patient.deep else "quick_check"
    for (line,) in patient.rows(f"pragma {pragma}({MAX_LINES})"):
        if line != "ok":
            yield Found(where=patient.lake.database.place, what=str(line))


@check(
    "catalog-version",
    scope="lake",
    explains="the catalog must say once which version it has, so that an older Headrace refuses it by name",
    remedy="restore the catalog from a backup (headrace restore)",
)
def catalog_version(patient: Patient) -> Iterator[Found]:
    rows = patient.rows("select id, version, lake_id from catalog_version")
    if len(rows) != 1 or rows[0][0] != 1:
        yield Found(where="catalog_version", what=f"{len(rows)} rows instead of one with id 1")
    elif rows[0][1] != CATALOG_VERSION:
        yield Found(where="catalog_version", what=f"version {rows[0][1]}, and this Headrace has {CATALOG_VERSION}")


@check(
    "marker",
    scope="lake",
    explains="the marker ties the files to their catalog: without it, or with another lake's, the next connect() refuses or begins a new lake over this one",
    remedy="put the marker file back from a backup, or the catalog that belongs to these files",
)
def marker(patient: Patient) -> Iterator[Found]:
    from loader.lake import MARKER, read_marker  # the lake hands over to this package

    files, lake_id = patient.lake.storage.files, patient.lake.database.lake_id
    try:
        found = read_marker(files)
    except HeadraceError as error:
        yield Found(where=MARKER, what=str(error))
        return
    if found is None:
        yield Found(where=MARKER, what=f"{files.url} has none, and its catalog is that of lake {lake_id}")
    elif found["lake_id"] != lake_id:
        yield Found(where=MARKER, what=f"lake {found['lake_id']}, and the catalog is that of {lake_id}")


@check(
    "dangling-row",
    scope="lake",
    explains="a row of the catalog belongs to a table or segment that the catalog does not have",
    remedy="restore the catalog from a backup (headrace restore)",
)
def dangling_row(patient: Patient) -> Iterator[Found]:
    """Every foreign key of the catalog; SQLite does not enforce them at each insert."""
    for table in metadata.sorted_tables:
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name):
            parent, column = key.column.table.name, key.parent.name
            rows = patient.rows(
                f"select c.{column}, count(*) from {table.name} c where c.{column} is not null "
                f"and not exists (select 1 from {parent} p where p.{key.column.name} = c.{column}) group by c.{column} order by c.{column} limit {MAX_LINES}"
            )
            for value, count in rows:
                yield Found(where=f"{table.name}.{column} = {value}", what=f"{count:,} rows refer to row {value} of {parent}, which is not there")
