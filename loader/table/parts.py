"""A write's input in parts that fit into memory, whatever form it has: tables are cut, readers and Parquet files are read as they are used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import pyarrow as pa

from loader.errors import NotFoundError
from loader.table.rows import Data, as_table

READ_ROWS = 16_384  # of a Parquet file at a time
WORKING_COPIES = 8  # of a part: as given, in the table's types, sorted, encoded, and what the encoder holds


def parts_of(data: Data, memory_bytes: int) -> Iterator[pa.Table]:
    """The input in order, in tables that a write can work on within so much memory; one, perhaps without rows, for a small input.

    Raises:
        ValueError, SchemaError, NotFoundError: As `as_table`.
    """
    part_bytes = max(memory_bytes // WORKING_COPIES, 1)
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        return _cut(as_table(data), part_bytes)
    if isinstance(data, pa.RecordBatchReader):
        return _gathered(data.schema, data, part_bytes)
    if isinstance(data, str | os.PathLike):
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(os.fspath(data))
        except FileNotFoundError as error:
            raise NotFoundError(f"no Parquet file {os.fspath(data)}: check the path") from error
        return _gathered(file.schema_arrow, file.iter_batches(batch_size=READ_ROWS), part_bytes)
    return iter([as_table(data)])


def fits_whole(data: pa.Table, memory_bytes: int) -> bool:
    """Whether an input is one part."""
    return bool(data.nbytes <= memory_bytes // WORKING_COPIES)


def _cut(table: pa.Table, part_bytes: int) -> Iterator[pa.Table]:
    rows = max(table.num_rows * part_bytes // max(table.nbytes, 1), 1)
    for start in range(0, max(table.num_rows, 1), rows):
        yield table.slice(start, rows)


def _gathered(schema: pa.Schema, batches: Iterable[pa.RecordBatch], part_bytes: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    room, num_parts = part_bytes, 0
    for batch in batches:
        row_bytes = max(batch.nbytes / max(batch.num_rows, 1), 1)
        while batch.num_rows:
            fitting = int(room / row_bytes) or (0 if held else 1)
            if fitting:
                held.append(batch.slice(0, fitting))
                batch = batch.slice(fitting)
                room -= int(held[-1].num_rows * row_bytes)
            if batch.num_rows:
                yield as_table(pa.Table.from_batches(held, schema))
                held, room, num_parts = [], part_bytes, num_parts + 1
    if held or not num_parts:
        yield as_table(pa.Table.from_batches(held, schema))
