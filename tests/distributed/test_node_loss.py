"""Hosts that are lost: fetch actors move to another one, a run goes on from its checkpoint, and where nothing can go on an error says so in time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("ray.train")
pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `node_loss` found, in one cluster for all tests."""
    folder = tmp_path_factory.mktemp("nodes")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "tests.distributed.node_loss", str(folder)]
    with tempfile.TemporaryDirectory(prefix="hr", ignore_cleanup_errors=True) as own:  # other tests must not find this cluster; sockets need a short path
        environment["RAY_TMPDIR"] = own
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return answer


def test_blocks_come_from_other_hosts_and_go_on_from_another_when_theirs_is_lost(found: dict[str, Any]) -> None:
    fetchers = found["fetchers"]
    assert fetchers["first_hosts_are_storage"], "actors only run where the resource is that they ask for"
    assert fetchers["in_order"] and fetchers["moved"]
    assert fetchers["ahead"] <= 30, "fetching ahead is bounded on other hosts too"


def test_where_no_host_is_left_the_error_says_what_is_missing(found: dict[str, Any]) -> None:
    assert re.search(
        r"nothing for 1 s: waiting for block 0 of the plan .* asks for .*'storage': 0\.5.*the cluster has \d nodes, CPU(?!.*storage)",
        found["fetchers"]["error"],
    )


def test_a_lost_host_of_a_rank_costs_no_row(found: dict[str, Any]) -> None:
    assert found["rank"]["ids"] == list(range(300)) and found["rank"]["rolled_back"] > 0
