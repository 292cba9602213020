"""Claims about `scripts/simulate_plan`: it uses the loader's own order, reads all bytes about once, and gives every rank as many rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "simulate_plan"


def test_a_tiny_form_runs(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    subprocess.run([sys.executable, str(SCRIPT), "--tiny", "--json", str(path)], check=True, capture_output=True)
    figures = json.loads(path.read_text())["figures"]
    assert 1 <= figures["read_amplification"] <= 1 + figures["shards"] / figures["num_blocks"] * 2
    assert figures["rows_spread"] <= 1 and figures["rank_bytes_worst"] >= 1
    assert 1 < figures["blocks_a_batch"] < figures["num_blocks"] and 0 < figures["entropy_share"] < 1
