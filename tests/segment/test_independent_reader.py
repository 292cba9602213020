"""FORMAT.md is enough to write a reader: one written from it alone reads every golden segment to the same values."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from loader.encodings.shred import as_lists
from loader.segment import writer
from loader.segment.key_index import build, keys_of
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
    if isinstance(array, pa.DictionaryArray):
        return physical(array.dictionary_decode())
    if pa.types.is_map(kind):
        entries = physical_maps(array)
        return [None if row is None else entries[row.start : row.stop] for row in row_ranges(array)]
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


def row_ranges(array: pa.Array) -> list[range | None]:
    """Which entries, of those of all rows that are not null, each row has."""
    found: list[range | None] = []
    at = 0
    for row in array:
        found.append(range(at, at + len(row)) if row.is_valid else None)
        at += len(row) if row.is_valid else 0
    return found


def physical_maps(array: pa.Array) -> list[Any]:
    """The entries of maps as pairs."""
    keys, weights = as_lists(array).flatten().flatten()
    return [list(pair) for pair in zip(physical(keys), physical(weights), strict=True)]


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


ABC, EMPTY = (b"abc", False), (b"", False)
VECTORS = {
    '""': [EMPTY],
    '"abc"': [ABC],
    '"0123456789"': [(b"0123456789", False)],
    "true; or date 1; or timestamp 1": [(1, False)],
    '(int64 7, "abc")': [(7, False), ABC],
    '(int64 null, "a")': [(0, True), (b"a", False)],
    "(int64 7, string null)": [(7, False), (b"", True)],
}


def test_hashes_keys_as_the_page_shows() -> None:
    """The worked examples of FORMAT.md, by the hash that it describes."""
    page = (Path(writer.__file__).parent / "FORMAT.md").read_text()
    for name, values in VECTORS.items():
        low, high = independent_reader.key_words(values)
        assert f"| {name} | 0x{low:016X} | 0x{high:016X} |" in page
    assert f"0x{independent_reader.mix(1):016X}" in page
    for low in (1 << 63 | 7, independent_reader.key_words([ABC])[0]):
        block, bits = independent_reader.filter_bits(low, 1000)
        assert f"has block {block} and bits {' '.join(map(str, bits))}" in page.replace("\n", " ")


def test_finds_rows_by_their_keys() -> None:
    numbers = pa.array([5, -3, 1 << 40, 12], pa.int64())
    pairs = [pa.array([5, None, 7, 7]), pa.array(["x", "y", None, "zz" * 9])]
    table = pa.table({"a": numbers})
    one, two = (
        independent_reader.KeyIndex(independent_reader.Segment(bytes(encode_segment(table, column_ids=[1], key_index=build(keys)).data)).sections[8])
        for keys in (keys_of([numbers]), keys_of(pairs))
    )
    assert [one.find((number ^ 1 << 63) & (1 << 64) - 1) for number in (5, -3, 1 << 40, 12, 6)] == [0, 1, 2, 3, None]
    wanted = [[(5, False), (b"x", False)], [(0, True), (b"y", False)], [(7, False), (b"", True)], [(7, False), (b"zz" * 9, False)], [(5, False), (b"y", False)]]
    assert [two.find(*independent_reader.key_words(values)) for values in wanted] == [0, 1, 2, 3, None]


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
