"""`headrace ingest` and `compact`: the commands that change a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption
from loader.cli.tables import TableArgument
from loader.errors import TableNotFoundError

if TYPE_CHECKING:
    import pyarrow as pa

    from loader.ingest.loop import Progress
    from loader.lake import Lake
    from loader.table.table import Table

PIPELINE = "headrace-ingest"


def register(app: typer.Typer) -> None:
    app.command("ingest")(ingest)
    app.command("compact")(compact)


def ingest(
    table: TableArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Parquet, Arrow, CSV or JSON-lines files, or folders of them.")],
    primary_key: Annotated[
        str | None, typer.Option(metavar="COLUMNS", help="Create the table with this key, if it is not there; its columns are the first file's.")
    ] = None,
    bucket_by: Annotated[str | None, typer.Option(metavar="COLUMNS", help="New table: rows with equal values stay together.")] = None,
    buckets: Annotated[int, typer.Option(min=1, help="New table: number of buckets.")] = 1,
    cluster_by: Annotated[str | None, typer.Option(metavar="COLUMNS", help="New table: order of the rows in a segment.")] = None,
    time_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="New table: when a sample happened.")] = None,
    partition_by: Annotated[str | None, typer.Option(metavar="UNIT", help="New table: hour, day, week or month.")] = None,
    patch: Annotated[bool, typer.Option("--patch", help="The files hold keys and new values of rows, such as late labels.")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Do not look whether keys are there already: faster, if you know.")] = False,
    watermark: Annotated[
        bool, typer.Option("--watermark", help="Nothing older than these rows can still come: move the watermark to their newest time.")
    ] = False,
    commit_rows: Annotated[int, typer.Option(min=1, help="Rows of a commit.")] = 262_144,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Append files to a table, or patch it with them.

    How far each file came is committed with its rows: a run that was killed goes on where it stopped, and a file given twice is taken once.
    """
    from loader.ingest import loop
    from loader.ingest.sources.files import FileSource

    if watermark and patch:
        raise typer.BadParameter("--watermark goes with rows, not with --patch")
    with output.open_lake(lake, catalog, create=primary_key is not None) as opened:
        handle = _open_table(
            opened,
            table,
            files,
            primary_key=_names(primary_key),
            bucket_by=_names(bucket_by),
            buckets=buckets,
            cluster_by=_names(cluster_by),
            time_column=time_column,
            partition_by=partition_by,
        )
        output.settings.on_stop = "what was committed stays, and the same command goes on from there"
        taken: dict[str, int] = {}
        with output.counter(f"{'patching' if patch else 'appending to'} {table}") as count, loop.stop_on_interrupt() as stop:
            for folder, group in _by_folder(files).items():
                stream = loop.Stream(
                    source=FileSource(f"files:{folder}", group),
                    write="patch" if patch else "append",
                    time_column=handle.time_column if watermark else None,
                    on_conflict="trust" if trust else "check",
                )
                before = sum(taken.values())

                def show(progress: Progress, before: int = before) -> None:
                    count(before + sum(progress.rows.values()))

                report = loop.run(handle, [stream], pipeline=PIPELINE, round_rows=commit_rows, after_round=show, stop=stop)
                taken |= report.rows
                if report.stopped:
                    raise KeyboardInterrupt
    rows = sum(taken.values())
    if as_json:
        output.print_json({"table": table, "rows": rows, "sources": taken})
    else:
        output.messages.print(
            f"{rows:,} rows {'patched into' if patch else 'appended to'} {table}" + ("" if rows else ": everything was there already"), markup=False
        )


def compact(
    table: TableArgument,
    full: Annotated[bool, typer.Option("--full", help="Rewrite whatever is not one clean, sorted run, not only what is worth it.")] = False,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge small segments, fold patches into them and put rows back into order."""
    with output.open_lake(lake, catalog) as opened, output.progress(f"compacting {table}") as advance:
        report = opened.table(table).compact(full=full, progress=advance)
    if as_json:
        output.print_json(report)
    else:
        output.print_pairs({key.replace("_", " "): value for key, value in output.plain(report).items()})


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _by_folder(files: Sequence[Path]) -> dict[Path, list[Path]]:
    """Files by their folder: offsets are kept by folder and file name."""
    groups: dict[Path, list[Path]] = {}
    for path in files:
        whole = path.resolve()
        groups.setdefault(whole if whole.is_dir() else whole.parent, []).append(whole)
    return groups


def _open_table(lake: Lake, name: str, files: Sequence[Path], *, primary_key: list[str] | None, time_column: str | None, **definition: object) -> Table:
    try:
        return lake.table(name)
    except TableNotFoundError as error:
        if primary_key is None:
            raise TableNotFoundError(f"{error}; --primary-key COLUMNS creates it") from None
    import pyarrow as pa

    required = {*primary_key, *([time_column] if time_column else [])}
    schema = pa.schema([field.with_nullable(field.nullable and field.name not in required) for field in _first_schema(files)])
    return lake.create_table(name, schema, primary_key=primary_key, time_column=time_column, **definition)  # type: ignore[arg-type]


def _first_schema(files: Sequence[Path]) -> pa.Schema:
    from loader.ingest.sources.files import FileSource

    source = FileSource("schema", list(files))
    batch = next(iter(source.read({}, max_rows=1)), None)
    if batch is None:
        raise ValueError(f"{files[0]} holds no rows, so it gives no columns for a new table: name a file with rows first")
    return batch.records.schema
