"""`headrace maintain`: compaction, expiry and the deletion of garbage, round after round, in this process."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption
from loader.cli.tables import TableArgument


def register(app: typer.Typer) -> None:
    app.command("maintain")(maintain)


def maintain(
    table: TableArgument,
    interval: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Pause between rounds.")] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="One round, then stop.")] = False,
    expire_older_than_days: Annotated[float | None, typer.Option(min=0, metavar="DAYS", help="Snapshots that are older go after each round.")] = None,
    keep: Annotated[int, typer.Option(min=1, help="So many of the newest snapshots stay, whatever their age.")] = 1,
    gc: Annotated[bool, typer.Option("--gc", help="Delete bytes whose grace period is over after each round.")] = False,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a table fast to read while others write to it. Run several, on one host or many: they share the work. Ctrl-C or SIGTERM ends it in good order.

    For many cores, `python -m ray_jobs.compact --continuous` does the same with Ray.
    """
    from loader.table.maintenance import MaintenanceOptions, MaintenanceTotals, stop_on_signals
    from loader.table.maintenance import maintain as run

    age = None if expire_older_than_days is None else datetime.timedelta(days=expire_older_than_days)
    options = MaintenanceOptions(expire_older_than=age, keep_snapshots=keep, collect_garbage=gc)
    said = ""

    def say(totals: MaintenanceTotals) -> None:
        nonlocal said
        text = f"{totals.segments_before} {totals.overlays_folded} {totals.snapshots_expired} {totals.files_deleted}"
        if not once and text != said:  # silent while there is nothing to do
            said = text
            output.messages.print(f"so far: {totals}", markup=False)

    with output.open_lake(lake, catalog) as opened, output.progress(f"maintaining {table}") as advance, stop_on_signals() as stop:
        totals = run(opened, table, options, interval_seconds=None if once else interval, stop=stop, progress=advance, after_round=say)
    if as_json:
        output.print_json(totals)
    else:
        output.messages.print(str(totals), markup=False)
