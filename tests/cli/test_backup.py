"""`headrace backup` and `headrace restore`: there and back, listed, and refused where something is in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loader.cli.app import run

Capture = pytest.CaptureFixture[str]


def test_there_and_back(shop: Path, tmp_path: Path, capsys: Capture) -> None:
    place, copy = str(tmp_path / "backup"), str(tmp_path / "copy")
    assert run(["backup", place]) == 0
    assert "generation 1: 0 of 0 objects copied" in capsys.readouterr().err
    assert run(["backup", place, "--keep", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["retired"] == [1]
    assert run(["restore", place, "--list", "--json"]) == 0
    (generation,) = json.loads(capsys.readouterr().out)
    assert (generation["number"], generation["tables"]) == (2, {"clicks": {"head": 3, "rows": 6}})
    assert run(["restore", place, "--list"]) == 0
    assert run(["restore", place, copy]) == 0
    assert "clicks (6 rows at snapshot 3)" in capsys.readouterr().err
    assert run(["doctor", "--deep", "--lake", copy]) == 0


def test_what_is_in_the_way_is_named(shop: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(["backup", str(tmp_path / "backup")]) == 0
    assert run(["restore", str(tmp_path / "backup"), str(shop)]) == 1
    assert "holds a lake" in capsys.readouterr().err
    assert run(["restore", str(tmp_path / "nothing"), str(tmp_path / "copy")]) == 1
    assert "no backup at" in capsys.readouterr().err
    assert run(["restore", str(tmp_path / "backup")]) == 2
