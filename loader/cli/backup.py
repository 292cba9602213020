"""`headrace backup` and `headrace restore`: a lake's catalog and files at one consistent point, elsewhere and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption

if TYPE_CHECKING:
    from loader.backup.layout import Generation


def register(app: typer.Typer) -> None:
    app.command("backup")(backup)
    app.command("restore")(restore)


def backup(
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Folder or URL of the backup; the same one each time.")],
    keep: Annotated[int | None, typer.Option(min=1, metavar="N", help="Keep the newest N generations; default all.")] = None,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Back up a lake, catalog and files, to one consistent point, while writers go on. Only what is new is copied; every copy is read back."""
    with output.open_lake(lake, catalog) as opened, output.progress("backing up") as advance:
        output.settings.on_stop = "the same command goes on with what was copied"
        report = opened.backup(destination, keep=keep, progress=advance)
    if as_json:
        output.print_json(report)
        return
    copied = f"{report.copied_objects:,} of {report.num_objects:,} objects copied, {output.size(report.copied_bytes)} of {output.size(report.num_bytes)}"
    retired = f"; generations given up: {', '.join(map(str, report.retired))}" if report.retired else ""
    output.messages.print(f"generation {report.generation}: {copied}{retired}", markup=False, soft_wrap=True)


def restore(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder or URL of the backup.")],
    destination: Annotated[str | None, typer.Argument(metavar="DEST", help="Folder or URL of the new lake: an empty place.")] = None,
    catalog: CatalogOption = None,
    generation: Annotated[int | None, typer.Option(metavar="N", help="Which; default the newest.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Only list the generations that can be restored.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup to an empty place, verify it, and have the doctor look at it. Exit code 1 when the doctor finds something."""
    from loader.backup.restore import generations
    from loader.backup.restore import restore as run

    if show or destination is None:
        if not show:
            raise typer.BadParameter("say where to restore to, or --list")
        _list(generations(source), as_json)
        return
    with output.progress("restoring") as advance:
        output.settings.on_stop = "the same command goes on with what was restored"
        report = run(source, destination, catalog=catalog, generation=generation, progress=advance)
    if as_json:
        output.print_json(report)
    else:
        rows = ", ".join(f"{name} ({state['rows']:,} rows at snapshot {state['head']})" for name, state in report.tables.items())
        line = f"generation {report.generation}: {report.num_objects:,} objects, {output.size(report.num_bytes)}; {rows}"
        output.messages.print(line, markup=False, soft_wrap=True)
        for finding in report.findings:
            output.messages.print(f"{finding.severity} {finding.code}: {finding.where}: {finding.what}", markup=False, soft_wrap=True)
    if any(finding.severity != "notice" for finding in report.findings):
        raise typer.Exit(1)


def _list(found: Sequence[Generation], as_json: bool) -> None:
    if as_json:
        names = ("number", "created_at", "lake_id", "catalog_version", "tables", "num_objects", "num_bytes")
        output.print_json([{name: getattr(one, name) for name in names} for one in found])
        return
    rows = [(one.number, one.created_at, len(one.tables), one.num_objects, output.size(one.num_bytes)) for one in found]
    output.print_table(["generation", "at", "tables", "objects", "size"], rows)
