"""`headrace delete`, `expire`, `gc` and `erase`: what makes a lake smaller."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption
from loader.cli.tables import TableArgument
from loader.errors import NotFoundError, SchemaError

if TYPE_CHECKING:
    import pyarrow as pa

    from loader.table.table import Table


def register(app: typer.Typer) -> None:
    app.command("delete")(delete)
    app.command("expire")(expire)
    app.command("gc")(gc)
    app.command("erase")(erase)
    app.command("audit")(audit)


def delete(
    table: TableArgument,
    where: Annotated[str, typer.Argument(metavar="WHERE", help="A SQL boolean expression: the rows that go.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete rows of a table. Earlier snapshots keep them until they expire."""
    with output.open_lake(lake, catalog) as opened:
        handle = opened.table(table)
        if dry_run:
            rows = handle.to_arrow(columns=handle.primary_key, where=where).num_rows
        else:
            rows = int(handle.delete(where).summary["rows_deleted"])
    if as_json:
        output.print_json({"table": table, "rows": rows, "deleted": not dry_run})
    else:
        output.messages.print(f"{rows:,} rows {'would be deleted' if dry_run else 'deleted'} from {table}", markup=False)


def expire(
    table: TableArgument,
    older_than_days: Annotated[float | None, typer.Option(min=0, metavar="DAYS", help="Snapshots that are older go; default 7, or as the table says.")] = None,
    keep: Annotated[int | None, typer.Option(min=1, help="So many of the newest stay, whatever their age; default 1, or as the table says.")] = None,
    grace_hours: Annotated[float | None, typer.Option(min=0, metavar="HOURS", help="How long bytes stay after this, for readers that have begun.")] = None,
    ttl_days: Annotated[float | None, typer.Option(min=0, metavar="DAYS", help="Rows that are older go too, by the time column.")] = None,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget old snapshots of a table and what only they showed; tags and running jobs keep theirs. `headrace gc` then deletes the bytes."""
    with output.open_lake(lake, catalog) as opened:
        report = opened.table(table).expire(
            older_than=None if older_than_days is None else datetime.timedelta(days=older_than_days),
            keep=keep,
            grace_seconds=None if grace_hours is None else grace_hours * 3600,
            ttl=None if ttl_days is None else datetime.timedelta(days=ttl_days),
        )
    if as_json:
        output.print_json(report)
    else:
        rows = f"{report.rows_dropped:,} rows dropped by age, " if report.rows_dropped else ""
        output.messages.print(f"{rows}{len(report.snapshots):,} snapshots of {table} expired, {report.records:,} records forgotten with them", markup=False)


def gc(lake: LakeOption = DEFAULT_LAKE, catalog: CatalogOption = None, as_json: JsonOption = False) -> None:
    """Delete the bytes of what was forgotten, once its grace period is over, and what writers that died left behind."""
    with output.open_lake(lake, catalog) as opened:
        report = opened.collect_garbage()
    if as_json:
        output.print_json(report)
    else:
        output.messages.print(f"{report.deleted_paths:,} files deleted, {report.expired_stages:,} dead writers cleaned up after", markup=False)


def audit(
    listed: Annotated[Path | None, typer.Option("--list", metavar="FILE", help="Write the orphans there, for somebody to read.")] = None,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what is stored with what the catalog refers to. Nothing is deleted. Exit code 1 when something is missing."""
    with output.open_lake(lake, catalog) as opened:
        report = opened.audit()
    if listed is not None:
        report.save_list(listed)
    if as_json:
        output.print_json(report)
    else:
        for lost in report.missing:
            output.messages.print(f"missing: {lost.path} ({', '.join(lost.records)})", markup=False, soft_wrap=True)
        for orphan in report.orphans:
            output.messages.print(f"orphan: {orphan.path} ({output.size(orphan.num_bytes)}, {orphan.modified:%Y-%m-%d %H:%M})", markup=False, soft_wrap=True)
        counts = f"{len(report.orphans):,} orphans, {len(report.missing):,} missing; {report.staged_objects:,} staged, {report.garbage_objects:,} garbage"
        output.console.print(f"{report.num_objects:,} objects, {output.size(report.num_bytes)}: {counts}", markup=False, soft_wrap=True)
    if report.missing:
        raise typer.Exit(1)


def erase(
    table: TableArgument,
    key: Annotated[
        list[str] | None, typer.Option("--key", metavar="KEY", help="A primary key; the values of several columns with commas between. May be repeated.")
    ] = None,
    keys: Annotated[Path | None, typer.Option("--keys", metavar="FILE", help="Parquet or CSV with the key's columns.")] = None,
    where: Annotated[str | None, typer.Option(metavar="WHERE", help="In place of keys: all rows of any kept snapshot that this expression selects.")] = None,
    due_hours: Annotated[float, typer.Option("--due", min=0, metavar="HOURS", help="When the old bytes are deleted; until then readers end in peace.")] = 1.0,
    proof: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the proof there, as JSON.")] = None,
    signing_key: Annotated[
        Path | None, typer.Option("--signing-key", metavar="FILE", help="Sign the proof with these bytes (at least 16), and hash keys under them.")
    ] = None,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove rows for good, from every file that is live or kept for an older snapshot, and write a proof.

    The same command again, after the due date, deletes the old bytes and completes the proof; killed anywhere, it goes on.
    """
    if where is None and not key and keys is None:
        raise typer.BadParameter("give --key, --keys or --where")
    if where is not None and (key or keys is not None):
        raise typer.BadParameter("--where does not go with keys")
    secret = None if signing_key is None else signing_key.read_bytes()
    with output.open_lake(lake, catalog) as opened, output.progress(f"erasing from {table}") as advance:
        handle = opened.table(table)
        output.settings.on_stop = "the same command goes on from there"
        wanted = None if where is not None else _keys(handle, key or [], keys)
        done = handle.erase(wanted, where=where, due=datetime.timedelta(hours=due_hours), signing_key=secret, progress=advance)
    if proof is not None:
        done.save(proof)
    if as_json:
        output.print_json(done.to_dict())
        return
    left = "" if done.is_complete else f"; {len(done.waiting):,} old files go by {done.due_at}, run this again then"
    output.messages.print(
        f"{len(done.key_hashes):,} keys erased from {table} ({done.state}): {len(done.rewritten):,} files rewritten, "
        f"{done.checked['segments']:,} segments checked{left}",
        markup=False,
        soft_wrap=True,
    )


def _keys(table: Table, texts: list[str], file: Path | None) -> pa.Table:
    """The keys given one by one and in a file, as a table."""
    import pyarrow as pa

    names = table.primary_key
    kinds = {name: table.schema.column(name).type for name in names}
    rows = [text.split(",") if len(names) > 1 else [text] for text in texts]
    wrong = [text for text, row in zip(texts, rows, strict=True) if len(row) != len(names)]
    if wrong:
        raise SchemaError(f"--key {wrong[0]!r} is not a key of table {table.name!r}: give {','.join(names)}")
    parts = [_read_keys(file, kinds)] if file is not None else []
    columns = {}
    for at, name in enumerate(names):
        try:
            columns[name] = pa.array([row[at].strip() for row in rows], pa.string()).cast(kinds[name])
        except pa.ArrowInvalid as error:
            raise SchemaError(f"--key: {name!r} of table {table.name!r} is {kinds[name]}: {error}") from error
    return pa.concat_tables([*parts, pa.table(columns)])


def _read_keys(file: Path, kinds: dict[str, pa.DataType]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not file.is_file():
        raise NotFoundError(f"no file of keys {file}: check the path")
    try:
        if file.suffix == ".parquet":
            read = pyarrow.parquet.read_table(file)
        else:
            read = pyarrow.csv.read_csv(file, convert_options=pyarrow.csv.ConvertOptions(column_types=kinds))
        return pa.table({name: read[name].cast(kind) for name, kind in kinds.items()})
    except (KeyError, pa.ArrowInvalid) as error:
        raise SchemaError(f"{file} holds no keys of {list(kinds)}: {error}") from error
