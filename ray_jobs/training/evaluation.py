"""Measure a model on the test rows: every rank scores its share, rank 0 gathers all scores and computes exact metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from loader.errors import HeadraceError
from ray_jobs.metrics import auc, log_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Logits and labels of one rank's rows, float32 [rows] each."""

    logits: torch.Tensor
    labels: torch.Tensor


def score(model: nn.Module, batches: Iterable[Any], label: str, device: torch.device) -> Scores:
    """Run the model over this rank's batches; padding rows are left out."""
    logits, labels = [torch.zeros(0)], [torch.zeros(0)]
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            moved = batch if device.type == "cpu" else batch.to(device)
            logits.append(model(moved)[: batch.num_samples].float().cpu())
            labels.append(batch[label][: batch.num_samples].float().cpu())
    model.train()
    return Scores(logits=torch.cat(logits), labels=torch.cat(labels))


def gather(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """All ranks' values end to end, on every rank. Ranks may hold different numbers of them, none included."""
    world_size = dist.get_world_size()
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size)]
    dist.all_gather(lengths, torch.tensor([len(values)], device=device))
    longest = max(int(length) for length in lengths)
    padded = torch.zeros(longest, dtype=values.dtype, device=device)
    padded[: len(values)] = values.to(device)
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)]).cpu()


def measure(scores: Scores, device: torch.device) -> dict[str, float]:
    """AUC, log loss, rows and the share of positives over all ranks' scores; a collective: every rank calls it and gets the same.

    Raises:
        HeadraceError: The rows are all positives or all negatives.
    """
    logits: np.ndarray[Any, Any] = gather(scores.logits, device).numpy()
    labels: np.ndarray[Any, Any] = gather(scores.labels, device).numpy()
    if len(np.unique(labels != 0)) < 2:
        raise HeadraceError(f"the {len(labels):,} rows of data.test_where hold one label only, which measures nothing: choose others, or leave it out")
    return {"auc": auc(labels, logits), "log_loss": log_loss(labels, logits), "rows": len(labels), "positives": float(labels.mean())}
