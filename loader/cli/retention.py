"""`headrace delete`, `expire` and `gc`: what makes a lake smaller."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption
from loader.cli.tables import TableArgument


def register(app: typer.Typer) -> None:
    app.command("delete")(delete)
    app.command("expire")(expire)
    app.command("gc")(gc)


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
    older_than_days: Annotated[float, typer.Option(min=0, metavar="DAYS", help="Snapshots that are older go.")] = 7.0,
    keep: Annotated[int, typer.Option(min=1, help="So many of the newest stay, whatever their age.")] = 1,
    grace_hours: Annotated[float, typer.Option(min=0, metavar="HOURS", help="How long bytes stay after this, for readers that have begun.")] = 1.0,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget old snapshots of a table and what only they showed; tags and running jobs keep theirs. `headrace gc` then deletes the bytes."""
    with output.open_lake(lake, catalog) as opened:
        report = opened.table(table).expire(older_than=datetime.timedelta(days=older_than_days), keep=keep, grace_seconds=grace_hours * 3600)
    if as_json:
        output.print_json(report)
    else:
        output.messages.print(f"{len(report.snapshots):,} snapshots of {table} expired, {report.records:,} records forgotten with them", markup=False)


def gc(lake: LakeOption = DEFAULT_LAKE, catalog: CatalogOption = None, as_json: JsonOption = False) -> None:
    """Delete the bytes of what was forgotten, once its grace period is over, and what writers that died left behind."""
    with output.open_lake(lake, catalog) as opened:
        report = opened.collect_garbage()
    if as_json:
        output.print_json(report)
    else:
        output.messages.print(f"{report.deleted_paths:,} files deleted, {report.expired_stages:,} dead writers cleaned up after", markup=False)
