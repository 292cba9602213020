"""Every type goes through a table: appended, patched, compacted, read by rows and through a loader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import loader
from loader.lake import Lake

KINDS: dict[str, tuple[pa.DataType, list[Any], list[Any]]] = {
    "string view": (pa.string_view(), ["a", "bb", None, "c" * 20], ["x" * 30, "y"]),
    "binary view": (pa.binary_view(), [b"a", b"bb", None, b"c" * 20], [b"x", b"y" * 30]),
    "map": (pa.map_(pa.int64(), pa.float32()), [[(1, 1.0)], None, [(2, None)], []], [[(5, 2.0), (6, None)], []]),
    "map of strings": (pa.map_(pa.string(), pa.float32()), [[("a", 1.0)], None, [("b", None)], []], [[("c", 2.0), ("d", None)], []]),
    "lists of lists": (pa.list_(pa.list_(pa.int64())), [[[1], [2, 3]], None, [], [[]]], [[[7, 8], [], None], [[9]]]),
    "lists of strings": (pa.list_(pa.string()), [["a"], None, ["b"], []], [["zz", None], []]),
    "lists of embeddings": (pa.list_(pa.list_(pa.float32(), 2)), [[[1, 2]], None, [[3, 4]], []], [[[5, 6], [7, None]], []]),
    "list view": (pa.list_view(pa.int32()), [[1], [2], None, []], [[3, 4], []]),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["a", "b", None, "a"], ["q", "r"]),
    "null": (pa.null(), [None] * 4, [None] * 2),
    "bool": (pa.bool_(), [True, False, None, True], [False, True]),
    "half embedding": (pa.list_(pa.float16(), 2), [[1, 2], None, [3, 4], [5, 6]], [[7, 8], [9, 10]]),
    "zoned time": (pa.timestamp("ns", "Europe/Berlin"), [1, None, 3, 4], [7, 8]),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_column_of_any_type_is_patched_and_compacted(lake: Lake, name: str) -> None:
    kind, stored, patch = KINDS[name]
    table = lake.create_table("t", pa.schema([("id", pa.int64()), ("x", kind)]), primary_key=["id"])
    table.append(pa.table({"id": pa.array([1, 2, 3, 4]), "x": pa.array(stored, kind)}))
    table.append(pa.table({"id": pa.array([6, 5]), "x": pa.array(patch, kind)}))
    table.patch(pa.table({"id": pa.array([2, 3]), "x": pa.array(patch, kind)}))
    want = dict(zip([1, 2, 3, 4, 6, 5], map(str, pa.array([stored[0], *(patch if name != "null" else stored[1:3]), stored[3], *patch], kind)), strict=True))

    def found() -> dict[int, str]:
        read = table.to_arrow()
        assert read.schema.field("x").type == kind
        return dict(zip(read["id"].to_pylist(), map(str, read["x"]), strict=True))

    assert found() == want
    table.compact(full=True)
    assert found() == want


@pytest.mark.parametrize("name", ["string view", "binary view", "dictionary", "null", "bool", "half embedding", "zoned time"])
def test_a_patched_column_of_any_plain_type_comes_in_batches(lake: Lake, name: str) -> None:
    kind, stored, patch = KINDS[name]
    table = lake.create_table("t", pa.schema([("id", pa.int64()), ("x", kind)]), primary_key=["id"])
    table.append(pa.table({"id": pa.array([1, 2, 3, 4]), "x": pa.array(stored, kind)}))
    table.patch(pa.table({"id": pa.array([2, 3]), "x": pa.array(patch, kind)}))
    want = [stored[0], *(patch if name != "null" else stored[1:3]), stored[3]]
    batches = list(loader.DataLoader(table.scan(columns=["id", "x"]), global_batch_size=4, output="arrow"))
    for batch in batches:
        assert batch["x"].type == kind
        assert list(map(str, batch["x"])) == [str(pa.array([want[number - 1]], kind)[0]) for number in batch["id"].to_pylist()]
    assert sum(len(batch["id"]) for batch in batches) == 4


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_a_predicate_reads_strings_however_they_are_held(lake: Lake, kind: pa.DataType) -> None:
    table = lake.create_table("t", pa.schema([("id", pa.int64()), ("x", kind)]), primary_key=["id"])
    table.append(pa.table({"id": np.arange(40), "x": pa.array(["a", "b", None, "c"] * 10).cast(kind)}))
    assert sorted(table.to_arrow(where="x IN ('a', 'c') AND id < 20")["id"].to_pylist()) == [0, 3, 4, 7, 8, 11, 12, 15, 16, 19]
    assert table.scan(columns=["id"], where="x = 'b'").plan().num_rows == 10


def test_a_map_trains_as_keys_with_weights(lake: Lake) -> None:
    rng = np.random.default_rng(1)
    rows = [[(int(rng.integers(1 << 40)), float(weight) / 8) for weight in range(number % 5)] for number in range(300)]
    table = lake.create_table("t", pa.schema([("id", pa.int64()), ("m", pa.map_(pa.int64(), pa.float32()))]), primary_key=["id"])
    table.append(pa.table({"id": np.arange(300), "m": pa.array(rows, pa.map_(pa.int64(), pa.float32()))}))
    seen = 0
    for batch in loader.DataLoader(table.scan(columns=["id", "m"]), global_batch_size=60):
        maps = batch["m"]
        for place, number in enumerate(batch["id"].tolist()):
            start, stop = maps.offsets[place : place + 2].tolist()
            assert list(zip(maps.values[start:stop].tolist(), maps.weights[start:stop].tolist(), strict=True)) == rows[number]
            seen += 1
    assert seen == 300
