"""`headrace verify`: says that all is well, names every damaged chunk, and goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import loader
from loader.cli.app import run
from loader.table import verify as table_verify

Capture = pytest.CaptureFixture[str]
ROWS = 70_000


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lake with the table `points`: three segments in files, two blocks each, and an overlay."""
    folder = tmp_path / "lake"
    rng = np.random.default_rng(17)
    with loader.connect(folder) as opened:
        table = opened.create_table("points", pa.schema([("id", pa.int64()), ("x", pa.float64()), ("y", pa.int32())]), primary_key=["id"])
        for number in range(3):
            ids = np.arange(ROWS) + number * ROWS
            table.append(pa.table({"id": ids, "x": rng.random(ROWS), "y": rng.integers(0, 1000, ROWS).astype(np.int32)}))
        table.patch(pa.table({"id": np.arange(20_000), "x": rng.random(20_000)}))
    monkeypatch.setenv("HEADRACE_LAKE", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def files(folder: Path) -> list[Path]:
    return sorted((path for path in folder.rglob("*") if path.is_file() and path.read_bytes()[:8] == b"HEADRACE"), key=lambda path: path.stat().st_mtime_ns)


def test_a_table_as_it_was_written(lake: Path, capsys: Capture) -> None:
    assert run(["verify", "points"]) == 0
    assert "all as they were written" in capsys.readouterr().out
    assert run(["verify", "points", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["files"], report["problems"], report["resumed"]) == (4, [], 0)
    assert report["chunks"] == 3 * 2 * 3 + 2
    assert report["bytes"] > 3 * ROWS * 8


def test_every_damaged_chunk_is_named(lake: Path, capsys: Capture) -> None:
    path = files(lake)[1]
    data = bytearray(path.read_bytes())
    with loader.SegmentReader(path) as reader:
        for column, block in (("x", 0), ("x", 1), ("y", 1)):
            record = reader.chunks(reader.resolve([column]), [block])[0, 0]
            data[int(record["offset"]) + 200] ^= 4
    path.write_bytes(data)
    assert run(["verify", "points", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [next(name for name in ("'x'", "'y'") if name in problem) for problem in problems] == ["'x'", "'x'", "'y'"]
    assert all("segment 2: " in problem and path.name in problem and "its checksum does not match" in problem for problem in problems)


def test_a_lost_file_and_a_damaged_footer_are_named(lake: Path, capsys: Capture) -> None:
    first, second, *_ = files(lake)
    first.unlink()
    data = bytearray(second.read_bytes())
    data[-300] ^= 1
    second.write_bytes(data)
    assert run(["verify", "points"]) == 1
    shown = capsys.readouterr()
    assert "segment 1: no file" in shown.err
    assert "segment 2: " in shown.err
    assert "2 damaged" in shown.out


def test_goes_on_where_it_was_stopped(lake: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    really = table_verify._check

    def check(item: table_verify.Item, storage: object) -> object:
        if len(checked) == 2 and "stopped" not in checked:
            checked.append("stopped")
            raise KeyboardInterrupt
        checked.append(item.key)
        return really(item, storage)  # type: ignore[arg-type]

    monkeypatch.setattr(table_verify, "_check", check)
    assert run(["verify", "points"]) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert run(["verify", "points", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["files"], report["resumed"]) == (4, 2)
    assert len(checked) == len(set(checked)) == 5, "nothing is checked twice"
    assert run(["verify", "points", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 0, "a finished run is forgotten"


def test_a_segment_file_without_a_lake(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "points.segment"
    loader.write_segment(path, pa.table({"x": np.arange(5_000), "y": np.random.default_rng(3).random(5_000)}))
    assert run(["verify", str(path)]) == 0
    assert "2 chunks, 5,000 rows" in capsys.readouterr().out
    with loader.SegmentReader(path) as reader:
        offset = int(reader.chunks(reader.resolve(["y"]), [0])[0, 0]["offset"])
    data = bytearray(path.read_bytes())
    data[offset + 300] ^= 1
    path.write_bytes(data)
    assert run(["verify", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["chunks"], len(report["problems"])) == (2, 1)
    assert "'y'" in report["problems"][0]
    assert run(["verify", str(tmp_path / "gone.segment")]) == 1
    assert "no segment file" in capsys.readouterr().err
