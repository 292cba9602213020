"""Batches in the shape a model asks for: transformed by config, keyed, nested; and serving's rows through the same transforms."""

from __future__ import annotations

import pytest

import loader
from loader.batch.features import features
from loader.errors import ColumnNotFoundError, SchemaError
from tests.train import sample_table

torch = pytest.importorskip("torch")
COLUMNS = ["id", "user", "price", "vector", "history", "tags", "flag"]
STEPS = [
    {"kind": "hash", "columns": ["user", "history"], "buckets": 1000, "into": ["user_id", "history_ids"]},
    {"kind": "truncate", "columns": ["history_ids"], "length": 3},
    {"kind": "fill_nulls", "columns": ["price"], "value": -1, "indicator": "no_price"},
    {"kind": "log1p", "columns": ["price"]},
    {"kind": "pad", "columns": ["tags"], "length": 2, "value": -1, "into": ["last_tags"]},
    {"kind": "cross", "columns": ["user", "flag"], "into": "user_flag", "buckets": 50},
    {"kind": "stack", "columns": ["price", "no_price", "vector"], "into": "dense"},
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> loader.Table:
    return sample_table.create(loader.connect(tmp_path_factory.mktemp("shapes") / "lake"))


def as_rows(value: object) -> list[object]:
    if isinstance(value, loader.Jagged):
        return [value[row].tolist() for row in range(len(value))]
    return value.tolist()  # type: ignore[attr-defined, no-any-return]


def test_serving_and_training_see_the_same_features(table: loader.Table) -> None:
    transforms = loader.Transforms(STEPS)
    seen = 0
    for batch in loader.DataLoader(table.scan(columns=COLUMNS), global_batch_size=64, transforms=transforms):
        looked_up = table.lookup(batch["id"].numpy().tolist(), COLUMNS)
        served = transforms.apply(*features(looked_up))
        assert batch["dense"].shape == (64, 5)
        for name in batch:
            there = batch.validity[name].tolist()
            for row, (mine, theirs) in enumerate(zip(as_rows(batch[name]), as_rows(served[name]), strict=True)):
                assert mine == theirs or not there[row], (name, row)
        assert not batch.validity["user_flag"].all()
        assert batch.validity["price"].all()
        seen += len(batch)
    assert seen >= 512


def test_columns_that_no_step_touches_are_not_made(table: loader.Table) -> None:
    transforms = loader.Transforms([{"kind": "log1p", "columns": ["price"]}])
    (batch, *_) = loader.DataLoader(table.scan(columns=COLUMNS), global_batch_size=64)
    changed = transforms(batch)
    assert set(changed._columns) == {"price"}
    assert torch.equal(changed["user"], batch["user"])
    assert tuple(changed) == tuple(batch)


def test_replaced_and_removed_columns(table: loader.Table) -> None:
    (batch, *_) = loader.DataLoader(table.scan(columns=COLUMNS), global_batch_size=64, remainder="pad")
    changed = batch.replace(price=None, user=batch["user"] + 1, more=batch["user"])
    assert tuple(changed) == ("id", "user", "vector", "history", "tags", "flag", "more")
    assert "price" not in changed.validity
    assert torch.equal(changed.validity["flag"], batch.validity["flag"])
    with pytest.raises(ColumnNotFoundError, match="no column .price."):
        changed["price"]
    with pytest.raises(ValueError, match="columns as they were read"):
        changed.to_arrow()


def test_keyed_batches(table: loader.Table) -> None:
    plain = loader.DataLoader(table.scan(columns=COLUMNS), global_batch_size=64, seed=4)
    keyed = loader.DataLoader(table.scan(columns=COLUMNS), global_batch_size=64, seed=4, output="kjt", transforms=loader.Transforms(STEPS[:2]))
    for batch, other in zip(plain, keyed, strict=True):
        found = other["kjt"]
        assert found.keys == ("history", "tags", "history_ids")
        assert "history" not in other
        assert [found["tags"][row].tolist() for row in range(64)] == [batch["tags"][row].tolist() for row in range(64)]
        assert max(map(len, as_rows(found["history_ids"]))) == 3
        moved = other.to("cpu")
        assert torch.equal(moved["kjt"].values, found.values)


def test_nested_batches(table: loader.Table) -> None:
    plain = loader.DataLoader(table.scan(columns=COLUMNS), global_batch_size=64, seed=4)
    nested = loader.DataLoader(table.scan(columns=COLUMNS), global_batch_size=64, seed=4, output="nested")
    for batch, other in zip(plain, nested, strict=True):
        assert other["tags"].is_nested
        assert [row.tolist() for row in other["tags"].unbind()] == [batch["tags"][row].tolist() for row in range(64)]
        assert torch.equal(other["user"], batch["user"])


def test_text_has_no_tensor(table: loader.Table) -> None:
    with pytest.raises(SchemaError, match="column 'name' is string, which no tensor holds"):
        features(table.lookup([1], ["name"]))
