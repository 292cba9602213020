"""Transforms by config: each kind against plain Python, on lists and with nulls; one config for batches and for serving."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.batch.jagged import Jagged
from loader.batch.transforms import KINDS, Transforms
from loader.errors import SchemaError

torch = pytest.importorskip("torch")
WORDS = st.integers(-(2**63), 2**63 - 1)


def jagged(rows: list[list[Any]], dtype: Any = None) -> Jagged:
    offsets = [0]
    for row in rows:
        offsets.append(offsets[-1] + len(row))
    return Jagged(torch.tensor([value for row in rows for value in row], dtype=dtype), torch.tensor(offsets))


def rows_of(lists: Jagged) -> list[list[Any]]:
    return [lists[row].tolist() for row in range(len(lists))]


def apply(step: dict[str, Any], columns: dict[str, Any], validity: dict[str, Any] | None = None) -> dict[str, Any]:
    return Transforms([step]).apply(columns, validity)


def mixed(word: int) -> int:
    """splitmix64's finalizer with Python's integers."""
    word %= 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


@settings(max_examples=50, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=20), st.integers(1, 2**40), st.integers(0, 5))
def test_hash_is_splitmix64_whatever_the_sign(words: list[int], buckets: int, seed: int) -> None:
    found = apply({"kind": "hash", "columns": ["x"], "buckets": buckets, "seed": seed}, {"x": torch.tensor(words)})["x"].tolist()
    start = seed * 0x9E3779B97F4A7C15
    assert found == [(mixed(word + start) >> 2) % buckets for word in words]


def test_hash_of_lists_keeps_their_rows_and_views() -> None:
    lists = Jagged(torch.tensor([7, 8, 9]), torch.tensor([0, 2, 3]), None, torch.tensor([1, 0, 1]))
    found = apply({"kind": "hash", "columns": ["x"], "buckets": 10, "into": ["h"]}, {"x": lists})["h"]
    assert found.inverse.tolist() == [1, 0, 1]
    assert found.values.tolist() == [(mixed(word) >> 2) % 10 for word in (7, 8, 9)]


def test_cross_depends_on_order_and_on_every_column() -> None:
    columns = {"a": torch.tensor([1, 2, 1]), "b": torch.tensor([2, 1, 3])}
    step = {"kind": "cross", "columns": ["a", "b"], "into": "ab", "buckets": 1 << 40}
    found = apply(step, columns)["ab"].tolist()
    assert len(set(found)) == 3
    assert apply(step | {"columns": ["b", "a"]}, columns)["ab"].tolist()[0] == found[1]
    batch = Transforms([step, {"kind": "fill_nulls", "columns": ["ab"], "value": -1}]).apply(columns, {"b": torch.tensor([True, False, True])})
    assert batch["ab"].tolist() == [found[0], -1, found[2]]


def test_cross_of_lists_pairs_their_values() -> None:
    step = {"kind": "cross", "columns": ["a", "b"], "into": "ab", "buckets": 1000}
    found = apply(step, {"a": jagged([[1, 2], [], [3]]), "b": jagged([[5, 5], [], [6]])})["ab"]
    alone = apply(step, {"a": torch.tensor([1, 2, 3]), "b": torch.tensor([5, 5, 6])})["ab"].tolist()
    assert rows_of(found) == [alone[:2], [], alone[2:]]
    with pytest.raises(SchemaError, match=r"transforms\[0\] \(cross\) of a, b: their lists are not of the same lengths"):
        apply(step, {"a": jagged([[1, 2]]), "b": jagged([[5]])})


@pytest.mark.parametrize(
    ("step", "values", "expected"),
    [
        ({"kind": "clip", "min": 0.5, "max": 2.5}, [0, 1, 2, 3], [1, 1, 2, 2]),
        ({"kind": "clip", "max": 1.0}, [0.5, 7.0, math.inf], [0.5, 1.0, 1.0]),
        ({"kind": "log1p"}, [-3, 0, 1], [0.0, 0.0, math.log(2)]),
        ({"kind": "standardise", "mean": 2, "deviation": 4}, [2, 10], [0.0, 2.0]),
        ({"kind": "bucketise", "boundaries": [0, 10]}, [-1, 0, 9, 10, 11], [0, 1, 1, 2, 2]),
        ({"kind": "bucketise", "boundaries": [0.5]}, [0.25, 0.5, math.nan], [0, 1, 1]),
        ({"kind": "cast", "dtype": "int32"}, [1.75, -1.75], [1, -1]),
    ],
)
def test_numbers(step: dict[str, Any], values: list[float], expected: list[float]) -> None:
    found = apply({**step, "columns": ["x"]}, {"x": torch.tensor(values)})["x"]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    lists = apply({**step, "columns": ["x"]}, {"x": jagged([values, []])})["x"]
    assert lists[0].tolist() == found.tolist()
    assert lists[1].tolist() == []


def test_fill_nulls_fills_nan_too_and_says_where() -> None:
    step = {"kind": "fill_nulls", "columns": ["x"], "value": 2.5, "indicator": "no_x"}
    found = apply(step, {"x": torch.tensor([1.0, math.nan, 0.0])}, {"x": torch.tensor([True, True, False])})
    assert found["x"].tolist() == [1.0, 2.5, 2.5]
    assert found["no_x"].tolist() == [0.0, 1.0, 1.0]
    assert apply(step, {"x": torch.tensor([1.0])})["no_x"].tolist() == [0.0]
    assert apply(step | {"indicator": None}, {"x": torch.ones(2, 2)}, {"x": torch.tensor([True, False])})["x"].tolist() == [[1, 1], [2.5, 2.5]]
    with pytest.raises(SchemaError, match=r"2.5 is no torch.int64: cast first"):
        apply(step, {"x": torch.tensor([1])}, {"x": torch.tensor([False])})


@pytest.mark.parametrize("keep", ["first", "last"])
def test_truncate_and_pad_keep_the_asked_end(keep: str) -> None:
    rows = [[1, 2, 3], [], [4]]
    kept = [row[:2] if keep == "first" else row[-2:] for row in rows]
    assert rows_of(apply({"kind": "truncate", "columns": ["x"], "length": 2, "keep": keep}, {"x": jagged(rows)})["x"]) == kept
    padded = apply({"kind": "pad", "columns": ["x"], "length": 2, "keep": keep, "value": -1, "mask": "m"}, {"x": jagged(rows)})
    expected = [row + [-1] * (2 - len(row)) if keep == "first" else [-1] * (2 - len(row)) + row for row in kept]
    assert padded["x"].tolist() == expected
    assert padded["m"].tolist() == [[value != -1 for value in row] for row in expected]


def test_unexpanded_lists_stay_so_until_they_are_padded() -> None:
    lists = Jagged(torch.tensor([1, 2, 3, 4]), torch.tensor([0, 3, 4]), torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1, 0, 0]))
    short = apply({"kind": "truncate", "columns": ["x"], "length": 2}, {"x": lists})["x"]
    assert rows_of(short) == [[4], [2, 3], [2, 3]]
    assert short.weights.tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert apply({"kind": "pad", "columns": ["x"], "length": 1}, {"x": lists})["x"].tolist() == [[4], [3], [3]]
    empty = apply({"kind": "pad", "columns": ["x"], "length": 2, "value": 9}, {"x": jagged([[], []], torch.int64)})["x"]
    assert empty.tolist() == [[9, 9], [9, 9]]


def test_stack_makes_one_matrix_of_columns_and_matrices() -> None:
    columns = {"a": torch.tensor([1, 2]), "b": torch.tensor([[0.5, 1.5], [2.5, 3.5]]), "c": torch.tensor([True, False])}
    found = apply({"kind": "stack", "columns": ["a", "b", "c"], "into": "dense"}, columns)["dense"]
    assert found.dtype == torch.float32
    assert found.tolist() == [[1, 0.5, 1.5, 1], [2, 2.5, 3.5, 0]]
    with pytest.raises(SchemaError, match="column 'x' holds lists: pad it first"):
        apply({"kind": "stack", "columns": ["x"], "into": "dense"}, {"x": jagged([[1]])})


def test_inputs_are_what_has_to_be_read() -> None:
    steps = Transforms(
        [
            {"kind": "hash", "columns": ["user"], "buckets": 10, "into": ["user_id"]},
            {"kind": "log1p", "columns": ["price"]},
            {"kind": "stack", "columns": ["price", "age"], "into": "dense"},
            {"kind": "cross", "columns": ["never", "asked"], "into": "unused", "buckets": 3},
        ]
    )
    assert steps.inputs(["user_id", "dense", "label"]) == ["label", "price", "age", "user"]
    assert steps.inputs(["label"]) == ["label"]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"columns": ["x"]}, r"transforms\[0\] is .*write a mapping with a kind"),
        ({"kind": "hsah", "columns": ["x"]}, r"unknown kind 'hsah': .*hash"),
        ({"kind": "hash", "columns": ["x"], "bucket": 3}, r"\(hash\): unknown key 'bucket': .*buckets"),
        ({"kind": "hash", "columns": ["x"]}, r"\(hash\) lacks buckets"),
        ({"kind": "hash", "columns": ["x"], "buckets": 2.5}, r"transforms\[0\].buckets must be int, not 2.5"),
        ({"kind": "hash", "columns": "x", "buckets": 2}, r"transforms\[0\].columns must be a list, not 'x'"),
        ({"kind": "hash", "columns": [], "buckets": 2}, "columns is empty"),
        ({"kind": "hash", "columns": ["x"], "buckets": 0}, "buckets is 0; it must be at least 1"),
        ({"kind": "clip", "columns": ["x"], "min": 2, "max": 1}, "min 2.0 is above max 1.0"),
        ({"kind": "bucketise", "columns": ["x"], "boundaries": [1, 1]}, "boundaries must be some numbers that grow"),
        ({"kind": "cast", "columns": ["x"], "dtype": "int"}, "dtype is 'int'; it must be one of"),
        ({"kind": "pad", "columns": ["x"], "length": 1, "keep": "middle"}, "keep is 'middle'"),
        ({"kind": "hash", "columns": ["x"], "buckets": 2, "into": ["a", "b"]}, "into names 2 columns for 1"),
    ],
)
def test_a_mistake_is_refused_by_name(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transforms([step])


def test_a_column_that_is_not_there_is_named_when_it_is_read() -> None:
    with pytest.raises(SchemaError, match=r"transforms\[0\] \(log1p\) reads column 'pirce': .*price"):
        apply({"kind": "log1p", "columns": ["pirce"]}, {"price": torch.ones(1)})
    with pytest.raises(SchemaError, match=r"torch.float32 is hashed"):
        apply({"kind": "hash", "columns": ["x"], "buckets": 3}, {"x": torch.ones(1)})


def test_every_kind_is_registered_under_its_name_and_survives_pickling() -> None:
    assert all(kind.kind == name for name, kind in KINDS.items())
    steps = Transforms([{"kind": "clip", "columns": ["x"], "max": 3}])
    again = pickle.loads(pickle.dumps(steps))
    assert again.apply({"x": torch.tensor([5.0])})["x"].tolist() == [3.0]
    assert again.steps == steps.steps
