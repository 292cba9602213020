"""Columns beside a segment: aligned by position whatever the blocks, the last file wins, strangers are refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from loader.errors import ColumnNotFoundError, CorruptSegmentError, SchemaError
from loader.segment.column_files import JoinedReader, encode_column_file
from loader.segment.layout import Feature
from loader.segment.reader import SegmentReader
from loader.segment.writer import WriteOptions, encode_segment

ROWS = 5_000
BASE = pa.table({"id": np.arange(ROWS), "x": np.random.default_rng(1).random(ROWS)})


def base(block_rows: int = 1_234) -> SegmentReader:
    return SegmentReader(encode_segment(BASE, column_ids=[1, 2], options=WriteOptions(block_rows=block_rows)).data)


def file(reader: SegmentReader, table: pa.Table, ids: list[int]) -> SegmentReader:
    return SegmentReader(encode_column_file(reader, table, column_ids=ids).data)


def test_columns_are_read_beside_each_other() -> None:
    reader = base()
    lists = pa.array([[row, row] for row in range(ROWS)])
    added = file(reader, pa.table({"seen": lists}), [7])
    later = file(reader, pa.table({"seen": lists.slice(0, ROWS), "x": pa.array(np.zeros(ROWS, np.int8))}), [8, 2])
    assert added.features & Feature.COLUMN_FILE
    assert added.block_rows.tolist() == reader.block_rows.tolist() == [1234] * 4 + [64]
    joined = JoinedReader(reader, [added, later])
    rows = [4_999, 3, 1_234]
    assert joined.read(["id", 7, "x"], rows=rows).to_pydict() == {"id": rows, "seen": [[row, row] for row in rows], "x": [0, 0, 0]}
    assert JoinedReader(reader, [added]).read(["x"])["x"].to_pylist() == BASE["x"].to_pylist()
    assert JoinedReader(reader, [added]).read().column_names == ["id", "x", "seen"]


def test_strangers_are_refused() -> None:
    reader, other = base(), base()
    table = pa.table({"y": np.arange(ROWS)})
    with pytest.raises(CorruptSegmentError, match="holds columns of segment"):
        JoinedReader(reader, [file(other, table, [3])])
    with pytest.raises(CorruptSegmentError, match="is no column file"):
        JoinedReader(reader, [other])
    with pytest.raises(SchemaError, match="4,999 rows for .* of 5,000"):
        encode_column_file(reader, table.slice(1), column_ids=[3])
    with pytest.raises(ColumnNotFoundError, match="no column 'z'"):
        JoinedReader(reader, []).read(["z"])


def test_an_empty_segment_has_column_files_too() -> None:
    reader = SegmentReader(encode_segment(BASE.slice(0, 0), column_ids=[1, 2]).data)
    joined = JoinedReader(reader, [file(reader, pa.table({"y": pa.array([], pa.int8())}), [3])])
    assert joined.read().num_rows == 0
