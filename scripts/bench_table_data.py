"""The tables that `scripts/bench_table` fills every system with: made from numbered streams of random words, the same in every process."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

BASE_SECONDS = 1_760_000_000
KEY_STEP = 977  # between keys, so that there is room for keys that are not there
NUM_FEATURES = 6


def shuffled_keys(num_rows: int) -> np.ndarray:
    """int64 [num_rows] distinct keys in no order."""
    keys: np.ndarray = np.random.default_rng(1).permutation(np.arange(num_rows, dtype=np.int64) * KEY_STEP)
    return keys


def samples(keys: np.ndarray, seed: int, *, num_features: int = NUM_FEATURES) -> pa.Table:
    """Rows of a sample table: id, user, ts, label, value and features; 11 columns by default."""
    rng = np.random.default_rng([2, seed])
    columns = {
        "id": keys,
        "user": rng.integers(0, max(1, len(keys) // 16), len(keys)),
        "ts": BASE_SECONDS + rng.integers(0, 86_400, len(keys)),
        "label": np.zeros(len(keys), np.int32),
        "value": np.zeros(len(keys), np.float32),
    }
    columns |= {f"f{number}": np.round(rng.random(len(keys), dtype=np.float32) * 1000) / np.float32(8) for number in range(num_features)}
    return pa.table(columns)


def updates(keys: np.ndarray, share: float, seed: int) -> pa.Table:
    """New labels and values for a random share of the keys."""
    rng = np.random.default_rng([3, seed])
    chosen = rng.choice(keys, max(1, int(len(keys) * share)), replace=False)
    return pa.table({"id": chosen, "label": np.ones(len(chosen), np.int32), "value": rng.random(len(chosen), dtype=np.float32)})


def upserts(keys: np.ndarray, share: float, seed: int) -> pa.Table:
    """Whole rows for a random share of the keys, a tenth of them with keys that are new."""
    rng = np.random.default_rng([4, seed])
    count = max(1, int(len(keys) * share))
    old = rng.choice(keys, count - count // 10, replace=False)
    new = rng.choice(keys, count // 10, replace=False) + 1 + seed  # between two keys that are there
    return samples(np.concatenate([old, new]), 1_000_000 + seed)


def commit_rows(number: int, rows: int) -> pa.Table:
    """The rows of commit `number`: keys that no other commit has."""
    return samples(np.arange(number * rows, (number + 1) * rows, dtype=np.int64) * KEY_STEP, number)
