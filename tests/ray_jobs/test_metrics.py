"""Ranking metrics agree with scikit-learn's, ties and hopeless logits included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.metrics import auc, log_loss, summarize

sklearn_metrics = pytest.importorskip("sklearn.metrics")


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.integers(1, 12))
def test_auc_and_log_loss_equal_scikit_learn(seed: int, rows: int, distinct: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.r_[0, 1, random.integers(0, 2, rows)]
    logits = random.integers(-distinct, distinct + 1, rows + 2) / 3.0
    assert auc(labels, logits) == pytest.approx(sklearn_metrics.roc_auc_score(labels, logits), abs=1e-12)
    assert log_loss(labels, logits) == pytest.approx(sklearn_metrics.log_loss(labels, 1 / (1 + np.exp(-logits))), rel=1e-9)


def test_auc_of_constant_scores_is_a_half() -> None:
    assert auc([0, 1, 1, 0, 1], np.zeros(5)) == 0.5


def test_auc_needs_both_classes() -> None:
    with pytest.raises(ValueError, match="0 negatives"):
        auc([1, 1], [0.1, 0.2])


def test_log_loss_of_a_sure_mistake_is_finite() -> None:
    assert log_loss([1], [-800.0]) == pytest.approx(800.0)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="one length"):
        auc([0, 1], [0.5])


def test_spread_is_the_sample_deviation() -> None:
    assert summarize([0.7, 0.8, 0.9]) == {"mean": pytest.approx(0.8), "spread": pytest.approx(0.1)}
    assert summarize([0.7])["spread"] == 0.0
    assert math.isclose(summarize([0.7])["mean"], 0.7)
