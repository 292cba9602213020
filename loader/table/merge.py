"""Merge rules: how operands of one column fold into values. Pure and vectorised; no I/O.

| rule | a row's value after its operands |
|---|---|
| last | the operand with the highest (order, sequence, position); the row's own value counts as older than any |
| first | the row's own value if it has one, else the operand with the lowest (order, sequence, position) |
| max, min, sum | of the row's own value and all operands; null counts as absent |
| count | the row's own value plus the number of operands |
| any | true if the row's own value or any operand is |

Sums and counts wrap around at the width of their column's type, as NumPy's do: give them int64.

An operand that is null does not touch the column. A value that came from operands with an order keeps that order when compaction folds it
in, so that a later operand with an earlier order does not win.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.errors import SchemaError
from loader.schema import MERGE_RULES, Column, take

NO_ORDER = int(np.iinfo(np.int64).min)  # order of an operand that came without one
ORDER_BASE_ID = 0x8000_0000  # hidden column of a compacted segment: the order value of the column with this id less the base
RULES_WITH_BASE = ("first", "max", "min", "sum", "count", "any")
ORDERED_RULES = ("last", "first")
I64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Operands:
    """Operands of one column of one segment, in the order they were written.

    Attributes:
        rows: u32[n] row numbers, in any order, repeats allowed.
        orders: i64[n], NO_ORDER where there is none.
        sequences: i64[n], the commit each came with.
        values: n values, none null, of the column's type; for `count` the number of events.
    """

    rows: npt.NDArray[np.uint32]
    orders: I64
    sequences: I64
    values: pa.Array

    @staticmethod
    def concat(parts: Sequence[Operands]) -> Operands:
        return Operands(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.orders for part in parts]),
            np.concatenate([part.sequences for part in parts]),
            pa.concat_arrays([part.values for part in parts]),
        )


@dataclasses.dataclass(frozen=True)
class Folded:
    """One value a row: rows u32[m] sorted and distinct, m values, and the order of each (None for rules without)."""

    rows: npt.NDArray[np.uint32]
    values: pa.Array
    orders: I64 | None


def check_rule(column: Column, rule: str) -> None:
    """Refuse a rule that the column's type cannot follow.

    Raises:
        SchemaError: Unknown rule or wrong type; says which types it takes.
    """
    if rule not in MERGE_RULES:
        raise SchemaError(f"column {column.name!r}: no merge rule {rule!r}: there are {', '.join(MERGE_RULES)}")
    kind, types = column.type, pa.types
    number = types.is_integer(kind) or types.is_floating(kind)
    fits = {
        "max": number or types.is_temporal(kind) or types.is_boolean(kind),
        "min": number or types.is_temporal(kind) or types.is_boolean(kind),
        "sum": number,
        "count": types.is_integer(kind),
        "any": types.is_boolean(kind),
    }
    if not fits.get(rule, True):
        needs = {"sum": "a number", "count": "an integer", "any": "a boolean"}.get(rule, "a number, time or boolean")
        raise SchemaError(f"column {column.name!r} is {kind}: merge rule {rule!r} needs {needs}")


def fold(rule: str, operands: Operands) -> Folded:
    """Fold operands that touch the same row into one."""
    if rule in ORDERED_RULES:
        order = _by_age(operands)
        rows = operands.rows[order]
        ends = np.flatnonzero(np.append(rows[1:] != rows[:-1], True)) if len(rows) else np.zeros(0, np.int64)
        starts = np.append(0, ends[:-1] + 1) if len(ends) else ends
        chosen = order[ends if rule == "last" else starts]
        return Folded(operands.rows[chosen], take(operands.values, chosen), operands.orders[chosen])
    order = np.argsort(operands.rows, kind="stable")
    rows = operands.rows[order]
    starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1])) if len(rows) else np.zeros(0, np.int64)
    values = _to_numpy(operands.values)[order]
    reduced = _reduce(rule).reduceat(values, starts) if len(rows) else values
    return Folded(rows[starts], _from_numpy(reduced.astype(values.dtype, copy=False), operands.values.type), None)


def _by_age(operands: Operands) -> I64:
    """Positions by row, and for each row from the oldest operand to the newest."""
    orders, sequences = operands.orders, operands.sequences
    if len(orders) and (orders == orders[0]).all() and (sequences[1:] >= sequences[:-1]).all():
        return np.argsort(operands.rows, kind="stable")  # they lie by age already; a stable sort merges the sorted rows of each overlay
    return np.lexsort((sequences, orders, operands.rows))


def fold_base(rule: str, folded: Folded, base: pa.Array | None, base_orders: pa.Array | None) -> Folded:
    """Fold in the rows' own values.

    Args:
        rule: The column's merge rule.
        folded: Operands, one a row.
        base: The rows' own values, aligned with `folded.rows`; may be None for `last`.
        base_orders: int64, the order that each own value came with, null where it came with its row; None where none has one.
    """
    if rule == "last":
        return folded if base_orders is None or base is None else _choose(folded, base, base_orders, later=True)
    assert base is not None
    if rule == "first":
        return _choose(folded, base, base_orders, later=False)
    present = base.is_valid().to_numpy(zero_copy_only=False)
    own = _to_numpy(base.fill_null(_zero(base.type)) if base.null_count else base)
    operands = _to_numpy(folded.values)
    combined = np.where(present, _reduce(rule)(own, operands), operands)
    return Folded(folded.rows, _from_numpy(combined.astype(own.dtype, copy=False), base.type), None)


def _choose(folded: Folded, base: pa.Array, base_orders: pa.Array | None, *, later: bool) -> Folded:
    assert folded.orders is not None
    has_order = np.zeros(len(base), bool) if base_orders is None else base_orders.is_valid().to_numpy(zero_copy_only=False)
    own = np.full(len(base), NO_ORDER) if base_orders is None else base_orders.fill_null(NO_ORDER).to_numpy(zero_copy_only=False)
    present = base.is_valid().to_numpy(zero_copy_only=False)
    keep = (has_order & (own > folded.orders)) if later else (present & (~has_order | (own <= folded.orders)))
    if not keep.any():
        return folded
    both = pa.concat_arrays([folded.values, base])
    at = np.arange(len(base)) + np.where(keep, len(base), 0)
    return Folded(folded.rows, take(both, at), np.where(keep, own, folded.orders))


def count_operands(values: pa.Array) -> pa.Array:
    """Events for a `count` column: 1 where the event has a value, null where it has none."""
    ones = pa.array(np.ones(len(values), np.int64)).cast(values.type)
    return pa.compute.if_else(values.is_valid(), ones, pa.nulls(len(values), values.type))


def _reduce(rule: str) -> np.ufunc:
    return {"max": np.fmax, "min": np.fmin, "sum": np.add, "count": np.add, "any": np.logical_or}[rule]


def _zero(kind: pa.DataType) -> pa.Scalar:
    return pa.scalar(0, pa.int64()).cast(pa.int32() if kind.bit_width == 32 and pa.types.is_temporal(kind) else pa.int64()).cast(kind)


def _to_numpy(values: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_temporal(values.type):
        values = values.view(pa.int32() if values.type.bit_width == 32 else pa.int64())
    plain: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return plain


def _from_numpy(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_temporal(kind):
        return pa.array(values).view(kind)
    return pa.array(values, kind)
