"""Arrow rows as the tensors that a batch holds: so that rows of a look-up go through the same transforms and model as a batch of a loader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from loader.batch.jagged import Jagged
from loader.errors import SchemaError
from loader.extras import require


def features(rows: pa.Table | pa.RecordBatch) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns and validity of rows, as `Batch` has them, for `Transforms.apply`.

    Returns:
        (tensors [rows] and `Jagged` by name, bool tensors [rows] by name). A null is 0 or an empty list, and False in the validity.

    Raises:
        SchemaError: A column is of a type that no tensor holds.
    """
    torch = require("torch", "torch")
    table = (pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows).combine_chunks()
    columns, validity = {}, {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        array = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        columns[name] = _column(name, array)
        validity[name] = torch.from_numpy(array.is_valid().to_numpy(zero_copy_only=False))
    return columns, validity


def _column(name: str, array: pa.Array) -> Any:
    torch = require("torch", "torch")
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        whole = _numbers(name, array.values.slice(array.offset * width, len(array) * width)).reshape(len(array), width)
        return torch.from_numpy(whole * array.is_valid().to_numpy(zero_copy_only=False)[:, None])
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_map(array.type):
        lengths = array.value_lengths() if not pa.types.is_map(array.type) else array.offsets.cast(pa.int64()).to_numpy()
        if isinstance(lengths, pa.Array):
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths.fill_null(0).to_numpy())])
            return Jagged(torch.from_numpy(_numbers(name, array.flatten())), torch.from_numpy(offsets))
        keys, items = (child.slice(int(lengths[0]), int(lengths[-1] - lengths[0])) for child in (array.keys, array.items))
        return Jagged(torch.from_numpy(_numbers(name, keys)), torch.from_numpy(lengths - lengths[0]), torch.from_numpy(_numbers(name, items)))
    return torch.from_numpy(_numbers(name, array))


def _numbers(name: str, array: pa.Array) -> np.ndarray[Any, Any]:
    kind = array.type
    if pa.types.is_temporal(kind):
        array = array.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise SchemaError(f"column {name!r} is {kind}, which no tensor holds: leave it out of columns=[…]")
    filled = array.fill_null(False if pa.types.is_boolean(kind) else 0) if array.null_count else array
    return np.array(filled.to_numpy(zero_copy_only=False))
