"""The benchmark of decode places runs in its tiny form and writes what its table shows."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("ray.data")
pytest.importorskip("psutil")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.ray
def test_prints_a_table_and_writes_its_figures(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "bench.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench_decode_places"), "--tiny", "--only", "rank", "1 decode actor", "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr
    report = json.loads(target.read_text())
    assert {"hardware", "date", "commit", "command"} <= set(report) and set(report["figures"]) == {"rank", "1 decode actor"}
    assert "1 decode actor" in done.stdout
    there = report["figures"]["1 decode actor"]
    assert there["samples_per_second"] > 0 and there["sent_bytes_per_sample"] > 1_000
    assert report["figures"]["rank"]["sent_bytes_per_sample"] == 0
