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


@pytest.mark.parametrize(
    ("values", "tree", "most_bytes"),
    [
        (np.full(ROWS, 3.5), "constant", 200),
        (RNG.integers(1 << 40, (1 << 40) + 100, ROWS), "packed 7 bits", ROWS),
        (RNG.standard_normal(ROWS), "plain", 8 * ROWS + 300),
        (RNG.integers(-(1 << 40), 1 << 40, ROWS), "halves(", 6 * ROWS),
        (RNG.choice(RNG.integers(0, 1 << 62, 100), ROWS), "dictionary[100", ROWS + 2000),
        (RNG.integers(0, 1000, ROWS).astype(np.float32), "dictionary[1,000", 1.4 * ROWS + 4000),
        (RNG.random(ROWS) < 0.5, "bits", ROWS / 8 + 300),
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
