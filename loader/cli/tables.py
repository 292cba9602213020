"""`headrace ls`, `describe` and `history`: what is in a lake."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption

TableArgument = Annotated[str, typer.Argument(help="Name of a table.", metavar="TABLE")]


def register(app: typer.Typer) -> None:
    app.command("ls")(ls)
    app.command("describe")(describe)
    app.command("history")(history)


def ls(lake: LakeOption = DEFAULT_LAKE, catalog: CatalogOption = None, as_json: JsonOption = False) -> None:
    """The tables of a lake."""
    with output.open_lake(lake, catalog) as opened:
        found = [opened.table(name).describe() for name in opened.tables()]
    if as_json:
        output.print_json(found)
        return
    if not found:
        output.messages.print(f"no tables in {lake}", markup=False)
        return
    output.print_table(
        ["table", "rows", "segments", "bytes", "snapshot"],
        [[entry["name"], entry["num_rows"], entry["num_segments"], output.size(entry["num_bytes"]), entry["snapshot_id"]] for entry in found],
    )


def describe(table: TableArgument, lake: LakeOption = DEFAULT_LAKE, catalog: CatalogOption = None, as_json: JsonOption = False) -> None:
    """Schema, keys, layout and size of a table."""
    with output.open_lake(lake, catalog) as opened:
        entry = opened.table(table).describe()
    if as_json:
        output.print_json(entry)
        return
    columns: list[dict[str, Any]] = entry.pop("columns")
    output.print_pairs({key: value for key, value in entry.items() if not isinstance(value, dict)})
    output.print_table(["column", "type", "nullable"], [[column["name"], column["type"], column.get("nullable")] for column in columns])


def history(
    table: TableArgument,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Only the newest.")] = None,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """The snapshots of a table, oldest first."""
    with output.open_lake(lake, catalog) as opened:
        snapshots = opened.table(table).history()
    shown = snapshots[-limit:] if limit else snapshots
    output.print_json(shown)
