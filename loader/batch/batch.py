"""Batch: what a training loop gets. Columns by name as tensors, Jagged lists or NumPy arrays, with validity, padding mask and row positions.

Owns the faces of a batch (torch, NumPy, Arrow). Tensors are made when they are asked for and share memory with the batch's own arrays.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.batch.assemble import BatchArrays
from loader.batch.device_arrays import DeviceArrays
from loader.batch.gather import LENGTH_SHIFT
from loader.batch.jagged import Jagged
from loader.batch.window import Columns
from loader.decode.arrow import to_arrow
from loader.decode.result import FixedColumn, ListColumn
from loader.encodings.leaf import is_bytes, storage_type
from loader.errors import ColumnNotFoundError, SchemaError, did_you_mean
from loader.extras import require
from loader.segment.layout import ValueType

OUTPUTS = ("dict", "numpy", "arrow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """What all batches of a loader share.

    Attributes:
        columns: How columns are stored; may hold more than users see.
        names: The columns users see, in their order.
        block_segments: int64 [blocks], segment id of each block of the plan.
        block_row_starts: int64 [blocks], first row of each block in its segment.
        output: `dict` gives torch tensors, `numpy` arrays.
        images: Binary columns that are to hold pixels (`Batch.put`).
    """

    columns: Columns
    names: tuple[str, ...]
    block_segments: npt.NDArray[np.int64]
    block_row_starts: npt.NDArray[np.int64]
    output: str = "dict"
    images: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ValueError(f"output is {self.output!r}; it must be one of {', '.join(OUTPUTS)}")
        if self.images and self.output == "arrow":
            raise SchemaError(f"columns {', '.join(sorted(self.images))} are decoded to pixels, which Arrow has no place for: use output='dict' or 'numpy'")
        if self.output == "dict":
            require("torch", extra="torch")  # missing: say so now, not at the first batch
        for column in self.columns.read:
            if self.output == "dict" and column.name in self.names and is_bytes(storage_type(column.type)) and column.name not in self.images:
                raise SchemaError(
                    f"column {column.name!r} is {column.type}, which no tensor holds: leave it out of columns=[…], encode it as numbers when writing, "
                    f"use output='numpy' or 'arrow', or, if it holds JPEG images, images={{{column.name!r}: ImageOptions(size=224)}}"
                )

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Index of each column, by name."""
        return {column.name: i for i, column in enumerate(self.columns.read)}

    @functools.cached_property
    def list_columns(self) -> frozenset[int]:
        """Indices of list columns, strings and binaries too."""
        return frozenset(self.columns.lists)

    @functools.cached_property
    def places(self) -> dict[int, tuple[int, int]]:
        """(group, row of its matrix) of each fixed-width column."""
        return {column: (number, k) for number, group in enumerate(self.columns.groups) for k, column in enumerate(group.columns)}


class _Validity(Mapping[str, Any]):
    """Validity by column, made when it is asked for."""

    def __init__(self, names: tuple[str, ...], make: Callable[[str], Any], made: Mapping[str, Any] | None = None) -> None:
        self._names, self._make = names, make
        self._made: dict[str, Any] = dict(made or {})

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            if name not in self._names:
                raise ColumnNotFoundError(f"the batch has no validity for column {name!r}: {did_you_mean(name, self._names)}")
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


class Batch(Mapping[str, Any]):
    """A batch of one rank. `batch["clicks"]` is a tensor [rows], `batch["history"]` a `Jagged`; `len(batch)` is its rows.

    With remainder="pad" the last rows of the last batch may be padding (zeros, empty lists): `mask` is False there and `num_samples` does not count them.
    The batch owns its memory: nothing is recycled while it, or a tensor of it, is alive. A transform may return a batch with other columns: `replace`.
    """

    def __init__(
        self,
        layout: BatchLayout,
        arrays: BatchArrays | DeviceArrays,
        columns: dict[str, Any] | None = None,
        validity: Mapping[str, Any] | None = None,
        mask: Any = None,
        *,
        changed: bool = False,
    ) -> None:
        self._layout = layout
        self._arrays = arrays
        self._columns: dict[str, Any] = {} if columns is None else columns
        self._names = layout.names if columns is None else tuple(columns)
        self._validity = validity
        self._mask = mask
        self._changed = changed  # some columns are no longer what was read

    @property
    def num_rows(self) -> int:
        """Rows of every column, padding included."""
        return self._arrays.num_rows

    @property
    def num_samples(self) -> int:
        """Rows that are samples; they come first."""
        return self._arrays.num_samples

    def __len__(self) -> int:
        return self._arrays.num_rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, name: str) -> Any:
        if name not in self._columns:
            if name not in self._names:
                raise ColumnNotFoundError(f"the batch has no column {name!r}: {did_you_mean(name, self._names)}")
            self._columns[name] = self._make(name)
        return self._columns[name]

    def __repr__(self) -> str:
        return f"Batch({self.num_rows} rows; {', '.join(self._names)})"

    def _index(self, name: str) -> int:
        return self._layout.index[name]

    def _make(self, name: str) -> Any:
        index = self._index(name)
        column = self._layout.columns.read[index]
        if index not in self._layout.list_columns:
            return self._convert(self._fixed(index), column.leaf.value_type)
        values, offsets, inverse = self._arrays.list_column(index)
        if is_bytes(storage_type(column.type)):
            padding = np.full(self.num_rows - self.num_samples, None)
            return np.concatenate([self.to_arrow_column(name).to_numpy(zero_copy_only=False), padding])
        numbers = None if inverse is None else self._convert(inverse)
        return Jagged(self._convert(values, column.leaf.value_type), self._convert(offsets), self._weights(index), numbers)

    def _weights(self, index: int) -> Any:
        """The weights of a map, one beside each key; None of any other list."""
        slot = self._layout.columns.weights.get(index)
        if slot is None:
            return None
        return self._convert(self._arrays.list_column(slot)[0], self._layout.columns.leaves[slot].value_type)

    def _fixed(self, index: int) -> Any:
        return self._arrays.fixed_column(index, self._layout.places.get(index))

    def _convert(self, values: Any, value_type: ValueType | None = None) -> Any:
        """An array as the layout's output; one that is a tensor already lies where the batch was made."""
        if isinstance(values, np.ndarray):
            if value_type is ValueType.BOOL:
                values = values.view(np.bool_)
            if self._layout.output != "dict":
                return values
            values = require("torch", extra="torch").from_numpy(values)
        elif value_type is ValueType.BOOL:
            values = values.view(require("torch", extra="torch").bool)
        if value_type is ValueType.BFLOAT16:
            values = values.view(require("torch", extra="torch").bfloat16)
        return values

    @property
    def validity(self) -> Mapping[str, Any]:
        """By column, a bool tensor (or array) [rows]: True where the value is there, False where it is null or padding."""
        if self._validity is None:
            bare = Batch(self._layout, self._arrays)  # not self: a batch in a circle with its validity would live until the garbage collector comes by
            self._validity = _Validity(self._names, lambda name: bare._convert(bare._valid(bare._index(name)), ValueType.BOOL))
        return self._validity

    def _valid(self, index: int) -> Any:
        present = self._arrays.validity_of(index)
        return self._samples() if present is None else present

    def _samples(self) -> Any:
        """uint8 [rows], 0 where a row is padding, where the batch lies."""
        samples = np.arange(self.num_rows) < self.num_samples
        return self._arrays.placed(samples.view(np.uint8))

    @property
    def mask(self) -> Any:
        """bool [rows]: False where a row is padding."""
        if self._mask is None:
            self._mask = self._convert(self._samples(), ValueType.BOOL)
        return self._mask

    def positions(self) -> npt.NDArray[np.int64]:
        """int64 [samples, 2]: (segment id, row of the segment) of every sample, by which it can be accounted for."""
        blocks = self._arrays.blocks
        return np.stack([self._layout.block_segments[blocks], self._layout.block_row_starts[blocks] + self._arrays.rows], axis=1)

    def put(self, name: str, value: Any, present: npt.NDArray[np.bool_]) -> None:
        """Give a column its value before anybody asks for it, and its validity: for what a loader makes of bytes.

        Args:
            name: A column of the layout.
            value: What `batch[name]` is from now on.
            present: bool [rows].
        """
        self._columns[name] = value
        valid = self._convert(self._arrays.placed(present.view(np.uint8)), ValueType.BOOL)
        self._validity = _Validity(self._names, self.validity.__getitem__, {name: valid})

    def replace(self, **columns: Any) -> Batch:
        """The batch with other or more columns, for transforms; a value of None removes the column."""
        merged = {**{name: self[name] for name in self._names}, **columns}
        kept = {name: value for name, value in merged.items() if value is not None}
        return Batch(self._layout, self._arrays, kept, {name: valid for name, valid in self.validity.items() if name in kept}, self._mask, changed=True)

    def _map(self, change: Callable[[Any], Any]) -> Batch:
        columns = {name: change(self[name]) for name in self._names}
        validity = {name: change(valid) for name, valid in self.validity.items()}
        return Batch(self._layout, self._arrays, columns, validity, change(self.mask), changed=self._changed)

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The batch with its tensors on a device (TorchRec's Pipelineable)."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in pinned host memory."""
        return self._map(lambda value: value.pin_memory())

    def record_stream(self, stream: Any) -> None:
        """Say that `stream` uses the tensors, those of `validity` and `mask` too: their memory is not used again before it has done what it is given now."""
        self._arrays.record_stream(stream)
        for value in (*self.values(), *self.validity.values(), self.mask):
            value.record_stream(stream)

    def to_nested(self) -> dict[str, Any]:
        """Columns by name, lists as torch nested tensors."""
        return {name: value.to_nested() if isinstance(value, Jagged) else value for name, value in self.items()}

    def to_arrow(self) -> pa.RecordBatch:
        """The samples as Arrow, in the types of the schema, nulls as nulls; padding is left out.

        Raises:
            ValueError: Columns were replaced: Arrow shows them as they were read.
        """
        if self._changed:
            raise ValueError("to_arrow gives columns as they were read, and replace() changed some of this batch: convert before it")
        read = [self._layout.columns.read[self._index(name)] for name in self._layout.names]
        schema = pa.schema([pa.field(column.name, column.type, nullable=column.nullable) for column in read])
        return pa.record_batch([self.to_arrow_column(name) for name in self._layout.names], schema=schema)

    def to_arrow_column(self, name: str) -> pa.Array:
        index = self._index(name)
        read, count, validity = self._layout.columns.read[index], self.num_samples, on_host(self._arrays.validity_of(index))
        validity = None if validity is None else validity[:count]
        if index not in self._layout.list_columns:
            return to_arrow(FixedColumn(values=on_host(self._fixed(index))[:count], validity=validity), read.type)
        values, offsets, inverse = (on_host(array) for array in self._arrays.list_column(index))
        views = offsets[:-1].astype(np.uint64) | np.diff(offsets).astype(np.uint64) << LENGTH_SHIFT
        views = (views if inverse is None else views[inverse])[:count]
        slot = self._layout.columns.weights.get(index)
        weights = None if slot is None else ListColumn(views=views, validity=None, child=FixedColumn(values=on_host(self._arrays.list_column(slot)[0])))
        return to_arrow(ListColumn(views=views, validity=validity, child=FixedColumn(values=values), weights=weights), read.type)


def on_host(array: Any) -> Any:
    """An array of the batch in host memory; tensors are copied there."""
    return array if array is None or isinstance(array, np.ndarray) else array.cpu().numpy()
