"""Keyed jagged tensors: the same lists as the columns, in the order of the keys, without a copy where they lie so; TorchRec gets the fields it names."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import loader
from loader.batch.kjt import KeyedJagged
from loader.errors import SchemaError
from tests.train import sample_table

torch = pytest.importorskip("torch")


def lists_of(found: KeyedJagged, key: str) -> list[list[int]]:
    lists = found[key]
    return [lists[row].tolist() for row in range(len(lists))]


def expected(batch: Any, key: str) -> list[list[int]]:
    value = batch[key]
    if isinstance(value, loader.Jagged):
        return [value[row].tolist() for row in range(len(value))]
    return [[item] if valid else [] for item, valid in zip(value.tolist(), batch.validity[key].tolist(), strict=True)]


@pytest.fixture
def table(tmp_path: Path) -> loader.Table:
    lake = loader.connect(tmp_path / "lake")
    schema = pa.schema([(name, pa.list_(pa.int64())) for name in ("a", "b")] + [("c", pa.list_(pa.int32())), ("d", pa.map_(pa.int64(), pa.float32()))])
    created = lake.create_table("t", pa.schema([pa.field("id", pa.int64(), nullable=False), *schema]), primary_key=["id"])
    count = 40
    rows = {
        "id": range(count),
        "a": [None if i % 7 == 0 else [i, i + 1] for i in range(count)],
        "b": [[i] * (i % 4) for i in range(count)],
        "c": [[i % 3] for i in range(count)],
        "d": [[(i, 0.5), (i + 1, 2.0)][: i % 3] for i in range(count)],
    }
    created.append(pa.table(rows, schema=created.schema.to_arrow()))
    return created


def test_keys_hold_the_lists_of_their_columns(tmp_path: Path) -> None:
    table = sample_table.create(loader.connect(tmp_path / "lake"))
    scan = table.scan(columns=["id", "user", "history", "tags", "label", "price"])
    for options in ({}, {"unique": ["history"]}, {"remainder": "pad"}):
        for batch in loader.DataLoader(scan, global_batch_size=70, seed=3, **options):
            for keys in (None, ["tags", "user", "history", "label"], ["label"], ["history", "tags"]):
                found = batch.to_kjt(keys)
                assert found.keys == (("history", "tags") if keys is None else tuple(keys))
                assert {key: lists_of(found, key) for key in found.keys} == {key: expected(batch, key) for key in found.keys}
                assert int(found.lengths.sum()) == len(found.values) == int(found.offsets[-1])
    with pytest.raises(SchemaError, match=r"column 'price' holds torch.float32"):
        batch.to_kjt(["price"])


def test_neighbours_of_one_dtype_are_not_copied(table: loader.Table) -> None:
    (batch,) = loader.DataLoader(table.scan(), global_batch_size=40)
    found = batch.to_kjt(["a", "b"])
    assert found.values.data_ptr() == batch["a"].values.data_ptr()
    assert found.values.data_ptr() + 8 * len(batch["a"].values) == batch["b"].values.data_ptr()
    assert batch.to_kjt(["b", "a"]).values.data_ptr() != batch["b"].values.data_ptr()
    mixed = batch.to_kjt(["a", "c"])
    assert mixed.values.dtype == torch.int64
    held = found["b"]
    rows = [row for row in range(40) if len(batch["b"][row])]
    del batch, found, mixed
    assert [held[row].tolist() for row in rows] == [[int(held[row][0])] * len(held[row]) for row in rows]


def test_weights_of_maps_come_along(table: loader.Table) -> None:
    (batch,) = loader.DataLoader(table.scan(), global_batch_size=40)
    found = batch.to_kjt(["c", "d"])
    assert found.weights.tolist() == [1.0] * len(batch["c"].values) + batch["d"].weights.tolist()
    assert found["d"].weights.tolist() == batch["d"].weights.tolist()


def test_no_key_at_all_is_refused(tmp_path: Path) -> None:
    table = loader.connect(tmp_path / "lake").create_table("t", pa.schema([("id", pa.int64())]), primary_key=["id"])
    table.append(pa.table({"id": [1, 2]}))
    (batch,) = loader.DataLoader(table.scan(), global_batch_size=2)
    with pytest.raises(SchemaError, match="no column is a list of integers: name the keys"):
        batch.to_kjt()


def test_torchrec_gets_its_own_fields_where_it_is_installed(table: loader.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor's arguments as torchrec 1.9 names them; TorchRec itself has no build for every PyTorch."""

    class KeyedJaggedTensor:
        def __init__(
            self,
            keys: list[str],
            values: Any,
            weights: Any = None,
            lengths: Any = None,
            offsets: Any = None,
            stride: int | None = None,
            stride_per_key_per_rank: list[list[int]] | None = None,
            inverse_indices: tuple[list[str], Any] | None = None,
        ) -> None:
            assert (stride is None) != (stride_per_key_per_rank is None)
            self.given = (keys, values, weights, lengths, stride, stride_per_key_per_rank, inverse_indices)

    module = types.ModuleType("torchrec")
    module.KeyedJaggedTensor = KeyedJaggedTensor  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace(name="torchrec")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "torchrec", module)
    (batch,) = loader.DataLoader(table.scan(), global_batch_size=40)
    keys, values, weights, lengths, stride, strides, inverse = batch.to_kjt(["a", "b"]).given
    assert (keys, weights, stride, strides, inverse) == (["a", "b"], None, 40, None, None)
    assert len(lengths) == 80
    assert values.data_ptr() == batch["a"].values.data_ptr()
    (batch,) = loader.DataLoader(table.scan(), global_batch_size=40, unique=["b"])
    keys, values, weights, lengths, stride, strides, inverse = batch.to_kjt(["a", "b"]).given
    assert strides == [[40], [len(batch["b"].offsets) - 1]]
    assert inverse[0] == ["a", "b"]
    assert inverse[1].tolist() == [list(range(40)), batch["b"].inverse.tolist()]
