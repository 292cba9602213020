"""Chunks of older segments in the scan's own types: defaults of columns that came later, and values that were stored narrower.

Encoded again in memory, so that a fetched block always holds what the scan says, and decoding, on whatever device, knows nothing of older schemas.
"""

from __future__ import annotations

import functools

import pyarrow as pa

from loader.scan.columns import ReadColumn
from loader.segment.reader import SegmentReader
from loader.segment.writer import WriteOptions, encode_segment

_WHOLE = WriteOptions(effort="speed", block_bytes=1 << 40)  # one block, whatever its size


def default_chunk(column: ReadColumn, num_rows: int) -> memoryview:
    """The chunk of so many rows that read as the column's default."""
    assert column.default is not None
    return _constant(column.default, num_rows)


@functools.lru_cache(maxsize=64)
def _constant(value: pa.Scalar, num_rows: int) -> memoryview:
    return _encode(pa.repeat(value, num_rows))


def is_narrower(reader: SegmentReader, column: ReadColumn) -> bool:
    """Whether a segment holds the column in another type than the scan's."""
    return reader.leaf(column.id).value_type is not column.leaf.value_type


def widened_chunk(reader: SegmentReader, column: ReadColumn, rows: range) -> memoryview:
    """The chunk of a block's rows, cast to the scan's type."""
    stored = reader.read(columns=[column.id], rows=rows).column(0).combine_chunks()
    return _encode(stored.cast(column.type))


def _encode(array: pa.Array) -> memoryview:
    data = encode_segment(pa.Table.from_arrays([array], names=["c"]), column_ids=[1], options=_WHOLE).data
    chunk = SegmentReader(data).chunks([1], [0])[0, 0]
    start = int(chunk["offset"])
    return memoryview(data)[start : start + int(chunk["num_bytes"])]
