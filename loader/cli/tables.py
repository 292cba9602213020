"""`headrace ls`, `describe` and `history`: what is in a lake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption

if TYPE_CHECKING:
    from loader.table.table import Table

TableArgument = Annotated[str, typer.Argument(help="Name of a table.", metavar="TABLE")]


def register(app: typer.Typer) -> None:
    app.command("ls")(ls)
    app.command("describe")(describe)
    app.command("history")(history)


def ls(lake: LakeOption = DEFAULT_LAKE, catalog: CatalogOption = None, as_json: JsonOption = False) -> None:
    """The tables of a lake."""
    keys = ("name", "num_rows", "num_segments", "num_overlays", "segment_bytes", "overlay_bytes", "snapshot")
    with output.open_lake(lake, catalog) as opened:
        tables = [opened.table(name).describe() for name in opened.tables()]
    if as_json:
        output.print_json([{key: table[key] for key in keys} for table in tables])
        return
    if not tables:
        output.messages.print(f"no tables in {lake}", markup=False)
        return
    output.print_table(
        ["table", "rows", "segments", "overlays", "bytes", "snapshot"],
        [
            [
                table["name"],
                table["num_rows"],
                table["num_segments"],
                table["num_overlays"],
                output.size(table["segment_bytes"] + table["overlay_bytes"]),
                table["snapshot"],
            ]
            for table in tables
        ],
    )


def describe(
    table: TableArgument,
    segments: Annotated[bool, typer.Option("--segments", help="List the segments too; `headrace inspect TABLE:NUMBER` looks into one.")] = False,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Definition, columns and present state of a table, with its bytes by column."""
    with output.open_lake(lake, catalog) as opened:
        handle = opened.table(table)
        description, by_column = handle.describe(), handle.bytes_by_column()
        watermark = _moment(handle, description["watermark"])
        refs = handle.view().segments if segments else ()
    for column in description["columns"]:
        column["num_bytes"] = by_column.get(column["name"], 0)
    listed = [
        {key: getattr(ref, key) for key in ("segment_id", "path", "offset", "num_bytes", "bucket", "partition", "level", "num_rows", "live_rows")}
        | {"num_overlays": len(ref.overlays)}
        for ref in refs
    ]
    if as_json:
        output.print_json(description | ({"segments": listed} if segments else {}))
        return
    _print_description(description | {"watermark": watermark})
    if segments:
        output.console.print()
        output.print_table(list(listed[0]) if listed else ["no segments"], [list(entry.values()) for entry in listed])


def _print_description(description: dict[str, Any]) -> None:
    columns = description["columns"]
    sizes = {"segment_bytes", "overlay_bytes"}
    shown = {key: value for key, value in description.items() if key not in ("columns", "attribution")}
    attribution = description["attribution"]
    if attribution:
        shown["attribution"] = f"{attribution['column']} reads as {attribution['default']} after {attribution['window_seconds']:,} seconds without one"
    output.print_pairs({key.replace("_", " "): output.size(value) if key in sizes else _words(value) for key, value in shown.items()})
    largest = max((column["num_bytes"] for column in columns), default=0) or 1
    output.console.print()
    output.print_table(
        ["column", "type", "null", "bytes", ""],
        [
            [
                column["name"],
                column["type"],
                "yes" if column["nullable"] else "no",
                output.size(column["num_bytes"]),
                output.bars(column["num_bytes"] / largest),
            ]
            for column in columns
        ],
    )


def _moment(table: Table, value: int | None) -> str | None:
    """A watermark as a time, where the time column is one."""
    import pyarrow as pa

    if value is None or table.time_column is None:
        return None
    kind = table.schema.column(table.time_column).type
    return str(pa.scalar(value, pa.int64()).cast(kind)) if pa.types.is_timestamp(kind) else f"{value:,}"


def _words(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or None
    return ", ".join(map(str, value)) or None if isinstance(value, list | tuple) else value


def history(
    table: TableArgument,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Only the newest so many.")] = None,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """The snapshots of a table, oldest first."""
    with output.open_lake(lake, catalog) as opened:
        handle = opened.table(table)
        snapshots, tags = handle.history(), handle.tags()
        snapshots = snapshots[-limit:] if limit else snapshots
        watermarks = [_moment(handle, snapshot.watermark) for snapshot in snapshots]
    named: dict[int, list[str]] = {}
    for tag, number in tags.items():
        named.setdefault(number, []).append(tag)
    if as_json:
        output.print_json([output.plain(snapshot) | {"tags": named.get(snapshot.id, [])} for snapshot in snapshots])
        return
    output.print_table(
        ["snapshot", "committed (UTC)", "kind", "rows", "watermark", "what it did", "tags"],
        [
            [
                snapshot.id,
                snapshot.created_at.strftime("%Y-%m-%d %H:%M:%S"),
                snapshot.kind,
                snapshot.num_rows,
                watermark,
                ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in snapshot.summary.items() if isinstance(value, int) and value),
                ", ".join(named.get(snapshot.id, [])),
            ]
            for snapshot, watermark in zip(snapshots, watermarks, strict=True)
        ],
    )
