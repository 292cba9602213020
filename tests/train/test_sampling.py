"""Claims about samples by rule: which rows, with which weights, the same wherever and whoever counts; and exact accounts of them."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

import loader
from loader.errors import AlreadyExistsError, ColumnNotFoundError, SchemaError, StateMismatchError
from loader.scan import plan as planning
from loader.scan.fetch import FetchSpec
from loader.scan.plan import open_plan
from loader.scan.sampling import Sample

from .sample_table import create, ids

RULES = [("user = 3", 1.0), ("price is null", 0.0), (None, 0.25)]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    lake = loader.connect(str(tmp_path_factory.mktemp("sampling") / "lake"))
    yield create(lake, num_rows=3000, commit_rows=600)
    lake.close()


def read(table, sample, **options):
    """(weight by id) of one epoch."""
    scan = table.scan(columns=["id", "user", "price"], sample=sample)
    with loader.DataLoader(scan, global_batch_size=options.pop("batch", 100), remainder="uneven", **options) as batches:
        return {i: w for batch in batches for i, w in zip(ids(batch), batch.weights.tolist(), strict=True)}


def test_positives_are_all_kept_and_the_rest_at_its_rate_with_exact_weights(table):
    rows = {row["id"]: row for row in table.to_arrow(["id", "user", "price"]).to_pylist()}
    kept = read(table, RULES)
    sure = {i for i, row in rows.items() if row["user"] == 3}
    never = {i for i, row in rows.items() if row["user"] != 3 and row["price"] is None}
    rest = set(rows) - sure - never
    assert sure <= set(kept) and not never & set(kept)
    assert {kept[i] for i in sure} == {1.0} and {kept[i] for i in rest & set(kept)} == {4.0}
    drawn, sigma = len(rest & set(kept)), math.sqrt(len(rest) * 0.25 * 0.75)
    assert abs(drawn - len(rest) / 4) < 4 * sigma
    assert abs(sum(kept.values()) - len(rows) + len(never)) < 4 * 4 * sigma  # weights estimate the rows they stand for


def test_a_higher_rate_keeps_what_a_lower_one_kept_and_seeds_draw_other_rows(table):
    tenth, half = read(table, [(None, 0.1)]), read(table, [(None, 0.5)])
    assert set(tenth) < set(half)
    other = read(table, Sample(rules=((None, 0.5),), seed=18))
    assert set(other) != set(half) and abs(len(set(other) & set(half)) - 750) < 120


def test_a_sample_by_other_columns_keeps_or_leaves_their_rows_together(table):
    scan = table.scan(columns=["id", "user"], sample=Sample(rules=((None, 0.5),), by=("user",), column="w"))
    with loader.DataLoader(scan, global_batch_size=10, remainder="uneven", output="numpy") as batches:
        users = np.concatenate([batch["user"] for batch in batches])
        assert set(next(iter(batches))["w"]) == {2.0}
    counts = np.bincount(table.to_arrow(["user"])["user"].to_numpy())
    assert 0 < len(set(users.tolist())) < 7
    assert all((users == user).sum() == counts[user] for user in set(users.tolist()))


def test_compaction_does_not_change_a_sample(tmp_path):
    lake = loader.connect(str(tmp_path / "lake"))
    table = create(lake, num_rows=600)
    before = read(table, RULES)
    table.compact(full=True)
    assert read(table, RULES) == before
    lake.close()


def test_every_epoch_draws_anew_where_asked_and_resumes_in_its_own(table):
    sample = Sample(rules=(("user = 3", 1.0), (None, 0.25)), per_epoch=True)
    scan = table.scan(columns=["id"], sample=sample)
    epochs, states = [], []
    with loader.DataLoader(scan, global_batch_size=100, remainder="uneven") as batches:
        for _ in range(2):
            planned, seen = len(batches), []
            for number, batch in enumerate(batches):
                seen.append(ids(batch))
                if number == 1:
                    states.append(batches.state_dict())
            assert len(seen) == planned
            epochs.append(seen)
    flat = [[i for batch in epoch for i in batch] for epoch in epochs]
    assert set(flat[0]) != set(flat[1]) and len(flat[1]) == len(set(flat[1]))
    with loader.DataLoader(scan, global_batch_size=100, remainder="uneven") as again:
        again.load_state_dict(states[1])
        assert [ids(batch) for batch in again] == epochs[1][2:]
    with loader.DataLoader(table.scan(columns=["id"], sample=RULES), global_batch_size=100) as other, pytest.raises(StateMismatchError, match="sample"):
        other.load_state_dict(states[0])


def test_the_weights_reach_every_output_and_transforms(table):
    scan = table.scan(columns=["id"], sample=RULES)
    want = read(table, RULES)
    for output in ("dict", "numpy", "nested"):
        with loader.DataLoader(scan, global_batch_size=100, output=output, remainder="pad") as batches:
            for batch in batches:
                assert list(batch) == ["id", "sample_weight"]
                weights = batch["sample_weight"]
                assert weights[: batch.num_samples].tolist() == [want[i] for i in ids(batch)] and not weights[batch.num_samples :].any()
    with loader.DataLoader(scan, global_batch_size=100, output="arrow", remainder="uneven") as batches:
        rows = pa.Table.from_batches(list(batches))
    assert dict(zip(rows["id"].to_pylist(), rows["sample_weight"].to_pylist(), strict=True)) == want
    steps = loader.Transforms([{"kind": "clip", "columns": ["sample_weight"], "max": 2.0}])
    with loader.DataLoader(scan, global_batch_size=100, transforms=steps) as batches:
        assert {float(w) for batch in batches for w in batch["sample_weight"]} == {1.0, 2.0}
    with loader.DataLoader(table.scan(columns=["id"]), global_batch_size=100) as plain:
        assert next(iter(plain)).weights.tolist() == [1.0] * 100


def test_a_sample_is_counted_once_and_loaded_by_others(table, monkeypatch):
    with loader.DataLoader(table.scan(columns=["id"], sample=RULES), global_batch_size=100) as batches:
        spec, rows = FetchSpec.from_json(batches.plan.fetch_spec().to_json()), batches.plan.num_rows
        monkeypatch.setattr(planning, "select", lambda *_: pytest.fail("the sample was counted again"))
        again = open_plan(spec)
        assert again.num_rows == rows
        at = np.zeros(5, np.int64), np.flatnonzero(np.unpackbits(again.bits[0], bitorder="little"))[:5]
        assert (again.row_weights.at(*at) == batches.plan.row_weights.at(*at)).all()


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        ([("label = 1", 1.5)], ValueError, "rate of rule 'label = 1' is 1.5; it must lie between 0 and 1"),
        ([("label = 1", "all")], ValueError, "must be .where, rate."),
        ([], ValueError, "0 rules"),
        ("label = 1", ValueError, "give rules"),
        ({"rule": []}, ValueError, "no key 'rule'"),
        ([("lable = 1", 1)], ColumnNotFoundError, "did you mean label"),
        (Sample(rules=((None, 1),), by=("price",)), SchemaError, "draws by column 'price', which is float"),
        (Sample(rules=((None, 1),), column="id"), AlreadyExistsError, "would hide column 'id'"),
    ],
)
def test_wrong_samples_are_refused_in_one_line(table, sample, error, message):
    with pytest.raises(error, match=message) as raised:
        table.scan(columns=["id"], sample=sample)
    assert "\n" not in str(raised.value)
