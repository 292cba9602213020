"""`headrace sql`, `explain` and `export`: reading tables from a shell."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption
from loader.cli.tables import TableArgument

if TYPE_CHECKING:
    import pyarrow as pa

TERMINAL_ROWS = 40
SnapshotOption = Annotated[str | None, typer.Option(metavar="SNAPSHOT", help="A number or a tag; default the newest.")]
WhereOption = Annotated[str | None, typer.Option(metavar="WHERE", help="A SQL boolean expression: only the rows that it selects.")]
ColumnsOption = Annotated[str | None, typer.Option(metavar="COLUMNS", help="Names, with commas between them; default all.")]


def register(app: typer.Typer) -> None:
    app.command("sql")(sql)
    app.command("explain")(explain)
    app.command("export")(export)


def sql(
    query: Annotated[str, typer.Argument(metavar="QUERY", help='One SELECT, in the SQL of DuckDB. "table@tag" or "table@12" is a table at a snapshot.')],
    at: Annotated[list[str] | None, typer.Option(metavar="TABLE=SNAPSHOT", help="A table that is named plainly at a tag or number; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, metavar="ROWS", help="Show so many rows; default 40 on a terminal, all elsewhere. 0 is all.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV.")] = False,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the answer to a Parquet file.")] = None,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Query tables by SQL (pip install headrace[duckdb]). Only the columns and segments that the query needs are read, as a stream."""
    from loader.query import run

    if as_json + as_csv + (parquet is not None) > 1:
        raise typer.BadParameter("--json, --csv and --parquet are three ways to write one answer: choose one")
    with output.open_lake(lake, catalog) as opened, run(opened, query, dict(map(_table_at, at or []))) as answer:
        if parquet is not None:
            _write_parquet(answer.reader.schema, answer.batches(), parquet)
        elif as_csv:
            _write_csv(answer.reader.schema, _first(answer.batches(), limit or 0))
        elif as_json:
            rows: list[Any] = [row for batch in _first(answer.batches(), limit or 0) for row in batch.to_pylist()]
            output.print_json(rows)
        else:
            shown = TERMINAL_ROWS if limit is None and output.console.is_terminal else limit or 0
            _show(answer.reader.schema.names, answer.batches(), shown)


def _table_at(text: str) -> tuple[str, int | str]:
    name, equals, snapshot = text.partition("=")
    if not (name and equals and snapshot):
        raise typer.BadParameter(f"--at {text!r} is not TABLE=SNAPSHOT")
    return name, snapshot_of(snapshot)


def snapshot_of(text: str) -> int | str:
    """A snapshot as the command line names it."""
    return int(text) if text.isdigit() else text


def _first(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The first rows of a stream; 0 is all."""
    left = rows
    for batch in batches:
        yield batch if not rows else batch.slice(0, left)
        left -= batch.num_rows
        if rows and left <= 0:
            return


def _show(names: list[str], batches: Iterator[pa.RecordBatch], rows: int) -> None:
    """A table; one row more is asked for, to know whether there are more."""
    found = [list(row.values()) for batch in _first(batches, rows + 1 if rows else 0) for row in batch.to_pylist()]
    output.print_table(names, [[output.plain(value) for value in row] for row in (found[:rows] if rows else found)])
    if rows and len(found) > rows:
        output.messages.print(f"the first {rows:,} rows; more with --limit", markup=False)


def _write_csv(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    import pyarrow as pa
    import pyarrow.csv

    sys.stdout.flush()
    flat = pa.schema([field.with_type(pa.string()) if pa.types.is_nested(field.type) else field for field in schema])
    with pyarrow.csv.CSVWriter(sys.stdout.buffer, flat) as writer:
        for batch in batches:
            columns = [
                pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string()) if pa.types.is_nested(column.type) else column
                for column in batch.columns
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=flat))


def _write_parquet(schema: pa.Schema, batches: Iterator[pa.RecordBatch], path: Path) -> None:
    """The whole answer, or no file."""
    import pyarrow.parquet

    temporary, rows = path.with_name(path.name + ".tmp"), 0
    try:
        with pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer, output.counter(f"writing {path}") as count:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
                count(rows)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    output.messages.print(f"{rows:,} rows in {path}", markup=False)


def explain(
    table: TableArgument,
    where: WhereOption = None,
    snapshot: SnapshotOption = None,
    footers: Annotated[bool, typer.Option("--footers/--no-footers", help="Look at the statistics of blocks too, in the segments' footers.")] = True,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """What each step of pruning leaves of a table, without reading a row."""
    with output.open_lake(lake, catalog) as opened:
        found = opened.table(table).scan(where=where, snapshot=None if snapshot is None else snapshot_of(snapshot)).explain(footers=footers)
    if as_json:
        output.print_json(found)
        return
    title = f"{found.table} at snapshot {found.snapshot}" + (f", where {found.where}" if found.where else "")
    output.print_table(["left by", "segments", "blocks", "rows"], [[step.name, step.segments, step.blocks, step.rows] for step in found.steps], title=title)
    output.messages.print(f"{found.segments_whole:,} segments are selected whole and need no counting", markup=False)


def export(
    table: TableArgument,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A folder, or the url of an object store.")],
    columns: ColumnsOption = None,
    where: WhereOption = None,
    snapshot: SnapshotOption = None,
    closed_before: Annotated[str | None, typer.Option(metavar="TIME", help="Only rows whose attribution window is closed then, or at the watermark.")] = None,
    file_mib: Annotated[int, typer.Option(min=1, metavar="MIB", help="Stored bytes of the table that go into one file, about.")] = 128,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a table as Parquet files. The same command again goes on where one was stopped."""
    from loader.table.export import ExportOptions

    output.settings.on_stop = "the same command goes on with the next file"
    with output.open_lake(lake, catalog) as opened, output.progress(f"exporting {table}") as advance:
        report = opened.table(table).export(
            target,
            columns=None if columns is None else [name.strip() for name in columns.split(",")],
            where=where,
            snapshot=None if snapshot is None else snapshot_of(snapshot),
            closed_before=closed_before,
            options=ExportOptions(file_bytes=file_mib << 20),
            progress=advance,
        )
    if as_json:
        output.print_json(report)
        return
    text = f"{report.num_rows:,} rows of {table} at snapshot {report.snapshot} in {len(report.files):,} files ({output.size(report.num_bytes)}) at {target}"
    output.messages.print(text + ("" if report.files_written else ": they were there"), markup=False)
