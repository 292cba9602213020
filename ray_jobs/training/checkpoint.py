"""A checkpoint: model and optimisers in one torch file, everything else in one JSON file. Nothing in it is ever unpickled.

model.pt     {"model", "dense_optimizer", "embedding_optimizer"}: tensors and plain values, read with weights_only=True
state.json   where the run was: seed, epoch, step, the loader's own state, the results of finished seeds
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import torch

from loader.errors import StateMismatchError

STATE_VERSION = 1


@dataclasses.dataclass(kw_only=True)
class Progress:
    """Where a run is. The one mutable value of a worker; the same on every rank but for what rank 0 alone adds up.

    Attributes:
        seed_index: Seed being trained.
        epoch: Epoch of that seed; equal to the number of epochs once they are all trained.
        step: Global batches trained with this seed.
        rows_seen: Samples trained in this epoch, all ranks together: the loader's position.
        train_seconds: Time of the steps of all seeds in the surviving history, checkpoints and tests not counted; of rank 0.
        wait_seconds: Part of it that rank 0 waited for its loader.
        first_wait_seconds: Part of that for the first batch of each attempt, when fetching has just begun.
        rows_trained: Samples trained in `train_seconds`.
        finished: Results of the seeds before this one.
    """

    seed_index: int = 0
    epoch: int = 0
    step: int = 0
    rows_seen: int = 0
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    first_wait_seconds: float = 0.0
    rows_trained: int = 0
    finished: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def count(self, rows: int, waited: float, seconds: float, *, first: bool = False) -> None:
        """A step of `rows` samples is done; `first` of its attempt or not."""
        self.first_wait_seconds += waited if first else 0.0
        self.rows_seen, self.rows_trained = self.rows_seen + rows, self.rows_trained + rows
        self.wait_seconds, self.train_seconds = self.wait_seconds + waited, self.train_seconds + seconds

    def next_seed(self, result: dict[str, Any]) -> None:
        self.finished.append(result)
        self.seed_index, self.epoch, self.step, self.rows_seen = self.seed_index + 1, 0, 0, 0

    @property
    def point(self) -> dict[str, int]:
        """What the audit compares: {"seed_index", "epoch", "step", "rows_seen"}."""
        return {"seed_index": self.seed_index, "epoch": self.epoch, "step": self.step, "rows_seen": self.rows_seen}


@contextlib.contextmanager
def save(progress: Progress, loader_state: dict[str, Any], tensors: dict[str, Any]) -> Iterator[ray.train.Checkpoint]:
    """A checkpoint in a temporary folder, for `ray.train.report` to carry away.

    Args:
        progress: Where the run is.
        loader_state: `DataLoader.state_dict()`.
        tensors: State dicts by name.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-checkpoint-") as folder:
        torch.save(tensors, Path(folder) / "model.pt")
        state = {"version": STATE_VERSION, "progress": dataclasses.asdict(progress), "loader": loader_state}
        (Path(folder) / "state.json").write_text(json.dumps(state), encoding="utf-8")
        yield ray.train.Checkpoint.from_directory(folder)


def load(checkpoint: ray.train.Checkpoint) -> tuple[Progress, dict[str, Any], dict[str, Any]]:
    """Progress, loader state and tensors (on the CPU).

    Raises:
        StateMismatchError: Another version wrote it.
    """
    with checkpoint.as_directory() as folder:
        state = json.loads((Path(folder) / "state.json").read_text(encoding="utf-8"))
        if state["version"] != STATE_VERSION:
            raise StateMismatchError(
                f"{checkpoint.path}: version {state['version']}, this is {STATE_VERSION}: use the Headrace that saved it, or another run.name"
            )
        tensors = torch.load(Path(folder) / "model.pt", map_location="cpu", weights_only=True)
    return Progress(**state["progress"]), state["loader"], tensors
