"""Where a table is cut into blocks: at most so many rows and so many decoded bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loader.encodings.leaf import LeafType, is_bytes, is_list
from loader.encodings.shred import as_lists

Array = np.ndarray[Any, np.dtype[Any]]


def _row_bytes(array: pa.Array, leaf: LeafType) -> Array:
    """Decoded bytes of each row, int64."""
    while isinstance(array, pa.ExtensionArray | pa.DictionaryArray):
        array = array.storage if isinstance(array, pa.ExtensionArray) else array.dictionary_decode()
    array = as_lists(array)
    kind = array.type
    if is_bytes(kind):
        if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
            array = array.cast(pa.large_binary())
        return np.asarray(8 + pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64))
    if is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        if leaf.depth == 1 and leaf.weights is None:
            return np.asarray(8 + lengths * (leaf.dtype.itemsize * leaf.values_per_entry))
        inner = dataclasses.replace(leaf, depth=leaf.depth - 1, weights=None)
        items = array.flatten()
        if leaf.weights is None:
            item_bytes = _row_bytes(items, inner)
        else:
            keys, weights = items.flatten()
            item_bytes = _row_bytes(keys, inner) + _row_bytes(weights, dataclasses.replace(leaf.weights, depth=leaf.weights.depth - 1))
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(item_bytes)])
        ends = np.cumsum(lengths)
        return np.asarray(8 + sums[ends] - sums[ends - lengths])
    return np.full(len(array), leaf.dtype.itemsize * leaf.values_per_entry, np.int64)


def cut_blocks(table: pa.Table, leaves: Sequence[LeafType], *, max_rows: int, max_bytes: int) -> list[int]:
    """Rows of each block; a row that alone passes `max_bytes` is a block of its own."""
    fixed = sum(leaf.dtype.itemsize * leaf.values_per_entry for leaf in leaves if not leaf.depth)
    rows = np.full(table.num_rows, fixed, np.int64)
    for index, leaf in enumerate(leaves):
        if leaf.depth:
            position = 0
            for chunk in table.column(index).chunks:
                rows[position : position + len(chunk)] += _row_bytes(chunk, leaf)
                position += len(chunk)
    ends = np.cumsum(rows)
    blocks, start, before = [], 0, 0
    while start < table.num_rows:
        fits = int(np.searchsorted(ends, before + max_bytes, side="right"))
        stop = min(max(fits, start + 1), start + max_rows, table.num_rows)
        blocks.append(stop - start)
        start, before = stop, int(ends[stop - 1])
    return blocks
