"""Training with Lightning: a LightningDataModule whose loader's state goes into every checkpoint, and back out of it at any number of ranks.

    python -m ray_jobs.examples.lightning --lake lake/mine --table clicks --features a b --label y --folder run --epochs 2

The data module keeps one loader for the run and owns its state. Lightning gets something to iterate whose length is that of a whole epoch, since it counts
the batches of an epoch on from a checkpoint itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import loader
from loader.extras import require
from ray_jobs.examples import run

lightning = require("lightning", extra="lightning")


class EpochBatches:
    """What Lightning iterates: the batches that are left of an epoch, under the length of the whole."""

    def __init__(self, batches: loader.DataLoader) -> None:
        self._batches = batches
        self._length = -(-batches.rows_per_epoch // batches.options.global_batch_size)

    def __iter__(self) -> Iterator[Any]:
        """Begins when the first batch is taken: Lightning asks for more iterators than it uses, and each of the loader's is an epoch."""
        yield from self._batches

    def __len__(self) -> int:
        return self._length


class ScanDataModule(lightning.LightningDataModule):
    """The batches of a scan for Lightning's ranks.

    Args:
        options: Of the run. The scan is opened on every rank, at one snapshot.
        snapshot: Number of the snapshot; None is the newest, which is for one rank alone.
    """

    def __init__(self, options: run.Options, snapshot: int | None = None) -> None:
        super().__init__()
        self.options, self.snapshot = options, snapshot
        self.batches: loader.DataLoader | None = None
        self._saved: Mapping[str, Any] | None = None

    def train_dataloader(self) -> EpochBatches:
        """Lightning asks once a run; the loader goes on to the next epoch by itself."""
        if self.batches is None:
            lake = loader.connect(self.options.lake, create=False)
            scan = lake.table(self.options.table).scan(columns=self.options.columns, snapshot=self.snapshot)
            place = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
            self.batches = loader.DataLoader(scan, **place, **self.options.loader_options)
            if self._saved is not None:
                self.batches.load_state_dict(self._saved)
        return EpochBatches(self.batches)

    def state_dict(self) -> dict[str, Any]:
        """Goes into Lightning's checkpoint: small JSON, the same on every rank."""
        return {} if self.batches is None else self.batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoint, before the loader is made."""
        self._saved = state_dict or None

    def teardown(self, stage: str) -> None:
        """Stop the threads; the position is in the checkpoint."""
        if self.batches is not None:
            self.batches.close()


class Model(lightning.LightningModule):
    """Logistic regression."""

    def __init__(self, options: run.Options) -> None:
        super().__init__()
        self.options, self.net = options, nn.Linear(len(options.features), 1)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """A padded row counts for nothing."""
        inputs = torch.stack([batch[name].to(torch.float32) for name in self.options.features], dim=1)
        losses = nn.functional.binary_cross_entropy_with_logits(self.net(inputs)[:, 0], batch[self.options.label].to(torch.float32), reduction="none")
        return (losses * batch.mask).sum() / batch.mask.sum().clamp(min=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def make_trainer(options: run.Options, **more: Any) -> Any:
    """The sampler is ours: a scan has an order of its own, and every rank its part."""
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=options.epochs,
        use_distributed_sampler=False,
        default_root_dir=options.folder,
        enable_model_summary=False,
        logger=False,
        **more,
    )


def main() -> None:
    options = run.Options.parse(__doc__ or "")
    checkpoint = Path(options.folder) / "last.ckpt"
    trainer = make_trainer(options)
    trainer.fit(Model(options), datamodule=ScanDataModule(options), ckpt_path=checkpoint if checkpoint.exists() else None)
    trainer.save_checkpoint(checkpoint)


if __name__ == "__main__":
    main()
