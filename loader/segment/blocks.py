"""Where a table is cut into blocks: at most so many rows and so many decoded bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loader.encodings.leaf import LeafType, is_bytes, is_list, storage_type

Array = np.ndarray[Any, np.dtype[Any]]


def _row_bytes(array: pa.Array, leaf: LeafType) -> Array:
    """Decoded bytes of each row, int64."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = storage_type(array.type)
    if is_bytes(kind):
        if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
            array = array.cast(pa.large_binary())
        return np.asarray(8 + pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64))
    if is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        if leaf.depth == 1:
            return np.asarray(8 + lengths * (leaf.dtype.itemsize * leaf.values_per_entry))
        inner = LeafType(value_type=leaf.value_type, depth=leaf.depth - 1, fixed_size=leaf.fixed_size)
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(_row_bytes(array.flatten(), inner))])
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
