"""What a predicate says of single columns, for pruning: each conjunct that is clear, as a range, a list of values, or a claim about nulls.

Every row that the predicate selects fits all facts; a row that fits them need not be selected, unless `is_exact`. Anything unclear is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from sqlglot import exp

from loader.schema import plain_type

Number = int | float
COMPARE: dict[type[Any], str] = {
    exp.EQ: "equal",
    exp.NEQ: "not_equal",
    exp.LT: "less",
    exp.LTE: "less_equal",
    exp.GT: "greater",
    exp.GTE: "greater_equal",
}
MIRRORED = {"less": "greater", "less_equal": "greater_equal", "greater": "less", "greater_equal": "less_equal", "equal": "equal"}
MAX_VALUES = 64  # of an IN list that are looked at one by one
LiteralOf = Callable[[Any], Any]  # of a node; None where it is no literal
AsScalar = Callable[[Any, pa.DataType, Any], pa.Scalar]  # (literal, type of the column, the node, for an error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """What holds of a column in every selected row.

    Attributes:
        low, high: Inclusive, as the stored integer or float; None is open.
        text_low, text_high: Inclusive, of text, as UTF-8.
        values: It is one of these, in the column's type; None is any.
        nulls: "none" is null, "all" are, or None where nothing is said.
    """

    low: Number | None = None
    high: Number | None = None
    text_low: bytes | None = None
    text_high: bytes | None = None
    values: tuple[pa.Scalar, ...] | None = None
    nulls: str | None = None

    def merge(self, other: Fact) -> Fact:
        """Both."""
        return Fact(
            low=_tighter(self.low, other.low, max),
            high=_tighter(self.high, other.high, min),
            text_low=_tighter(self.text_low, other.text_low, max),
            text_high=_tighter(self.text_high, other.text_high, min),
            values=self.values if other.values is None else other.values,
            nulls=self.nulls or other.nulls,
        )

    @property
    def is_range(self) -> bool:
        return self.low is not None or self.high is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a predicate says.

    Attributes:
        columns: By name.
        is_exact: A row is selected where its columns are not null and lie in their ranges; all of them are whole numbers or times.
    """

    columns: dict[str, Fact] = dataclasses.field(default_factory=dict)
    is_exact: bool = False


def _tighter(one: Any, other: Any, choose: Callable[[Any, Any], Any]) -> Any:
    return other if one is None else one if other is None else choose(one, other)


def family_of(kind: pa.DataType) -> str:
    """What a type compares with: truth, number, time, text, or itself."""
    if pa.types.is_boolean(kind):
        return "truth"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_temporal(kind):
        return "time"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    return str(kind)


def stored(scalar: pa.Scalar) -> Number | None:
    """A scalar as the number that a segment stores; None where that is unclear."""
    if pa.types.is_temporal(scalar.type):
        scalar = scalar.cast(pa.int32() if pa.types.is_date32(scalar.type) else pa.int64())
    value = scalar.as_py()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def facts_of(tree: Any, schema: pa.Schema, literal_of: LiteralOf, as_scalar: AsScalar) -> Facts:
    """The facts of a checked expression.

    Args:
        tree: As sqlglot parses it.
        schema: Types of its columns.
        literal_of: The value of a literal.
        as_scalar: A literal as what compares with values of a type.
    """
    found: dict[str, Fact] = {}
    exact = True
    reader = _Reader(schema, literal_of, as_scalar)
    for node in _conjuncts(tree):
        fact = reader.fact(node)
        if fact is None:
            exact = False
            continue
        name, said, is_exact = fact
        exact &= is_exact
        found[name] = found[name].merge(said) if name in found else said
    return Facts(columns=found, is_exact=exact and bool(found))


def _conjuncts(tree: Any) -> list[Any]:
    node = tree.unnest()
    return [part for side in node.flatten() for part in _conjuncts(side)] if isinstance(node, exp.And) else [node]


class _Reader:
    """Reads single conjuncts."""

    def __init__(self, schema: pa.Schema, literal_of: LiteralOf, as_scalar: AsScalar) -> None:
        self._schema, self._literal_of, self._as_scalar = schema, literal_of, as_scalar

    def _type(self, name: str) -> pa.DataType:
        return plain_type(self._schema.field(name).type)

    def fact(self, node: Any) -> tuple[str, Fact, bool] | None:
        """(column, what is said of it, whether that is all that the conjunct says); None where it is unclear."""
        if isinstance(node, exp.Between) and isinstance(node.this, exp.Column):
            ends = self._range(node.this.name, "greater_equal", node.args["low"]), self._range(node.this.name, "less_equal", node.args["high"])
            return None if None in ends else (node.this.name, ends[0][0].merge(ends[1][0]), ends[0][1] and ends[1][1])  # type: ignore[index]
        if isinstance(node, exp.In) and isinstance(node.this, exp.Column) and not node.args.get("query"):
            return self._member(node)
        if isinstance(node, exp.Is) and isinstance(node.this, exp.Column) and isinstance(node.expression, exp.Null):
            return node.this.name, Fact(nulls="all"), False
        if isinstance(node, exp.Not):
            inner = node.this.unnest()
            if isinstance(inner, exp.Is) and isinstance(inner.this, exp.Column) and isinstance(inner.expression, exp.Null):
                return inner.this.name, Fact(nulls="none"), False
        if type(node) in COMPARE and not isinstance(node, exp.NEQ):
            operator, left, right = COMPARE[type(node)], node.this, node.expression
            if isinstance(right, exp.Column) and not isinstance(left, exp.Column):
                operator, left, right = MIRRORED[operator], right, left
            if isinstance(left, exp.Column) and not right.find(exp.Column):
                said = self._range(left.name, operator, right)
                return None if said is None else (left.name, *said)
        return None

    def _scalar(self, name: str, node: Any) -> pa.Scalar | None:
        """A literal in the type of a column."""
        kind, value = self._type(name), self._literal_of(node)
        if value is None or isinstance(value, bool) or family_of(kind) not in ("number", "time", "text"):
            return None
        return self._as_scalar(value, kind, node)

    def _range(self, name: str, operator: str, node: Any) -> tuple[Fact, bool] | None:
        scalar = self._scalar(name, node)
        if scalar is None:
            return None
        values = (scalar,) if operator == "equal" and scalar.type == self._type(name) else None
        if family_of(scalar.type) == "text":
            text = scalar.as_py().encode()
            low, high = text if not operator.startswith("less") else None, text if not operator.startswith("greater") else None
            return Fact(text_low=low, text_high=high, values=values, nulls="none"), False
        value = stored(scalar)
        if value is None:
            return None
        strict = 1 if isinstance(value, int) and operator in ("less", "greater") else 0  # whole numbers: the neighbour
        low = value + strict if not operator.startswith("less") else None
        high = value - strict if not operator.startswith("greater") else None
        return Fact(low=low, high=high, values=values, nulls="none"), isinstance(value, int)

    def _member(self, node: Any) -> tuple[str, Fact, bool] | None:
        name = node.this.name
        kind = self._type(name)
        scalars = [self._scalar(name, item) for item in node.expressions]
        if not scalars or any(scalar is None for scalar in scalars):
            return None
        fitting = tuple(scalar for scalar in scalars if scalar is not None and scalar.type == kind)
        values = fitting if len(scalars) <= MAX_VALUES else None
        if not fitting or len(fitting) < len(scalars):
            return name, Fact(nulls="none"), False  # a value that no row of this type has: what is left is not worth a range
        if family_of(kind) == "text":
            texts = [scalar.as_py().encode() for scalar in fitting]
            return name, Fact(text_low=min(texts), text_high=max(texts), values=values, nulls="none"), False
        numbers = [number for scalar in fitting if (number := stored(scalar)) is not None]
        if len(numbers) < len(fitting):
            return name, Fact(nulls="none"), False
        return name, Fact(low=min(numbers), high=max(numbers), values=values, nulls="none"), False
