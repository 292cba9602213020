"""What `scripts/bench_table` says of its measurements: one table, and the targets with what was reached. Nothing here is measured.

A ratio is taken within each round, between figures that are minutes apart, and its median is compared with the target.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

HEADRACE = "Headrace"
SIDE_BY_SIDE = ("acknowledged_after_seconds",)  # of calls that wait together: their sum says nothing of a rate
Report = dict[str, Any]
Figures = dict[str, Any]


def collect(found: dict[tuple[Any, ...], Figures]) -> Report:
    """{stage: {system: [figures of each round]}} of {(stage, job, system, round): figures}."""
    data: Report = {}
    for (stage, _, system, _), figures in found.items():
        data.setdefault(stage, {}).setdefault(system, []).append(figures)
    return data


def rate(seconds: Sequence[float]) -> float:
    return len(seconds) / sum(seconds)


def percentile(seconds: Sequence[float], share: float) -> float:
    return float(np.percentile(np.array(seconds), share))


def median(rounds: Sequence[Figures], value: Callable[[Figures], float]) -> float:
    return statistics.median(value(figures) for figures in rounds)


def _target(what: str, sign: str, asked: float, reached: Sequence[float], unit: str = "") -> Report:
    value = statistics.median(reached)
    met = value <= asked if sign == "≤" else value >= asked
    return {"what": what, "asked": f"{sign} {asked:g}{unit}", "reached": value, "rounds": list(reached), "met": met}


def _works(data: Report, stage: str, system: str) -> list[Figures]:
    return [figures for figures in data.get(stage, {}).get(system, []) if "failed" not in figures]


def _ratios(data: Report, stage: str, mine: str, theirs: str, value: Callable[[Figures], float]) -> list[float]:
    """mine / theirs in each round that has both."""
    pairs = zip(_works(data, stage, mine), _works(data, stage, theirs), strict=False)
    return [value(figures) / value(others) for figures, others in pairs]


def targets(data: Report) -> list[Report]:
    """Every target that this run can tell of."""
    return [*_commit_targets(data), *_keyed_targets(data), *_read_targets(data), *_plan_targets(data), *_look_up_targets(data), *_stream_targets(data)]


def _commit_targets(data: Report) -> list[Report]:
    found = []

    def speed(figures: Figures) -> float:
        return float(figures["commits_per_second"])

    for peer, asked in (("DuckLake", 3), ("Lance", 1)):
        if ratios := _ratios(data, "commits", "Headrace files", peer, speed):
            found.append(_target(f"commits/s in synced files, checked, 8 buckets / {peer}", "≥", asked, ratios))
    for system, what in (("Headrace", "one writer"), ("Headrace group", "group commit")):
        if rounds := _works(data, "commits", system):
            found.append(_target(f"commits/s inline, synced, checked, 8 buckets, {what}", "≥", 2000, [speed(figures) for figures in rounds]))
    return found


def _keyed_targets(data: Report) -> list[Report]:
    if not _works(data, "keyed", HEADRACE):
        return []

    def patch(figures: Figures) -> float:
        return statistics.median(figures["patch_seconds"])

    peers = {name: _works(data, "keyed", name) for name in data["keyed"] if not name.startswith(HEADRACE)}
    best = min((name for name, rounds in peers.items() if rounds), key=lambda name: median(peers[name], patch), default=None)
    found = []
    if best is not None:
        found.append(_target(f"patch of 1%: speed / {best}, the best peer", "≥", 10, [1 / value for value in _ratios(data, "keyed", HEADRACE, best, patch)]))
    for figures in _works(data, "probe", HEADRACE):
        for runs in (1, 8, 64):
            reached = statistics.median(figures[f"probe_{runs}_runs_seconds"]) * 1e3
            found.append(_target(f"probe of {figures['num_keys']:,} keys in {runs} runs", "≤", 50, [reached], " ms"))
    return found


def _read_targets(data: Report) -> list[Report]:
    found = []
    for what, asked, label in (("all", 1.25, "all columns"), ("patched", 2, "the patched columns")):
        if rounds := _works(data, "reads", "Headrace maintained"):
            reached = [figures[f"patched_{what}_seconds"] / figures[f"compacted_{what}_seconds"] for figures in rounds]
            found.append(_target(f"read of {label} after {rounds[0]['patch_commits']} patch commits, maintained / compacted", "≤", asked, reached))
    return found


def _plan_targets(data: Report) -> list[Report]:
    found = []
    limits = {"plan": (0.2, None), "plan large": (1, 300)}
    for stage, (seconds, megabytes) in limits.items():
        if rounds := _works(data, stage, HEADRACE):
            count = f"{rounds[0]['num_files']:,}"
            found.append(_target(f"open + plan of {count} segments", "≤", seconds, [figures["plan_seconds"] for figures in rounds], " s"))
            found.append(_target(f"open + plan of {count} segments, one week and bucket", "≤", 0.03, [figures["week_seconds"] for figures in rounds], " s"))
            if megabytes is not None:
                found.append(_target(f"open + plan of {count} segments, memory", "≤", megabytes, [figures["plan_bytes"] / 1e6 for figures in rounds], " MB"))
    return found


def _look_up_targets(data: Report) -> list[Report]:
    found = []
    for count, p50, p99 in ((1, 0.3, 1), (500, 1, 5)):
        if rounds := _works(data, "look_ups", HEADRACE):
            for share, asked in ((50, p50), (99, p99)):
                reached = [percentile(figures[f"look_up_{count}_seconds"], share) * 1e3 for figures in rounds]
                found.append(_target(f"look-up of {count} keys × {rounds[0]['num_columns']} columns, warm, p{share}", "≤", asked, reached, " ms"))
    if rounds := _works(data, "cold look_ups", HEADRACE):
        reached = [percentile(figures["ten_rows_500_seconds"], 50) * 1e3 for figures in rounds]
        found.append(_target("look-up of 500 keys × 20 columns, data ten times the cache, rows side by side", "≤", 25, reached, " ms"))
    return found


def _stream_targets(data: Report) -> list[Report]:
    rounds = _works(data, "stream", HEADRACE)
    if not rounds:
        return []
    asked = {
        "write_amplification": ("bytes written / bytes that came", 4),
        "max_segments": ("segments of a bucket", 16),
        "size_ratio": ("live bytes / fully compacted", 1.15),
    }
    return [_target(f"an hour's stream: {what}", "≤", limit, [figures[name] for figures in rounds]) for name, (what, limit) in asked.items()]


def show(report: Report) -> str:
    """Print all stages and targets for people; what was printed, as plain text."""
    console = Console(width=180, highlight=False, record=True)
    console.print(f"{report['hardware']}, {report['cpus']} CPUs · {report['date']} · {report['commit']} · {report['command']}", markup=False)
    for stage, systems in report["data"].items():
        table = Table(title=stage, title_justify="left")
        table.add_column("")
        lines = {system: _lines(stage, rounds) for system, rounds in systems.items()}
        names = list(dict.fromkeys(name for shown in lines.values() for name in shown))
        for system in systems:
            table.add_column(system, justify="right")
        for name in names:
            table.add_row(name, *(lines[system].get(name, "") for system in systems))
        console.print(table)
    _show_targets(console, report["targets"])
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


def _lines(stage: str, rounds: Sequence[Figures]) -> dict[str, str]:
    """{label: text} of one system in a stage: medians of its rounds."""
    works = [figures for figures in rounds if "failed" not in figures]
    if not works:
        return {"": str(rounds[0]["failed"])}
    shown = {}
    for name, first in works[0].items():
        if name.endswith("_seconds") and isinstance(first, list):
            label = name.removesuffix("_seconds").replace("_", " ")
            if len(first) >= 20:
                if name not in SIDE_BY_SIDE:
                    shown[f"{label}: a second"] = f"{median(works, lambda f, name=name: rate(f[name])):,.1f}"
                for share in (50, 99):
                    shown[f"{label}: p{share}, ms"] = f"{median(works, lambda f, name=name, share=share: percentile(f[name], share)) * 1e3:.3f}"
                shown[f"{label}: calls"] = f"{len(first):,}"
            else:
                shown[f"{label}, ms"] = f"{median(works, lambda f, name=name: statistics.median(f[name])) * 1e3:,.1f}"
        elif name.endswith("_seconds"):
            shown[f"{name.removesuffix('_seconds').replace('_', ' ')}, ms"] = f"{median(works, lambda f, name=name: f[name]) * 1e3:,.1f}"
        elif name.endswith("bytes"):
            shown[f"{name.replace('_', ' ')}, MB"] = f"{median(works, lambda f, name=name: f[name]) / 1e6:,.1f}"
        elif isinstance(first, int | float):
            shown[name.replace("_", " ")] = f"{median(works, lambda f, name=name: f[name]):,.6g}"
        else:
            shown[name.replace("_", " ")] = str(first)
    return shown


def _show_targets(console: Console, targets: Sequence[Report]) -> None:
    table = Table(title="targets", title_justify="left")
    for column, justify in (("", "left"), ("asked", "right"), ("reached", "right"), ("rounds", "right"), ("met", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for target in targets:
        low, high = min(target["rounds"]), max(target["rounds"])
        spread = f"{low:.3g} to {high:.3g}" if len(target["rounds"]) > 1 else ""
        table.add_row(target["what"], target["asked"], f"{target['reached']:.4g}", spread, "yes" if target["met"] else "[bold]no[/]")
    console.print(table)
