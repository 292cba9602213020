"""Training with Ray Train: each worker gets its own shard of the scan, Ray Data actors fetch its blocks, and Ray Train starts lost workers again.

    python -m ray_jobs.examples.ray_train --lake lake/mine --table clicks --features a b --label y --folder run --ranks 2

The same command with another number of ranks goes on from the checkpoint, once the run was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from loader.distributed import ScanDataConfig
from ray_jobs.examples import run
from ray_jobs.training import cluster
from ray_jobs.training.journal import RunFolder

CHECKPOINT = "checkpoint.pt"


def worker(settings: Mapping[str, Any]) -> None:
    """One rank, as Ray Train starts it."""
    cluster.quiet()
    options = run.Options(**{**settings, "features": tuple(settings["features"])})
    torch.set_num_threads(1)
    saved, latest = None, ray.train.get_checkpoint()
    if latest is not None:
        with latest.as_directory() as path:
            saved = run.read(Path(path) / CHECKPOINT)
    shard = ray.train.get_dataset_shard("train")
    with shard.loader(state=run.loader_state(saved), epochs=options.epochs, **options.loader_options) as batches:
        run.train(batches, options, saved, _save)


def _save(saved: run.Saved | None) -> None:
    """Rank 0's checkpoint becomes the run's; all ranks wait for each other."""
    if saved is None:
        ray.train.report({})
        return
    with tempfile.TemporaryDirectory() as path:
        run.write(Path(path) / CHECKPOINT, saved)
        ray.train.report({"step": saved["step"]}, checkpoint=ray.train.Checkpoint.from_directory(path))


def train(options: run.Options) -> None:
    """Run an example to its end, on the cluster of RAY_ADDRESS or one of its own."""
    folder = RunFolder(Path(options.folder))
    snapshot = json.loads(folder.plan.read_text(encoding="utf-8"))["snapshot"] if folder.plan.exists() else None
    actors = {"num_actors": options.actors, "prefetch_bytes": options.prefetch_bytes} if options.actors else None
    with (
        run.open_scan(options, snapshot) as scan,
        cluster.connect(ranks=options.ranks, object_store_bytes=2 * options.ranks * options.prefetch_bytes),
        ScanDataConfig({"train": scan}, actors=actors) as data,
    ):
        run.prepare(options, scan)
        ray.train.torch.TorchTrainer(
            worker,
            train_loop_config=dataclasses.asdict(options),
            datasets=data.datasets(),
            dataset_config=data,
            torch_config=ray.train.torch.TorchConfig(backend="gloo", timeout_s=options.timeout_seconds),
            scaling_config=ray.train.ScalingConfig(num_workers=options.ranks),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=str(folder.path),
                failure_config=ray.train.FailureConfig(max_failures=-1),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        ).fit()


if __name__ == "__main__":
    train(run.Options.parse(__doc__ or ""))
