"""The report: complete, self-contained, and honest about who won and what was counted."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from loader.config import load as load_config
from ray_jobs.quickstart import driver, report, svg, training
from ray_jobs.quickstart.dataset import Manifest
from ray_jobs.quickstart.report import Results

MANIFEST = Manifest(
    version=1, num_households=None, samples=1000, labels=200, start=0, cut=86_400, end=172_800, train_rows=700, test_rows=150, vocabulary={}, households=10
)
SIZES = {"segments": 5000, "overlays": 100, "num_segments": 9, "columns": {"history": 3000, "price <b>": 900}}


@pytest.fixture
def results() -> Results:
    tests = [{"auc": auc, "log_loss": 0.3, "rows": 150} for auc in (0.84, 0.85, 0.86)]
    return Results(
        manifest=MANIFEST,
        ingest=[{"time": 1.0 * n, "rows": {"samples": 500 * n, "labels": 100 * n}, "commits": 2 * n, "seconds": 2.0 * n} for n in (1, 2)],
        compact={"before": SIZES, "after": SIZES | {"overlays": 0}, "seconds": 1.0},
        parquet={"total": 6000, "columns": {"history": 4000, "price <b>": 800}},
        loader={"rows": 700, "seconds": 0.5, "samples_per_second": 1400.0},
        train={
            "samples_per_second": 300.0,
            "ranks": 2,
            "stream": "ray",
            "wait_share": 0.05,
            "loader": {"blocked_seconds": {"read": 0.2, "decode": 0.1}},
            "seeds": [{"seed": seed, "test": test} for seed, test in enumerate(tests)],
        },
        audit={
            "per_epoch": 700,
            "exact": True,
            "epochs": [{"seed": 0, "epoch": 0, "trained": 700, "duplicates": 0, "missing": 0, "unplanned": 0, "broken_steps": 0}],
            "killed": {"step": 7, "rank": 1, "resumed_from": 5, "kept": 320, "rolled_back": 128, "after": 380, "seconds": 8.0},
        },
        baselines={"rule": {"auc": 0.75, "log_loss": 0.4, "rows": 150}, "regression": [{"auc": 0.82, "log_loss": 0.31, "rows": 150}]},
        metrics=[
            {"time": 5.0 + n, "seed": n % 2, "step": n, "loss": 1.0 / (n + 1), "samples_per_second": 100.0 * n, "attempt": n // 3, "seconds": 1.0}
            for n in range(6)
        ],
        events=[{"time": 6.5, "event": "kill"}, {"time": 7.5, "event": "resume"}],
    )


def test_html_needs_nothing_from_elsewhere(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report.write_html(results, path)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|<script|<link|<img|url\(|@import|src=", text)
    assert text.count("<svg") == text.count("</svg>") == 6
    assert "price <b>" not in text and "price &lt;b&gt;" in text
    assert "NaN" not in text and "nan" not in re.sub(r"<[^>]*>", "", text)


def test_table_counts_planned_and_trained_samples_around_the_kill(results: Results) -> None:
    figures = {name: figure for name, figure, _ in report.lines(results)}
    assert figures["planned samples an epoch"] == figures["trained, seed 0 epoch 1"] == "700"
    assert figures["trained before the kill"] == "448" and figures["trained after the kill"] == "380"
    console = Console(width=200, record=True, file=None)
    with console.capture() as shown:
        console.print(report.table(results))
    assert "320 + 380 = 700" in shown.get() and "each id exactly once" in shown.get()
    assert json.loads(report.to_json(results))["audit_exact"] is True


def test_ingest_rate_adds_up_interrupted_runs(results: Results) -> None:
    assert report.ingest_rate(results.ingest) == (250.0, 50.0)
    again = [*results.ingest, {"rows": {"samples": 400, "labels": 0}, "commits": 1, "seconds": 4.0}]
    assert report.ingest_rate(again) == (175.0, 25.0)


def test_winning_takes_more_than_the_spread(results: Results) -> None:
    assert results.wins()
    close = [{"auc": 0.845, "log_loss": 0.31, "rows": 150}]
    assert not dataclasses.replace(results, baselines=results.baselines | {"regression": close}).wins()


def test_the_kill_falls_inside_the_epoch_and_between_checkpoints() -> None:
    for changes, rows in (((), 1_061_051), (driver.SMALL_CHANGES, 94_871), (driver.SMALL_CHANGES, 1_000)):
        config = load_config(driver.ROOT / driver.CONFIG, list(changes))
        step, batches = training.kill_step(rows, config), -(-rows // config.loader.global_batch_size)
        assert 1 <= step < batches
        assert rows < 2_000 or step % config.train.checkpoint_every_steps != 0


def test_charts_of_nothing_are_still_charts() -> None:
    assert "<svg" in svg.line_chart([], x_label="x", y_label="y")
    assert "<svg" in svg.bar_chart([]) and "<svg" in svg.stacked_bar([])
