"""Looks up rows in randomly corrupted chunks and programs; run in a process of its own, so that a crash is seen. Prints how many were refused.

python tests/kernels/fuzz_rows.py FIRST_SEED NUM_SEEDS: the library is the one that HEADRACE_NATIVE names.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from loader.decode.program import Program, build
from loader.decode.rows import OpenChunks, RowFields, RowPart, row_columns
from loader.encodings.leaf import LeafType
from loader.errors import CorruptSegmentError
from loader.kernels import native
from loader.segment.layout import PADDING_BYTES
from loader.segment.reader import Chunks, SegmentReader
from loader.segment.writer import encode_segment
from tests.kernels.fuzz import damage_records, damage_slab
from tests.segment.tables import BYTES, LEAVES, LISTS, SHAPES, VIEWS, Maker

NUM_BASES = 12
Base = tuple[Chunks, Program, list[LeafType], pa.Schema, int]


@functools.cache
def base(number: int) -> Base:
    """A sound block of a few columns: all bases together have most encodings."""
    rng = np.random.default_rng(2_000 + number)
    rows = int(rng.choice([1, 700, 1500, 2600]))
    columns = {"runs": pa.array(np.repeat(rng.integers(0, 1 << 40, rows), 20)[:rows]), "skewed": pa.array(rng.zipf(1.4, rows).clip(0, 1 << 40))}
    columns["growing"] = pa.array(1_700_000_000 + np.cumsum(rng.integers(0, 90, rows)))
    columns["decimal"] = pa.array((rng.integers(0, 4_000, rows) / 100).astype(np.float32), mask=rng.random(rows) < 0.3)
    kinds = [kind for kind in LEAVES + BYTES if kind not in VIEWS]
    for place in range(4):
        kind = kinds[int(rng.integers(len(kinds)))]
        kind = LISTS[int(rng.integers(len(LISTS)))](kind) if rng.random() < 0.6 else kind
        columns[f"c{place}"] = Maker(rng, str(rng.choice(SHAPES)), float(rng.choice([0.0, 0.1, 0.9]))).array(kind, rows)
    columns["map"] = Maker(rng, "few", 0.2).array(pa.map_(pa.int64(), pa.float32()), rows)
    table = pa.table(columns)
    ids = list(range(1, table.num_columns + 1))
    reader = SegmentReader(encode_segment(table, column_ids=ids).data)
    found = reader.fetch(0, ids)
    return found, build(found.slab, found.offsets, found.sizes), reader.leaves(ids), table.schema, rows


def attempt(seed: int) -> bool:
    """Whether the damaged chunks were refused. The slab ends exactly where its padding does, so that a sanitizer sees the next byte."""
    rng = np.random.default_rng(seed)
    found, program, leaves, schema, num_rows = base(seed % NUM_BASES)
    slab = found.slab.copy()
    tables = {name: getattr(program, name).copy() for name in ("ops", "sources", "regions")}
    for _ in range(int(rng.integers(1, 4))):
        choice = rng.random()
        if choice < 0.4:
            damage_slab(slab, rng)
        else:
            damage_records(tables["ops" if choice < 0.7 else "sources" if choice < 0.9 else "regions"], rng)
    if rng.random() < 0.1:
        slab = slab[: PADDING_BYTES + (slab.size - PADDING_BYTES) // 16 * 8].copy()
    present = None
    if rng.random() < 0.3:
        present = np.ones(slab.size // 4096 + 1, np.uint8)
    opened = OpenChunks(dataclasses.replace(program, features=0, **tables), slab, leaves, present=present)
    rows = np.sort(rng.integers(0, num_rows, int(rng.choice([1, 40, num_rows])))).astype(np.uint32)
    columns = row_columns([(opened, number) for number in range(len(leaves))])
    part = RowPart(chunks=[opened] * len(leaves), columns=columns, rows=rows, places=np.arange(rows.size, dtype=np.uint32))
    library = native.load()
    assert library is not None
    try:
        batch = RowFields(schema).take_native(library, [part], rows.size)
    except (CorruptSegmentError, MemoryError):
        return True
    if batch is not None:
        batch.validate(full=False)
    return batch is None


if __name__ == "__main__":
    first, count = int(sys.argv[1]), int(sys.argv[2])
    refused_count = sum(attempt(seed) for seed in range(first, first + count))
    sys.stdout.write(f"{refused_count} of {count} refused\n")
