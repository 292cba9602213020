"""Segments written once by each format version are read by every later one, to the same values."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from loader.segment.reader import SegmentReader
from tests.segment.tables import same_table

FOLDER = Path(__file__).parent / "golden"
SEGMENTS = sorted(path.name for path in FOLDER.glob("*.segment"))


@pytest.mark.parametrize("native", ["0", ""])
@pytest.mark.parametrize("name", SEGMENTS)
def test_reads_as_it_was_written(monkeypatch: pytest.MonkeyPatch, name: str, native: str) -> None:
    monkeypatch.setenv("HEADRACE_NATIVE", native)
    with SegmentReader(FOLDER / name) as reader, pa.ipc.open_file(FOLDER / name.replace(".segment", ".arrow")) as expected:
        read = reader.read()
        read.validate(full=True)
        assert same_table(read, expected.read_all())
        assert reader.segment_id == bytes(range(16))
        assert int(reader.columns["column_id"][0]) == 10


def test_version_1_shows_every_encoding() -> None:
    trees = {column.name: column.encoding for column in SegmentReader(FOLDER / "v1.segment").layout().columns}
    expected = {
        "constant": "constant",
        "plain": "plain",
        "halves": "halves(",
        "dictionary": "dictionary[40",
        "bool": "bits",
        "int64 null": "nulls[",
        "session": "rows=fresh[",
        "oldest first": "sliding views(",
        "newest first": "sliding views, newest first(",
        "string null": "rows=codes[",
        "no rows": "pool=empty",
    }
    for name, part in expected.items():
        assert part in trees[name], f"{name}: {trees[name]}"
