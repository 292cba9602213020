"""Merge rules folded with NumPy give what folding one operand after the other gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.errors import SchemaError
from loader.schema import Column
from loader.table.merge import NO_ORDER, Operands, check_rule, count_operands, fold, fold_base


def expected(rule: str, own: Any, own_order: int | None, touched: list[tuple[int, int, Any]]) -> Any:
    touched = sorted(touched, key=lambda operand: operand[:2])
    values = [value for _, _, value in touched]
    present = [] if own is None else [own]
    match rule:
        case "last":
            return own if own_order is not None and own_order > touched[-1][0] else values[-1]
        case "first":
            return own if own is not None and (own_order is None or own_order <= touched[0][0]) else values[0]
        case "max":
            return max(present + values)
        case "min":
            return min(present + values)
        case "sum" | "count":
            return sum(present + values)
        case _:
            return any(present + values)


@given(
    rule=st.sampled_from(["last", "first", "max", "min", "sum", "count", "any"]),
    operands=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([NO_ORDER, 1, 2, 3]), st.integers(1, 3), st.integers(0, 50)), min_size=1, max_size=20),
    base=st.lists(st.tuples(st.none() | st.integers(0, 50), st.none() | st.integers(0, 4)), min_size=5, max_size=5),
)
def test_folding_is_what_one_by_one_gives(rule: str, operands: list[tuple[int, int, int, int]], base: list[tuple[int | None, int | None]]) -> None:
    kind = pa.bool_() if rule == "any" else pa.int64()
    cast = bool if rule == "any" else int
    operands = sorted(operands, key=lambda operand: operand[2])  # sequences never go down
    rows, orders, sequences, values = (list(column) for column in zip(*operands, strict=True))
    folded = fold(rule, Operands(np.array(rows, np.uint32), np.array(orders), np.array(sequences), pa.array([cast(v) for v in values], kind)))
    assert folded.rows.tolist() == sorted(set(rows))
    own = [None if value is None else cast(value) for value, _ in base]
    own_orders = [order for _, order in base]
    got = fold_base(rule, folded, pa.array([own[row] for row in folded.rows], kind), pa.array([own_orders[row] for row in folded.rows], pa.int64()))
    for row, value in zip(got.rows.tolist(), got.values.to_pylist(), strict=True):
        mine = [(order, at, cast(v)) for at, (r, order, _, v) in enumerate(operands) if r == row]
        assert value == expected(rule, own[row], own_orders[row], mine), f"row {row}"


def test_times_and_lists_keep_their_type() -> None:
    times = pa.array([3, 9, 5], pa.timestamp("ms"))
    one = np.zeros(3, np.uint32)
    order = np.full(3, NO_ORDER)
    folded = fold_base("max", fold("max", Operands(one, order, np.arange(3), times)), pa.array([None], pa.timestamp("ms")), None)
    assert folded.values.type == times.type and folded.values.cast(pa.int64()).to_pylist() == [9]
    lists = pa.array([[1], [], [2, 3]])
    assert fold("last", Operands(one, np.array([5, 7, 6]), np.arange(3), lists)).values.to_pylist() == [[]]


def test_nan_does_not_hide_a_number() -> None:
    rows, order = np.zeros(2, np.uint32), np.full(2, NO_ORDER)
    folded = fold("max", Operands(rows, order, np.arange(2), pa.array([float("nan"), 2.0])))
    assert folded.values.to_pylist() == [2.0]


def test_count_takes_events_not_values() -> None:
    assert count_operands(pa.array([7, None, 0], pa.int32())).to_pylist() == [1, None, 1]


@pytest.mark.parametrize(
    ("rule", "kind"), [("sum", pa.string()), ("max", pa.list_(pa.int32())), ("any", pa.int8()), ("count", pa.float32()), ("median", pa.int64())]
)
def test_a_rule_that_does_not_fit_is_refused(rule: str, kind: pa.DataType) -> None:
    with pytest.raises(SchemaError, match="column 'x'"):
        check_rule(Column(id=1, name="x", type=kind), rule)
