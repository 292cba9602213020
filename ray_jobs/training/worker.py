"""One data-parallel rank: restore, train seed after seed, checkpoint, test, and write down what happened.

Every rank runs `train_worker`; Ray Train starts all of them again when one is lost, and each goes on from the newest checkpoint that Ray Train holds.
What is the same on all ranks (progress, number of batches, results) is computed on all ranks, so that collectives and checkpoints meet.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from loader import config as configs
from loader.config import ExperimentConfig
from loader.distributed.ahead import expect
from loader.scan import order
from ray_jobs import metrics
from ray_jobs.models import build
from ray_jobs.training import checkpoint, data, evaluation, journal
from ray_jobs.training.checkpoint import Progress
from ray_jobs.training.cluster import quiet
from ray_jobs.training.journal import RunFolder
from ray_jobs.training.records import RecordWriter

logger = logging.getLogger(__name__)


def train_worker(settings: Mapping[str, Any]) -> None:
    """Entry point of a rank.

    Args:
        settings: {"config": the resolved experiment as plain values, "run": absolute path of the run's folder}.
    """
    quiet()
    config = configs.parse(settings["config"], source=str(RunFolder(Path(settings["run"])).config))
    torch.set_num_threads(config.train.threads_per_rank)
    with contextlib.ExitStack() as stack:
        Worker(config, RunFolder(Path(settings["run"])), stack).run()


class Worker:
    """The state of one rank during one attempt."""

    def __init__(self, config: ExperimentConfig, run: RunFolder, stack: contextlib.ExitStack) -> None:
        context = ray.train.get_context()
        self.config, self.run_folder = config, run
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._trained = False
        self.progress, self._loader_state, self._tensors = self._restore()
        self.attempt = self._begin_attempt()
        self.lake = data.open_lake(config)
        stack.callback(self.lake.close)
        self.scan = data.make_scan(config, self.lake)
        self.plan = self.scan.plan()
        stack.callback(self.plan.release)
        self.records: RecordWriter | None = None
        if config.train.record_ids:
            self.records = RecordWriter(run.ids, attempt=self.attempt, rank=self.rank)
            stack.callback(self.records.close)
        self.batches = self._open_batches(stack)

    def run(self) -> None:
        """Train and test the seeds that are left; rank 0 writes the result."""
        seeds = self.config.train.seeds
        while self.progress.seed_index < len(seeds):
            trainee = _Trainee(self.config, seeds[self.progress.seed_index], self.device, num_steps=self._steps_per_seed())
            if self._tensors is not None:
                trainee.load_state_dict(self._tensors)
                self._tensors = None
            self._train_seed(trainee)
            self.progress.next_seed(self._finish_seed(trainee))
        if self.rank == 0:
            self._write_result()

    def _restore(self) -> tuple[Progress, dict[str, Any] | None, dict[str, Any] | None]:
        latest = ray.train.get_checkpoint()
        return (Progress(), None, None) if latest is None else checkpoint.load(latest)

    def _begin_attempt(self) -> int:
        """The number of this start of the ranks, agreed by all; rank 0 writes down where it began."""
        number = torch.tensor([len(journal.read(self.run_folder.attempts))], device=self.device)
        dist.broadcast(number, src=0)
        attempt = int(number)
        if self.rank == 0:
            journal.append(self.run_folder.attempts, {"attempt": attempt, "restored": self.progress.point}, sync=True)
            seeds = self.config.train.seeds
            seed = seeds[min(self.progress.seed_index, len(seeds) - 1)]
            self._event("resume" if attempt else "start", attempt=attempt, ranks=self.world_size, seed=seed, step=self.progress.step)
        return attempt

    def _open_batches(self, stack: contextlib.ExitStack) -> Any:
        """The loader of the training rows, where the checkpoint left it. Fetching begins now, while the model is still being built."""
        stream = data.make_stream(self.config, self.plan)
        batches = data.make_loader(self.config, self.scan, rank=self.rank, world_size=self.world_size, stream=stream)
        if self._loader_state is not None:
            batches.load_state_dict(self._loader_state)
        stack.callback(batches.close)
        if stream is not None and not self._follows:
            stack.callback(stream.close)  # before the loader, which waits for the block it asked for
            expect(stream, batches, epochs=self._epochs_left(), position=self.progress.rows_seen)
        return batches

    @property
    def _follows(self) -> bool:
        """Whether the run goes on with rows that come, so that nobody knows how many there are."""
        return self.config.data.follow is not None

    def _epochs_left(self) -> list[int]:
        """Epochs of the order that are left, seed after seed, the one under way first."""
        return list(range(self._order_epoch(), len(self.config.train.seeds) * self.config.train.epochs))

    def _order_epoch(self) -> int:
        """A seed goes on with the epochs after those of the seed before: each sees an order of its own, so that their spread tells of both."""
        return self.progress.seed_index * self.config.train.epochs + self.progress.epoch

    def _event(self, kind: str, **fields: Any) -> None:
        journal.append(self.run_folder.events, {"event": kind, **fields})

    def _train_seed(self, trainee: _Trainee) -> None:
        """All epochs of one seed that are left, and a checkpoint at the end of the last."""
        progress, train = self.progress, self.config.train
        while progress.epoch < train.epochs:
            if progress.rows_seen == 0 and not self._follows:
                self.batches.set_epoch(self._order_epoch())
            self._train_epoch(trainee)
            if self.rank == 0:
                counts = {"rows": progress.rows_seen, "planned": progress.rows_seen if self._follows else self.plan.num_units}
                self._event("epoch", seed=trainee.seed, epoch=progress.epoch, step=progress.step, **counts)
            progress.epoch, progress.rows_seen = progress.epoch + 1, 0
        self._checkpoint(trainee)

    def _steps_per_seed(self) -> int:
        options = self.config.loader
        return self.config.train.epochs * order.num_batches(self.plan.num_units, 0, options.global_batch_size, options.remainder)

    def _train_epoch(self, trainee: _Trainee) -> None:
        progress, options = self.progress, self.config.loader
        total = order.num_batches(self.plan.num_units, progress.rows_seen, options.global_batch_size, options.remainder)
        left: float = math.inf if self._follows else total
        batches, meter = iter(self.batches), _Meter()
        while left:
            began = time.perf_counter()
            batch = next(batches, None) if self._follows else next(batches)
            if batch is None:
                break  # the stream is over
            waited = time.perf_counter() - began
            progress.step, left = progress.step + 1, left - 1
            if self.records is not None:
                self.records.write(seed_index=progress.seed_index, epoch=progress.epoch, step=progress.step, positions=batch.positions())
            rows = options.global_batch_size if self._follows else min(options.global_batch_size, self.plan.num_units - progress.rows_seen)
            loss = trainee.step(batch, global_rows=rows, world_size=self.world_size, step=progress.step)
            seconds = time.perf_counter() - began
            progress.count(rows, waited, seconds, first=not self._trained)
            self._trained = True
            meter.add(loss, rows, waited, seconds)
            self._kill_if_asked()
            if self.rank == 0 and (progress.step % self.config.train.log_every_steps == 0 or not left):
                meter.report(self, trainee.seed)
            if left and progress.step % self.config.train.checkpoint_every_steps == 0:
                self._checkpoint(trainee)
        close = getattr(batches, "close", None)
        if close is not None:
            close()

    def _checkpoint(self, trainee: _Trainee) -> None:
        """Every rank's records reach the disk, then rank 0's checkpoint becomes the newest; a barrier."""
        if self.records is not None:
            self.records.sync()
        report = self.progress.point | {"attempt": self.attempt}
        if self.rank != 0:
            ray.train.report(report)
            return
        with checkpoint.save(self.progress, self.batches.state_dict(), trainee.state_dict()) as saved:
            ray.train.report(report, checkpoint=saved)
        self._event("checkpoint", seed=trainee.seed, step=self.progress.step)

    def _kill_if_asked(self) -> None:
        """End this process as a crash would, once in a run."""
        train = self.config.train
        asked = self.attempt == 0 and self.progress.seed_index == 0 and self.progress.step == train.kill_rank_at_step
        if asked and self.rank == train.kill_rank:
            self._event("kill", rank=self.rank, step=self.progress.step, pid=os.getpid())
            logger.warning("killing rank %d (process %d) after step %d, as train.kill_rank_at_step asks", self.rank, os.getpid(), self.progress.step)
            os.kill(os.getpid(), signal.SIGKILL)

    def _finish_seed(self, trainee: _Trainee) -> dict[str, Any]:
        """Test the trained model; the same result on every rank."""
        result: dict[str, Any] = {"seed": trainee.seed, "steps": self.progress.step}
        if not data.is_tested(self.config):
            return result
        scan = data.make_scan(self.config, self.lake, test=True)
        batches = data.make_loader(self.config, scan, rank=self.rank, world_size=self.world_size, test=True)
        with contextlib.closing(batches):
            scores = evaluation.score(trainee.model, batches, self.config.data.label, self.device)
        result["test"] = evaluation.measure(scores, self.device)
        if self.rank == 0:
            self._event("test", seed=trainee.seed, **result["test"])
        return result

    def _write_result(self) -> None:
        progress = self.progress
        tests = [seed["test"] for seed in progress.finished if "test" in seed]
        journal.write_json(
            self.run_folder.result,
            {
                "rows_planned": progress.rows_trained if self._follows else self.plan.num_rows,
                "rows_trained": progress.rows_trained,
                "steps": sum(seed["steps"] for seed in progress.finished),
                "epochs": self.config.train.epochs,
                "ranks": self.world_size,
                "restarts": self.attempt,
                "stream": self.config.train.stream,
                "decode": self.config.loader.decode,
                "snapshot": self.config.lake.snapshot,
                "train_seconds": progress.train_seconds,
                "samples_per_second": progress.rows_trained / progress.train_seconds if progress.train_seconds else 0.0,
                "wait_seconds": progress.wait_seconds,
                "first_wait_seconds": progress.first_wait_seconds,
                "wait_share": progress.wait_seconds / progress.train_seconds if progress.train_seconds else 0.0,
                "loader": self.batches.stats().to_dict(),
                "seeds": progress.finished,
                **{name: metrics.summarize([test[name] for test in tests]) for name in ("auc", "log_loss") if tests},
            },
        )


class _Trainee:
    """A model with its optimisers: Adagrad for embeddings, whose rows are met at very different rates, AdamW for the rest."""

    def __init__(self, config: ExperimentConfig, seed: int, device: torch.device, *, num_steps: int) -> None:
        self.num_steps, self.decay = num_steps, config.train.learning_rate_decay
        self.seed, self.label, self.device = seed, config.data.label, device
        self.has_dropout = config.model.dropout > 0
        self.model: nn.Module = ray.train.torch.prepare_model(build(config, seed), parallel_strategy_kwargs={"gradient_as_bucket_view": True})
        self._bare: nn.Module = getattr(self.model, "module", self.model)
        named = dict(self._bare.named_parameters())
        tables = [parameter for name, parameter in named.items() if name.startswith("tables.")]
        others = [parameter for name, parameter in named.items() if not name.startswith("tables.")]
        train = config.train
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "dense_optimizer": torch.optim.AdamW(others, lr=train.learning_rate, weight_decay=train.weight_decay)
        }
        if tables:
            self.optimizers["embedding_optimizer"] = torch.optim.Adagrad(tables, lr=train.embedding_learning_rate)

    def step(self, batch: Any, *, global_rows: int, world_size: int, step: int) -> float:
        """One global batch; DDP averages gradients over ranks, so the local sum is scaled to make that the mean over the batch's rows, or groups.

        Rows of a sample count as many times as they stand for, masked rows not at all.
        """
        if self.has_dropout:
            torch.manual_seed(self.seed * 1_000_003 + step)  # a step after a restart drops what it would have dropped
        samples = batch.num_samples
        moved = batch if self.device.type == "cpu" else batch.to(self.device)
        logits = self.model(moved)[:samples]
        labels = moved[self.label][:samples].to(torch.float32)
        weights = moved.weights[:samples]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction="sum") * (world_size / global_rows)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        share = self._rate_share(step)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * share
            optimizer.step()
        return loss.item()

    def _rate_share(self, step: int) -> float:
        """What is left of the learning rates at a step: a function of the step alone, so that a restart needs no scheduler's state."""
        falling = self.decay * self.num_steps
        return min(1.0, (self.num_steps + 1 - step) / falling) if falling else 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"model": self._bare.state_dict(), **{name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._bare.load_state_dict(state["model"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])


class _Meter:
    """Adds up the steps between two lines of metrics.jsonl."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._losses: list[float] = []
        self._rows, self._waited, self._seconds = 0, 0.0, 0.0

    def add(self, loss: float, rows: int, waited: float, seconds: float) -> None:
        self._losses.append(loss)
        self._rows, self._waited, self._seconds = self._rows + rows, self._waited + waited, self._seconds + seconds

    def report(self, worker: Worker, seed: int) -> None:
        """One line of metrics.jsonl: means and sums since the last."""
        progress = worker.progress
        journal.append(
            worker.run_folder.metrics,
            {
                "attempt": worker.attempt,
                "seed": seed,
                "epoch": progress.epoch,
                "step": progress.step,
                "loss": sum(self._losses) / len(self._losses),
                "samples": self._rows,
                "seconds": self._seconds,
                "wait_seconds": self._waited,
                "samples_per_second": self._rows / self._seconds,
                "blocked_seconds": dict(worker.batches.stats().blocked_seconds),
            },
        )
        self._clear()
