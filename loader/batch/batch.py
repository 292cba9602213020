"""Batch: what a training loop gets. Columns by name as tensors, Jagged lists or NumPy arrays, with validity, padding mask and row positions.

Owns the faces of a batch (torch, NumPy, Arrow). Tensors are made when they are asked for and share memory with the batch's own arrays.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.batch.assemble import BatchArrays
from loader.batch.device_arrays import DeviceArrays
from loader.batch.gather import LENGTH_SHIFT
from loader.batch.jagged import Jagged
from loader.batch.kjt import has_torchrec, keyed_jagged
from loader.batch.window import Columns
from loader.decode.arrow import to_arrow
from loader.decode.result import FixedColumn, ListColumn
from loader.encodings.leaf import is_bytes, storage_type
from loader.errors import ColumnNotFoundError, SchemaError, did_you_mean
from loader.extras import require
from loader.scan.groups import Groups
from loader.scan.selection import JoinedWeights, RowWeights
from loader.segment.layout import ValueType

TENSOR_OUTPUTS = ("dict", "kjt", "nested")
OUTPUTS = (*TENSOR_OUTPUTS, "numpy", "arrow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """What all batches of a loader share.

    Attributes:
        columns: How columns are stored; may hold more than users see.
        names: The columns users see, in their order.
        block_segments: int64 [blocks], segment id of each block of the plan.
        block_row_starts: int64 [blocks], first row of each block in its segment.
        output: `numpy` gives arrays, `arrow` a record batch, the others torch tensors.
        images: Binary columns that are to hold pixels (`Batch.put`).
        weights: Of rows that a sample kept; its column comes last in `names`.
        groups: Of rows that are grouped.
        pad_groups: Groups that a batch has at least; those that are missing are empty.
        block_sources: Of a mix, int64 [blocks], the source of each block.
    """

    columns: Columns
    names: tuple[str, ...]
    block_segments: npt.NDArray[np.int64]
    block_row_starts: npt.NDArray[np.int64]
    output: str = "dict"
    images: frozenset[str] = frozenset()
    weights: RowWeights | JoinedWeights | None = None
    groups: Groups | None = None
    pad_groups: int = 0
    block_sources: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ValueError(f"output is {self.output!r}; it must be one of {', '.join(OUTPUTS)}")
        if self.images and self.output == "arrow":
            raise SchemaError(f"columns {', '.join(sorted(self.images))} are decoded to pixels, which Arrow has no place for: use output='dict' or 'numpy'")
        if self.has_tensors:
            require("torch", extra="torch")  # missing: say so now, not at the first batch
        for column in self.columns.read:
            if self.has_tensors and column.name in self.names and is_bytes(storage_type(column.type)) and column.name not in self.images:
                raise SchemaError(
                    f"column {column.name!r} is {column.type}, which no tensor holds: leave it out of columns=[…], encode it as numbers when writing, "
                    f"use output='numpy' or 'arrow', or, if it holds JPEG images, images={{{column.name!r}: ImageOptions(size=224)}}"
                )

    @property
    def has_tensors(self) -> bool:
        """Whether batches hold torch tensors."""
        return self.output in TENSOR_OUTPUTS

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
    It is False, too, and so is all validity, where a row of the plan cannot be had: its block is damaged and the policy says to go on, or it was erased.
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
        names: tuple[str, ...] | None = None,
        changed: bool = False,
    ) -> None:
        self._layout = layout
        self._arrays = arrays
        self._columns: dict[str, Any] = {} if columns is None else columns  # those that are made already
        self._names = names if names is not None else layout.names if columns is None else tuple(columns)
        self._validity = validity
        self._mask = mask
        self._changed = changed  # some columns are no longer what was read
        self._buffers: dict[int, Any] = {}  # tensors over the memory of list columns
        self._moved: dict[str, Any] = {}  # weights and offsets of groups, where the batch was moved

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
        if self._layout.weights is not None and name == self._layout.weights.column:
            return self._convert(self._arrays.placed(self._row_weights(self._layout.weights)))
        index = self._index(name)
        column = self._layout.columns.read[index]
        if index not in self._layout.list_columns:
            return self._convert(self._fixed(index), column.leaf.value_type)
        values, offsets, inverse = self._arrays.list_column(index)
        if is_bytes(storage_type(column.type)):
            padding = np.full(self.num_rows - self.num_samples, None)
            return np.concatenate([self.to_arrow_column(name).to_numpy(zero_copy_only=False), padding])
        numbers = None if inverse is None else self._convert(inverse)
        return Jagged(self._list_values(index, values, column.leaf.value_type), self._convert(offsets), self._weights(index), numbers)

    def _list_values(self, index: int, values: Any, value_type: ValueType) -> Any:
        """As the layout's output; as a tensor it shares its storage with those of its neighbours, so that they make one without a copy."""
        where = self._arrays.buffer_of(index) if self._layout.has_tensors else None
        if where is None:
            return self._convert(values, value_type)
        buffer, begin = where
        whole = self._buffers.get(id(buffer))
        if whole is None:
            whole = self._buffers[id(buffer)] = self._convert(buffer)
        return self._convert(whole[begin : begin + len(values)], value_type)

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
            if not self._layout.has_tensors:
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
            self._validity = _Validity(self._names, lambda name: bare._convert(bare._valid(name), ValueType.BOOL))
        return self._validity

    def _valid(self, name: str) -> Any:
        present = self._arrays.validity_of(self._index(name)) if name in self._layout.index else None
        if present is None or self._arrays.masked is None:
            return self._samples() if present is None else present
        return present * self._samples()

    def _samples(self) -> Any:
        """uint8 [rows], 0 where a row is padding or masked, where the batch lies."""
        return self._arrays.placed(self._host_mask().view(np.uint8))

    def _host_mask(self) -> npt.NDArray[np.bool_]:
        samples = np.arange(self.num_rows) < self.num_samples
        if self._arrays.masked is not None:
            samples[: self.num_samples] &= ~self._arrays.masked
        return samples

    def _row_weights(self, weights: RowWeights | JoinedWeights | None) -> npt.NDArray[np.float32]:
        found = np.zeros(self.num_rows, np.float32)
        found[: self.num_samples] = 1 if weights is None else weights.at(on_host(self._arrays.blocks), on_host(self._arrays.rows))
        found[~self._host_mask()] = 0
        return found

    @property
    def weights(self) -> Any:
        """float32 [rows]: how many rows of the table each row stands for, 1 / the rate at which its rule samples; 0 where a row is padding or masked."""
        if "weights" in self._moved:
            return self._moved["weights"]
        column = None if self._layout.weights is None else self._layout.weights.column
        return self._convert(self._arrays.placed(self._row_weights(None))) if column is None else self[column]

    @property
    def num_masked(self) -> int:
        """Rows of the plan that could not be had and are masked."""
        return 0 if self._arrays.masked is None else int(np.count_nonzero(self._arrays.masked))

    @property
    def group_offsets(self) -> Any:
        """int64 [groups + 1]: rows group_offsets[i] to group_offsets[i + 1] are a whole group of `group_by`, in the table's own order.

        Raises:
            ValueError: The scan does not group.
        """
        if "group_offsets" in self._moved:
            return self._moved["group_offsets"]
        if self._layout.groups is None:
            raise ValueError("the rows of this batch are not grouped: make the scan with group_by=[…]")
        offsets = self._layout.groups.offsets(on_host(self._arrays.blocks), on_host(self._arrays.rows))
        missing = max(self._layout.pad_groups + 1 - len(offsets), 0)
        return self._convert(self._arrays.placed(np.pad(offsets, (0, missing), mode="edge")))

    @property
    def mask(self) -> Any:
        """bool [rows]: False where a row is padding, or one of the plan that cannot be had."""
        if self._mask is None:
            self._mask = self._convert(self._samples(), ValueType.BOOL)
        return self._mask

    def positions(self) -> npt.NDArray[np.int64]:
        """int64 [samples, 2]: (segment id, row of the segment) of every sample, by which it can be accounted for."""
        blocks = self._arrays.blocks
        return np.stack([self._layout.block_segments[blocks], self._layout.block_row_starts[blocks] + self._arrays.rows], axis=1)

    @property
    def source(self) -> Any:
        """int64 [rows], from which source of a mix each row comes, numbered as in `loader.mix`; 0 without a mix, -1 where a row is padding."""
        sources = np.full(self.num_rows, -1, np.int64)
        blocks, of = on_host(self._arrays.blocks), self._layout.block_sources
        sources[: self.num_samples] = 0 if of is None else of[blocks[: self.num_samples]]
        return self._convert(self._arrays.placed(sources))

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
        """The batch with other or more columns, for transforms; a value of None removes the column. Validity stays with the name."""
        kept = {name: value for name, value in columns.items() if value is not None}
        valid = {name: self.validity[name] for name in kept if name in self.validity}
        return self._with(kept, valid, frozenset(columns) - frozenset(kept))

    def with_columns(self, columns: Mapping[str, Any], validity: Mapping[str, Any]) -> Batch:
        """The batch with other or more columns and their validity; those without any are null only where a row is padding. Other columns are not made yet."""
        return self._with(columns, validity, frozenset())

    def _with(self, columns: Mapping[str, Any], validity: Mapping[str, Any], removed: frozenset[str]) -> Batch:
        names = tuple(name for name in dict.fromkeys([*self._names, *columns]) if name not in removed)
        before, mask, bare = self.validity, self._mask, Batch(self._layout, self._arrays)

        def valid(name: str) -> Any:
            return before[name] if name not in columns else bare.mask if mask is None else mask

        made = {name: value for name, value in {**self._columns, **columns}.items() if name not in removed}
        return Batch(self._layout, self._arrays, made, _Validity(names, valid, validity), mask, names=names, changed=True)

    def _map(self, change: Callable[[Any], Any]) -> Batch:
        columns = {name: change(self[name]) for name in self._names}
        validity = {name: change(valid) for name, valid in self.validity.items()}
        moved = Batch(self._layout, self._arrays, columns, validity, change(self.mask), changed=self._changed)
        moved._moved = {name: change(getattr(self, name)) for name in self._beside()}
        return moved

    def _beside(self) -> tuple[str, ...]:
        """What there is beside the columns."""
        return ("weights",) if self._layout.groups is None else ("weights", "group_offsets")

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The batch with its tensors on a device (TorchRec's Pipelineable)."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in pinned host memory."""
        return self._map(lambda value: value.pin_memory())

    def record_stream(self, stream: Any) -> None:
        """Say that `stream` uses the tensors, those of `validity` and `mask` too: their memory is not used again before it has done what it is given now."""
        self._arrays.record_stream(stream)
        for value in (*self.values(), *self.validity.values(), self.mask, *self._moved.values()):
            value.record_stream(stream)

    def shaped(self, output: str) -> Any:
        """What a loader with this output hands over: itself, Arrow, lists as nested tensors, or lists of integers as one `batch["kjt"]` in their place."""
        if output == "arrow":
            return self.to_arrow()
        if output == "nested":
            return self.with_columns(self.to_nested(), {name: self.validity[name] for name in self._names})
        if output == "kjt":
            keys = [name for name in self._names if self._is_key(name)]
            return self.replace(kjt=self.to_kjt(keys), **dict.fromkeys(keys)) if keys else self
        return self

    def to_nested(self) -> dict[str, Any]:
        """Columns by name, lists as torch nested tensors."""
        return {name: value.to_nested() if isinstance(value, Jagged) else value for name, value in self.items()}

    def to_kjt(self, keys: Sequence[str] | None = None) -> Any:
        """Columns as one keyed jagged tensor, key after key.

        Args:
            keys: Their order; default all lists of integers. Neighbours of one dtype in the batch's own order cost no copy of their values.

        Returns:
            torchrec.KeyedJaggedTensor where TorchRec is installed, else a `loader.KeyedJagged`, which has the same fields.
        """
        names = tuple(keys) if keys is not None else tuple(name for name in self._names if self._is_key(name))
        found = keyed_jagged(self, self.validity, names)
        return found.to_torchrec() if has_torchrec() else found

    def _is_key(self, name: str) -> bool:
        value = self[name]
        return isinstance(value, Jagged) and not value.values.is_floating_point() and str(value.values.dtype) != "torch.bool"

    def to_arrow(self) -> pa.RecordBatch:
        """The samples as Arrow, in the types of the schema, nulls as nulls; padding and masked rows are left out.

        Raises:
            ValueError: Columns were replaced: Arrow shows them as they were read.
        """
        if self._changed:
            raise ValueError("to_arrow gives columns as they were read, and replace() changed some of this batch: convert before it")
        read = [self._layout.columns.read[self._index(name)] for name in self._layout.names if name in self._layout.index]
        fields = [pa.field(column.name, column.type, nullable=column.nullable) for column in read]
        arrays = [self.to_arrow_column(column.name) for column in read]
        if self._layout.weights is not None:
            fields.append(pa.field(self._layout.weights.column, pa.float32(), nullable=False))
            arrays.append(pa.array(self._row_weights(self._layout.weights)[: self.num_samples]))
        rows = pa.record_batch(arrays, schema=pa.schema(fields))
        return rows if self._arrays.masked is None else rows.filter(pa.array(~self._arrays.masked))

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
