"""`headrace inspect`: what a segment looks like inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption
from loader.errors import NotFoundError

if TYPE_CHECKING:
    from loader.segment.inspect import ColumnLayout, SegmentLayout
    from loader.segment.reader import SegmentReader

SHOWN_COLUMNS = 40


def register(app: typer.Typer) -> None:
    app.command("inspect")(inspect)


def inspect(
    segment: Annotated[str, typer.Argument(metavar="SEGMENT", help="A segment file, or TABLE:NUMBER for a segment of a table in the lake.")],
    why: Annotated[bool, typer.Option("--why", help="Show what the writer weighed for each column.")] = False,
    columns: Annotated[int, typer.Option("--columns", min=0, help="How many columns to show, largest first; 0 shows all.")] = SHOWN_COLUMNS,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Layout of a segment: blocks, footer, and for each column its encodings and its bytes as a bar."""
    layout, facts = _layout(segment, lake, catalog)
    if as_json:
        output.print_json({**layout.to_dict(), **facts})
        return
    blocks = f"{len(layout.block_rows):,} of {min(layout.block_rows, default=0):,} to {max(layout.block_rows, default=0):,} rows"
    footer = ", ".join(f"{name} {output.size(num_bytes)}" for name, num_bytes in layout.sections.items())
    known = {name: ", ".join(value) if isinstance(value, list) else value for name, value in facts.items() if value}
    sizes = {"bytes": output.size(layout.num_bytes), "rows": layout.num_rows, "blocks": blocks, "footer": footer}
    output.print_pairs({"segment": layout.name, **sizes, **known})
    output.console.print()
    ordered = sorted(layout.columns, key=lambda column: -column.num_bytes)
    shown, hidden = (ordered[:columns], ordered[columns:]) if columns else (ordered, [])
    titles = ["column", "type", "bytes", "bytes a row", "", "encoding", "chosen because"][: 7 if why else 6]
    output.print_table(titles, [row[: len(titles)] for row in _column_rows(shown, layout.num_rows)])
    if hidden:
        num_bytes = output.size(sum(column.num_bytes for column in hidden))
        output.console.print(f"and {len(hidden):,} columns more, {num_bytes} together: --columns 0 shows all", markup=False)


def _facts(reader: SegmentReader) -> dict[str, Any]:
    """What a reader must know, and who the segment is."""
    from loader.segment.column_files import COLUMNS_OF
    from loader.segment.layout import Feature

    features = [feature.name.lower() for feature in Feature if reader.features & feature and feature.name]
    return {"segment_id": reader.segment_id.hex(), "features": features, COLUMNS_OF: reader.properties.get(COLUMNS_OF)}


def _layout(segment: str, lake: str, catalog: str | None) -> tuple[SegmentLayout, dict[str, Any]]:
    """Of a file by its path, or of a segment by its table and number."""
    from loader.segment.reader import SegmentReader

    table, colon, number = segment.rpartition(":")
    if Path(segment).exists() or not colon or not number.isdigit():
        if not Path(segment).is_file():
            raise NotFoundError(
                f"no segment file {segment}: give the path of one, or TABLE:NUMBER for a segment of a table (headrace describe TABLE --segments lists them)"
            )
        with SegmentReader(segment) as reader:
            return reader.layout(), _facts(reader)
    with output.open_lake(lake, catalog) as opened:
        view = opened.table(table).view()
        refs = {ref.segment_id: ref for ref in view.segments}
        if int(number) not in refs:
            raise NotFoundError(f"table {table!r} has no live segment {number}: headrace describe {table} --segments lists those there are")
        ref = refs[int(number)]
        with SegmentReader(opened.storage.section(ref.path, ref.offset, ref.num_bytes)) as reader:
            return reader.layout(), _facts(reader)


def _column_rows(columns: Sequence[ColumnLayout], num_rows: int) -> list[list[Any]]:
    """The bar is a column's share of all bytes, against the largest, which comes first."""
    largest = max((column.num_bytes for column in columns), default=0) or 1
    rows = max(num_rows, 1)
    return [
        [
            column.name,
            column.type,
            output.size(column.num_bytes),
            f"{column.num_bytes / rows:.2f}",
            output.bars(column.num_bytes / largest),
            column.encoding,
            column.reason,
        ]
        for column in columns
    ]
