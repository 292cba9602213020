"""What `scripts/bench_loader` found, as JSON values, a table and the targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from bench_loader_peers import PEERS
from rich.console import Console
from rich.table import Table

Report = dict[str, Any]
HEADRACE = "Headrace"
PACED_LIMITS = {"0.5": 0.01, "0.8": 0.02, "0.95": 0.05}
MEASURED: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("rate", "samples_per_second", "samples/s, shuffled", lambda value: f"{value:,.0f}"),
    ("rate", "bytes_per_second", "GB/s of tensors", lambda value: f"{value / 1e9:.2f}"),
    ("ordered", "samples_per_second", "samples/s, stored order", lambda value: f"{value:,.0f}"),
    ("tenth", "samples_per_second", "samples/s, a tenth of the columns", lambda value: f"{value:,.0f}"),
    ("rate", "first_batch_seconds", "first batch, s", lambda value: f"{value:.2f}"),
    ("resume", "resume_seconds", "on from the middle, s", lambda value: f"{value:.2f}"),
    ("rate", "cpu_seconds_per_million", "CPU s per million samples", lambda value: f"{value:,.1f}"),
    ("rate", "peak_bytes", "peak memory, MB", lambda value: f"{value / 1e6:,.0f}"),
    ("write", "num_bytes", "stored, MB", lambda value: f"{value / 1e6:.0f}"),
    ("write", "write_seconds", "to store, s", lambda value: f"{value:.1f}"),
)


def collect(found: Mapping[tuple[Any, ...], Report]) -> Report:
    """Figures by peer and job, a list with a value for each round; the targets."""
    peers: Report = {}
    for (name, job, _), figures in found.items():
        if job == "middle" and "failed" not in figures:
            continue  # a state is no figure
        target = peers.setdefault(name, {"how": PEERS[name].how, "compressed": PEERS[name].compressed}).setdefault(job, {})
        for key, value in figures.items():
            target.setdefault(key, []).append(value)
    return {"peers": peers, "targets": targets(peers)}


def median(peers: Report, name: str, job: str, key: str) -> float | None:
    """Of the rounds; None where there is no figure."""
    values = peers.get(name, {}).get(job, {}).get(key)
    return None if not values else statistics.median(values)


def best_peer(peers: Report, job: str, key: str, choose: Callable[..., Any], *, compressed: bool) -> tuple[str, float] | None:
    """The best of the others, of those that compress or of all."""
    figures = {
        name: value
        for name in peers
        if not name.startswith(HEADRACE) and (PEERS[name].compressed or not compressed) and (value := median(peers, name, job, key)) is not None
    }
    return choose(figures.items(), key=lambda item: item[1]) if figures else None


def targets(peers: Report) -> list[Report]:
    """What was asked and what was reached."""
    found: list[Report] = []

    def add(what: str, sign: str, asked: float, reached: float | None) -> None:
        if reached is not None:
            met = reached >= asked if sign == "≥" else reached <= asked if sign == "≤" else reached < asked
            found.append({"what": what, "asked": f"{sign} {asked:g}", "reached": reached, "met": met})

    mine = median(peers, HEADRACE, "rate", "samples_per_second")
    if mine is not None:
        for job, times in (("rate", 9), ("ordered", 4)):
            peer = best_peer(peers, job, "samples_per_second", max, compressed=True)
            if peer is not None:
                title = "shuffled" if job == "rate" else "in the stored order"
                add(f"shuffled samples/s / {peer[0]} {title}, the best of those that compress", "≥", times, mine / peer[1])
        peer = best_peer(peers, "rate", "cpu_seconds_per_million", min, compressed=False)
        spent = median(peers, HEADRACE, "rate", "cpu_seconds_per_million")
        if peer is not None and spent is not None:
            add(f"CPU seconds per million samples / {peer[0]}, the least of all", "≤", 0.5, spent / peer[1])
            least = best_peer(peers, "rate", "cpu_seconds_per_million", min, compressed=True)
            if least is not None and least[0] != peer[0]:
                add(f"CPU seconds per million samples / {least[0]}, the least of those that compress", "≤", 0.5, spent / least[1])
    add("first batch, s", "<", 1, median(peers, HEADRACE, "rate", "first_batch_seconds"))
    add("on from the middle of an epoch, s", "<", 1, median(peers, HEADRACE, "resume", "resume_seconds"))
    rounds = peers.get(HEADRACE, {}).get("paced", {}).get("paced", [])
    for share, limit in PACED_LIMITS.items() if rounds else ():
        waited = statistics.median(figures[share]["waiting_share"] for figures in rounds)
        add(f"waiting of a consumer at {float(share):.0%} of the loader's own rate", "<", limit, waited)
    ranks = peers.get(HEADRACE, {}).get("ranks", {}).get("two_ranks", [])
    if ranks:
        add("two ranks: samples/s over Ray / in process", "≥", 0.8, statistics.median(figures["Headrace, Ray"] / figures[HEADRACE] for figures in ranks))
    return found


def show(report: Report) -> str:
    """Print the table and the targets; what was printed, as plain text."""
    console = Console(width=230, highlight=False, record=True)
    size = f"{report['rows']:,} samples, batches of {report['batch']:,}, windows of {report['window']:,}, {report['cores']} cores"
    heading = f"{report['hardware']}, {report['cpus']} CPUs · {report['date']} · {report['commit']} · {report['command']}"
    table = Table(title=f"{heading}\n{size}, medians of {report['rounds']} rounds", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in report["peers"]:
        table.add_column(name, justify="right")
    for job, key, title, form in MEASURED:
        values = [median(report["peers"], name, job, key) for name in report["peers"]]
        table.add_row(title, *("–" if value is None else form(value) for value in values))
    console.print(table)
    for name, figures in report["peers"].items():
        console.print(f"{name}: {figures['how']}{'' if figures['compressed'] else ' (what it reads is not compressed)'}")
        for job, measured in figures.items():
            for reason in measured.get("failed", []) if isinstance(measured, dict) else []:
                console.print(f"  {job} failed: {reason}")
    asked = Table(title="targets", title_justify="left")
    for title in ("", "asked", "reached", ""):
        asked.add_column(title, justify="right" if title else "left")
    for target in report["targets"]:
        asked.add_row(target["what"], target["asked"], f"{target['reached']:.3g}", "met" if target["met"] else "missed")
    console.print(asked)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"
