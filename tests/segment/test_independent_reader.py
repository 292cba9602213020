"""FORMAT.md is enough to write a reader: one written from it alone reads every golden segment to the same values."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from loader.segment.writer import encode_segment
from scripts.bench_samples import make_samples
from tests.segment import independent_reader

FOLDER = Path(__file__).parent / "golden"
SEGMENTS = sorted(path.name for path in FOLDER.glob("*.segment"))


def physical(array: pa.Array) -> list[Any]:
    """The values of an Arrow array as segments store them."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return physical(array.storage)
    if hasattr(kind, "value_type") or hasattr(kind, "list_size"):
        flat, found, at = physical(array.flatten()), [], 0
        for row in array:
            size = len(row) if row.is_valid else None
            found.append(None if size is None else flat[at : at + size])
            at += size or 0
        return found
    if pa.types.is_fixed_size_binary(kind) or "binary" in str(kind):
        return [None if value is None else list(value) for value in array.to_pylist()]
    if "string" in str(kind):
        return [None if value is None else list(value.encode()) for value in array.to_pylist()]
    if pa.types.is_temporal(kind):
        array = array.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    return array.to_pylist()


def inflate(frame: bytes, num_bytes: int) -> bytes:
    return bytes(pa.Codec("zstd").decompress(frame, decompressed_size=num_bytes))


def same(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return (math.isnan(left) and math.isnan(right)) or (left == right and math.copysign(1, left) == math.copysign(1, right))
    return bool(left == right)


@pytest.mark.parametrize("name", SEGMENTS)
def test_reads_the_golden_segments(name: str) -> None:
    segment = independent_reader.Segment((FOLDER / name).read_bytes(), inflate)
    with pa.ipc.open_file(FOLDER / name.replace(".segment", ".arrow")) as file:
        expected = file.read_all()
    names = [column["name"] for column in sorted(segment.columns, key=lambda column: column["schema_index"])]
    assert names == expected.column_names
    assert segment.num_rows == expected.num_rows
    for column in names:
        assert same(segment.read(column), physical(expected[column].combine_chunks())), column


def test_reads_what_is_written_today() -> None:
    table = make_samples(1_100)
    segment = independent_reader.Segment(bytes(encode_segment(table, column_ids=range(1, table.num_columns + 1)).data))
    for column in table.column_names:
        assert same(segment.read(column), physical(table[column].combine_chunks())), column


def test_refuses_a_changed_byte() -> None:
    data = bytearray((FOLDER / "v1.segment").read_bytes())
    data[300] ^= 1
    segment = independent_reader.Segment(bytes(data))
    with pytest.raises(ValueError, match="checksum"):
        for column in segment.columns:
            segment.read(column["name"])


def test_imports_nothing_of_ours() -> None:
    tree = ast.parse(Path(independent_reader.__file__).read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"__future__", "collections.abc", "hashlib", "struct", "typing"}
