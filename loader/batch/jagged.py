"""Jagged: lists of different lengths as one array of values and one of offsets. Owns the ragged layout; knows nothing of tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from loader.extras import require


@dataclasses.dataclass(frozen=True, eq=False)
class Jagged:
    """A list column of a batch, laid end to end.

    The rows [[7, 8, 9], [], [8, 9]] are::

        values   7  8  9  8  9
        offsets  0        3  3     5
                 row 0    |  row 2 |
                          row 1 (empty)

    Row i is values[offsets[i] : offsets[i + 1]]. A null list is empty here, and `batch.validity` tells it from an empty one.

    A map column has a weight beside each value::

        {7: 0.5, 8: 0.1}, {}, {8: 2.0}     values 7 8 8     weights 0.5 0.1 2.0     offsets 0 2 2 3

    Attributes:
        values: [total], torch tensor or NumPy array; the keys of a map.
        offsets: int64 [rows + 1], of the same kind and on the same device.
        weights: [total], the values of a map; None for a list.
    """

    values: Any
    offsets: Any
    weights: Any = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Any:
        """The values of one row; the keys of a map."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a jagged column of {len(self)} rows")
        row %= len(self)
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def lengths(self) -> Any:
        """int64 [rows]."""
        return self.offsets[1:] - self.offsets[:-1]

    def to_nested(self) -> Any:
        """A torch nested tensor (jagged layout) over the same memory; of a map, that of its keys."""
        torch = require("torch", extra="torch")
        return torch.nested.nested_tensor_from_jagged(self.values, self.offsets)

    def to(self, device: Any, non_blocking: bool = False) -> Jagged:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Jagged:
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: Any) -> None:
        for tensor in (self.values, self.offsets, self.weights):
            if tensor is not None:
                tensor.record_stream(stream)

    def _map(self, change: Callable[[Any], Any]) -> Jagged:
        return Jagged(change(self.values), change(self.offsets), None if self.weights is None else change(self.weights))
