"""What `scripts/bench_format` says of its measurements: medians of rounds, targets with what was reached, limits of the machine, and the table.

Nothing here is measured. A ratio of speeds is taken in each round, between figures that are minutes apart, and its median is compared with the target:
a machine that is shared is slower in one round than in another, and both sides of a ratio with it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import bench_format_proof
from bench_format_peers import formats
from rich.console import Console
from rich.table import Table

TIMES = ("write", "decode", "tenth", "shuffled", "look_up")
HEADRACE, PARQUET, BY_COLUMN = "Headrace", "Parquet zstd", "Parquet zstd by column"
STAGE_FIGURES = ("stage_seconds", "stage_bytes", "scan_seconds", "num_tensors")
Report = dict[str, Any]


def collect(report: Report, found: dict[tuple[str, str, str, int, int], dict[str, Any]]) -> Report:
    """Measurements by data set, format and number of cores; what was measured in rounds is a list."""
    for (title, job, name, cores, turn), values in found.items():
        if title not in report:
            continue
        part = report[title]
        if job == "limits":
            _append(part.setdefault("limits", {}).setdefault(str(cores), {}), values)
            continue
        figure = part.setdefault("formats", {}).setdefault(name, {})
        if job == "kept":
            _append(figure.setdefault(str(cores), {}), values)
        elif job == "speed":
            _append(figure.setdefault(str(cores), {}), {key: value for key, value in values.items() if key.endswith("_seconds")})
            figure |= {key: value for key, value in values.items() if not key.endswith("_seconds")}
        elif job == "wide":
            _append(figure, values)
        elif job == "memory" and turn:
            part["files"][str(turn)][str(cores)] = values
        elif job == "stages":
            figure.setdefault(str(cores), {}).update({key: value for key, value in values.items() if key in STAGE_FIGURES})
        elif job == "memory":
            figure.setdefault(str(cores), {})["peak_bytes"] = values["peak_bytes"]
        elif job == "repeated":
            part.setdefault("files", {}).setdefault(str(turn), {}).update(values)
        else:
            figure |= {key: value for key, value in values.items() if value is not None}
    for part in report.values():
        for cores, figure in part.get("formats", {}).get(HEADRACE, {}).items():
            if isinstance(figure, dict) and figure.get("stage_seconds"):
                figure["profile"] = bench_format_proof.profile(part, cores)
                if (peer := fastest(part, cores)) is not None:
                    theirs = statistics.median(part["formats"][peer][cores]["decode_seconds"])
                    figure["profile"]["permitted"] = {"peer": peer, **bench_format_proof.limit(figure["profile"], theirs)}
    return report


def _append(target: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        target.setdefault(key, []).append(value)


def _ratio(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def _target(what: str, sign: str, asked: float, reached: Sequence[float], because: str = "") -> Report:
    value = statistics.median(reached)
    met = value <= asked if sign == "≤" else value >= asked if sign == "≥" else value < asked
    return {"what": what, "asked": f"{sign} {asked:g}", "reached": value, "rounds": list(reached), "met": met, "because": "" if met else because}


def targets(report: Report) -> list[Report]:
    """Every target that this run can tell of: what was asked, what was reached, and why not where it was not."""
    data, found = report["data"], []
    for title in ("samples", "quickstart", "lake"):
        if HEADRACE in data.get(title, {}).get("formats", {}):
            part = data[title]
            found += _bytes(title, part) if title == "samples" else []
            for cores in map(str, report["cores"]):
                found += _speeds(title, part, cores)
            found += _peaks(title, part, [str(cores) for cores in report["cores"]])
    if HEADRACE in data.get("wide", {}).get("formats", {}):
        found += _wide(data["wide"]["formats"])
    return found


def _bytes(title: str, part: Report) -> list[Report]:
    asked = {PARQUET: 0.55, BY_COLUMN: 0.75, "Vortex": 0.3}
    mine = part["formats"][HEADRACE]["num_bytes"]
    return [
        _target(f"{title}: bytes / {name}", "≤", ask, [mine / part["formats"][name]["num_bytes"]]) for name, ask in asked.items() if name in part["formats"]
    ]


def fastest(part: Report, cores: str, key: str = "decode_seconds") -> str | None:
    """The compressed peer that decodes fastest."""
    known = formats()
    peers = {
        name: statistics.median(figure[cores][key])
        for name, figure in part["formats"].items()
        if name != HEADRACE and known[name].compressed and figure[cores].get(key)
    }
    return min(peers, key=lambda name: peers[name], default=None)


def _speeds(title: str, part: Report, cores: str) -> list[Report]:
    mine, limits, found = part["formats"][HEADRACE][cores], part["limits"][cores], []
    label = f"{title}, {cores} core{'s' if cores != '1' else ''}"
    if (peer := fastest(part, cores)) is not None:
        theirs = part["formats"][peer][cores]["decode_seconds"]
        found.append(
            _target(
                f"{label}: decode speed / {peer}, the fastest compressed peer", "≥", 7, _ratio(theirs, mine["decode_seconds"]), needed(part, cores, peer, 7)
            )
        )
    key = "decode_kept_seconds"
    if (peer := fastest(part, cores, key)) is not None and mine.get(key):
        what = f"{label}: decode speed / {peer}, where malloc keeps all memory"
        found.append(_target(what, "≥", 7, _ratio(part["formats"][peer][cores][key], mine[key]), needed(part, cores, peer, 7, key)))
    found.append(
        _target(f"{label}: decode speed / copying the Arrow arrays into fresh tensors", "≥", 0.5, _ratio(limits["copy_table_seconds"], mine["decode_seconds"]))
    )
    if PARQUET in part["formats"]:
        theirs = part["formats"][PARQUET][cores]["write_seconds"]
        found.append(_target(f"{label}: write speed / {PARQUET}", "≥", 2, _ratio(theirs, mine["write_seconds"])))
    return found


def needed(part: Report, cores: str, peer: str, asked: float, key: str = "decode_seconds") -> str:
    """What so many times the peer's speed would ask of this machine's memory, beside what it can do and what each stage takes: all measured in this run."""
    output, theirs = part["formats"][HEADRACE]["output_bytes"], statistics.median(part["formats"][peer][cores][key])
    wanted = asked * output / theirs
    speeds = {kind: statistics.median(part["limits"][cores][f"write_{kind}_bytes_per_second"]) for kind in ("cached", "warm", "fresh", "fresh_huge")}
    written = f"{wanted / speeds['warm']:.0%} of what this machine writes to memory, {wanted / speeds['cached']:.0%} to its cache, when it does nothing else"
    verdict = "more than this machine can write at all" if wanted > speeds["cached"] else written
    kinds = ", ".join(f"{speed / 1e9:.1f} to {kind.replace('_', ' ')} memory" for kind, speed in speeds.items())
    text = f"{asked:g} × needs {wanted / 1e9:.1f} GB/s of output, {verdict} (GB/s: {kinds})"
    found = bench_format_proof.profile(part, cores)
    if found is None:
        return text
    # the stages were timed under the usual malloc
    return f"{text}. {bench_format_proof.explain(found | {'scan_seconds': statistics.median(part['formats'][HEADRACE][cores][key])}, peer, theirs, asked)}"


def _peaks(title: str, part: Report, cores: Sequence[str]) -> list[Report]:
    found = []
    for count in cores:
        for blocks, measured in part.get("files", {}).items():
            reached = (measured[count]["peak_bytes"] - measured[count]["batch_bytes"]) / measured["block_bytes"]
            what = f"{title}, {count} core{'s' if count != '1' else ''}: peak memory less output, in blocks, of a file of {blocks} blocks"
            found.append(_target(what, "≤", 3, [reached]))
    return found


def _wide(wide: Report) -> list[Report]:
    mine, found = wide[HEADRACE]["locate_seconds"], []
    for name, sign, asked in ((PARQUET, "≤", 0.05), ("Lance", "<", 1)):
        if name in wide:
            found.append(_target(f"wide: time to open and locate 100 columns / {name}", sign, asked, _ratio(mine, wide[name]["locate_seconds"])))
    for title, projection in wide[HEADRACE].get("projections", {}).items():
        found.append(_target(f"wide: bytes read / bytes projected, {title}", "≤", 1.2, [projection["ratio"]]))
    return found


def show(report: Report) -> str:
    """Print the table, the limits, the stages and the targets for people; what was printed, as plain text."""
    console = Console(width=200, highlight=False, record=True)
    heading = f"{report['hardware']}, {report['cpus']} CPUs · {report['date']} · {report['commit']} · {report['command']}"
    names = list(dict.fromkeys(name for part in report["data"].values() for name in part["formats"]))
    table = Table(title=f"{heading}\nmedians of {report['rounds']} rounds", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for title, part in report["data"].items():
        size = f"{part['num_rows']:,} rows, {part['num_columns']:,} columns, {part['arrow_bytes'] / 1e6:.0f} MB as Arrow"
        table.add_section()
        table.add_row(f"[bold]{title}[/]: {size}")
        (_wide_lines if title == "wide" else _lines)(table, part, names, report["cores"])
    console.print(table)
    _show_limits(console, report)
    _show_stages(console, report)
    _show_targets(console, report)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


Line = Callable[[str, Callable[[Report], str]], None]


def _line(table: Table, part: Report, names: Sequence[str]) -> Line:
    def add(label: str, value: Callable[[Report], str]) -> None:
        known = part["formats"]
        table.add_row(label, *(value(known[name]) if name in known else "" for name in names))

    return add


def _lines(table: Table, part: Report, names: Sequence[str], cores: Sequence[int]) -> None:
    line, rows = _line(table, part, names), part["num_rows"]
    line("MB", lambda figure: f"{figure['num_bytes'] / 1e6:.2f}")
    for name in next(iter(part["formats"].values()))["class_bytes"]:
        line(f"  {name}", lambda figure, name=name: f"{figure['class_bytes'][name] / 1e6:.2f}")
    for count in map(str, cores):
        plural = f"{count} core{'s' if count != '1' else ''}"
        for label, key in (("write", "write"), ("decode", "decode"), ("a tenth of the columns", "tenth"), ("shuffled", "shuffled")):
            line(f"{label}, k rows/s, {plural}", lambda figure, key=key, count=count: f"{rows / _median(figure, count, key) / 1e3:.0f}")
        line(f"decode where malloc keeps all memory, k rows/s, {plural}", lambda figure, count=count: _kept(figure, count, rows))
        line(f"decode, GB/s as Arrow, {plural}", lambda figure, count=count: f"{part['arrow_bytes'] / _median(figure, count, 'decode') / 1e9:.2f}")
        line(f"look up 100 rows, ms, {plural}", lambda figure, count=count: f"{_median(figure, count, 'look_up') * 1e3:.1f}")
        line(f"peak memory of a scan, MB, {plural}", lambda figure, count=count: f"{figure[count]['peak_bytes'] / 1e6:.0f}")


def _median(figure: Report, cores: str, key: str) -> float:
    return statistics.median(figure[cores][f"{key}_seconds"])


def _kept(figure: Report, cores: str, rows: int) -> str:
    return f"{rows / _median(figure, cores, 'decode_kept') / 1e3:.0f}" if figure[cores].get("decode_kept_seconds") else ""


def _wide_lines(table: Table, part: Report, names: Sequence[str], _: Sequence[int]) -> None:
    line = _line(table, part, names)
    line("MB", lambda figure: f"{figure['num_bytes'] / 1e6:.2f}")
    line("write, columns/s", lambda figure: f"{part['num_columns'] / figure['write_once_seconds']:.0f}")
    line("open + locate 100 columns, ms", lambda figure: f"{statistics.median(figure['locate_seconds']) * 1e3:.2f}")
    line("read those 100, ms", lambda figure: f"{statistics.median(figure['wide_scan_seconds']) * 1e3:.2f}")


def _show_limits(console: Console, report: Report) -> None:
    """Memory of this machine beside what decoding must write at least."""
    for title, part in report["data"].items():
        for count, limit in part.get("limits", {}).items():
            speeds = {name.removesuffix("_bytes_per_second").replace("_", " "): values for name, values in limit.items() if name.endswith("_bytes_per_second")}
            shown = ", ".join(f"{name} {statistics.median(values) / 1e9:.1f}" for name, values in speeds.items())
            copied = part["arrow_bytes"] / statistics.median(limit["copy_table_seconds"]) / 1e9
            console.print(f"{title}, {count} core(s), GB/s of memory: {shown}; the Arrow arrays into fresh tensors {copied:.1f}")
            if HEADRACE in part["formats"]:
                output = part["formats"][HEADRACE]["output_bytes"]
                floor = output / statistics.median(limit["write_warm_bytes_per_second"])
                spent = _median(part["formats"][HEADRACE], count, "decode")
                console.print(
                    f"  to write its {output / 1e6:.0f} MB alone takes {floor * 1e3:.1f} ms, decoding takes {spent * 1e3:.1f} ms, {spent / floor:.2f} ×"
                )


def _show_stages(console: Console, report: Report) -> None:
    """Where Headrace's decode spends its time, each stage measured alone, beside what memory takes for its bytes."""
    for title, part in report["data"].items():
        for count in map(str, report["cores"]):
            figure = part.get("formats", {}).get(HEADRACE, {}).get(count, {})
            if "profile" in figure:
                peer = fastest(part, count)
                theirs = statistics.median(part["formats"][peer][count]["decode_seconds"]) if peer else 0.0
                bench_format_proof.show(console, title, count, figure["profile"], peer, theirs)
                console.print("  whole scans, ms: " + ", ".join(f"{name} {value * 1e3:.1f}" for name, value in figure["scan_seconds"].items()))


def _show_targets(console: Console, report: Report) -> None:
    table = Table(title="targets", title_justify="left")
    for column, justify in (("", "left"), ("asked", "right"), ("reached", "right"), ("rounds", "right"), ("met", "left")):
        table.add_column(column, justify=justify)
    for target in report["targets"]:
        low, high = min(target["rounds"]), max(target["rounds"])
        spread = f"{low:.3g} to {high:.3g}" if len(target["rounds"]) > 1 else ""
        table.add_row(target["what"], target["asked"], f"{target['reached']:.3f}", spread, "yes" if target["met"] else "[bold]no[/]")
    console.print(table)
    for target in report["targets"]:
        if target["because"]:
            console.print(f"{target['what']}: {target['because']}", markup=False)
