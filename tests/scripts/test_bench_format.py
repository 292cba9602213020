"""The format benchmark runs in its tiny form, without its peers, and writes what its table shows."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch")
ROOT = pathlib.Path(__file__).parents[2]


def test_prints_a_table_and_writes_its_figures(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "bench.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench_format"), "--tiny", "--json", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "could not compile" in result.stderr or "no C++ compiler" in result.stderr:
        pytest.skip("no C++ compiler")
    assert result.returncode == 0, result.stderr
    assert "histories" in result.stdout
    report = json.loads(target.read_text())
    assert {"hardware", "date", "commit", "command", "versions", "limits", "formats", "ratios"} <= set(report)
    assert set(report["formats"]) == {"Headrace", "Parquet zstd", "Arrow IPC"}
    for figures in report["formats"].values():
        assert all(seconds > 0 for name, seconds in figures["1"].items() if name.endswith("_seconds"))
        assert sum(figures["class_bytes"].values()) > 0
    assert all(projection["ratio"] <= 1.2 for projection in report["formats"]["Headrace"]["projections"].values())
