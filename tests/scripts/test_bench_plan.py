"""Claims about `scripts/bench_plan`: it fills what it says, and all ways of planning find every segment, whether packed or not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_plan"


def test_a_tiny_form_runs(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--segments", "2300", "--folder", str(tmp_path), "--json", str(figures), "--runs", "1"]
    subprocess.run(command, check=True, capture_output=True)
    found = {one["way"]: one["segments"] for one in json.loads(figures.read_text())["figures"]}
    assert found["view"] == found["plan"] == 2300 and found["follow"] == 2301 and 0 < found["week"] < 2300 // 52
