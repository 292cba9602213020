"""The format benchmark runs in its tiny form, without its peers, and writes what its table shows."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest

import loader

pytest.importorskip("torch")
ROOT = pathlib.Path(__file__).parents[2]


def run(tmp_path: pathlib.Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What it prints, and its figures."""
    target = tmp_path / "bench.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench_format"), "--tiny", "--json", str(target), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "could not compile" in result.stderr or "no C++ compiler" in result.stderr:
        pytest.skip("no C++ compiler")
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(target.read_text())


def test_prints_a_table_and_writes_its_figures(tmp_path: pathlib.Path) -> None:
    shown, report = run(tmp_path)
    assert "histories" in shown
    assert {"hardware", "date", "commit", "command", "versions", "limits", "formats", "ratios"} <= set(report)
    assert set(report["formats"]) == {"Headrace", "Parquet zstd", "Arrow IPC"}
    for figures in report["formats"].values():
        assert all(seconds > 0 for name, seconds in figures["1"].items() if name.endswith("_seconds"))
        assert sum(figures["class_bytes"].values()) > 0
    assert all(projection["ratio"] <= 1.2 for projection in report["formats"]["Headrace"]["projections"].values())


def test_takes_rows_of_a_lake(tmp_path: pathlib.Path) -> None:
    with loader.connect(tmp_path / "lake") as lake:
        table = lake.create_table("samples", pa.schema([("id", pa.int64()), ("x", pa.float32()), ("seen", pa.list_(pa.int64()))]), primary_key=["id"])
        table.append(pa.table({"id": range(50), "x": [number / 4 for number in range(50)], "seen": [[number] for number in range(50)]}))
    _, report = run(tmp_path, "--lake", str(tmp_path / "lake"), "--only", "Headrace", "Parquet zstd")
    assert report["num_rows"] == 50
    assert set(report["formats"]["Headrace"]["class_bytes"]) == {"integers", "floats", "lists"}
