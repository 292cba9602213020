"""The catalog's rows as Arrow files that any catalog loads again: SQLite's from PostgreSQL's and the other way round. One read transaction, bounded memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import Integer, LargeBinary, Table

from loader.catalog.commit import TABLES_WITH_PATHS
from loader.catalog.connection import Connection
from loader.catalog.migrations import CATALOG_VERSION, MIGRATIONS
from loader.catalog.records import INLINE_PREFIX
from loader.catalog.tables import metadata

PART_BYTES = 8 * 1024 * 1024
MAX_ROWS = 20_000
FIRST_ROWS = 200  # of the first question of a table, before it is known how large its rows are
LEFT_OUT = ("catalog_version", "staged", "garbage")  # a copy has an identity, writers and garbage of its own
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spooled:
    """Rows of a table in a local file."""

    table: str
    file: Path
    rows: int


def dump(connection: Connection, folder: Path) -> Iterator[Spooled]:
    """Write every table's rows to files of a folder, in the order that they are loaded."""
    number = 0
    for table in metadata.sorted_tables:
        if table.name not in LEFT_OUT:
            for batch in _batches(connection, table):
                number += 1
                yield spool(folder / f"{number:08d}.arrow", table.name, batch)


def spool(file: Path, table: str, batch: pa.RecordBatch | pa.Table) -> Spooled:
    """Write rows to a local file."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema, options=_OPTIONS) as writer:
        writer.write(batch)
    return Spooled(table=table, file=file, rows=batch.num_rows)


def rows_of(data: memoryview | Path) -> pa.Table:
    """The rows of a dumped file."""
    if isinstance(data, Path):
        with pa.OSFile(str(data)) as file:
            return pa.ipc.open_file(file).read_all()
    return pa.ipc.open_file(pa.py_buffer(data)).read_all()


def _schema(table: Table) -> pa.Schema:
    kinds = {Integer: pa.int64(), LargeBinary: pa.binary()}
    return pa.schema([(column.name, next((kind for base, kind in kinds.items() if isinstance(column.type, base)), pa.string())) for column in table.columns])


def _batches(connection: Connection, table: Table) -> Iterator[pa.RecordBatch]:
    """Rows by primary key, about PART_BYTES at a time."""
    schema, keys = _schema(table), [column.name for column in table.primary_key.columns]
    names, order, limit = ", ".join(schema.names), ", ".join(keys), FIRST_ROWS
    after: Sequence[Any] = ()
    at = [schema.get_field_index(key) for key in keys]
    while True:
        beyond = f" where ({order}) > ({', '.join('?' * len(keys))})" if after else ""
        rows = connection.execute(f"select {names} from {table.name}{beyond} order by {order} limit {limit}", tuple(after)).fetchall()
        if not rows:
            return
        batch = pa.RecordBatch.from_arrays([pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)], schema=schema)
        yield batch
        after = [rows[-1][index] for index in at]
        limit = max(1, min(MAX_ROWS, int(len(rows) * PART_BYTES / max(1, batch.nbytes))))


def load(connection: Connection, table: str, rows: pa.Table) -> None:
    """Insert dumped rows; columns that came later have their default, and such as belong to a running process are left out or emptied."""
    if table not in metadata.tables:
        return  # of an older version, and not kept since
    rows = _as_copied(table, rows)
    known = [name for name in rows.column_names if name in metadata.tables[table].columns]
    columns = [rows[name].to_pylist() for name in known]
    places = ", ".join("?" * len(known))
    connection.executemany(f"insert into {table} ({', '.join(known)}) values ({places})", list(zip(*columns, strict=True)))


def _as_copied(table: str, rows: pa.Table) -> pa.Table:
    if table == "pins":  # tags stay; what running jobs hold, they hold in the other lake
        return rows.filter(pa.compute.field("kind") == "tag")
    empty = {"buckets": ("lease_owner", "lease_until"), "selections": ("pin_id",), "follow_ends": ("pin_id",)}
    for name in empty.get(table, ()):
        at = rows.column_names.index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.nulls(rows.num_rows, rows.schema.field(at).type))
    return rows


def finish(connection: Connection, sequences: dict[str, int], *, version: int, is_sqlite: bool) -> None:
    """After all rows: numbers are never given again, data of an older version are brought up to date, and bytes that nothing refers to are left out."""
    for table, last in sequences.items():
        if is_sqlite:
            connection.execute("delete from sqlite_sequence where name = ?", (table,))
            connection.execute("insert into sqlite_sequence (name, seq) values (?, ?)", (table, last))
        else:
            connection.execute("select setval(pg_get_serial_sequence(?, 'id'), ?)", (table, last)).fetchone()
    for step in range(version, CATALOG_VERSION):
        for statement in MIGRATIONS[step]:
            if statement.split()[0].lower() in ("update", "insert", "delete") and "catalog_version" not in statement:
                connection.execute(statement)
    used = " and ".join(f"not exists (select 1 from {table} r where r.path = inline_data.path)" for table in TABLES_WITH_PATHS)
    connection.execute(f"delete from inline_data where {used}")


def last_numbers(connection: Connection, *, is_sqlite: bool) -> dict[str, int]:
    """Catalog table -> the last number that was given to one of its rows, of those that count by themselves."""
    if is_sqlite:
        return {name: int(last) for name, last in connection.execute("select name, seq from sqlite_sequence order by name") if name in metadata.tables}
    found = {}
    for table in metadata.sorted_tables:
        if table.dialect_options["sqlite"]["autoincrement"]:
            name = connection.execute("select pg_get_serial_sequence(?, 'id')", (table.name,)).fetchone()[0]
            last, is_called = connection.execute(f"select last_value, is_called from {name}").fetchone()
            if is_called:
                found[table.name] = int(last)
    return found


def objects_of(connection: Connection) -> pa.Table:
    """(path, num_bytes) of every object that the catalog refers to; num_bytes is where its last section ends. By path."""
    tables = []
    for name in TABLES_WITH_PATHS:
        after = ""
        while True:
            rows = connection.execute(
                f"select path, max(section_offset + num_bytes) from {name} where path > ? group by path order by path limit {MAX_ROWS}", (after,)
            ).fetchall()
            if not rows:
                break
            after = rows[-1][0]
            tables.append(pa.table({"path": pa.array([row[0] for row in rows], pa.string()), "num_bytes": pa.array([int(row[1]) for row in rows], pa.int64())}))
    if not tables:
        return pa.table({"path": pa.array([], pa.string()), "num_bytes": pa.array([], pa.int64())})
    merged = pa.concat_tables(tables).group_by("path").aggregate([("num_bytes", "max")]).rename_columns(["path", "num_bytes"])
    return merged.filter(pa.compute.invert(pa.compute.starts_with(merged["path"], INLINE_PREFIX))).sort_by("path")
