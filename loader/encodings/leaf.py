"""Physical type of a column: which leaf values it stores, how deep under lists, and which Arrow types fit.

Owns the mapping between Arrow types and the format's value types. Strings and binaries are lists of uint8, timestamps, dates, times
and durations their integers, fixed-size lists and fixed-size binaries `fixed_size` values an entry without views.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from loader.errors import SchemaError
from loader.segment.layout import VALUE_DTYPES, ValueType

MAX_DEPTH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeafType:
    """What a chunk holds at its deepest level.

    Attributes:
        value_type: Type of the leaf values.
        depth: Lists around the leaf: 0 for one value a row, 1 for a list of numbers or a string.
        fixed_size: Values an entry of the leaf has when it is a fixed-size list, else 0.
    """

    value_type: ValueType
    depth: int = 0
    fixed_size: int = 0

    @property
    def dtype(self) -> np.dtype:
        """NumPy type of the values; bool is one byte, bfloat16 its 16 bits."""
        return VALUE_DTYPES[self.value_type]

    @property
    def values_per_entry(self) -> int:
        return self.fixed_size or 1


_PLAIN_TYPES = {
    pa.bool_(): ValueType.BOOL,
    pa.int8(): ValueType.INT8,
    pa.int16(): ValueType.INT16,
    pa.int32(): ValueType.INT32,
    pa.int64(): ValueType.INT64,
    pa.uint8(): ValueType.UINT8,
    pa.uint16(): ValueType.UINT16,
    pa.uint32(): ValueType.UINT32,
    pa.uint64(): ValueType.UINT64,
    pa.float16(): ValueType.FLOAT16,
    pa.float32(): ValueType.FLOAT32,
    pa.float64(): ValueType.FLOAT64,
    pa.date32(): ValueType.INT32,
    pa.date64(): ValueType.INT64,
}


def is_bytes(kind: pa.DataType) -> bool:
    """Whether the type is a string or binary of any offset width."""
    variable = pt.is_string(kind) or pt.is_binary(kind) or pt.is_large_string(kind) or pt.is_large_binary(kind)
    return bool(variable or pt.is_string_view(kind) or pt.is_binary_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether the type is a variable-length list, by offsets or by views."""
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_list_view(kind) or pt.is_large_list_view(kind))


def storage_type(kind: pa.DataType) -> pa.DataType:
    """The type without an extension around it."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


@functools.lru_cache(maxsize=4096)
def _leaf_type(kind: pa.DataType) -> LeafType | None:
    kind = storage_type(kind)
    if is_bytes(kind):
        return LeafType(value_type=ValueType.UINT8, depth=1)
    if is_list(kind):
        item = _leaf_type(kind.value_type)
        # Arrow's own kernels multiply the buffers of string views in lists until memory ends
        views_inside = pt.is_string_view(kind.value_type) or pt.is_binary_view(kind.value_type)
        return None if item is None or views_inside or item.depth >= MAX_DEPTH else dataclasses.replace(item, depth=item.depth + 1)
    if pt.is_fixed_size_list(kind):
        item = _leaf_type(kind.value_type)
        return None if item is None or item.depth or item.fixed_size or not kind.list_size else dataclasses.replace(item, fixed_size=kind.list_size)
    if pt.is_fixed_size_binary(kind):
        return LeafType(value_type=ValueType.UINT8, fixed_size=kind.byte_width) if kind.byte_width else None
    if pt.is_timestamp(kind) or pt.is_duration(kind) or pt.is_time64(kind):
        return LeafType(value_type=ValueType.INT64)
    if pt.is_time32(kind):
        return LeafType(value_type=ValueType.INT32)
    value_type = _PLAIN_TYPES.get(kind)
    return None if value_type is None else LeafType(value_type=value_type)


def leaf_type(kind: pa.DataType, column: str) -> LeafType:
    """The physical type of an Arrow type.

    Args:
        kind: Logical type.
        column: Name for the error.

    Raises:
        SchemaError: The format has no place for the type.
    """
    leaf = _leaf_type(kind)
    if leaf is None:
        raise SchemaError(
            f"column {column!r}: a segment cannot store {kind}; it stores booleans, integers, floats, times, strings, binaries, "
            f"lists of those up to {MAX_DEPTH} deep and fixed-size lists of numbers: cast the column or split it"
        )
    return leaf
