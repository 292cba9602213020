"""`headrace doctor`: checks every invariant of a lake, explains what is wrong, and mends what can be mended safely."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from loader.cli import output
from loader.cli.output import DEFAULT_LAKE, CatalogOption, JsonOption, LakeOption


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    table: Annotated[str | None, typer.Argument(metavar="[TABLE]", help="One table; default all of them.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every stored section, compare it with its record, and look for keys that are live twice.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended safely; each repair is recorded in the catalog.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin again, instead of where a run that was stopped got to.")] = False,
    lake: LakeOption = DEFAULT_LAKE,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that the catalog, the files and their records agree, and say what to do where they do not.

    Exit code 1 when something is wrong; what only waits to be cleaned up is named and does not count.
    """
    state = output.state_file("doctor-deep" if deep else "doctor", lake, catalog, table)
    if restart:
        state.unlink(missing_ok=True)
    with output.open_lake(lake, catalog) as opened, output.progress(f"examining {table or 'the lake'}") as advance:
        output.settings.on_stop = "the same command goes on from there (--restart begins again)"
        report = opened.doctor(table, deep=deep, repair=repair, progress=advance, state=state)
    if as_json:
        output.print_json(report.to_dict())
    else:
        for finding in report.findings:
            _show(finding.severity, f"{finding.code}: " + (f"{finding.table}, " if finding.table else "") + f"{finding.where}: {finding.what}")
            _explain(f"why it matters: {finding.explanation}")
            _explain(("--repair: " if finding.is_repairable else "what to do: ") + finding.remedy)
        for line in report.repaired:
            output.console.print(f"repaired {line}", markup=False, soft_wrap=True)
        parts = {"table": len(report.tables), "check": report.num_checks, "object": report.num_objects, "section": report.num_sections}
        counts = ", ".join(_counted(number, thing) for thing, number in parts.items()) + " read"
        verdict = "all is well" if not report.findings else _counted(len(report.findings), "finding")
        output.console.print(f"{counts}: {verdict}", markup=False, soft_wrap=True)
    if not report.is_clean:
        raise typer.Exit(1)


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _show(severity: str, line: str) -> None:
    output.console.print(f"{severity} {line}", markup=False, soft_wrap=True)


def _explain(line: str) -> None:
    output.console.print(textwrap.indent(line, "    "), markup=False, soft_wrap=True)
