"""Which stored columns a scan reads, and what a null label means in them. Plain data, the same in a rank and in a fetch actor."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pyarrow as pa

from loader.encodings.leaf import LeafType, leaf_type
from loader.schema import Schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadColumn:
    """One column of a scan.

    Attributes:
        name: Current name.
        id: Stable column id, by which segments store it.
        type: Logical Arrow type.
        nullable: Whether the schema allows nulls.
        leaf: Physical type.
        default: What rows of segments older than the column read as; None is null.
    """

    name: str
    id: int
    type: pa.DataType
    nullable: bool
    leaf: LeafType
    default: pa.Scalar | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelFill:
    """What a null label reads as.

    Attributes:
        label: Index of the label among the columns read.
        default: Value of a label whose attribution window is closed.
        time: Index of the time column, or None where every row read is closed.
        last_closed_time: The latest time whose window is closed, in the time column's unit; None where every row read is closed.
    """

    label: int
    default: float
    time: int | None = None
    last_closed_time: int | None = None


def read_columns(schema: Schema, names: Sequence[str]) -> tuple[ReadColumn, ...]:
    """The named columns, in the given order."""
    return tuple(
        ReadColumn(
            name=column.name,
            id=column.id,
            type=column.type,
            nullable=column.nullable,
            leaf=leaf_type(column.type, column.name),
            default=column.default,
        )
        for column in schema.select(names)
    )
