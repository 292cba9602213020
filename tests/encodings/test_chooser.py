"""Values get the encoding that suits them; the decision is the same every time and says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loader.encodings.chooser import EncodeOptions
from loader.encodings.chunk import encode_chunk
from loader.encodings.leaf import leaf_type
from loader.encodings.shred import shred

RNG = np.random.default_rng(0)
ROWS = 20_000


def zipf_ids() -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ids that are large and far apart, a few of them far more frequent than the others."""
    rank = np.minimum(RNG.zipf(1.3, ROWS), 2000)
    return RNG.integers(0, 1 << 40, 2001)[rank]


@pytest.mark.parametrize(
    ("values", "tree", "most_bytes"),
    [
        (np.full(ROWS, 3.5), "constant", 200),
        (RNG.integers(1 << 40, (1 << 40) + 100, ROWS), "packed 7 bits", ROWS),
        (RNG.standard_normal(ROWS), "plain", 8 * ROWS + 300),
        (RNG.integers(-(1 << 40), 1 << 40, ROWS), "halves(", 6 * ROWS),
        (RNG.choice(RNG.integers(0, 1 << 62, 100), ROWS), "dictionary[100", ROWS + 2000),
        (RNG.integers(0, 1000, ROWS).astype(np.float32), "decimals[1/1](packed 10 bits)", 1.3 * ROWS),
        (np.where(RNG.random(ROWS) < 0.01, np.nan, RNG.integers(0, 1000, ROWS) / 100).astype(np.float32), "decimals[1/100, ", 1.4 * ROWS),
        (RNG.integers(0, 1 << 14, ROWS) / 1000, "decimals[1/1,000](packed 14 bits)", 1.8 * ROWS),
        (RNG.standard_normal(50).astype(np.float32)[RNG.integers(0, 50, ROWS)], "dictionary[50", ROWS),
        (np.where(RNG.random(ROWS) < 0.9, 3, RNG.integers(0, 1 << 20, ROWS)), "split(", 0.6 * ROWS),
        (np.cumsum(RNG.integers(0, 30, ROWS)), "delta(packed", 0.9 * ROWS),
        (np.cumsum(np.where(RNG.random(ROWS) < 0.01, 1 << 20, 5)), "delta(packed 0 bits and", 0.1 * ROWS),
        (np.repeat(RNG.integers(0, 1 << 30, ROWS // 20), 20), "runs[1,000](packed 30 bits)", 0.4 * ROWS),
        (np.repeat(RNG.integers(-(1 << 62), 1 << 62, ROWS // 20), 20), "runs[1,000](halves(", 0.6 * ROWS),
        (zipf_ids(), "dictionary[", 1.15 * ROWS),
        (np.where(RNG.random(ROWS) < 0.01, 1 << 20, RNG.integers(0, 16, ROWS)), "packed 4 bits and", 0.6 * ROWS),
        (RNG.random(ROWS) < 0.5, "bits", ROWS / 8 + 300),
        (np.arange(ROWS) // 700 % 2 == 1, "delta(packed 0 bits and", 700),
    ],
)
def test_values_get_what_suits_them(values: Any, tree: str, most_bytes: float) -> None:
    array = pa.array(values)
    leaf = leaf_type(array.type, "test")
    chunk = encode_chunk(shred(array, leaf), leaf, ROWS, EncodeOptions())
    assert chunk.decision.tree.startswith(tree)
    assert chunk.decision.reason
    assert chunk.data.size <= most_bytes
    again = encode_chunk(shred(array, leaf), leaf, ROWS, EncodeOptions())
    assert again.decision == chunk.decision
    assert again.data.tobytes() == chunk.data.tobytes()


def test_effort_trades_bytes_for_time() -> None:
    rank = np.exp2(np.random.default_rng(2).uniform(0, 24, 100_000)).astype(np.int64)
    array = pa.array(rank)
    leaf = leaf_type(array.type, "test")
    size, balanced, speed = (
        encode_chunk(shred(array, leaf), leaf, len(array), EncodeOptions(effort=effort, dictionary=False)) for effort in ("size", "balanced", "speed")
    )
    assert size.data.size < balanced.data.size < speed.data.size
    assert "split(" in balanced.decision.tree
    assert "split(" not in speed.decision.tree
    with pytest.raises(ValueError, match="size, balanced, speed"):
        EncodeOptions(effort="fast")
