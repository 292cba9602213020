"""Column types and the table schema: stable column ids, logical Arrow types, and the physical leaf type each one stores.

Owns the mapping between Arrow and the segment format's value types. Knows nothing of files, catalogs or tensors.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.errors import ColumnNotFoundError, SchemaError, UnsupportedVersionError, did_you_mean

JSON_VERSION = 1
MERGE_RULES = ("last", "first", "max", "min", "sum", "count", "any")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes:
        id: Stable number, never reused; renaming a column keeps it.
        name: Current name.
        type: Logical Arrow type.
        nullable: Whether nulls are allowed.
        metadata: Arrow field metadata, carried through untouched.
        default: What a row reads as that was written without the column, before it was there or since; None is null.
    """

    id: int
    name: str
    type: pa.DataType
    nullable: bool = True
    metadata: dict[bytes, bytes] | None = None
    default: pa.Scalar | None = None

    def to_arrow(self) -> pa.Field:
        return pa.field(self.name, self.type, nullable=self.nullable, metadata=self.metadata)

    def missing(self, num_rows: int) -> pa.Array:
        """So many rows that were written without the column."""
        return pa.nulls(num_rows, self.type) if self.default is None else pa.repeat(self.default, num_rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """The columns of a table, in order, with the metadata of their Arrow schema.

    Attributes:
        columns: In the order users see.
        next_id: The id the next added column gets.
        metadata: Arrow schema metadata.
    """

    columns: tuple[Column, ...]
    next_id: int
    metadata: dict[bytes, bytes] | None = None

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise SchemaError(f"column {twice[0]!r} stands twice in the schema: rename one")

    @classmethod
    def from_arrow(cls, schema: pa.Schema) -> Schema:
        """Number the fields of an Arrow schema 1, 2, 3…"""
        columns = tuple(
            Column(id=index + 1, name=field.name, type=field.type, nullable=field.nullable, metadata=field.metadata) for index, field in enumerate(schema)
        )
        return cls(columns=columns, next_id=len(columns) + 1, metadata=schema.metadata)

    def to_arrow(self) -> pa.Schema:
        return self._arrow

    @functools.cached_property
    def _arrow(self) -> pa.Schema:
        return pa.schema([column.to_arrow() for column in self.columns], metadata=self.metadata)

    @functools.cached_property
    def required(self) -> tuple[Column, ...]:
        """The columns that hold no nulls."""
        return tuple(column for column in self.columns if not column.nullable)

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __contains__(self, name: object) -> bool:
        return any(column.name == name for column in self.columns)

    def column(self, name: str) -> Column:
        """The column of this name.

        Raises:
            ColumnNotFoundError: There is none; the message names the closest.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise ColumnNotFoundError(f"no column {name!r}: {did_you_mean(name, self.names)}")

    def select(self, names: Sequence[str] | None) -> tuple[Column, ...]:
        """The named columns in the given order, or all of them."""
        return self.columns if names is None else tuple(self.column(name) for name in names)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back without loss; types travel as Arrow's own IPC schema message."""
        message = self.to_arrow().serialize().to_pybytes()
        value = {"version": JSON_VERSION, "ids": [column.id for column in self.columns], "next_id": self.next_id, "arrow": base64.b64encode(message).decode()}
        defaults = {str(column.id): column.default for column in self.columns if column.default is not None}
        if defaults:
            batch = pa.record_batch([pa.array([default.as_py()], default.type) for default in defaults.values()], names=list(defaults))
            value["defaults"] = base64.b64encode(_ipc_stream(batch)).decode()
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Schema:
        """The schema that `to_json` wrote.

        Raises:
            UnsupportedVersionError: A newer Headrace wrote it.
        """
        if value["version"] > JSON_VERSION:
            raise UnsupportedVersionError(
                f"the schema has version {value['version']}, this Headrace reads up to {JSON_VERSION}: upgrade with `pip install --upgrade headrace`"
            )
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(value["arrow"])))
        defaults: dict[str, pa.Scalar] = {}
        if "defaults" in value:
            batch = pa.ipc.open_stream(pa.py_buffer(base64.b64decode(value["defaults"]))).read_next_batch()
            defaults = {name: batch.column(at)[0] for at, name in enumerate(batch.schema.names)}
        columns = tuple(
            Column(id=column_id, name=field.name, type=field.type, nullable=field.nullable, metadata=field.metadata, default=defaults.get(str(column_id)))
            for column_id, field in zip(value["ids"], schema, strict=True)
        )
        return cls(columns=columns, next_id=value["next_id"], metadata=schema.metadata)


def _ipc_stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the same values that Arrow's kernels know: of string and binary views the large types, of dictionaries their values'."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def take(data: Any, rows: npt.NDArray[Any]) -> Any:
    """Rows of an array, chunked array or table by number: `data.take`, and what Arrow cannot take, string and binary views, by way of the large types."""
    if isinstance(data, pa.Table):
        return pa.Table.from_arrays([take(column, rows) for column in data.columns], schema=data.schema)
    kind = data.type
    if pa.types.is_dictionary(kind) or plain_type(kind) is kind:
        return data.take(pa.array(rows))
    return data.cast(plain_type(kind)).take(pa.array(rows)).cast(kind)


def keep(data: pa.Table, mask: npt.NDArray[np.bool_]) -> pa.Table:
    """The rows of a table where the mask is true."""
    return data if mask.all() else take(data, np.flatnonzero(mask))


def conform(data: pa.Table, schema: Schema, *, names: Iterable[str] | None = None) -> pa.Table:
    """Cast `data` to the types of the schema, in the schema's order; safe casts only.

    Args:
        data: Rows with columns by name, in any order.
        schema: What they must fit.
        names: The columns that must be there; default all. A missing column becomes its default, or null.

    Raises:
        ColumnNotFoundError: `data` has a column that the schema lacks.
        SchemaError: A column is missing, does not cast, or holds nulls where none are allowed.
    """
    if names is None and data.schema.equals(schema.to_arrow(), check_metadata=True) and not any(data[column.name].null_count for column in schema.required):
        return data
    for name in data.column_names:
        schema.column(name)
    wanted = list(schema) if names is None else [schema.column(name) for name in names]
    arrays = []
    for column in wanted:
        if column.name not in data.column_names:
            if not column.nullable and column.default is None:
                raise SchemaError(f"column {column.name!r} ({column.type}) is missing from the data and may not be null")
            arrays.append(column.missing(data.num_rows))
            continue
        array = data[column.name]
        try:
            array = array if array.type.equals(column.type) else array.cast(column.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SchemaError(f"column {column.name!r}: {array.type} does not cast to {column.type}: {error}") from error
        if array.null_count and not column.nullable:
            raise SchemaError(f"column {column.name!r} holds {array.null_count} nulls and may hold none")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=pa.schema([column.to_arrow() for column in wanted], metadata=schema.metadata))
