"""`headrace top`: the loaders that run on this machine, live: how fast they are, and who waits for whom."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from loader.cli import output
from loader.cli.output import JsonOption
from loader.train.board import read_board

REFRESH_SECONDS = 1.0
NOBODY = "no loader of this user runs on this machine: start one (headrace train, or loader.DataLoader in a program)"


def register(app: typer.Typer) -> None:
    app.command("top")(top)


def top(
    once: Annotated[bool, typer.Option("--once", help="Show them once and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The loaders that run on this machine, live, until Ctrl-C."""
    output.settings.on_stop = None
    shown = read_board()
    if as_json:
        output.print_json(shown)
        return
    if once:
        output.console.print(_table(shown, {}) if shown else NOBODY)
        return
    before: dict[tuple[int, int], Mapping[str, Any]] = {}
    with Live(_table(shown, before), console=output.console, auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH_SECONDS)
            before = {_key(values): values for values in shown}
            shown = read_board()
            live.update(_table(shown, before) if shown else NOBODY, refresh=True)


def _key(values: Mapping[str, Any]) -> tuple[int, int]:
    return int(values["pid"]), int(values["number"])


def _table(shown: Sequence[Mapping[str, Any]], before: Mapping[tuple[int, int], Mapping[str, Any]]) -> Table:
    """A line a loader; speeds since the last look, or since its start."""
    table = Table(box=None, pad_edge=False)
    for name, justify in (("process", "right"), ("loader", "left"), ("rank", "right"), ("samples", "right"), ("samples/s", "right"), ("MB/s read", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("waits", justify="right")
    table.add_column("for")
    table.add_column("behind", justify="right")
    for values in shown:
        then = before.get(_key(values), {})
        seconds = values["seconds"] - then.get("seconds", 0.0)
        if then and not seconds:
            then, seconds = {}, values["seconds"]  # no batch since: what it was in all
        waited = {stage: spent - then.get("blocked_seconds", {}).get(stage, 0.0) for stage, spent in values["blocked_seconds"].items()}
        share = sum(waited.values()) / seconds if seconds else 0.0
        stages = sorted((stage for stage in waited if waited[stage] > 0), key=lambda stage: -waited[stage])[:3]
        table.add_row(
            str(values["pid"]),
            str(values["loader"]),
            f"{values['rank']}/{values['world_size']}",
            f"{values['rows']:,}",
            f"{(values['rows'] - then.get('rows', 0)) / seconds:,.0f}" if seconds else "",
            f"{(values['encoded_bytes'] - then.get('encoded_bytes', 0)) / seconds / 1e6:,.1f}" if seconds else "",
            f"[{'red' if share > 0.05 else 'green'}]{share:.1%}[/]",
            ", ".join(f"{stage} {waited[stage] / seconds:.1%}" for stage in stages) if seconds else "",
            f"{values['behind_rows']:,} rows, {values['behind_seconds']:,.0f} s" if values.get("behind_rows") is not None else "",
        )
    return table
