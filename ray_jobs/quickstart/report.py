"""The end of a quickstart: one table for the terminal, and one HTML file with plots that needs nothing from anywhere else.

Owns wording and layout. Every number comes from the results of the stages and from the run's own files.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ray_jobs import machine, metrics
from ray_jobs.quickstart import svg
from ray_jobs.quickstart.dataset import Manifest
from ray_jobs.quickstart.svg import Bar, Line
from ray_jobs.quickstart.workspace import Workspace
from ray_jobs.training import journal
from ray_jobs.training.journal import RunFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that the report shows, as the stages left it."""

    manifest: Manifest
    ingest: list[dict[str, Any]]
    compact: dict[str, Any]
    parquet: dict[str, Any]
    loader: dict[str, Any]
    train: dict[str, Any]
    audit: dict[str, Any]
    baselines: dict[str, Any]
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def model(self) -> list[dict[str, float]]:
        """Test results of the model, by seed."""
        return [seed["test"] for seed in self.train["seeds"]]

    def rivals(self) -> dict[str, list[dict[str, float]]]:
        return {"DLRM": self.model, "logistic regression": self.baselines["regression"], "popularity + recency": [self.baselines["rule"]]}

    def wins(self) -> bool:
        """Whether the model beats both baselines by more than the spread of either, in AUC."""
        scores = {name: metrics.summarize([result["auc"] for result in results]) for name, results in self.rivals().items()}
        model = scores.pop("DLRM")
        return all(model["mean"] - rival["mean"] > max(model["spread"], rival["spread"]) for rival in scores.values())


def collect(workspace: Workspace, manifest: Manifest) -> Results:
    """Read the results of all stages; every one must be done."""
    folder = RunFolder(workspace.run)
    stages = {name: workspace.result(name) or {} for name in ("compact", "parquet", "loader", "train", "audit", "baselines")}
    return Results(
        manifest=manifest, ingest=journal.read(workspace.ingest_log), metrics=journal.read(folder.metrics), events=journal.read(folder.events), **stages
    )


def ingest_rate(entries: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Samples and label events committed a second, over all runs of the ingest stage."""
    last: list[dict[str, Any]] = []
    for entry in entries:
        if last and entry["commits"] > last[-1]["commits"]:
            last[-1] = entry
        else:
            last.append(entry)  # a new run counts from nothing
    seconds = sum(entry["seconds"] for entry in last) or 1e-9
    rows = [sum(entry["rows"].get(name, 0) for entry in last) for name in ("samples", "labels")]
    return rows[0] / seconds, rows[1] / seconds


def lines(results: Results) -> list[tuple[str, str, str]]:
    """The table: (what, figure, remark)."""
    manifest, before, after = results.manifest, results.compact["before"], results.compact["after"]
    loose, compacted = (part["segments"] + part["overlays"] for part in (before, after))
    columns, parquet = sum(after["columns"].values()), results.parquet["total"]
    samples, labels = ingest_rate(results.ingest)
    rows = [
        ("rows", f"{manifest.samples:,}", f"{manifest.households:,} households; {manifest.labels:,} labels came later"),
        (
            "training / test rows",
            f"{manifest.train_rows:,} / {manifest.test_rows:,}",
            f"windows closed before / rows from {manifest.cut_text} on, closed at the end",
        ),
        ("lake before compaction", _megabytes(loose), f"{before['num_segments']} segments, {_megabytes(before['overlays'])} of labels beside them"),
        (
            "lake after compaction",
            _megabytes(compacted),
            f"{after['num_segments']} segments, {columns / manifest.samples:.1f} B of columns a row",
        ),
        (
            "Parquet with zstd",
            _megabytes(parquet),
            f"the same rows in the same order; the lake is {compacted / parquet:.2f} times that, its columns alone {columns / parquet:.2f}",
        ),
        ("ingest", f"{samples:,.0f} rows/s", f"and {labels:,.0f} label patches/s, each micro-batch synced with its offsets"),
        (
            "loader alone",
            f"{results.loader['samples_per_second']:,.0f} samples/s",
            "shuffled batches of all the model's columns as tensors, one process, two threads",
        ),
        ("training", f"{results.train['samples_per_second']:,.0f} samples/s", f"{results.train['ranks']} ranks, blocks by {_stream(results.train['stream'])}"),
        ("trainer waited for data", f"{results.train['wait_share']:.1%}", "of its time, starts and the restart included"),
    ]
    rows += _sample_lines(results.audit)
    for name, scores in results.rivals().items():
        auc, loss = (metrics.summarize([score[key] for score in scores]) for key in ("auc", "log_loss"))
        rows.append((f"test AUC, {name}", _mean_spread(auc, len(scores)), f"log loss {_mean_spread(loss, len(scores))}; {scores[0]['rows']:,.0f} rows"))
    rows.append(("model beats both", "yes" if results.wins() else "NO", "by more than the spread over seeds"))
    return rows


def _sample_lines(audit: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = [("planned samples an epoch", f"{audit['per_epoch']:,}", "as the plan counted before the first batch")]
    killed = audit["killed"]
    if killed:
        trained = killed["kept"] + killed["rolled_back"]
        rows.append(
            (
                "trained before the kill",
                f"{trained:,}",
                f"rank {killed['rank']} lost after step {killed['step']}; {killed['rolled_back']:,} of them rolled back to step {killed['resumed_from']}",
            )
        )
        rows.append(
            (
                "trained after the kill",
                f"{killed['after']:,}",
                f"{killed['kept']:,} + {killed['after']:,} = {killed['kept'] + killed['after']:,}; restarted in {killed['seconds']:.0f} s",
            )
        )
    for epoch in audit["epochs"]:
        verdict = "each id exactly once" if epoch["duplicates"] == epoch["missing"] == epoch["unplanned"] == epoch["broken_steps"] == 0 else "NOT exact"
        rows.append((f"trained, seed {epoch['seed']} epoch {epoch['epoch'] + 1}", f"{epoch['trained']:,}", verdict))
    return rows


def table(results: Results) -> Table:
    """The table for the terminal."""
    shown = Table(title="Headrace quickstart", show_header=False, title_justify="left")
    shown.add_column(style="bold")
    shown.add_column(justify="right", no_wrap=True)
    shown.add_column(style="dim")
    for row in lines(results):
        shown.add_row(*row)
    return shown


def write_html(results: Results, path: Path) -> None:
    """The report as one file; it loads nothing."""
    body = [f"<h1>Headrace quickstart</h1>{_html_table(lines(results))}"]
    for title, text, chart in _charts(results):
        body.append(f"<section><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{chart}</section>")
    path.write_text(_PAGE.replace("{body}", "\n".join(body)), encoding="utf-8")


def _charts(results: Results) -> Iterable[tuple[str, str, str]]:
    yield "Ingest over time", "Events committed a second, micro-batch by micro-batch.", _ingest_chart(results.ingest)
    yield "Training throughput over time", "Samples a second of both ranks together; nothing is trained while ranks restart.", _training_chart(results)
    yield "Who waited for whom", "The trainer's time; what it waited for is measured in the last attempt's loader of rank 0.", _wait_chart(results.train)
    yield "Loss", "Training loss by global batch, in the history that survives the restart.", _loss_chart(results)
    yield "Test AUC", "Mean over seeds; whiskers are one standard deviation.", _auc_chart(results)
    yield "Storage by column", "Megabytes in the lake after compaction, and in Parquet with zstd.", _storage_chart(results)


def _ingest_chart(entries: Sequence[dict[str, Any]]) -> str:
    x: list[float] = []
    rates: dict[str, list[float]] = defaultdict(list)
    before: dict[str, Any] = {"commits": 0, "seconds": 0.0, "rows": {}}
    passed = 0.0
    for entry in entries:
        if entry["commits"] <= before["commits"]:
            passed, before = passed + before["seconds"], {"commits": 0, "seconds": 0.0, "rows": {}}
        for name, rows in entry["rows"].items():
            rates[name].append((rows - before["rows"].get(name, 0)) / max(entry["seconds"] - before["seconds"], 1e-9))
        x.append(passed + entry["seconds"])
        before = entry
    return svg.line_chart([Line(name=name, x=x, y=rate) for name, rate in rates.items()], x_label="seconds", y_label="events / s")


def _training_chart(results: Results) -> str:
    start = min((entry["time"] for entry in [*results.events, *results.metrics]), default=0.0)
    by_seed: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in results.metrics:
        by_seed[entry["seed"]].append(entry)
    curves = []
    for seed, steps in by_seed.items():
        points: list[tuple[float, float]] = []
        for before, entry in zip([None, *steps], steps, strict=False):
            if before is not None and before["attempt"] != entry["attempt"]:
                points += [(before["time"], 0.0), (entry["time"] - entry["seconds"], 0.0)]  # the ranks were starting again
            points.append((entry["time"], entry["samples_per_second"]))
        curves.append(Line(name=f"seed {seed}", x=[time - start for time, _ in points], y=[rate for _, rate in points]))
    marks = [(event["time"] - start, event["event"]) for event in results.events if event["event"] in ("kill", "resume")]
    return svg.line_chart(curves, x_label="seconds since the ranks started", y_label="samples / s", marks=marks)


def _wait_chart(train: dict[str, Any]) -> str:
    waited = {stage: seconds for stage, seconds in train["loader"]["blocked_seconds"].items() if seconds > 0}
    known = sum(waited.values()) or 1.0
    parts = [("training", 1.0 - train["wait_share"])]
    parts += [
        (f"waited for {stage.replace('_', ' ')}", train["wait_share"] * seconds / known) for stage, seconds in sorted(waited.items(), key=lambda item: -item[1])
    ]
    return svg.stacked_bar(parts)


def _loss_chart(results: Results) -> str:
    latest: dict[tuple[int, int], dict[str, Any]] = {}
    for entry in results.metrics:
        latest[entry["seed"], entry["step"]] = entry  # a step done again replaces the one rolled back
    curves = []
    for seed in dict.fromkeys(seed for seed, _ in latest):
        steps = sorted(step for of, step in latest if of == seed)
        curves.append(Line(name=f"seed {seed}", x=steps, y=[latest[seed, step]["loss"] for step in steps]))
    return svg.line_chart(curves, x_label="global batch", y_label="loss", from_zero=False)


def _auc_chart(results: Results) -> str:
    groups = []
    for name, scores in results.rivals().items():
        auc = metrics.summarize([score["auc"] for score in scores])
        groups.append((name, [Bar(name=name, value=auc["mean"], spread=auc["spread"], text=_mean_spread(auc, len(scores)))]))
    lowest = min(bar.value for _, bars in groups for bar in bars)
    return svg.bar_chart(groups, low=max(lowest - 0.02, 0.5)) + f"<p>Bars begin at {max(lowest - 0.02, 0.5):.3f}.</p>"


def _storage_chart(results: Results, shown: int = 20) -> str:
    lake, parquet = results.compact["after"]["columns"], results.parquet["columns"]
    order = sorted(lake, key=lambda name: -max(lake[name], parquet.get(name, 0)))
    sizes = [(name, lake[name], parquet.get(name, 0)) for name in order[:shown]]
    if order[shown:]:
        sizes.append((f"{len(order) - shown} others", sum(lake[name] for name in order[shown:]), sum(parquet.get(name, 0) for name in order[shown:])))
    return svg.bar_chart(
        [
            (name, [Bar(name="lake", value=ours, text=_megabytes(ours)), Bar(name="Parquet zstd", value=theirs, text=_megabytes(theirs))])
            for name, ours, theirs in sizes
        ]
    )


def _html_table(rows: Sequence[tuple[str, str, str]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(figure)}</td><td>{html.escape(remark)}</td></tr>" for name, figure, remark in rows)
    return f"<table>{cells}</table>"


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _mean_spread(summary: dict[str, float], count: int) -> str:
    return f"{summary['mean']:.4f} ± {summary['spread']:.4f}" if count > 1 else f"{summary['mean']:.4f}"


def _stream(name: str) -> str:
    return "Ray Data actors" if name == "ray" else "threads"


def to_json(results: Results) -> str:
    """The same figures for machines."""
    checks = {"wins": results.wins(), "audit_exact": results.audit["exact"]}
    return json.dumps({**machine.describe(), **checks, "table": [list(row) for row in lines(results)]}, indent=1)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Headrace quickstart</title><style>
body{font:15px/1.5 system-ui,sans-serif;color:#111827;max-width:960px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin:2rem 0 .2rem}p{margin:.2rem 0 .6rem;color:#4b5563}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #e5e7eb;vertical-align:top}
td:nth-child(2){text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}td:nth-child(3){color:#4b5563}
svg{width:100%;height:auto;font:11px system-ui,sans-serif}.legend span{margin-right:1.2rem;white-space:nowrap}
.legend i{display:inline-block;width:.8rem;height:.8rem;margin-right:.35rem;vertical-align:-1px}
</style></head><body>
{body}
</body></html>
"""
