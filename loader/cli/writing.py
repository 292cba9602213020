"""`headrace ingest` and `compact`: the commands that change a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption
from loader.cli.tables import TableArgument

Names = Annotated[str | None, typer.Option(metavar="COLUMNS", help="Comma-separated columns.")]


def register(app: typer.Typer) -> None:
    app.command("ingest")(ingest)
    app.command("compact")(compact)


def ingest(
    table: TableArgument,
    files: Annotated[list[Path], typer.Argument(help="Parquet, Arrow IPC, CSV or JSON-lines files.", metavar="FILES...")],
    primary_key: Annotated[
        str | None, typer.Option(metavar="COLUMNS", help="Create the table with this key, from the first file's schema, if it is not there.")
    ] = None,
    bucket_by: Annotated[str | None, typer.Option(metavar="COLUMNS", help="For a new table: rows with equal values stay together.")] = None,
    buckets: Annotated[int, typer.Option(min=1, help="For a new table: number of buckets.")] = 1,
    cluster_by: Annotated[str | None, typer.Option(metavar="COLUMNS", help="For a new table: order of rows in a segment.")] = None,
    time_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="For a new table: when a sample happened.")] = None,
    partition_by: Annotated[str | None, typer.Option(metavar="UNIT", help="For a new table: hour, day, week or month of the time column.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Do not look for keys that are there already: faster, and yours to answer for.")] = False,
    patch: Annotated[bool, typer.Option("--patch", help="The files hold keys and new values for rows that exist, such as late labels.")] = False,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows a commit.")] = 262_144,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Append files to a table, or patch it with them. A file that a killed run left half done continues where it stopped."""
    raise NotImplementedError


def compact(table: TableArgument, lake: LakeOption = DEFAULT_LAKE, catalog: CatalogOption = None, as_json: JsonOption = False) -> None:
    """Merge a table's small segments, fold its patches and put its rows back into order."""
    with output.open_lake(lake, catalog) as opened, output.progress(f"compacting {table}") as advance:
        report: Any = opened.table(table).compact(progress=advance)
    if as_json:
        output.print_json(report)
        return
    output.print_pairs(output.plain(report))
