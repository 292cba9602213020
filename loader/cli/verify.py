"""`headrace verify`: whether all that a table reads is what was written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption
from loader.cli.tables import TableArgument


def register(app: typer.Typer) -> None:
    app.command("verify")(verify)


def verify(
    table: TableArgument,
    restart: Annotated[bool, typer.Option("--restart", help="Begin again, instead of where a run that was stopped got to.")] = False,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every chunk of every live segment and overlay: checksums, structure, and that it decodes.

    Exit code 1 when something is damaged; each damaged chunk is named.
    """
    from loader.table.verify import Progress
    from loader.table.verify import verify as check

    state = _state(lake, catalog, table)
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
    damaged = len(known.problems)
    if as_json:
        output.print_json(
            {
                "table": table,
                "snapshot": view.snapshot_id,
                "files": len(known.checked),
                "resumed": resumed,
                "chunks": sum(known.checked.values()),
                "bytes": known.num_bytes,
                "problems": known.problems,
            }
        )
    else:
        counts = f"{sum(known.checked.values()):,} chunks in {len(known.checked):,} segments and overlays, {output.size(known.num_bytes)}"
        for problem in known.problems:
            output.messages.print(problem, markup=False, soft_wrap=True)
        verdict = f"{damaged:,} damaged" if damaged else "all as they were written"
        output.console.print(f"{table}, snapshot {view.snapshot_id}: {counts}: {verdict}", markup=False, soft_wrap=True)
    if damaged:
        raise typer.Exit(1)


def _state(lake: str, catalog: str | None, table: str) -> Path:
    """Where a run that was stopped is remembered: with the user, because a lake may be read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = lake if "://" in lake else str(Path(lake).resolve())
    name = hashlib.blake2b(repr((place, catalog, table)).encode(), digest_size=12).hexdigest()
    return cache / "headrace" / "verify" / f"{name}.json"
