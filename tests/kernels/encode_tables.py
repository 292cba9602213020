"""Encodes random tables with one library; run in a process of its own, so that a crash is seen. Prints how many were read back.

python tests/kernels/encode_tables.py LIBRARY FIRST_SEED NUM_SEEDS
"""

from __future__ import annotations

import os
import pathlib
import sys

os.environ["HEADRACE_NATIVE"] = sys.argv[1]
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa

from loader.segment.reader import SegmentReader
from loader.segment.writer import WriteOptions, encode_segment
from tests.segment.tables import BYTES, LEAVES, LISTS, SHAPES, Maker, same_table

ROWS = (1, 31, 64, 700, 1025, 2500)


def random_table(rng: np.random.Generator) -> pa.Table:
    """A few columns of any type; buffers end where their values do."""
    rows = int(rng.choice(ROWS))
    kinds = [LEAVES[int(rng.integers(len(LEAVES)))] for _ in range(4)]
    kinds += [LISTS[int(rng.integers(4))](LEAVES[int(rng.integers(len(LEAVES)))]) for _ in range(2)]
    kinds += [pa.list_(pa.list_(pa.int64())), pa.list_(pa.float32(), 3), BYTES[int(rng.integers(4))]]
    skipped = int(rng.choice([0, 3]))
    arrays = [Maker(rng, str(rng.choice(SHAPES)), float(rng.choice([0.0, 0.1, 1.0]))).array(kind, rows + skipped).slice(skipped) for kind in kinds]
    return pa.table({str(number): array for number, array in enumerate(arrays)})


def main() -> None:
    first, count = int(sys.argv[2]), int(sys.argv[3])
    for seed in range(first, first + count):
        table = random_table(np.random.default_rng(seed))
        options = WriteOptions(threads=1 + seed % 3, block_rows=(600, 65_536)[seed % 2], effort=("balanced", "size", "speed")[seed % 3])
        made = encode_segment(table, column_ids=range(1, table.num_columns + 1), options=options)
        assert same_table(table, SegmentReader(made.data).read()), f"seed {seed}"
    print(f"{count} read back")


if __name__ == "__main__":
    main()
