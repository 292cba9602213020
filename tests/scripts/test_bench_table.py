"""The table benchmark runs in its tiny form, without its peers, and writes what its tables show."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_prints_tables_and_writes_their_figures(tmp_path: pathlib.Path) -> None:
    target, state = tmp_path / "bench.json", tmp_path / "state.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench_table"), "--tiny", "--json", str(target), "--state", str(state), "--folder", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "could not compile" in result.stderr or "no C++ compiler" in result.stderr:
        pytest.skip("no C++ compiler")
    assert result.returncode == 0, result.stderr
    assert "look up 500" in result.stdout
    assert "look up 500" in target.with_suffix(".txt").read_text()
    report = json.loads(target.read_text())
    assert {"hardware", "date", "commit", "command", "versions", "data", "targets"} <= set(report)
    assert {"commits", "keyed", "reads", "look_ups"} <= set(report["data"])
    (commits,) = report["data"]["commits"]["Headrace"]
    assert len(commits["commit_seconds"]) == 20
    assert min(commits["commit_seconds"]) > 0
    asked = {target["what"]: target for target in report["targets"]}
    reached = asked["commits/s inline, synced, checked, 8 buckets, one writer"]
    assert reached["reached"] == pytest.approx(20 / sum(commits["commit_seconds"]))
    assert reached["met"] == (reached["reached"] >= 2000)
    assert len(json.loads(state.read_text())["found"]) == sum(len(systems) for systems in report["data"].values())
