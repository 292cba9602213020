"""Every failpoint is in the code, and every one is killed at by a test: a new one without a crash test fails here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loader import failpoints
from tests.table.test_crash import PLACES

ROOT = Path(__file__).resolve().parents[2]
KILLS = re.compile(r"kill_self|SIGKILL|=kill")


def test_every_failpoint_is_passed_in_the_code() -> None:
    texts = [path.read_text() for path in (ROOT / "loader").rglob("*.py") if path.name != "failpoints.py"]
    assert {name for text in texts for name in re.findall(r'failpoints\.hit\("([\w.]+)"\)', text)} <= set(failpoints.NAMES), "one is not in failpoints.NAMES"
    assert [name for name in failpoints.NAMES if not any(f'"{name}"' in text for text in texts)] == [], "nothing passes these"


@pytest.mark.parametrize("name", failpoints.NAMES)
def test_every_failpoint_is_killed_at(name: str) -> None:
    if name in {place for place, _ in PLACES}:
        return
    family = f'startswith("{name.split(".")[0]}.")'
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    killing = [text for text in texts if KILLS.search(text)]
    assert any(f'"{name}"' in text or family in text for text in killing), f"no test kills a process at {name}: make one, with tests.table.processes"
