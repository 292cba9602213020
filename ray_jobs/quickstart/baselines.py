"""What the model has to beat, on exactly the same training and test rows: a popularity + recency rule, and logistic regression.

Both read the lake through the same scan, columns and loader as the model. Logistic regression gets every feature that the model gets: dense
columns with the same transforms (and whether they are missing, which the model does not get), all ids one-hot through a seeded hash, and how
often the product stands in the household's history.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import loader
from loader.config import DataConfig
from loader.scan import Scan
from ray_jobs import metrics

PLACES_PER_ID = 4  # of the hash: at most a fifth of the ids share a place
RECENCY_DAYS = 28.0
POPULARITY_WEIGHT = 0.5
REGULARISATION = 0.03  # scikit-learn's C, the best of 0.001 to 1 in the full run
MAX_ITERATIONS = 60
BATCH_ROWS = 65_536


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Features of some rows, [rows] each or [rows, columns].

    Attributes:
        dense: float32 [rows, D], transformed as the config says.
        missing: float32 [rows, M], 1 where a dense column is null.
        ids: int64 [rows, S], 0 where null.
        in_history: int64 [rows], how often the row's product stands in its history.
        rule: float32 [rows], the score of the popularity + recency rule.
        labels: int8 [rows].
    """

    dense: np.ndarray
    missing: np.ndarray
    ids: np.ndarray
    in_history: np.ndarray
    rule: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def read(scan: Scan, data: DataConfig) -> Rows:
    """All rows of a scan, a batch at a time: histories are reduced to a count before the next batch comes."""
    with loader.DataLoader(scan, global_batch_size=BATCH_ROWS, shuffle="none", rank=0, world_size=1, remainder="uneven", output="numpy", threads=2) as batches:
        return collect(encode(batch, batch.validity, data) for batch in batches)


def collect(parts: Iterable[Rows]) -> Rows:
    """Rows end to end."""
    kept = list(parts)
    return Rows(**{field.name: np.concatenate([getattr(part, field.name) for part in kept]) for field in dataclasses.fields(Rows)})


def encode(columns: Any, validity: Any, data: DataConfig) -> Rows:
    """One batch.

    Args:
        columns: Arrays by name; histories have `values` and `offsets`.
        validity: bool arrays by name, False where null.
        data: The experiment's features.
    """
    dense, missing = [], []
    for feature in data.dense:
        valid = validity[feature.column]
        values = np.where(valid, columns[feature.column], feature.fill).astype(np.float32)
        if feature.transform == "log1p":
            values = np.log1p(np.maximum(values, 0))
        dense.append((values - feature.shift) * feature.scale)
        if feature.fill:
            missing.append(~valid)
    ids = [np.where(validity[feature.column], columns[feature.column], 0) for feature in data.sparse]
    empty = np.zeros((len(columns[data.label]), 0))
    return Rows(
        dense=np.stack(dense, axis=1) if dense else empty.astype(np.float32),
        missing=np.stack(missing, axis=1).astype(np.float32) if missing else empty.astype(np.float32),
        ids=np.stack(ids, axis=1).astype(np.int64) if ids else empty.astype(np.int64),
        in_history=_in_history(columns, data),
        rule=_rule(columns, validity),
        labels=columns[data.label].astype(np.int8),
    )


def evaluate_rule(train: Rows, test: Rows) -> dict[str, float]:
    """The rule's AUC, and its log loss after its score was turned into a probability on the training rows (Platt 1999)."""
    model = LogisticRegression().fit(train.rule[:, None], train.labels)
    return _measure(model.decision_function(test.rule[:, None]), test.labels)


def evaluate_regression(train: Rows, test: Rows, *, seeds: Sequence[int], threads: int = 2) -> list[dict[str, float]]:
    """Logistic regression, once for each seed of the ids' hash; fits of two seeds share nothing but the rows, so they run side by side."""

    places = num_places(train.ids)

    def fit(seed: int) -> dict[str, float]:
        model = LogisticRegression(C=REGULARISATION, max_iter=MAX_ITERATIONS, tol=1e-3).fit(design(train, seed, places), train.labels)
        return {"seed": seed, **_measure(model.decision_function(design(test, seed, places)), test.labels)}

    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits of the weights do not move the ranking
        return list(pool.map(fit, seeds))


def num_places(ids: np.ndarray) -> int:
    """Size of the hash for these dense codes: a power of two."""
    return 1 << int(PLACES_PER_ID * (ids.max(axis=0, initial=0) + 1).sum() - 1).bit_length()


def design(rows: Rows, seed: int, places: int) -> sparse.csr_matrix:
    """float32 [rows, features]: dense columns as they are, and a one for each hashed (column, id)."""
    numbers = np.concatenate([rows.dense, rows.missing, np.log1p(rows.in_history, dtype=np.float32)[:, None]], axis=1)
    buckets = hash_ids(rows.ids, seed, places)
    width = numbers.shape[1]
    indices = np.concatenate([np.broadcast_to(np.arange(width, dtype=np.int32), numbers.shape), width + buckets], axis=1, dtype=np.int32)
    values = np.concatenate([numbers, np.ones(buckets.shape, np.float32)], axis=1)
    pointers = np.arange(len(rows) + 1, dtype=np.int64) * indices.shape[1]
    if pointers[-1] < 2**31:
        pointers = pointers.astype(np.int32)  # scikit-learn's solver wants all indices of one small type
    return sparse.csr_matrix((values.ravel(), indices.ravel(), pointers), shape=(len(rows), width + places))


def hash_ids(ids: np.ndarray, seed: int, places: int) -> np.ndarray:
    """int32 [rows, columns]: the place of each (column, id), by the finalizer of splitmix64; `places` is a power of two."""
    column = np.arange(ids.shape[1], dtype=np.uint64) + np.uint64(1)
    salt = np.uint64(seed * 0xD1B54A32D192ED03 % 2**64)
    mixed = ids.astype(np.uint64) + column * np.uint64(0x9E3779B97F4A7C15) + salt
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ mixed >> np.uint64(31)) & np.uint64(places - 1)).astype(np.int32)


def _in_history(columns: Any, data: DataConfig) -> np.ndarray:
    count = np.zeros(len(columns[data.label]), np.int64)
    for feature in data.history:
        past = columns[feature.column]
        row = np.repeat(np.arange(len(count)), np.diff(past.offsets))
        count += np.bincount(row[past.values == columns[feature.embedding][row]], minlength=len(count))
    return count


def _rule(columns: Any, validity: Any) -> np.ndarray:
    """How often the household bought it, fading over weeks, and a little for what everybody buys."""
    days = np.where(validity["pair_days_since"], columns["pair_days_since"], np.inf)
    own = np.log1p(columns["pair_count"]) * np.exp(-days / RECENCY_DAYS)
    return (own + POPULARITY_WEIGHT * np.log1p(columns["product_lines_28d"]) / np.log(1000.0)).astype(np.float32)


def _measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {"auc": metrics.auc(labels, logits), "log_loss": metrics.log_loss(labels, logits), "rows": len(labels)}
