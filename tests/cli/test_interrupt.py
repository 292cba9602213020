"""Ctrl-C in the middle of an ingest: one line, and the same command finishes the work without losing or doubling a row."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import loader
from loader.cli.app import run

ROOT = Path(__file__).parents[2]
ROWS = 20_000


@pytest.mark.parametrize("presses", [1, 2])
def test_an_interrupted_ingest_goes_on(tmp_path: Path, presses: int) -> None:
    file, place = tmp_path / "rows.parquet", tmp_path / "lake"
    pa.parquet.write_table(pa.table({"id": np.arange(ROWS), "x": np.random.default_rng(17).random(ROWS)}), file)
    arguments = ["ingest", "points", str(file), "--primary-key", "id", "--commit-rows", "50", "--lake", str(place)]
    command = [sys.executable, "-m", "loader.cli", *arguments]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while running.poll() is None and not _rows(place):
        pass
    for _ in range(presses):
        running.send_signal(signal.SIGINT)
    _, shown = running.communicate(timeout=60)
    assert running.returncode == 130, shown
    assert "Traceback" not in shown
    assert shown.strip().splitlines()[-1].startswith("error: stopped; what was committed stays")
    assert 0 < _rows(place) < ROWS
    assert run(arguments) == 0
    with loader.connect(place) as lake:
        assert lake.table("points").to_arrow(["id"])["id"].to_numpy().tolist() == list(range(ROWS))


def _rows(place: Path) -> int:
    """Rows committed so far; none while the lake or the table is not there yet."""
    try:
        with loader.connect(place, create=False) as lake:
            return int(lake.table("points").describe()["num_rows"])
    except loader.HeadraceError:
        return 0
