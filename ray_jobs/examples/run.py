"""What the examples share: options, a model of one layer, the loop, one file for a checkpoint, and the record of what each step trained.

A checkpoint holds the model, the optimiser and the loader's state, which says where the order stands and does not know the number of ranks. Records are
written before a step can count, in the form that `python -m ray_jobs.audit FOLDER` reads.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import loader
from loader.scan import order
from loader.scan.scan import Scan
from ray_jobs.training import data, journal
from ray_jobs.training.journal import RunFolder
from ray_jobs.training.records import RecordWriter

Saved = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """A run of an example.

    Attributes:
        lake, table: What is read.
        features: Numeric columns that the model sees.
        label: Column of 0 and 1.
        folder: Where the checkpoint and the records go; on many hosts a shared one.
        epochs: Whole passes.
        global_batch_size: Rows of a step over all ranks; a multiple of every number of ranks that a run may have.
        checkpoint_every_steps: Global batches between checkpoints.
        ranks: Of Ray Train; torchrun has its own option.
        actors: Ray Data actors of each rank; 0 fetches with threads. Of Ray Train.
        prefetch_bytes: Encoded bytes fetched ahead.
        timeout_seconds: Longest wait of a rank for the others; then it ends, and all are started again.
    """

    lake: str
    table: str
    features: tuple[str, ...]
    label: str
    folder: str
    epochs: int = 1
    global_batch_size: int = 4096
    checkpoint_every_steps: int = 20
    ranks: int = 2
    actors: int = 1
    prefetch_bytes: int = 64 << 20
    timeout_seconds: int = 300

    @classmethod
    def parse(cls, description: str, arguments: list[str] | None = None) -> Options:
        """From the command line; every field is an option of its name."""
        parser = argparse.ArgumentParser(description=description)
        for field in dataclasses.fields(cls):
            flag, needed = f"--{field.name.replace('_', '-')}", field.default is dataclasses.MISSING
            if field.name == "features":
                parser.add_argument(flag, nargs="+", required=True)
            else:
                parser.add_argument(flag, type=str if needed else int, required=needed, default=None if needed else field.default)
        values = vars(parser.parse_args(arguments))
        return cls(**{**values, "features": tuple(values["features"]), "folder": str(Path(values["folder"]).absolute())})

    @property
    def columns(self) -> list[str]:
        return [*self.features, self.label]

    @property
    def loader_options(self) -> dict[str, Any]:
        """Of every rank's DataLoader; rank and world size are asked of torch.distributed or Ray Train."""
        return {"global_batch_size": self.global_batch_size, "remainder": "pad", "window_rows": 65_536, "threads": 1, "prefetch_bytes": self.prefetch_bytes}


def prepare(options: Options, scan: Scan) -> None:
    """Write down what is to be trained, once a run, before anything is."""
    run = RunFolder(Path(options.folder))
    if run.plan.exists():
        return
    plan = scan.plan()
    plan.release()
    run.ids.mkdir(parents=True, exist_ok=True)
    np.save(run.ids / "planned.npy", data.planned_positions(plan))
    batches = order.num_batches(plan.num_rows, 0, options.global_batch_size, "pad")
    numbers = {"rows": plan.num_rows, "rows_per_epoch": plan.num_rows, "batches_per_epoch": batches, "snapshot": plan.snapshot, "table": plan.table}
    journal.write_json(run.plan, {**numbers, "epochs": options.epochs, "seeds": [17], "ranks": options.ranks})


def train(batches: loader.DataLoader, options: Options, saved: Saved | None, save: Callable[[Saved | None], None]) -> None:
    """All batches that are left of all epochs, on this rank.

    Args:
        batches: The rank's loader, where `saved` left it.
        options: Of the run.
        saved: The newest checkpoint, the same on every rank, or None.
        save: Called on every rank at the same steps, with a checkpoint on rank 0 and None on others.
    """
    rank, world_size, run = dist.get_rank(), dist.get_world_size(), RunFolder(Path(options.folder))
    model = nn.parallel.DistributedDataParallel(nn.Linear(len(options.features), 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step = 0
    if saved is not None:
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    attempt = _begin(run, rank, world_size, saved)
    with contextlib.closing(RecordWriter(run.ids, attempt=attempt, rank=rank)) as records:
        while batches.epoch < options.epochs:
            epoch = batches.epoch
            for batch in batches:
                step += 1
                records.write(seed_index=0, epoch=epoch, step=step, positions=batch.positions())
                _step(model, optimizer, batch, options, world_size)
                if rank == 0:
                    journal.append(run.metrics, {"attempt": attempt, "epoch": epoch, "step": step})
                if step % options.checkpoint_every_steps == 0:
                    records.sync()
                    dist.barrier()  # what a checkpoint counts is on record everywhere
                    save(_checkpoint(model, optimizer, step, epoch, batches) if rank == 0 else None)
        dist.barrier()
        if rank == 0:
            journal.write_json(run.result, {"steps": step, "ranks": world_size, "attempts": attempt + 1})


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, options: Options, world_size: int) -> None:
    """One global batch; a rank whose batch is padding alone takes part with a loss of zero."""
    inputs = torch.stack([batch[name].to(torch.float32) for name in options.features], dim=1)
    losses = nn.functional.binary_cross_entropy_with_logits(model(inputs)[:, 0], batch[options.label].to(torch.float32), reduction="none")
    optimizer.zero_grad()
    ((losses * batch.mask).sum() * (world_size / options.global_batch_size)).backward()
    optimizer.step()


def _checkpoint(model: Any, optimizer: torch.optim.Optimizer, step: int, epoch: int, batches: loader.DataLoader) -> Saved:
    state = batches.state_dict()
    return {
        "model": model.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "point": {"seed_index": 0, "epoch": epoch, "step": step, "rows_seen": state["position"]},
        "loader": json.dumps(state),
    }


def _begin(run: RunFolder, rank: int, world_size: int, saved: Saved | None) -> int:
    """The number of this start of the ranks, agreed by all, and who they are."""
    number = torch.tensor([len(journal.read(run.attempts))])
    dist.broadcast(number, src=0)
    attempt = int(number)
    if rank == 0:
        restored = {"seed_index": 0, "epoch": 0, "step": 0, "rows_seen": 0} if saved is None else saved["point"]
        journal.append(run.attempts, {"attempt": attempt, "ranks": world_size, "restored": restored}, sync=True)
    journal.append(run.events, {"event": "rank", "attempt": attempt, "rank": rank, "ranks": world_size, "pid": os.getpid()})
    dist.barrier()
    return attempt


def write(path: Path, saved: Saved) -> None:
    """Replace a checkpoint in one step."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(part, "wb") as file:
        torch.save(saved, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read(path: Path) -> Saved | None:
    """The checkpoint, if there is one. Nothing in it is ever unpickled."""
    return torch.load(path, weights_only=True) if path.exists() else None


def loader_state(saved: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The loader's part of a checkpoint."""
    return None if saved is None else json.loads(saved["loader"])


@contextlib.contextmanager
def open_scan(options: Options, snapshot: int | None = None) -> Iterator[Any]:
    """The scan of a run. A snapshot makes every start of the ranks read the same rows; the plan that wrote it down has it in plan.json."""
    with loader.connect(options.lake, create=False) as lake:
        yield lake.table(options.table).scan(columns=options.columns, snapshot=snapshot)
