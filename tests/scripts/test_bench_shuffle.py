"""Claims about `scripts/bench_shuffle`: its orders are permutations, a full one is the yardstick, and runs keep lists together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_shuffle"


def test_a_tiny_form_runs(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    subprocess.run([sys.executable, str(SCRIPT), "--tiny", "--json", str(figures)], check=True, capture_output=True)
    found = {(row["data"], row["order"]): row for row in json.loads(figures.read_text())["figures"]}
    assert found["user", "full permutation"]["auc_below_full"] == 0
    for kind in ("time", "user"):
        entropy = [found[kind, order]["entropy_bits"] for order in ("storage order", "blocks", "windows, r = 1", "full permutation")]
        assert entropy == sorted(entropy) and entropy[0] == 0
        assert found[kind, "windows, r = 16"]["lists_a_batch"] < found[kind, "windows, r = 1"]["lists_a_batch"]
