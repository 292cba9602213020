"""A batch's arrays on a device: where each column lies in the batch's leases, and tensors over them made when they are asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loader.batch.assemble import BatchArrays
from loader.batch.device_buffers import DeviceLease, torch_dtype
from loader.batch.device_columns import DeviceColumns
from loader.batch.device_tables import BATCH_PLANE, places
from loader.extras import require

if TYPE_CHECKING:
    import torch

    from loader.kernels.runtime import Event, Runtime, Stream

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FixedPlaces:
    """Where fixed-width columns and validity lie in their lease.

    Attributes:
        columns: int64 [fixed columns].
        starts: int64 [fixed columns].
        validity_columns: int64 [columns with a null].
        validity_starts: int64 [columns with a null].
        num_bytes: Of the lease.
        num_rows: Of the batch.
    """

    layout: DeviceColumns
    columns: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    validity_columns: npt.NDArray[np.int64]
    validity_starts: npt.NDArray[np.int64]
    num_bytes: int
    num_rows: int

    @classmethod
    def of(cls, layout: DeviceColumns, num_rows: int, has_validity: npt.NDArray[np.bool_]) -> FixedPlaces:
        """Columns of one dtype end to end, as a matrix [columns, rows]; then those with several values a row; then validity."""
        columns, starts, at = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        for group in layout.columns.groups:
            members = np.array(group.columns, np.int64)
            columns.append(members)
            starts.append(at + np.arange(members.size) * num_rows * group.dtype.itemsize)
            at += int(places([members.size * num_rows * group.dtype.itemsize])[1])
        wide = np.array(layout.columns.wide, np.int64)
        wide_starts, wide_bytes = places(num_rows * layout.item_bytes[wide] * layout.width[wide])
        validity = np.flatnonzero(has_validity)
        validity_starts = at + wide_bytes + np.arange(validity.size) * num_rows
        return cls(
            layout=layout,
            columns=np.concatenate([*columns, wide]),
            starts=np.concatenate([*starts, at + wide_starts]),
            validity_columns=validity,
            validity_starts=validity_starts,
            num_bytes=at + wide_bytes + validity.size * num_rows,
            num_rows=num_rows,
        )

    @property
    def num_planes(self) -> int:
        return self.columns.size + self.validity_columns.size

    def planes(self, address: int) -> Array:
        """BATCH_PLANE records of all planes to gather, in a lease at an address."""
        table = np.zeros(self.num_planes, BATCH_PLANE)
        fixed, validity = table[: self.columns.size], table[self.columns.size :]
        fixed["out"], fixed["plane"] = address + self.starts, self.columns
        fixed["item_bytes"], fixed["width"] = self.layout.item_bytes[self.columns], self.layout.width[self.columns]
        validity["out"], validity["plane"] = address + self.validity_starts, len(self.layout) + self.validity_columns
        validity["item_bytes"] = validity["width"] = 1
        return table

    @functools.cached_property
    def by_column(self) -> dict[int, int]:
        return dict(zip(self.columns.tolist(), self.starts.tolist(), strict=True))

    @functools.cached_property
    def validity_by_column(self) -> dict[int, int]:
        return dict(zip(self.validity_columns.tolist(), self.validity_starts.tolist(), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ListPlaces:
    """Where list columns lie in their leases; int64 [lists] each, inverses [unexpanded lists]."""

    offsets: npt.NDArray[np.int64]
    inverses: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    num_entries: npt.NDArray[np.int64]
    num_values: npt.NDArray[np.int64]
    num_rows: int


@functools.cache
def _side_stream(device: str) -> Any:
    """The torch stream of transforms."""
    return require("torch", "torch").cuda.Stream(device)


def tensors_of(batch: Any) -> Iterator[Any]:
    """The tensors of what transforms returned, as deep as mappings and sequences go."""
    if hasattr(batch, "record_stream") and hasattr(batch, "data_ptr"):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
        yield from tensors_of(getattr(batch, "validity", ()))
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from tensors_of(value)
    elif dataclasses.is_dataclass(batch):
        for field in dataclasses.fields(batch):
            yield from tensors_of(getattr(batch, field.name))


def _on_host(memory: torch.Tensor) -> Array:
    """A copy in host memory, done when this returns."""
    host = require("torch", "torch").empty(memory.shape, dtype=memory.dtype, pin_memory=memory.is_cuda)
    host.copy_(memory)
    copied: Array = host.numpy()
    return copied


class DeviceArrays:
    """The arrays of a batch on a device, with the faces of `BatchArrays`.

    Attributes:
        num_rows: Rows of every column, padding included.
        num_samples: Rows that are samples; they come first.
        blocks: uint32 [samples], on the host.
        rows: uint32 [samples], on the host.
        masked: bool [samples], on the host, rows of the plan that cannot be had; None where there is none.
        ready: Happens when all of it is written; whoever reads waits for it.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        num_samples: int,
        columns: DeviceColumns,
        fixed: DeviceLease,
        fixed_places: FixedPlaces,
        offsets: DeviceLease,
        values: DeviceLease,
        list_places: ListPlaces,
        blocks: npt.NDArray[np.uint32],
        rows: npt.NDArray[np.uint32],
        ready: Event,
        runtime: Runtime,
    ) -> None:
        self.num_rows, self.num_samples, self.blocks, self.rows, self.ready = num_rows, num_samples, blocks, rows, ready
        self.masked: npt.NDArray[np.bool_] | None = None
        self._runtime = runtime
        self._transformed: Any = None
        self._columns, self._fixed, self._offsets, self._values = columns, fixed, offsets, values
        self._fixed_places, self._list_places = fixed_places, list_places

    def with_masked(self, masked: npt.NDArray[np.bool_] | None) -> DeviceArrays:
        """The same with some rows masked."""
        self.masked = masked
        return self

    @functools.cached_property
    def _fixed_bytes(self) -> torch.Tensor:
        return self._fixed.tensor(self._fixed_places.num_bytes)

    @functools.cached_property
    def _offset_bytes(self) -> torch.Tensor:
        places_ = self._list_places
        ends = [*(places_.offsets + 8 * (places_.num_entries + 1)), *(places_.inverses + 8 * places_.num_rows)]
        return self._offsets.tensor(int(max(ends, default=0)))

    @functools.cached_property
    def _value_bytes(self) -> torch.Tensor:
        sizes = self._list_places.num_values * self._columns.leaf_bytes[self._columns.lists]
        return self._values.tensor(int((self._list_places.values + sizes).max(initial=0)))

    def fixed_column(self, index: int, place: tuple[int, int] | None = None) -> Any:
        """[rows] or [rows, values a row]; `place` is how the CPU finds them."""
        leaf, width = self._columns.columns.leaves[index], int(self._columns.width[index])
        found = self._take(self._fixed_bytes, self._fixed_places.by_column[index], self.num_rows * width, leaf.dtype)
        return found.view(self.num_rows, width) if leaf.fixed_size else found

    def buffer_of(self, index: int) -> None:
        """The tensors of list columns share their memory already."""

    def list_column(self, index: int) -> tuple[Any, Any, Any]:
        """(values, offsets, inverse or None)."""
        number, where = int(self._columns.list_number[index]), self._list_places
        values = self._take(self._value_bytes, int(where.values[number]), int(where.num_values[number]), self._columns.columns.leaves[index].dtype)
        offsets = self._take(self._offset_bytes, int(where.offsets[number]), int(where.num_entries[number]) + 1, np.dtype(np.int64))
        if number >= self._columns.num_unique:
            return values, offsets, None
        return values, offsets, self._take(self._offset_bytes, int(where.inverses[number]), self.num_rows, np.dtype(np.int64))

    def validity_of(self, index: int) -> Any:
        """uint8 [rows], or None where every sample of the column is there."""
        start = self._fixed_places.validity_by_column.get(index)
        return None if start is None else self._fixed_bytes[start : start + self.num_rows]

    def to_host(self) -> BatchArrays:
        """The same arrays in host memory, pinned where there is a GPU; blocks until they are there."""
        self._wait()
        fixed, offsets, values = (_on_host(memory) for memory in (self._fixed_bytes, self._offset_bytes, self._value_bytes))
        layout, where, rows = self._columns, self._list_places, self.num_rows

        def taken(memory: Array, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
            return memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

        starts = self._fixed_places.by_column
        groups = [taken(fixed, starts[group.columns[0]], (len(group.columns), rows), group.dtype) for group in layout.columns.groups]
        wide = {index: taken(fixed, starts[index], (rows, int(layout.width[index])), layout.columns.leaves[index].dtype) for index in layout.columns.wide}
        lists, inverses = {}, {}
        for index in layout.columns.lists:
            number = int(layout.list_number[index])
            shown = taken(values, int(where.values[number]), (int(where.num_values[number]),), layout.columns.leaves[index].dtype)
            lists[index] = (shown, taken(offsets, int(where.offsets[number]), (int(where.num_entries[number]) + 1,), np.dtype(np.int64)))
            if number < layout.num_unique:
                inverses[index] = taken(offsets, int(where.inverses[number]), (rows,), np.dtype(np.int64))
        validity = {index: fixed[start : start + rows] for index, start in self._fixed_places.validity_by_column.items()}
        return BatchArrays(
            num_rows=rows,
            num_samples=self.num_samples,
            fixed=tuple(groups),
            wide=wide,
            lists=lists,
            validity=validity,
            blocks=self.blocks,
            rows=self.rows,
            inverses=inverses,
            masked=self.masked,
        )

    @staticmethod
    def _take(memory: torch.Tensor, start: int, count: int, dtype: np.dtype[Any]) -> torch.Tensor:
        return memory[start : start + count * dtype.itemsize].view(torch_dtype(dtype))

    def placed(self, array: Array) -> torch.Tensor:
        """An array of the host where the batch lies."""
        return require("torch", "torch").from_numpy(array).to(self._runtime.device)

    @contextlib.contextmanager
    def transforming(self) -> Iterator[None]:
        """Transforms run inside, behind the batch and beside the consumer's own work: on a stream of their own, where there are streams."""
        if self._runtime.name != "cuda":
            self._wait()
            yield
            return
        torch, stream = require("torch", "torch"), _side_stream(self._runtime.device)
        with torch.cuda.stream(stream):
            self._wait()
            yield
            self._transformed = stream.record_event()

    def hand_over(self, batch: Any = None) -> None:
        """The calling thread's stream waits for the batch, and the batch's memory from now on for that stream.

        Args:
            batch: What transforms made of it: its tensors are torch's own, and lie where they ran.
        """
        self._wait()
        if self._transformed is not None:
            stream = require("torch", "torch").cuda.current_stream(self._runtime.device)
            stream.wait_event(self._transformed)
            for value in tensors_of(batch):
                value.record_stream(stream)

    def _wait(self) -> None:
        stream = self._runtime.consumer_stream()
        self._runtime.wait(stream, self.ready)
        self._used_on(stream)

    def record_stream(self, stream: Any) -> None:
        """A torch stream reads the batch: its memory is not written again before that stream is done with what it has when the batch dies."""
        if self._runtime.name == "cuda":
            with require("torch", "torch").cuda.stream(stream):
                self._used_on(self._runtime.consumer_stream())
        else:
            self._used_on(self._runtime.consumer_stream())

    def _used_on(self, stream: Stream) -> None:
        for lease in (self._fixed, self._offsets, self._values):
            lease.used_on(stream)
