"""`ray job submit` against a local head: a training job from YAML runs to its end, is stopped, or fails with one line, and Ray's own status and logs tell."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("ray.train")
pytest.importorskip("aiohttp_cors")  # of ray[default], without which there is no job server
pytest.importorskip("colorful")
pytest.importorskip("opencensus")

from ray_jobs import audit
from ray_jobs.training import journal
from ray_jobs.training.journal import RunFolder
from scripts.soak_train_run import kill_tree
from tests.ray_jobs.test_train import make_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 150.0
Ray = Callable[..., subprocess.CompletedProcess[str]]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.fixture(scope="module")
def ray_cli() -> Iterator[Ray]:
    """Ray's command line, told of a head that runs for these tests."""
    port, job_port, agent_port = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="hr", ignore_cleanup_errors=True) as folder:  # sockets need a short path
        environment = {**os.environ, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{job_port}", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        environment.pop("RAY_ADDRESS", None)
        environment["PYTHONPATH"] = str(ROOT)
        head = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2", "--port", str(port), "--temp-dir", folder]
        head += ["--node-ip-address", "127.0.0.1", "--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(job_port)]
        head += ["--dashboard-agent-listen-port", str(agent_port), "--object-store-memory", str(100 << 20), "--disable-usage-stats"]

        def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "ray.scripts.scripts", "job", *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
            assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            return done

        with open(Path(folder) / "head.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(head, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            deadline = time.monotonic() + LIMIT_SECONDS
            while run("list", check=False).returncode:
                assert process.poll() is None and time.monotonic() < deadline, (Path(folder) / "head.log").read_text()
            yield run
        finally:
            kill_tree(process.pid)
            process.wait()


def submission(project: Path, *overrides: str) -> list[str]:
    needs = ["--working-dir", str(project), "--runtime-env-json", json.dumps({"env_vars": {"PYTHONPATH": str(ROOT)}})]
    return [*needs, "--", sys.executable, "-m", "ray_jobs.train", "--config", "configs/x.yaml", *overrides]


@pytest.fixture
def project(tiny_lake: Path, tmp_path: Path) -> Path:
    """A working directory with an experiment."""
    (tmp_path / "project" / "configs").mkdir(parents=True)
    make_config(tiny_lake, tmp_path, "submitted", seeds=[1], epochs=2, ranks=1, checkpoint_every_steps=10).dump(tmp_path / "project" / "configs" / "x.yaml")
    return tmp_path / "project"


def test_a_job_from_yaml_trains_what_it_planned(ray_cli: Ray, project: Path, tmp_path: Path) -> None:
    done = ray_cli("submit", "--submission-id", "trains", *submission(project, "run.name=whole", "train.epochs=1"))
    assert "done: 4,800 samples in 19 steps" in done.stdout and "succeeded" in ray_cli("status", "trains").stdout.lower()
    assert "done: 4,800 samples in 19 steps" in ray_cli("logs", "trains").stdout
    assert audit.audit(tmp_path / "whole").exact


def test_a_stopped_job_says_how_to_go_on(ray_cli: Ray, project: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "stopped")
    ray_cli("submit", "--no-wait", "--submission-id", "stops", *submission(project, "run.name=stopped", "train.epochs=2000"))
    deadline = time.monotonic() + LIMIT_SECONDS
    while not any(event["event"] == "checkpoint" for event in journal.read(run.events)):
        assert time.monotonic() < deadline, ray_cli("logs", "stops").stdout
        time.sleep(0.05)
    ray_cli("stop", "stops")
    assert "stopped" in ray_cli("status", "stops").stdout.lower()
    assert "interrupted; the same command goes on from the newest checkpoint" in ray_cli("logs", "stops").stdout
    assert not run.result.exists() and list(run.checkpoints.glob("*"))


def test_a_wrong_override_fails_the_job_with_one_line(ray_cli: Ray, project: Path) -> None:
    done = ray_cli("submit", *submission(project, "train.epoch=3"), check=False)
    assert done.returncode != 0 and "failed" in done.stdout.lower() + done.stderr.lower()
    assert "train.epoch" in done.stdout and "did you mean" in done.stdout and "Traceback" not in done.stdout
