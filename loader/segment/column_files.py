"""Columns beside a segment: written later, aligned with its rows by position, so that a new feature is filled in without rewriting the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from loader.errors import ColumnNotFoundError, CorruptSegmentError, SchemaError, did_you_mean
from loader.segment.layout import Feature
from loader.segment.reader import SegmentReader
from loader.segment.writer import EncodedSegment, WriteOptions, encode_segment

Array = np.ndarray[Any, np.dtype[Any]]
COLUMNS_OF = "columns_of"  # in PROPERTIES: the segment_id that the rows are aligned with


def encode_column_file(base: SegmentReader, table: pa.Table, *, column_ids: Sequence[int], options: WriteOptions | None = None) -> EncodedSegment:
    """Encode new columns of a segment's rows.

    Args:
        base: The segment.
        table: The columns, one row for each row of the segment, in its order.
        column_ids: Their ids; those of columns that the segment has replace them.
        options: Defaults if None; blocks are those of the segment.

    Raises:
        SchemaError: Another number of rows than the segment has, or a type that cannot be stored.
    """
    if table.num_rows != base.num_rows:
        raise SchemaError(f"{table.num_rows:,} rows for {base.name} of {base.num_rows:,}: a column file has one row for each row of its segment")
    options = options or WriteOptions()
    options = dataclasses.replace(options, properties={**options.properties, COLUMNS_OF: base.segment_id.hex()})
    return encode_segment(table, column_ids=column_ids, options=options, features=int(Feature.COLUMN_FILE), block_rows=base.block_rows.tolist())


class JoinedReader:
    """A segment and its column files as one, read like a segment.

    Attributes:
        num_rows: Rows.
        num_blocks: Blocks, the same in all files.
        readers: Of the segment, then of its column files.
    """

    def __init__(self, base: SegmentReader, files: Sequence[SegmentReader]) -> None:
        """
        Args:
            base: The segment.
            files: Its column files; where several have a column, the last wins.

        Raises:
            CorruptSegmentError: A file is no column file of this segment.
        """
        for file in files:
            _check(base, file)
        self.readers = [base, *files]
        self.num_rows, self.num_blocks = base.num_rows, base.num_blocks
        owners = [(int(column), number) for number, reader in enumerate(self.readers) for column in reader.columns["column_id"].tolist()]
        self._owner = dict(owners)  # later files overwrite earlier ones

    @property
    def column_ids(self) -> list[int]:
        """Of the segment in the order they were written, then of the files."""
        return list(dict.fromkeys(column for reader in self.readers for column in reader.resolve(None)))

    def resolve(self, columns: Sequence[str | int] | None) -> list[int]:
        """Ids of columns given by name or id; None is all.

        Raises:
            ColumnNotFoundError: One is nowhere.
        """
        if columns is None:
            return self.column_ids
        names = {} if all(isinstance(column, int) for column in columns) else {self._name(column): column for column in self.column_ids}
        found = []
        for column in columns:
            column_id = names.get(column) if isinstance(column, str) else column
            if column_id is None or column_id not in self._owner:
                raise ColumnNotFoundError(f"{self.readers[0].name} and its column files have no column {column!r}: {self._like(column)}")
            found.append(column_id)
        return found

    def _like(self, column: str | int) -> str:
        return did_you_mean(str(column), map(self._name, self.column_ids))

    def _name(self, column_id: int) -> str:
        reader = self.readers[self._owner[column_id]]
        return reader.column_name(reader.column_index(column_id))

    def read(self, columns: Sequence[str | int] | None = None, rows: slice | range | Sequence[int] | Array | None = None) -> pa.Table:
        """Read to Arrow; arguments and errors as of `SegmentReader.read`."""
        ids = self.resolve(columns)
        read: dict[int, tuple[pa.Field, pa.ChunkedArray]] = {}
        for number, reader in enumerate(self.readers):
            mine = [column for column in ids if self._owner[column] == number]
            if mine:
                table = reader.read(mine, rows)
                read.update(zip(mine, zip(table.schema, table.columns, strict=True), strict=True))
        schema = pa.schema([read[column][0] for column in ids], metadata=self.readers[0].arrow_schema.metadata)
        return pa.Table.from_arrays([read[column][1] for column in ids], schema=schema)


def _check(base: SegmentReader, file: SegmentReader) -> None:
    what = None
    if not file.features & Feature.COLUMN_FILE:
        what = "is no column file"
    elif file.properties.get(COLUMNS_OF) != base.segment_id.hex():
        what = f"holds columns of segment {file.properties.get(COLUMNS_OF)}, not of {base.segment_id.hex()}"
    elif file.num_rows != base.num_rows or not np.array_equal(file.block_rows, base.block_rows):
        what = f"has {file.num_rows:,} rows in {file.num_blocks:,} blocks, the segment {base.num_rows:,} in {base.num_blocks:,}"
    if what is not None:
        raise CorruptSegmentError(f"{file.name} {what}: give the column files that the catalog lists for {base.name}")
