"""How good a ranking is: area under the ROC curve and log loss, exact and vectorised.

Owns arithmetic on NumPy arrays; gathering predictions from ranks is the business of `ray_jobs.evaluation`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Chance that a random positive scores above a random negative; a tie counts a half (Hanley and McNeil 1982).

    Args:
        labels: [rows], non-zero is positive.
        scores: [rows], any monotone score: logit or probability.

    Raises:
        ValueError: There is no positive or no negative, or the lengths differ.
    """
    positive, score = _pair(labels, scores)
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if num_positive == 0 or num_negative == 0:
        raise ValueError(f"{num_positive} positives and {num_negative} negatives: the area under the curve needs at least one of each")
    _, group, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - (counts - 1) / 2.0  # ranks from 1; equal scores share the mean of theirs
    rank_sum = float(middle_rank[group][positive].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2.0) / (num_positive * num_negative)


def log_loss(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Mean of -log p(label) in nats, from logits: no probability is rounded to 0 or 1.

    Args:
        labels: [rows], non-zero is positive.
        logits: [rows], log odds.

    Raises:
        ValueError: There are no rows, or the lengths differ.
    """
    positive, logit = _pair(labels, logits)
    if not len(logit):
        raise ValueError("no rows: log loss needs at least one")
    return float(np.mean(np.logaddexp(0.0, np.where(positive, -logit, logit))))


def summarize(values: npt.ArrayLike) -> dict[str, float]:
    """Mean and spread over seeds: the sample standard deviation, 0 for a single value."""
    array = np.asarray(values, np.float64)
    return {"mean": float(array.mean()), "spread": float(array.std(ddof=1)) if len(array) > 1 else 0.0}


def _pair(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    positive, score = np.asarray(labels) != 0, np.asarray(scores, np.float64)
    if positive.shape != score.shape or positive.ndim != 1:
        raise ValueError(f"labels have shape {positive.shape}, scores {score.shape}: give two flat arrays of one length")
    return positive, score
