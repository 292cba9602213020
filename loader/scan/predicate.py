"""`where` texts: a safe subset of SQL boolean expressions, parsed by sqlglot, as normalised text, columns, bounds and an Arrow expression.

Owns what a predicate may say. Evaluates over Arrow tables in memory; reads nothing. SQL's three-valued logic holds: a row is selected where the
predicate is true, not where it is null.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.acero as acero
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from loader.errors import ColumnNotFoundError, did_you_mean
from loader.scan.facts import COMPARE, Facts, facts_of, family_of
from loader.schema import plain_type

ALLOWED = "allowed are: = <> < <= > >=, AND OR NOT, IN (…), BETWEEN … AND …, IS [NOT] NULL, + - * /, numbers, 'text', TRUE, FALSE, DATE '…', TIMESTAMP '…'"

_QUERY = "SELECT 1 WHERE "
ARITHMETIC: dict[type[Any], str] = {exp.Add: "add_checked", exp.Sub: "subtract_checked", exp.Mul: "multiply_checked", exp.Div: "divide"}
TIME_TYPES = {exp.DataType.Type.DATE: "date", exp.DataType.Type.TIMESTAMP: "timestamp", exp.DataType.Type.TIMESTAMPTZ: "timestamp"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicate:
    """A parsed predicate.

    Attributes:
        text: Normalised SQL; equal texts select equal rows.
        columns: The columns it reads, sorted.
        expression: The same as an Arrow compute expression.
        facts: What holds of single columns in every selected row, for pruning.
    """

    text: str
    columns: tuple[str, ...]
    expression: pc.Expression
    facts: Facts = dataclasses.field(default_factory=Facts)

    @property
    def bounds(self) -> dict[str, tuple[float | None, float | None]]:
        """Inclusive (low, high) that a selected row's value must lie in, by column, as the stored integer or float; None is open."""
        return {name: (fact.low, fact.high) for name, fact in self.facts.columns.items() if fact.is_range}

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows are selected: bool [rows]. `table` has at least the predicate's columns."""
        source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table.select(list(self.columns))))
        project = acero.Declaration("project", acero.ProjectNodeOptions([self.expression], ["selected"]), inputs=[source])
        if not self.columns:
            value = pa.table({"one": pa.nulls(1)}).filter(self.expression).num_rows
            return np.full(table.num_rows, bool(value))
        try:
            selected = project.to_table(use_threads=False).column(0)
        except pa.ArrowInvalid as error:
            raise ValueError(f"where {self.text!r} cannot be evaluated: {error}") from error
        return np.asarray(selected.fill_null(False).combine_chunks()).astype(np.bool_)


def parse(text: str, schema: pa.Schema) -> Predicate:
    """Parse and check a predicate.

    Args:
        text: A SQL boolean expression. Names are case-sensitive; quote odd ones with double quotes.
        schema: The columns it may name.

    Raises:
        ColumnNotFoundError: It names a column that is not there.
        ValueError: It does not parse, or says something that is not allowed; the message says what is.
    """
    tree = _tree(text)
    for node in tree.walk():
        node.comments = None
    compiled = _Compiler(text, schema)
    result = compiled.visit(tree)
    if result.type is None or not pa.types.is_boolean(result.type):
        raise ValueError(f"where {text!r} is {result.type or 'a literal'}, not true or false; compare it with something")
    return Predicate(text=tree.sql(), columns=tuple(sorted(compiled.columns)), expression=result.expression, facts=compiled.facts(tree))


def _tree(text: str) -> Any:
    """The expression, parsed where it stands in a query: alone, one that begins with a column called `comment` or `set` would be a statement."""
    try:
        statements = sqlglot.parse(_QUERY + text)
    except SqlglotError as error:
        details = getattr(error, "errors", None) or [{}]
        where = f" near {details[0]['highlight']!r}" if details[0].get("highlight") else ""
        raise ValueError(f"where {text!r} is not a SQL expression{where}; {ALLOWED}") from None
    query = statements[0]
    if len(statements) > 1 or not isinstance(query, exp.Select) or {name for name, part in query.args.items() if part} != {"expressions", "where"}:
        raise ValueError(f"where {text!r} is more than one SQL expression; {ALLOWED}")
    return query.args["where"].this


@dataclasses.dataclass(frozen=True)
class _Term:
    """A compiled subexpression; `literal` is set, and `type` may be None, where it is a literal that takes its neighbour's type."""

    expression: Any
    type: pa.DataType | None
    literal: Any = None


class _Compiler:
    """One pass over a sqlglot tree. Anything without a method here is refused."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.text = text
        self.schema = schema
        self.columns: set[str] = set()

    def refuse(self, what: str) -> ValueError:
        return ValueError(f"where {self.text!r}: {what}; {ALLOWED}")

    def facts(self, tree: Any) -> Facts:
        return facts_of(tree, self.schema, lambda node: self.visit(node).literal, self.as_type)

    def visit(self, node: Any) -> _Term:
        for kind, method in self.METHODS.items():
            if isinstance(node, kind):
                return method(self, node)
        name = node.name if isinstance(node, exp.Anonymous) else node.sql_name() if isinstance(node, exp.Func) else type(node).__name__.upper()
        raise self.refuse(f"{name} is not allowed in {node.sql()!r}")

    def paren(self, node: Any) -> _Term:
        return self.visit(node.this)

    def column(self, node: Any) -> _Term:
        name = node.name
        if node.args.get("table") or name not in self.schema.names:
            raise ColumnNotFoundError(f"where {self.text!r} names no column of the table: {node.sql()!r}; {did_you_mean(name, self.schema.names)}")
        self.columns.add(name)
        kind = self.schema.field(name).type
        plain = plain_type(kind)
        return _Term(pc.field(name) if plain is kind else pc.field(name).cast(plain), plain)

    def literal(self, node: Any) -> _Term:
        if node.is_string:
            return _Term(pc.scalar(node.name), None, node.name)
        value = int(node.name) if node.name.isdigit() else float(node.name)
        return _Term(pc.scalar(value if value < 2**63 else float(value)), None, value)

    def boolean(self, node: Any) -> _Term:
        return _Term(pc.scalar(bool(node.this)), pa.bool_(), bool(node.this))

    def negative(self, node: Any) -> _Term:
        inner = self.visit(node.this)
        if isinstance(inner.literal, (int, float)) and inner.type is None:
            return _Term(pc.scalar(-inner.literal), None, -inner.literal)
        return _Term(_call("negate_checked", self.number(inner, node)), inner.type)

    def cast(self, node: Any) -> _Term:
        kind = TIME_TYPES.get(node.to.this)
        if kind is None or not isinstance(node.this, exp.Literal) or not node.this.is_string:
            raise self.refuse(f"{node.sql()!r} is a cast, and only DATE '…' and TIMESTAMP '…' of a text are allowed")
        value = self.time(node.this.name, pa.date32() if kind == "date" else pa.timestamp("us"))
        return _Term(pc.scalar(value), None, value.as_py())

    def both(self, node: Any) -> _Term:
        left, right = (self.truth(side) for side in (node.this, node.expression))
        return _Term(_call("and_kleene" if isinstance(node, exp.And) else "or_kleene", left, right), pa.bool_())

    def invert(self, node: Any) -> _Term:
        return _Term(_call("invert", self.truth(node.this)), pa.bool_())

    def compare(self, node: Any) -> _Term:
        left, right = self.align(self.visit(node.this), self.visit(node.expression), node)
        return _Term(_call(COMPARE[type(node)], left, right), pa.bool_())

    def between(self, node: Any) -> _Term:
        value = self.visit(node.this)
        low = _call("greater_equal", *self.align(value, self.visit(node.args["low"]), node))
        high = _call("less_equal", *self.align(value, self.visit(node.args["high"]), node))
        return _Term(_call("and_kleene", low, high), pa.bool_())

    def member(self, node: Any) -> _Term:
        if not node.expressions:
            raise self.refuse(f"{node.sql()!r} needs a list of literals")
        value = self.visit(node.this)
        if value.type is None:
            raise self.refuse(f"{node.sql()!r} has a literal before IN")
        scalars = []
        for item in node.expressions:
            term = self.visit(item)
            if term.literal is None:
                raise self.refuse(f"{item.sql()!r} in an IN list is not a literal")
            scalars.append(self.as_type(term.literal, value.type, node))
        if pa.types.is_integer(value.type):
            scalars = [scalar for scalar in scalars if scalar.type == value.type]  # no row has one that is not
        found = [_call("equal", value.expression, pc.scalar(scalar)) for scalar in scalars]
        if 0 < len(found) <= 4:
            return _Term(functools.reduce(lambda a, b: _call("or_kleene", a, b), found), pa.bool_())
        listed = value.expression.isin(pa.array([scalar.as_py() for scalar in scalars], scalars[0].type if scalars else value.type))
        return _Term(pc.if_else(value.expression.is_valid(), listed, pc.scalar(pa.scalar(None, pa.bool_()))), pa.bool_())

    def is_null(self, node: Any) -> _Term:
        value = self.visit(node.this)
        if isinstance(node.expression, exp.Null):
            return _Term(value.expression.is_null(), pa.bool_())
        if isinstance(node.expression, exp.Boolean):
            same = _call("equal", self.truth(node.this), pc.scalar(bool(node.expression.this)))
            return _Term(pc.coalesce(same, pc.scalar(False)), pa.bool_())
        raise self.refuse(f"{node.sql()!r} tests for something else than NULL, TRUE or FALSE")

    def arithmetic(self, node: Any) -> _Term:
        sides = [self.visit(node.this), self.visit(node.expression)]
        numbers = [self.number(side, node) for side in sides]
        types = [side.type or (pa.float64() if isinstance(side.literal, float) else pa.int64()) for side in sides]
        if isinstance(node, exp.Div):
            return _Term(_call("divide", *(number.cast(pa.float64()) for number in numbers)), pa.float64())
        floats = any(pa.types.is_floating(kind) for kind in types)
        kind = pa.float64() if floats else pa.int64()
        return _Term(_call(ARITHMETIC[type(node)], *(number.cast(kind) for number in numbers)), kind)

    def truth(self, node: Any) -> Any:
        term = self.visit(node)
        if term.type is None or not pa.types.is_boolean(term.type):
            raise self.refuse(f"{node.sql()!r} is not true or false")
        return term.expression

    def number(self, term: _Term, node: Any) -> Any:
        numeric = isinstance(term.literal, (int, float)) if term.type is None else pa.types.is_integer(term.type) or pa.types.is_floating(term.type)
        if not numeric:
            raise self.refuse(f"{node.sql()!r} calculates with {term.type or repr(term.literal)}, which is not a number")
        return term.expression

    def align(self, left: _Term, right: _Term, node: Any) -> tuple[Any, Any]:
        """Two sides of a comparison; a literal takes the type of the other side."""
        if left.type is not None and right.type is not None:
            if family_of(left.type) != family_of(right.type):
                raise self.refuse(f"{node.sql()!r} compares {left.type} with {right.type}")
            return left.expression, right.expression
        if left.type is not None:
            scalar = self.as_type(right.literal, left.type, node)
            return _comparable(left, scalar), pc.scalar(scalar)
        if right.type is not None:
            scalar = self.as_type(left.literal, right.type, node)
            return pc.scalar(scalar), _comparable(right, scalar)
        raise self.refuse(f"{node.sql()!r} compares two literals")

    def as_type(self, value: Any, kind: pa.DataType, node: Any) -> pa.Scalar:
        """A literal as a scalar that compares with values of `kind`."""
        family = family_of(kind)
        if family == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return _number(value, kind)
        if family == "time" and isinstance(value, (str, datetime.date)):
            return self.time(value if isinstance(value, str) else value.isoformat(), kind)
        if family == "time" and isinstance(value, int):
            return pa.scalar(value, pa.int32() if pa.types.is_date32(kind) else pa.int64()).cast(kind)
        if (family == "text" and isinstance(value, str)) or (family == "truth" and isinstance(value, bool)):
            return pa.scalar(value, kind)
        raise self.refuse(f"{node.sql()!r} compares {kind} with {value!r}")

    def time(self, text: str, kind: pa.DataType) -> pa.Scalar:
        try:
            moment = datetime.datetime.fromisoformat(text)
            if moment.tzinfo is not None:
                moment = moment.astimezone(datetime.timezone.utc).replace(tzinfo=None)
            scalar = pa.scalar(moment, pa.timestamp("us"))
            zone = getattr(kind, "tz", None)
            return pc.cast(scalar, pa.timestamp(kind.unit)).cast(kind) if zone else pc.cast(scalar, kind)
        except (ValueError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise self.refuse(f"{text!r} does not read as {kind} (ISO 8601 does)") from None

    METHODS: dict[type[Any], Callable[[_Compiler, Any], _Term]] = {
        exp.Paren: paren,
        exp.Column: column,
        exp.Literal: literal,
        exp.Boolean: boolean,
        exp.Neg: negative,
        exp.Cast: cast,
        exp.And: both,
        exp.Or: both,
        exp.Not: invert,
        exp.Between: between,
        exp.In: member,
        exp.Is: is_null,
        **dict.fromkeys(COMPARE, compare),
        **dict.fromkeys(ARITHMETIC, arithmetic),
    }


def _call(function: str, *arguments: Any) -> Any:
    return pc.Expression._call(function, list(arguments))


def _number(value: float, kind: pa.DataType) -> pa.Scalar:
    """The number in the column's type; what no row of the column can equal as float64: a fraction of an integer column, infinity for what is out of range."""
    if isinstance(value, float) and value.is_integer() and pa.types.is_integer(kind):
        value = int(value)
    try:
        return pa.scalar(value, kind if isinstance(value, int) or pa.types.is_floating(kind) else pa.float64())
    except (pa.ArrowInvalid, OverflowError):
        return pa.scalar(math.inf if value > 0 else -math.inf)


def _comparable(column: _Term, scalar: pa.Scalar) -> Any:
    """The column as it compares with a literal: an integer keeps its side of one that it cannot equal when it is rounded, which Arrow refuses unasked."""
    return column.expression.cast(pa.float64(), safe=False) if pa.types.is_integer(column.type) and pa.types.is_floating(scalar.type) else column.expression
