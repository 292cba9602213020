"""Segments written once by each format version are read by every later one, to the same values."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from loader.segment.layout import Feature
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


def test_cascades_show_every_later_encoding() -> None:
    reader = SegmentReader(FOLDER / "v1-cascades.segment")
    trees = {column.name: column.encoding for column in reader.layout().columns}
    expected = {
        "decimals single": "decimals[1/100, 26 patches](",
        "decimals double null": "](decimals[1/100, ",
        "skewed": "split(",
        "skewed null": "](split(",
        "two classes": "split(",
        "rising": "delta(",
        "wandering null": "](delta(",
        "outliers": " exceptions",
        "runs": "runs[35](",
        "wide runs": "runs[103](halves(",
        "wide runs null": "](dictionary[103",
        "frequent": "](split(",
        "float16 null": "](float16(",
        "bfloat16": "bfloat16(",
        "int8": "int8(",
        "interrupted": "sliding views(",
        "text": "pool=zstd",
    }
    for name, part in expected.items():
        assert part in trees[name], f"{name}: {trees[name]}"
    later = Feature.EXCEPTIONS | Feature.DELTA | Feature.CLASS_SPLIT | Feature.RUN_ENDS | Feature.DECIMAL_FLOATS | Feature.QUANTISED | Feature.COMPRESSED_BYTES
    assert reader.features & later == later


def test_maps_repeat_together_and_apart() -> None:
    reader = SegmentReader(FOLDER / "v1-maps.segment")
    trees = {column.name: column.encoding for column in reader.layout().columns}
    assert trees["together"].startswith("map views(")
    assert trees["sliding"].startswith("map sliding views(")
    assert trees["apart"].startswith("map(views(")
    assert trees["int64 float"].startswith("map lists(")
    assert reader.features & Feature.MAPS


def test_blocks_share_dictionaries() -> None:
    reader = SegmentReader(FOLDER / "v1-shared.segment")
    trees = {column.name: column.encoding for column in reader.layout().columns}
    assert [name for name, tree in trees.items() if "shared dictionary[" in tree] == ["id", "null", "unsigned", "short", "lists", "keys"]
    assert reader.features & Feature.SHARED_DICTIONARIES
