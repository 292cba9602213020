"""`headrace verify`: whether all that a table, or a segment file, reads is what was written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption
from loader.errors import NotFoundError


def register(app: typer.Typer) -> None:
    app.command("verify")(verify)


def verify(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Name of a table, or path of a segment file.")],
    restart: Annotated[bool, typer.Option("--restart", help="Begin again, instead of where a run that was stopped got to.")] = False,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every chunk of every live segment and overlay: checksums, structure, and that it decodes.

    Exit code 1 when something is damaged; each damaged chunk is named.
    """
    if "/" in table or Path(table).is_file():
        _verify_file(table, as_json)
        return
    from loader.table.verify import Progress
    from loader.table.verify import verify as check

    state = output.state_file("verify", lake, catalog, table)
    if restart:
        state.unlink(missing_ok=True)
    with output.open_lake(lake, catalog) as opened, output.progress(f"checking {table}") as advance:
        view = opened.table(table).view()
        known = Progress.load(state, table)
        resumed = len(known.checked)
        output.settings.on_stop = "the same command goes on from there (--restart begins again)"
        for done, total in check(view, opened.storage, known):
            advance(done, total)
        known.forget()
    counts = {"files": len(known.checked), "chunks": sum(known.checked.values()), "bytes": known.num_bytes}
    if as_json:
        output.print_json({"table": table, "snapshot": view.snapshot_id, "resumed": resumed, **counts, "problems": known.problems})
    else:
        checked = f"{counts['chunks']:,} chunks in {counts['files']:,} segments and overlays, {output.size(known.num_bytes)}"
        _say(f"{table}, snapshot {view.snapshot_id}: {checked}", known.problems)
    if known.problems:
        raise typer.Exit(1)


def _verify_file(path: str, as_json: bool) -> None:
    """Check one segment that is a file, of any lake or of none."""
    from loader.segment.verify import verify_segment

    if not Path(path).is_file():
        raise NotFoundError(f"no segment file {path}: give the path of one, or the name of a table (headrace ls lists them)")
    found = verify_segment(path)
    counts = {"chunks": found.num_chunks, "rows": found.num_rows, "bytes": Path(path).stat().st_size}
    if as_json:
        output.print_json({"file": path, **counts, "problems": found.problems})
    else:
        _say(f"{path}: {found.num_chunks:,} chunks, {found.num_rows:,} rows, {output.size(counts['bytes'])}", found.problems)
    if found.problems:
        raise typer.Exit(1)


def _say(checked: str, problems: Sequence[str]) -> None:
    for problem in problems:
        output.messages.print(problem, markup=False, soft_wrap=True)
    verdict = f"{len(problems):,} damaged" if problems else "all as they were written"
    output.console.print(f"{checked}: {verdict}", markup=False, soft_wrap=True)
