"""The training stage: runs `python -m ray_jobs.train` as anybody would, loses a rank on purpose, and accounts for every sample afterwards.

Owns the command, and what the run's own files say about the kill; the training itself is `ray_jobs.train`'s, the proof by ids `ray_jobs.audit`'s.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loader.config import ExperimentConfig
from loader.errors import HeadraceError
from ray_jobs.audit import audit
from ray_jobs.quickstart.workspace import RUN_NAME, Workspace
from ray_jobs.training import journal
from ray_jobs.training.journal import RunFolder

log = logging.getLogger(__name__)
STOP_SECONDS = 60


class TrainingFailed(HeadraceError):
    """The training job ended without a result; what it said stands above."""


def overrides(workspace: Workspace, *, small: Sequence[str]) -> list[str]:
    """What the quickstart changes of the experiment file: where things lie and, for the small one, sizes."""
    lake, runs = workspace.lake.absolute(), workspace.runs.absolute()
    return [f"lake.location={lake}", f"run.folder={runs}", f"run.name={RUN_NAME}", *(small if workspace.small else ())]


def kill_step(train_rows: int, config: ExperimentConfig) -> int:
    """A global batch past the middle of the first epoch and between two checkpoints."""
    every = config.train.checkpoint_every_steps
    batches = -(-train_rows // config.loader.global_batch_size)
    middle = batches // 2
    return max(min(middle // every * every + every // 2 + 1, batches - 1), 1)


def command(config_file: Path, changes: Sequence[str], step: int) -> list[str]:
    return [sys.executable, "-m", "ray_jobs.train", "--config", str(config_file), *changes, f"train.kill_rank_at_step={step}"]


def train(arguments: Sequence[str], run: Path, *, folder: Path) -> dict[str, Any]:
    """Run the job to its end.

    Args:
        arguments: The command.
        run: The run's folder.
        folder: Where to start it.

    Raises:
        TrainingFailed: It ended without a result.
        KeyboardInterrupt: Ctrl-C; the job was given time to stop, and goes on from its last checkpoint next time.
    """
    result = RunFolder(run).result
    if not result.exists():
        process = subprocess.Popen(arguments, cwd=folder)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _stop(process)
            raise
        if code == 130:
            raise KeyboardInterrupt
        if code or not result.exists():
            raise TrainingFailed(f"the training job ended with exit code {code} and no result: see above; its files are in {run}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The terminal has sent Ctrl-C to the job as well: wait for it, and end it if it does not listen."""
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


def account(run: Path) -> dict[str, Any]:
    """Planned and trained samples around the kill, and the audit by ids.

    Returns:
        `planned`: samples an epoch as the plan counted; `epochs`: the surviving history; `killed`: step of the kill, step of the checkpoint that
        the run went on from, samples trained before the kill, rolled back, kept, and trained after it to the end of that epoch (None if
        no rank was lost).
    """
    folder = RunFolder(run)
    result = audit(run)
    events = journal.read(folder.events)
    size = json.loads(folder.plan.read_text(encoding="utf-8"))
    kill = next((event for event in events if event["event"] == "kill"), None)
    restart = next((attempt for attempt in journal.read(folder.attempts) if attempt["attempt"] > 0), None)
    killed = None
    if kill is not None and restart is not None:
        kept = restart["restored"]["rows_seen"]
        killed = {
            "step": kill["step"],
            "rank": kill["rank"],
            "resumed_from": restart["restored"]["step"],
            "kept": kept,
            "rolled_back": result.rolled_back,
            "after": size["rows_per_epoch"] - kept,
            "seconds": restart["time"] - kill["time"],
        }
    return {**result.to_json(), "killed": killed}
