"""The fuzzing of segments in its short form: fixed seeds, no failure, and a run that goes on from its state."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from loader.kernels import build

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "fuzz_segment"


def fuzz(*arguments: object) -> str:
    result = subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def library(tmp_path: pathlib.Path) -> pathlib.Path:
    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    packaged = build.FOLDER / build.LIBRARY
    return packaged if packaged.exists() and build.source_hash().encode() in packaged.read_bytes() else build.ensure(tmp_path)


def test_corrupted_segments_are_refused_or_read_right(tmp_path: pathlib.Path, library: pathlib.Path) -> None:
    state, figures = tmp_path / "state.json", tmp_path / "figures.json"
    fuzz("--count", 500, "--batch", 500, "--library", library, "--state", state)
    assert json.loads(state.read_text())["batches"] == [0]
    fuzz("--count", 1000, "--batch", 500, "--library", library, "--state", state, "--json", figures)
    report = json.loads(figures.read_text())
    assert report["failures"] == []
    assert sum(report["counts"].values()) == report["files"] == 1000
    assert report["counts"]["refused"] > 400
