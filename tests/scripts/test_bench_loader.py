"""The loader's benchmark runs in its tiny form, and its table says what was asked and what was reached."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("psutil")
ROOT = pathlib.Path(__file__).parents[2]


def test_prints_a_table_and_writes_its_figures(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "bench.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench_loader"), "--tiny", "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr
    report = json.loads(target.read_text())
    assert {"hardware", "date", "commit", "command"} <= set(report)
    mine, parquet = report["peers"]["Headrace"], report["peers"]["Parquet, torch threads"]
    assert mine["rate"]["samples_per_second"][0] > 0 and parquet["rate"]["samples_per_second"][0] > 0
    assert parquet["rate"]["num_tensors"] == [149] and mine["rate"]["num_tensors"][0] >= 149, "everybody delivers every column"
    assert mine["resume"]["resume_seconds"][0] > 0
    asked = {target["what"]: target["asked"] for target in report["targets"]}
    assert asked["first batch, s"] == "< 1" and any(name.startswith("waiting of a consumer at 95%") for name in asked)
    assert "Headrace" in target.with_suffix(".txt").read_text() and "targets" in done.stdout
