"""The DLRM reads columns as configured: transforms, hashing and nulls by hand, histories by mask, and its gradients reach every parameter."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from loader.config import DataConfig, DenseFeature, ModelConfig  # noqa: E402
from ray_jobs.models import features  # noqa: E402
from ray_jobs.models.dlrm import DLRM, CandidateAttention  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are too small to share out; on a busy machine threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class FakeBatch(dict[str, Any]):
    """Columns by name, with validity masks."""

    def __init__(self, columns: dict[str, Any], validity: dict[str, Any] | None = None) -> None:
        super().__init__(columns)
        self.validity = validity or {}


def jagged(lists: list[list[int]]) -> SimpleNamespace:
    lengths = torch.tensor([len(entries) for entries in lists])
    return SimpleNamespace(
        values=torch.tensor([entry for entries in lists for entry in entries], dtype=torch.int64),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
    )


def make_data(pooling: str = "attention", **changes: Any) -> DataConfig:
    tree = {
        "dense": [{"column": "price", "transform": "log1p"}, {"column": "count", "shift": 2.0, "scale": 0.5}],
        "sparse": [{"column": "product", "num_embeddings": 50}, {"column": "store", "num_embeddings": 8, "hash": True}],
        "history": [{"column": "past", "embedding": "product", "pooling": pooling, "time_column": "past_ts", "max_length": 4}],
        "label": "label",
        "time_column": "ts",
    }
    return DataConfig.model_validate(tree | changes)


def make_batch(rows: int = 64, seed: int = 0) -> FakeBatch:
    random = torch.Generator().manual_seed(seed)
    lists = [[int(x) for x in torch.randint(0, 49, (row % 7,), generator=random)] for row in range(rows)]
    return FakeBatch(
        {
            "price": torch.rand(rows, generator=random) * 100,
            "count": torch.randint(0, 9, (rows,), generator=random),
            "product": torch.randint(0, 49, (rows,), generator=random),
            "store": torch.randint(0, 10**12, (rows,), generator=random),
            "past": jagged(lists),
            "past_ts": jagged([[1_490_000_000 + 60 * i for i in range(len(entries))] for entries in lists]),
            "ts": torch.full((rows,), 1_500_000_000, dtype=torch.int64),
        }
    )


def test_dense_columns_are_filled_transformed_shifted_and_scaled() -> None:
    batch = FakeBatch(
        {"a": torch.tensor([0.0, float("nan"), -5.0]), "b": torch.tensor([7, 1, 3])},
        {"b": torch.tensor([True, False, True])},
    )
    dense = (DenseFeature(column="a", transform="log1p", fill=1.0), DenseFeature(column="b", shift=1.0, scale=2.0, fill=5.0))
    expected = torch.tensor([[0.0, 12.0], [torch.log(torch.tensor(2.0)), 8.0], [0.0, 4.0]])
    torch.testing.assert_close(features.dense_matrix(batch, dense), expected)


def test_ids_outside_the_table_and_nulls_take_the_last_row() -> None:
    batch = FakeBatch({"id": torch.tensor([0, 3, 9, 10, -1, 4])}, {"id": torch.tensor([1, 1, 1, 1, 1, 0])})
    assert features.id_rows(batch, "id", 10, hashed=False).tolist() == [0, 3, 9, 9, 9, 9]


def test_hashed_ids_spread_over_the_table_and_never_leave_it() -> None:
    rows = features.table_rows(torch.arange(-50_000, 50_000), 101, hashed=True)
    counts = torch.bincount(rows, minlength=101)
    assert counts[100] == 0 and counts[:100].min() > 800 and counts[:100].max() < 1_200


def test_a_history_keeps_its_last_entries_and_their_gaps() -> None:
    batch = FakeBatch({"h": jagged([[1, 2, 3], [], [4]]), "t": jagged([[10, 20, 30], [], [60]]), "ts": torch.tensor([35, 40, 50])})
    past = features.history(batch, "h", time_column="t", sample_time="ts", max_length=2)
    assert past.ids.tolist() == [[2, 3], [0, 0], [0, 4]]
    assert past.mask.tolist() == [[True, True], [False, False], [False, True]]
    assert past.gaps is not None and past.gaps.tolist() == [[15.0, 5.0], [0.0, 0.0], [0.0, 0.0]]


def test_attention_of_an_empty_history_is_zero_and_prefers_the_match() -> None:
    attention = CandidateAttention(4)
    with torch.no_grad():
        attention.query.weight.copy_(torch.eye(4) * 20)
    entries = torch.eye(4).expand(2, 4, 4)
    mask = torch.tensor([[True] * 4, [False] * 4])
    pooled = attention(torch.eye(4)[[2, 2]], entries, mask, None)
    assert pooled[0].argmax() == 2 and pooled[0, 2] > 0.9
    assert pooled[1].abs().sum() == 0


@pytest.mark.parametrize("pooling", ["mean", "sum", "attention"])
@pytest.mark.parametrize("interaction", ["dot", "cat"])
def test_gradients_reach_every_parameter(pooling: str, interaction: str) -> None:
    torch.manual_seed(0)
    model = DLRM(make_data(pooling), ModelConfig(embedding_dim=8, bottom_mlp=(16,), top_mlp=(16,), interaction=interaction))
    logits = model(make_batch())
    assert logits.shape == (64,) and logits.dtype == torch.float32
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def test_it_learns_that_a_product_in_the_history_is_bought_again() -> None:
    torch.manual_seed(0)
    batch = make_batch(512)
    product, past = batch["product"].tolist(), features.history(batch, "past", time_column=None, sample_time=None, max_length=4)
    for row in range(0, 512, 2):  # every other row that has a history bought one of its products before
        if past.mask[row, -1]:
            product[row] = int(past.ids[row, -1])
    batch["product"] = torch.tensor(product)
    labels = (past.mask & (past.ids == batch["product"][:, None])).any(dim=1).float()
    model = DLRM(make_data(), ModelConfig(embedding_dim=16))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    model = DLRM(make_data(), ModelConfig(embedding_dim=8)).eval()
    batch, alone = make_batch(64), make_batch(64)
    lists = [int(end) for end in batch["past"].offsets]
    for column in ("price", "count", "product", "store", "ts"):
        alone[column] = batch[column][5:6]
    for column in ("past", "past_ts"):
        alone[column] = jagged([batch[column].values[lists[5] : lists[6]].tolist()])
    torch.testing.assert_close(model(alone), model(batch)[5:6])
