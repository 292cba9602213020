"""Arrow arrays taken apart into plain NumPy: lengths and validity for each list level, and the leaf's values.

Copies as little as Arrow's layout allows. Values under a null are set to nothing here: encoders look at the validity first.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from loader.encodings.leaf import LeafType, is_bytes, is_list, is_map, storage_type

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """Leaf values of some entries.

    Attributes:
        values: `[entries × values_per_entry]`, in the leaf type's dtype.
        validity: bool `[entries]`, None when nothing is null.
        item_validity: bool `[entries × fixed_size]` for fixed-size lists with null items.
    """

    values: Array
    validity: Array | None = None
    item_validity: Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListNode:
    """Lists laid end to end.

    Attributes:
        lengths: int64 `[entries]`, 0 under a null.
        validity: bool `[entries]`, None when nothing is null.
        child: The items, `sum(lengths)` entries; the keys of a map.
        weights: The values of a map, as many entries as the child.
    """

    lengths: Array
    validity: Array | None
    child: Node
    weights: Node | None = None


Node = Leaf | ListNode


def _bits(buffer: pa.Buffer, offset: int, count: int) -> Array:
    first = offset // 8
    raw = np.frombuffer(buffer, np.uint8, count=(offset + count + 7) // 8 - first, offset=first)
    return np.unpackbits(raw, bitorder="little")[offset - 8 * first :][:count].view(np.bool_)


def validity(array: pa.Array) -> Array | None:
    """bool `[len(array)]`, or None when nothing is null."""
    if not array.null_count:
        return None
    if pt.is_null(array.type):
        return np.zeros(len(array), np.bool_)
    return _bits(array.buffers()[0], array.offset, len(array))


def _fixed_values(array: pa.Array, dtype: np.dtype[Any]) -> Array:
    if pt.is_null(array.type):
        return np.zeros(len(array), dtype)
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array), dtype)
    if pt.is_boolean(array.type):
        return _bits(buffer, array.offset, len(array)).view(np.uint8)
    return np.frombuffer(buffer, dtype, count=len(array), offset=array.offset * dtype.itemsize)


def _shred_bytes(array: pa.Array) -> ListNode:
    kind = array.type
    if pt.is_string_view(kind) or pt.is_binary_view(kind):
        array = array.cast(pa.large_string() if pt.is_string_view(kind) else pa.large_binary())
    mask = validity(array)
    offsets = _byte_offsets(array)
    if mask is not None and np.diff(offsets)[~mask].any():
        array = pc.fill_null(array, "" if pt.is_string(array.type) or pt.is_large_string(array.type) else b"")
        offsets = _byte_offsets(array)
    data = array.buffers()[2]
    first, last = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
    values = np.zeros(0, np.uint8) if data is None or first == last else np.frombuffer(data, np.uint8, count=last - first, offset=first)
    return ListNode(lengths=np.diff(offsets), validity=mask, child=Leaf(values=values))


def _byte_offsets(array: pa.Array) -> Array:
    wide = pt.is_large_string(array.type) or pt.is_large_binary(array.type)
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array) + 1, np.int64)
    dtype = np.dtype("<i8" if wide else "<i4")
    return np.frombuffer(buffer, dtype, count=len(array) + 1, offset=array.offset * dtype.itemsize).astype(np.int64)


def _shred_fixed_size(array: pa.Array, leaf: LeafType) -> Leaf:
    size, count = leaf.fixed_size, len(array)
    mask = validity(array)
    if pt.is_fixed_size_binary(array.type):
        buffer = array.buffers()[1]
        values = np.zeros(0, np.uint8) if buffer is None or not count else np.frombuffer(buffer, np.uint8, count=count * size, offset=array.offset * size)
        item_mask = None
    else:
        items = array.values.slice(array.offset * size, count * size)
        values, item_mask = _fixed_values(items, leaf.dtype), validity(items)
    if mask is not None:
        hidden = np.repeat(~mask, size)
        values = np.where(hidden, np.zeros(1, values.dtype), values)
        item_mask = None if item_mask is None else item_mask | hidden
    return Leaf(values=values, validity=mask, item_validity=item_mask)


def shred(array: pa.Array, leaf: LeafType) -> Node:
    """Take an array apart.

    Args:
        array: One chunk of a column, of a type that `leaf_type` accepts, sliced as it likes.
        leaf: What `leaf_type` says of its type.
    """
    while isinstance(array, pa.ExtensionArray | pa.DictionaryArray):
        array = array.storage if isinstance(array, pa.ExtensionArray) else array.dictionary_decode()
    kind = storage_type(array.type)
    if is_bytes(kind):
        return _shred_bytes(array)
    if is_list(kind) or is_map(kind):
        return _shred_lists(array, leaf)
    if leaf.fixed_size:
        return _shred_fixed_size(array, leaf)
    return Leaf(values=_fixed_values(array, leaf.dtype), validity=validity(array))


def as_lists(array: pa.Array) -> pa.Array:
    """A map as the list of entries that it is, without a copy; any other array as it is."""
    if not is_map(array.type):
        return array
    return array.cast(pa.list_(pa.struct([array.type.key_field, array.type.item_field])))


def _shred_lists(array: pa.Array, leaf: LeafType) -> ListNode:
    array = as_lists(array)
    lengths = pc.list_value_length(array)
    lengths = pc.fill_null(lengths, 0) if lengths.null_count else lengths
    mask, lengths = validity(array), lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    # `flatten` leaves out what nulls hide and follows views, so items lie end to end in row order
    items = array.flatten()
    item = dataclasses.replace(leaf, depth=leaf.depth - 1, weights=None)
    if leaf.weights is None:
        return ListNode(lengths=lengths, validity=mask, child=shred(items, item))
    keys, values = items.flatten()
    weight = dataclasses.replace(leaf.weights, depth=leaf.weights.depth - 1)
    return ListNode(lengths=lengths, validity=mask, child=shred(keys, item), weights=shred(values, weight))
