"""`verify_segment` finds what reading would refuse, and names the column."""

from __future__ import annotations

import pyarrow as pa
import pytest

from loader.segment.verify import verify_segment
from loader.segment.writer import encode_segment


def segment(table: pa.Table) -> bytes:
    return bytes(encode_segment(table, column_ids=range(1, table.num_columns + 1)).data)


@pytest.mark.parametrize("rows", [0, 1, 3000])
def test_a_good_segment_has_no_problems(rows: int) -> None:
    data = segment(pa.table({"x": pa.array(range(rows), pa.int64()), "seen": pa.array([[number] for number in range(rows)], pa.list_(pa.int32()))}))
    report = verify_segment(data)
    assert (report.problems, report.num_rows) == ((), rows)


def test_finds_strings_that_are_no_text_whatever_their_checksums_say() -> None:
    ends, text = pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])), pa.py_buffer(b"a\xff")
    broken = pa.Array.from_buffers(pa.string(), 2, [None, ends, text])
    report = verify_segment(segment(pa.table({"id": [1, 2], "word": broken})))
    assert len(report.problems) == 1
    assert "column 'word'" in report.problems[0]
    assert "UTF8" in report.problems[0]
