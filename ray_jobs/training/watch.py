"""What a person sees of a run: the driver reads the run's own files and says in plain lines how it goes."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from ray_jobs.training import journal
from ray_jobs.training.journal import RunFolder

logger = logging.getLogger("headrace.train")

_EVERY_SECONDS = 5.0


class Watcher:
    """Follows metrics.jsonl and events.jsonl from where they end now.

    Args:
        run: The run's folder.
        batches_per_epoch: For "step 40 of 250"; None where nobody knows.
        epochs: For "epoch 1 of 2".
    """

    def __init__(self, run: RunFolder, *, batches_per_epoch: int | None, epochs: int) -> None:
        self._tails = {path: path.stat().st_size if path.exists() else 0 for path in (run.events, run.metrics)}
        self._run, self._batches, self._epochs = run, batches_per_epoch, epochs
        self._said = 0.0

    def look(self) -> None:
        """Say what is new: every event, and the newest step now and then."""
        for event in self._new(self._run.events):
            logger.info("%s", _describe(event))
        steps = self._new(self._run.metrics)
        if steps and time.monotonic() - self._said >= _EVERY_SECONDS:
            self._said = time.monotonic()
            logger.info("%s", self._describe_step(steps[-1]))

    def _new(self, path: Path) -> list[dict[str, Any]]:
        if not path.exists():
            return []
        with open(path, "rb") as file:
            file.seek(self._tails[path])
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._tails[path] += len(whole)
        return journal.parse(whole)

    def _describe_step(self, step: dict[str, Any]) -> str:
        share = step["wait_seconds"] / step["seconds"] if step["seconds"] else 0.0
        where = f"step {step['step']}" if self._batches is None else f"step {step['step'] - step['epoch'] * self._batches} of {self._batches}"
        return (
            f"seed {step['seed']}, epoch {step['epoch'] + 1} of {self._epochs}, {where}: "
            f"loss {step['loss']:.4f}, {step['samples_per_second']:,.0f} samples/s, waited {share:.0%} for data"
        )


def _describe(event: dict[str, Any]) -> str:
    kind, step = event["event"], event.get("step")
    texts = {
        "start": lambda: f"{event['ranks']} ranks start",
        "resume": lambda: f"{event['ranks']} ranks start again (restart {event['attempt']}) from the checkpoint of seed {event['seed']}, step {step}",
        "kill": lambda: f"killing rank {event['rank']} (process {event['pid']}) after step {step}, as train.kill_rank_at_step asks",
        "checkpoint": lambda: f"checkpoint at step {step} of seed {event['seed']}",
        "epoch": lambda: f"seed {event['seed']}: epoch {event['epoch'] + 1} done, {event['rows']:,} samples trained of {event['planned']:,} planned",
        "test": lambda: f"seed {event['seed']}: test AUC {event['auc']:.4f}, log loss {event['log_loss']:.4f} on {event['rows']:,} rows",
    }
    return texts[kind]() if kind in texts else json.dumps(event)
