"""The encoding benchmark runs, and its figures name what they need."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_the_tiny_form_measures_both_formats(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "encode.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench_encode"), "--tiny", "--json", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(target.read_text())
    assert {"hardware", "load_average", "date", "commit", "command", "versions"} < set(report)
    assert [figure["segments"] for figure in report["figures"]] == [1, 4, 1, 1]
    assert all(figure[name] > 0 for figure in report["figures"] for name in ("seconds", "bytes", "parquet_seconds", "parquet_bytes"))
    assert "times as fast" in result.stdout
    assert [(look_up["rows"], look_up["columns"]) for look_up in report["look_ups"]] == [(500, 20), (500, 20), (100, 80)]
    assert all(0 < look_up["best_seconds"] <= look_up["median_seconds"] <= look_up["p99_seconds"] for look_up in report["look_ups"])
    assert "asked: at most 1 ms for 500 rows × 20 columns" in result.stdout
