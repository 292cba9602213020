"""Rows by number: the same as decoding all, in a number of vectors that does not grow with the block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.decode import lookup
from loader.decode.arrow import to_arrow
from loader.decode.lookup import Lookup
from loader.decode.program import build
from loader.segment.layout import PADDING_BYTES
from loader.segment.reader import SegmentReader
from loader.segment.writer import encode_segment
from scripts.bench_samples import make_samples
from tests.segment.tables import columns, same, same_table

Array = np.ndarray[Any, np.dtype[Any]]
ROWS = 6_000


def lookup_of(reader: SegmentReader, column: int) -> Lookup:
    """Of a column's first block."""
    found = reader.fetch(0, [column])
    return Lookup(build(found.slab, found.offsets, found.sizes), found.slab, reader.leaves([column]))


def entries(array: pa.Array, rows: Array) -> pa.Array:
    pieces = [array.slice(int(row), 1) for row in rows]
    return pa.concat_arrays(pieces) if pieces else array.slice(0, 0)


@settings(deadline=None, max_examples=150)
@given(column=columns(), seed=st.integers(0, 2**32))
def test_any_rows_of_any_column(column: pa.Array, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, len(column), 9 if len(column) else 0)
    reader = SegmentReader(encode_segment(pa.table({"c": column}), column_ids=[1]).data)
    if not reader.num_blocks:
        return
    reading = lookup_of(reader, 1)
    if reading.can():
        assert same(to_arrow(reading.column(0, rows), column.type), entries(column, rows))


@pytest.fixture(scope="module")
def samples() -> pa.Table:
    return make_samples(ROWS)


@pytest.mark.parametrize(("arena_bytes", "share"), [(-1, 1), (1 << 40, 1), (1 << 16, 150)])
def test_rows_of_samples_picked_or_decoded(samples: pa.Table, monkeypatch: pytest.MonkeyPatch, arena_bytes: int, share: int) -> None:
    reader = SegmentReader(encode_segment(samples, column_ids=range(1, samples.num_columns + 1)).data)
    ids = reader.resolve(None)
    found = reader.fetch(0, ids)
    rows = np.random.default_rng(17).permutation(ROWS)[:40]
    monkeypatch.setattr(lookup, "LOOK_UP_ARENA_BYTES", arena_bytes)
    monkeypatch.setattr(lookup, "LOOK_UP_SHARE", share)
    program = build(found.slab, found.offsets, found.sizes)
    columns = lookup.look_up(program, found.slab, reader.leaves(ids), range(len(ids)), rows)
    arrays = [to_arrow(column, field.type) for column, field in zip(columns, samples.schema, strict=True)]
    assert same_table(pa.table(arrays, schema=samples.schema), samples.take(pa.array(rows)).combine_chunks())


def test_touches_a_bounded_number_of_vectors(samples: pa.Table) -> None:
    """Eleven times the rows cost no vector more; an item of a list may cost one, where each has its own entry of a dictionary."""
    for table in (samples.slice(0, 1_100), samples, pa.concat_tables([samples, samples]).combine_chunks()):
        reader = SegmentReader(encode_segment(table, column_ids=range(1, table.num_columns + 1)).data)
        for column, field in enumerate(table.schema):
            reading = lookup_of(reader, column + 1)
            reading.column(0, np.array([1_000]))
            items = len(table[column][1_000]) if pa.types.is_list(field.type) else 1
            assert reading.num_vectors <= 16 + items, (field.name, items, table.num_rows)


def test_the_slab_is_padded(samples: pa.Table) -> None:
    reader = SegmentReader(encode_segment(samples.select([0]), column_ids=[1]).data)
    found = reader.fetch(0, [1])
    assert found.slab.size >= int(found.offsets[0] + found.sizes[0]) + PADDING_BYTES
