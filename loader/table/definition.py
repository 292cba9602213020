"""From the arguments of `create_table` to a checked table definition."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from loader.catalog.records import Attribution, TableSpec
from loader.encodings.leaf import leaf_type
from loader.errors import SchemaError
from loader.schema import Schema
from loader.segment.key_index import is_key_type
from loader.segment.lookup_rows import can_hold
from loader.table.merge import ORDER_BASE_ID, check_rule
from loader.table.times import PARTITION_UNITS, is_time_type

DURABILITIES = ("strict", "relaxed")
MAX_BUCKETS = 4096
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")


def define(
    name: str,
    schema: pa.Schema | Schema,
    *,
    primary_key: Sequence[str],
    bucket_by: Sequence[str] | None,
    buckets: int,
    cluster_by: Sequence[str] | None,
    time_column: str | None,
    partition_by: str | None,
    merge: Mapping[str, str] | None,
    attribution: Attribution | None,
    durability: str,
    lookup_columns: Sequence[str] = (),
    resolve_horizon_seconds: int | None = None,
) -> TableSpec:
    """Check every argument against the schema.

    Raises:
        ValueError: An argument is out of range or missing.
        SchemaError: A column's type does not fit its use.
        ColumnNotFoundError: A named column is not in the schema.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"table name {name!r}: use a letter, then at most 127 letters, digits, '_', '.' or '-'")
    schema = Schema.from_arrow(schema) if isinstance(schema, pa.Schema) else schema
    for column in schema:
        if column.name.startswith("__") or column.id >= ORDER_BASE_ID:
            raise SchemaError(f"column name {column.name!r}: names that begin with two underscores are Headrace's own, choose another")
        leaf_type(column.type, column.name)
    keys = _key_columns(schema, "primary_key", primary_key)
    if not isinstance(buckets, int) or not 1 <= buckets <= MAX_BUCKETS:
        raise ValueError(f"buckets must be from 1 to {MAX_BUCKETS}, a whole number, not {buckets!r}")
    if durability not in DURABILITIES:
        raise ValueError(f"durability is 'strict' or 'relaxed', not {durability!r}")
    time_id = None if time_column is None else _time_column(schema, time_column)
    if partition_by is not None and (time_id is None or partition_by not in PARTITION_UNITS):
        raise ValueError(f"partition_by is one of {', '.join(PARTITION_UNITS)} and needs a time_column, not {partition_by!r} of {time_column!r}")
    rules = dict(merge or {})
    for column_name, rule in rules.items():
        check_rule(schema.column(column_name), rule)
    _check_attribution(schema, attribution, time_column)
    _check_horizon(resolve_horizon_seconds, time_column)
    return TableSpec(
        id=0,
        name=name,
        schema=schema,
        schema_id=1,
        primary_key_ids=keys,
        bucket_by_ids=keys if bucket_by is None else _key_columns(schema, "bucket_by", bucket_by),
        buckets=buckets,
        cluster_by_ids=_cluster_columns(schema, cluster_by or ()),
        time_column_id=time_id,
        partition_by=partition_by,
        merge_by_id={schema.column(column_name).id: rule for column_name, rule in rules.items()},
        attribution=attribution,
        durability=durability,
        lookup_column_ids=held_columns(schema, lookup_columns),
        resolve_horizon_seconds=resolve_horizon_seconds,
    )


def held_columns(schema: Schema, names: Sequence[str]) -> tuple[int, ...]:
    """The ids of columns that may be kept as rows for look-ups.

    Raises:
        ColumnNotFoundError: One is not in the table.
        SchemaError: One is of a type that rows do not hold.
    """
    if isinstance(names, str):
        raise ValueError(f"lookup_columns is a list of column names, not {names!r}")
    columns = schema.select(names)
    for column in columns:
        if not can_hold(column.type):
            raise SchemaError(
                f"lookup column {column.name!r} is {column.type}: rows for look-ups hold fixed-width values, strings, binary, and lists of numbers"
            )
    return tuple(dict.fromkeys(column.id for column in columns))


def _check_horizon(seconds: int | None, time_column: str | None) -> None:
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int) or seconds <= 0:
        raise ValueError(f"resolve_horizon_seconds must be a whole number above 0, not {seconds!r}")
    if time_column is None:
        raise ValueError("resolve_horizon_seconds needs a time_column: the age of a row is counted from its time")


def _key_columns(schema: Schema, argument: str, names: Sequence[str]) -> tuple[int, ...]:
    if isinstance(names, str) or not names:
        raise ValueError(f"{argument} is a list of at least one column name, not {names!r}")
    columns = schema.select(names)
    for column in columns:
        if not is_key_type(column.type):
            raise SchemaError(f"{argument} column {column.name!r} is {column.type}: use integers, booleans, dates, timestamps, strings or binary")
    return tuple(column.id for column in columns)


def _cluster_columns(schema: Schema, names: Sequence[str]) -> tuple[int, ...]:
    if isinstance(names, str):
        raise ValueError(f"cluster_by is a list of column names, not {names!r}")
    columns = schema.select(names)
    for column in columns:
        if pa.types.is_nested(column.type) or pa.types.is_float16(column.type):  # Arrow does not sort either
            raise SchemaError(f"cluster_by column {column.name!r} is {column.type}, which has no order: leave it out")
    return tuple(column.id for column in columns)


def _time_column(schema: Schema, name: str) -> int:
    column = schema.column(name)
    if not is_time_type(column.type):
        raise SchemaError(f"time column {name!r} is {column.type}: use a timestamp, a date, or an integer of seconds")
    return column.id


def _check_attribution(schema: Schema, attribution: Attribution | None, time_column: str | None) -> None:
    if attribution is None:
        return
    column = schema.column(attribution.column)
    if time_column is None:
        raise ValueError("attribution needs a time_column: a window is counted from a row's time")
    if not isinstance(attribution.window_seconds, int) or attribution.window_seconds < 0:
        raise ValueError(f"attribution window_seconds must be a whole number and not negative, not {attribution.window_seconds!r}")
    if not column.nullable:
        raise SchemaError(f"label column {column.name!r} must be nullable: it is null until its label comes")
    try:
        json.dumps(attribution.default)  # as the catalog keeps it
        pa.scalar(attribution.default, column.type)
    except (TypeError, OverflowError, pa.ArrowInvalid) as error:
        raise SchemaError(f"attribution default {attribution.default!r} is no {column.type} of column {column.name!r}: {error}") from error
