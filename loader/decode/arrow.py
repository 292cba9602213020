"""Decoded columns as Arrow arrays. Owns the check that views lie inside their pools."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from loader.decode.result import DecodedColumn, FixedColumn, ListColumn, num_entries
from loader.encodings.leaf import is_bytes, is_text
from loader.encodings.overlap import ranges
from loader.errors import CorruptSegmentError

Array = np.ndarray[Any, np.dtype[Any]]
MAX_ITEMS = (1 << 31) - 1
_LOW = np.uint64(0xFFFF_FFFF)


def to_arrow(column: DecodedColumn, arrow_type: pa.DataType) -> pa.Array:
    """Make an Arrow array; fixed-width values without nulls share the arena's memory.

    Args:
        column: From a DecodedBlock, of the physical type of `arrow_type`.
        arrow_type: Logical type of the result.

    Raises:
        CorruptSegmentError: A view points outside of its pool, or strings are not UTF-8.
    """
    if isinstance(arrow_type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(arrow_type, to_arrow(column, arrow_type.storage_type))
    if pt.is_dictionary(arrow_type):
        return to_arrow(column, arrow_type.value_type).dictionary_encode().cast(arrow_type)
    kind = arrow_type
    if isinstance(column, FixedColumn):
        array = _fixed(column, kind)
    elif pt.is_map(kind):
        array = _map(column, kind)
    elif is_bytes(kind):
        array = _bytes(column, kind)
    elif pt.is_list_view(kind) or pt.is_large_list_view(kind):
        array = _list_view(column, kind)
    else:
        array = _list(column, kind)
    return array


def take(column: DecodedColumn, entries: Array | slice) -> DecodedColumn:
    """The column's entries by number; pools are shared, not copied, and of a slice nothing is."""

    def pick(values: Array | None) -> Array | None:
        return None if values is None else values[entries]

    if isinstance(column, FixedColumn):
        return FixedColumn(values=column.values[entries], validity=pick(column.validity), item_validity=pick(column.item_validity), base=column.base)
    views, weights = column.views[entries], column.weights
    if weights is not None:
        weights = dataclasses.replace(weights, views=views if weights.views is column.views else weights.views[entries])
    return dataclasses.replace(column, views=views, validity=pick(column.validity), weights=weights)


def checked_views(column: ListColumn) -> tuple[Array, Array]:
    """Starts and lengths of the views, int64, once it is known that they lie inside the pool."""
    starts = (column.views & _LOW).astype(np.int64)
    lengths = (column.views >> np.uint64(32)).astype(np.int64)
    entries = num_entries(column.child)
    if column.views.size and int((starts + lengths).max()) > entries:
        raise CorruptSegmentError(f"a list points to item {int((starts + lengths).max()):,} of a pool of {entries:,}")
    return starts, lengths


def widened(values: Array, base: int, dtype: np.dtype[Any]) -> Array:
    """Pool items in their own type: base + item, modulo 2^64."""
    if values.dtype == dtype:
        return values
    return (values.astype(np.uint64) + np.uint64(base % (1 << 64))).astype(dtype.str.replace("i", "u")).view(dtype)


def _null_buffer(validity: Array | None) -> tuple[pa.Buffer | None, int]:
    if validity is None:
        return None, 0
    present = validity != 0
    return pa.py_buffer(np.packbits(present, bitorder="little")), int(present.size - np.count_nonzero(present))


def _fixed(column: FixedColumn, kind: pa.DataType) -> pa.Array:
    nulls, num_nulls = _null_buffer(column.validity)
    count = column.values.shape[0]
    if pt.is_null(kind):
        return pa.nulls(count)
    if pt.is_fixed_size_binary(kind):
        data = pa.py_buffer(np.ascontiguousarray(column.values))
        return pa.FixedSizeBinaryArray.from_buffers(kind, count, [nulls, data], num_nulls)
    if pt.is_fixed_size_list(kind):
        items = None if column.item_validity is None else column.item_validity.reshape(-1)
        child = to_arrow(FixedColumn(values=column.values.reshape(-1), validity=items, base=column.base), kind.value_type)
        return pa.FixedSizeListArray.from_buffers(kind, count, [nulls], num_nulls, children=[child])
    if pt.is_boolean(kind):
        return pa.Array.from_buffers(kind, count, [nulls, pa.py_buffer(np.packbits(column.values != 0, bitorder="little"))], num_nulls)
    values = widened(column.values, column.base, _numpy_type(column, kind))
    return pa.Array.from_buffers(kind, count, [nulls, pa.py_buffer(np.ascontiguousarray(values))], num_nulls)


def _numpy_type(column: FixedColumn, kind: pa.DataType) -> np.dtype[Any]:
    size = kind.bit_width // 8
    return column.values.dtype if column.values.dtype.itemsize == size else np.dtype(f"<u{size}")


def _flat(column: ListColumn) -> tuple[Array, DecodedColumn]:
    """Offsets (int64) and the items laid end to end; the pool itself where the views already lie so."""
    starts, lengths = checked_views(column)
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if int(offsets[-1]) > MAX_ITEMS:
        raise CorruptSegmentError(f"lists of a block add up to {int(offsets[-1]):,} items, more than 2^31: the segment is corrupt or its blocks are too large")
    if np.array_equal(starts[lengths > 0], offsets[:-1][lengths > 0]):
        return offsets, column.child if int(offsets[-1]) == num_entries(column.child) else take(column.child, np.arange(int(offsets[-1])))
    return offsets, take(column.child, ranges(starts, lengths))


def _list(column: ListColumn, kind: pa.DataType) -> pa.Array:
    offsets, child = _flat(column)
    nulls, num_nulls = _null_buffer(column.validity)
    stored = offsets if pt.is_large_list(kind) else offsets.astype(np.int32)
    return pa.Array.from_buffers(kind, column.views.size, [nulls, pa.py_buffer(stored)], num_nulls, children=[to_arrow(child, kind.value_type)])


def _map(column: ListColumn, kind: pa.DataType) -> pa.Array:
    assert column.weights is not None
    offsets, keys = _flat(column)
    _, weights = _flat(column.weights)
    parts = [to_arrow(keys, kind.key_type), to_arrow(weights, kind.item_type)]
    if len(parts[0]) != len(parts[1]):
        raise CorruptSegmentError(f"maps have {len(parts[0]):,} keys and {len(parts[1]):,} weights")
    entries = pa.StructArray.from_arrays(parts, fields=[kind.key_field, kind.item_field])
    nulls, num_nulls = _null_buffer(column.validity)
    return pa.Array.from_buffers(kind, column.views.size, [nulls, pa.py_buffer(offsets.astype(np.int32))], num_nulls, children=[entries])


def _list_view(column: ListColumn, kind: pa.DataType) -> pa.Array:
    starts, lengths = checked_views(column)
    nulls, num_nulls = _null_buffer(column.validity)
    wide = np.int64 if pt.is_large_list_view(kind) else np.int32
    buffers = [nulls, pa.py_buffer(starts.astype(wide)), pa.py_buffer(lengths.astype(wide))]
    return pa.Array.from_buffers(kind, column.views.size, buffers, num_nulls, children=[to_arrow(column.child, kind.value_type)])


def _bytes(column: ListColumn, kind: pa.DataType) -> pa.Array:
    offsets, child = _flat(column)
    assert isinstance(child, FixedColumn)
    text = is_text(kind)
    view = pt.is_string_view(kind) or pt.is_binary_view(kind)
    wide = pt.is_large_string(kind) or pt.is_large_binary(kind)
    stored = (pa.large_string() if text else pa.large_binary()) if view else kind
    nulls, num_nulls = _null_buffer(column.validity)
    positions = offsets if wide or view else offsets.astype(np.int32)
    buffers = [nulls, pa.py_buffer(positions), pa.py_buffer(np.ascontiguousarray(child.values))]
    array = pa.Array.from_buffers(stored, column.views.size, buffers, num_nulls)
    if text:
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            raise CorruptSegmentError(f"strings do not hold together: {error}") from None
    return array.cast(kind) if view else array
