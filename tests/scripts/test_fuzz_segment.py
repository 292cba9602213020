"""The fuzzing of segments in its short form: fixed seeds, no failure, and a run that goes on from its state."""

from __future__ import annotations

import functools
import importlib.util
import json
import operator
import pathlib
import subprocess
import sys

import pytest

from loader.kernels import build
from loader.segment.layout import KNOWN_FEATURES, Feature
from loader.segment.reader import SegmentReader

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


def test_the_segments_to_damage_have_every_feature_together(tmp_path: pathlib.Path) -> None:
    spec = importlib.util.spec_from_file_location("fuzz_segment_bases", SCRIPT.with_name("fuzz_segment_bases.py"))
    assert spec is not None
    assert spec.loader is not None
    bases = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = bases
    spec.loader.exec_module(bases)
    made = [bases.make(number) for number in range(bases.NUM_BASES)]
    files = [data for base in made for data in (base.data, base.column_file) if data is not None]
    found = functools.reduce(operator.or_, (SegmentReader(data).features for data in files))
    assert Feature(int(KNOWN_FEATURES)) & ~Feature(found) == Feature.OVERLAY  # patches are read by tables
