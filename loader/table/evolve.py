"""Schema evolution by column id: add, drop, rename, widen and reorder columns. The changes are pure functions of a Schema; `evolve` commits one.

No data is rewritten. A snapshot is read by the schema it was committed with, and a segment by column ids: what it lacks reads as the column's default, what it
holds in a narrower type is widened when it is read. Writers that were prepared under the schema before are refused, and repeat.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from loader import failpoints
from loader.catalog.commit import Stale, commit
from loader.catalog.read import load_head, load_spec_by_id
from loader.catalog.records import CommitPlan, Snapshot, TableSpec
from loader.encodings.leaf import leaf_type
from loader.errors import AlreadyExistsError, ConflictError, SchemaError
from loader.schema import Column, Schema
from loader.table.context import TableContext
from loader.table.merge import check_rule

MAX_TRIES = 8
_INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
_UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
_FLOATS = (pa.float16(), pa.float32(), pa.float64())
_WIDER: dict[pa.DataType, tuple[pa.DataType, ...]] = {
    **{kind: family[at + 1 :] for family in (_INTEGERS, _UNSIGNED, _FLOATS) for at, kind in enumerate(family)},
    pa.string(): (pa.large_string(),),
    pa.binary(): (pa.large_binary(),),
}
Change = Callable[[TableSpec], TableSpec]


def add_column(field: pa.Field, *, default: Any, merge: str | None) -> Change:
    """A column at the end, with an id of its own."""

    def change(spec: TableSpec) -> TableSpec:
        if field.name in spec.schema:
            raise AlreadyExistsError(f"table {spec.name!r} has a column {field.name!r} already: choose another name, or drop it first")
        if field.name.startswith("__"):
            raise SchemaError(f"column name {field.name!r}: names that begin with two underscores are Headrace's own, choose another")
        leaf_type(field.type, field.name)
        if default is None and not field.nullable:
            raise SchemaError(f"column {field.name!r} may not be null, and the rows that are there need a value: give default=…, or make it nullable")
        try:
            value = None if default is None else pa.scalar(default, field.type)
        except (TypeError, OverflowError, pa.ArrowInvalid) as error:
            raise SchemaError(f"default {default!r} is no {field.type} of column {field.name!r}: {error}") from error
        column = Column(id=spec.schema.next_id, name=field.name, type=field.type, nullable=field.nullable, metadata=field.metadata, default=value)
        rules = dict(spec.merge_by_id)
        if merge is not None:
            check_rule(column, merge)
            rules[column.id] = merge
        schema = dataclasses.replace(spec.schema, columns=(*spec.schema.columns, column), next_id=column.id + 1)
        return dataclasses.replace(spec, schema=schema, merge_by_id=rules)

    return change


def drop_column(name: str) -> Change:
    """Without a column; its id is never used again."""

    def change(spec: TableSpec) -> TableSpec:
        column = spec.schema.column(name)
        uses = {
            "primary_key": spec.primary_key,
            "bucket_by": spec.bucket_by,
            "cluster_by": spec.cluster_by,
            "time_column": [] if spec.time_column is None else [spec.time_column.name],
            "attribution": [] if spec.attribution is None else [spec.attribution.column],
        }
        used = [use for use, names in uses.items() if name in names]
        if used:
            raise SchemaError(f"column {name!r} of table {spec.name!r} is part of its {used[0]} and cannot be dropped")
        if len(spec.schema) == 1:
            raise SchemaError(f"column {name!r} is the last one of table {spec.name!r}: drop the table instead")
        return _with_columns(spec, [other for other in spec.schema if other.id != column.id])

    return change


def rename_column(old: str, new: str) -> Change:
    """Another name for the same column, in keys, order and attribution too."""

    def change(spec: TableSpec) -> TableSpec:
        column = spec.schema.column(old)
        if new != old and new in spec.schema:
            raise AlreadyExistsError(f"table {spec.name!r} has a column {new!r} already: choose another name")
        if not new or new.startswith("__"):
            raise SchemaError(f"column name {new!r}: it is empty or begins with two underscores, which are Headrace's own; choose another")
        attribution = spec.attribution
        if attribution is not None and attribution.column == old:
            attribution = dataclasses.replace(attribution, column=new)
        renamed = _with_columns(spec, [dataclasses.replace(other, name=new) if other.id == column.id else other for other in spec.schema])
        return dataclasses.replace(renamed, attribution=attribution)

    return change


def widen_column(name: str, kind: pa.DataType) -> Change:
    """A type that holds every value of the present one."""

    def change(spec: TableSpec) -> TableSpec:
        column = spec.schema.column(name)
        if not is_wider(column.type, kind):
            allowed = ", ".join(map(str, _WIDER.get(column.type, ()))) or "none"
            raise SchemaError(f"column {name!r} is {column.type} and cannot become {kind}: wider types are {allowed}; for another, add a column")
        if spec.primary_key == [name] and pa.types.is_uint64(kind):
            raise SchemaError(
                f"column {name!r} is the key of table {spec.name!r}, whose rows are found by signed integers: it is {column.type} and cannot become {kind}"
            )
        leaf_type(kind, name)
        default = None if column.default is None else column.default.cast(kind)
        return _with_columns(spec, [dataclasses.replace(other, type=kind, default=default) if other.id == column.id else other for other in spec.schema])

    return change


def reorder_columns(names: Sequence[str]) -> Change:
    """The named columns first, the others after them in the order they have."""

    def change(spec: TableSpec) -> TableSpec:
        first = spec.schema.select(names)
        if len({column.id for column in first}) < len(first):
            raise ValueError(f"a column is named twice in {list(names)}")
        chosen = {column.id for column in first}
        return _with_columns(spec, [*first, *(column for column in spec.schema if column.id not in chosen)])

    return change


def _with_columns(spec: TableSpec, columns: Sequence[Column]) -> TableSpec:
    return dataclasses.replace(spec, schema=dataclasses.replace(spec.schema, columns=tuple(columns)))


def is_wider(narrow: pa.DataType, wide: pa.DataType) -> bool:
    """Whether a type holds every value of another one, as widening a column needs."""
    if pa.types.is_fixed_size_list(narrow):
        return pa.types.is_fixed_size_list(wide) and narrow.list_size == wide.list_size and is_wider(narrow.value_type, wide.value_type)
    for is_kind in (pa.types.is_list, pa.types.is_large_list):
        if is_kind(narrow):
            return bool(is_kind(wide)) and is_wider(narrow.value_type, wide.value_type)
    return wide in _WIDER.get(narrow, ())


def evolve(context: TableContext, change: Change, *, commit_id: str | None) -> Snapshot:
    """Commit a change of the schema as a snapshot; tried again on the newest schema where others change it at the same time.

    Raises:
        ConflictError: Others changed the table again and again.
    """
    name = commit_id or uuid.uuid4().hex
    known = context.answered(name, None)
    if known is not None:
        return known
    for _ in range(MAX_TRIES):
        with context.catalog.read() as connection:
            spec = load_spec_by_id(connection, context.spec.id)
            head = load_head(connection, spec)
        changed = change(spec)
        failpoints.hit("evolve.prepared")
        plan = CommitPlan(spec=spec, kind="schema", commit_id=name, base=head, evolved=changed, summary=_summary(spec.schema, changed.schema))
        try:
            done = commit(context.catalog, plan)
        except ConflictError:
            continue  # the schema changed in between
        if not isinstance(done, Stale):
            return done
    raise ConflictError(f"the schema of table {context.spec.name!r} changed {MAX_TRIES} times under this change of it: try again")


def _summary(before: Schema, after: Schema) -> dict[str, Any]:
    old, new = {column.id: column for column in before}, {column.id: column for column in after}
    return {
        "columns_added": [column.name for column in after if column.id not in old],
        "columns_dropped": [column.name for column in before if column.id not in new],
        "columns_changed": [new[column_id].name for column_id in new.keys() & old.keys() if new[column_id] != old[column_id]],
    }
