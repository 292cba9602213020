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
        weights: For a map, the list of its values; the rest of the record is then the list of its keys.
    """

    value_type: ValueType
    depth: int = 0
    fixed_size: int = 0
    weights: LeafType | None = None

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
    pa.null(): ValueType.BOOL,
}


def is_bytes(kind: pa.DataType) -> bool:
    """Whether the type is a string or binary of any offset width."""
    variable = pt.is_string(kind) or pt.is_binary(kind) or pt.is_large_string(kind) or pt.is_large_binary(kind)
    return bool(variable or pt.is_string_view(kind) or pt.is_binary_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether the type is a variable-length list, by offsets or by views."""
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_list_view(kind) or pt.is_large_list_view(kind))


def is_map(kind: pa.DataType) -> bool:
    """Whether the type is a map."""
    return bool(pt.is_map(kind))


def storage_type(kind: pa.DataType) -> pa.DataType:
    """The type without an extension or a dictionary around it."""
    while isinstance(kind, pa.BaseExtensionType) or pt.is_dictionary(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Whether the type is a string of any offset width."""
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


@functools.lru_cache(maxsize=4096)
def _leaf_type(kind: pa.DataType) -> LeafType | str:
    """The physical type, or what to do where there is none."""
    kind = storage_type(kind)
    if is_bytes(kind):
        return LeafType(value_type=ValueType.UINT8, depth=1)
    if is_list(kind):
        item = _leaf_type(kind.value_type)
        return item if isinstance(item, str) else _list_of(kind.value_type, item)
    if is_map(kind):
        return _map_of(kind)
    if pt.is_fixed_size_list(kind):
        item = _leaf_type(kind.value_type)
        if isinstance(item, str):
            return item
        if item.depth or item.fixed_size or not kind.list_size:
            return "cast fixed-size lists of anything but numbers, and those of no items, to variable-length lists"
        return dataclasses.replace(item, fixed_size=kind.list_size)
    if pt.is_fixed_size_binary(kind):
        return LeafType(value_type=ValueType.UINT8, fixed_size=kind.byte_width) if kind.byte_width else "cast binaries of no bytes to binary"
    if pt.is_timestamp(kind) or pt.is_duration(kind) or pt.is_time64(kind):
        return LeafType(value_type=ValueType.INT64)
    if pt.is_time32(kind):
        return LeafType(value_type=ValueType.INT32)
    value_type = _PLAIN_TYPES.get(kind)
    return _advice(kind) if value_type is None else LeafType(value_type=value_type)


def _list_of(kind: pa.DataType, item: LeafType) -> LeafType | str:
    if item.weights is not None:
        return "split lists of maps into a column of keys and one of weights, both lists of lists"
    if pt.is_string_view(kind) or pt.is_binary_view(kind):
        # Arrow's own kernels multiply the buffers of string views in lists until memory ends
        return f"cast the items to {'large_string' if is_text(kind) else 'large_binary'}: Arrow cannot take lists of views apart"
    if item.depth >= MAX_DEPTH:
        return f"lists go up to {MAX_DEPTH} deep: flatten it or split it"
    return dataclasses.replace(item, depth=item.depth + 1)


def _map_of(kind: pa.DataType) -> LeafType | str:
    keys, weights = (_leaf_type(pa.list_(storage_type(part))) for part in (kind.key_type, kind.item_type))
    if isinstance(keys, str) or isinstance(weights, str):
        return keys if isinstance(keys, str) else str(weights)
    if weights.fixed_size:
        return "cast the weights of the map, which may not be of fixed size, to variable-length lists"
    return dataclasses.replace(keys, weights=weights)


def _advice(kind: pa.DataType) -> str:
    """What to do with a type that has no place in a segment."""
    if pt.is_struct(kind):
        return "split it into a column for each field (pyarrow: Table.flatten)"
    if pt.is_decimal(kind):
        return "cast it to float64, or to int64 in units of its smallest digit"
    if pt.is_run_end_encoded(kind):
        return "decode it first (pyarrow.compute.run_end_decode); the segment finds the runs again"
    if pt.is_union(kind):
        return "split it into a column for each type"
    if pt.is_interval(kind):
        return "cast it to a duration or split it into integers"
    return "cast it to one of these"


def leaf_type(kind: pa.DataType, column: str) -> LeafType:
    """The physical type of an Arrow type.

    Args:
        kind: Logical type.
        column: Name for the error.

    Raises:
        SchemaError: The format has no place for the type.
    """
    leaf = _leaf_type(kind)
    if isinstance(leaf, str):
        raise SchemaError(
            f"column {column!r}: a segment cannot store {kind}: {leaf}. It stores booleans, integers, floats, times, strings, binaries, "
            f"lists of those up to {MAX_DEPTH} deep, fixed-size lists of numbers and maps of all of these"
        )
    return leaf
