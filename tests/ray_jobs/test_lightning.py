"""Lightning over our loader: every row once an epoch, and a checkpoint in the middle goes on with the very next batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")

import torch

from ray_jobs.examples import run
from ray_jobs.examples.lightning import Model, ScanDataModule, make_trainer
from tests.ray_jobs.conftest import ROWS


class Noting(Model):
    """Notes the times of the rows of every step, and may stop after one."""

    def __init__(self, options: run.Options, stop_after: int | None = None) -> None:
        super().__init__(options)
        self.seen: list[list[int]] = []
        self.stop_after = stop_after

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.seen.append(batch["ts"][: batch.num_samples].tolist())
        return super().training_step(batch, index)

    def on_train_batch_end(self, *_: Any) -> None:
        if len(self.seen) == self.stop_after:
            self.trainer.save_checkpoint(Path(self.options.folder) / "middle.ckpt")
            self.trainer.should_stop = True


def fit(options: run.Options, *, stop_after: int | None = None, checkpoint: Path | None = None) -> list[list[int]]:
    model = Noting(options, stop_after)
    trainer = make_trainer(options, enable_progress_bar=False, enable_checkpointing=False)
    trainer.fit(model, datamodule=ScanDataModule(options), ckpt_path=checkpoint)
    return model.seen


def test_a_run_goes_on_from_the_middle_of_an_epoch(tiny_lake: Path, tmp_path: Path) -> None:
    options = run.Options(lake=str(tiny_lake), table="samples", features=("price", "ts"), label="label", folder=str(tmp_path), epochs=2, global_batch_size=500)
    whole = fit(options)
    assert len(whole) == 24
    for epoch in (whole[:12], whole[12:]):
        assert sorted(sum(epoch, [])) == list(range(ROWS))
    first = fit(options, stop_after=17)
    assert first == whole[: len(first)] and len(first) >= 17
    again = fit(options, checkpoint=tmp_path / "middle.ckpt")
    assert again == whole[17:]
