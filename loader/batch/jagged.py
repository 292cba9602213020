"""Jagged: lists of different lengths as one array of values and one of offsets. Owns the ragged layout; knows nothing of tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

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

    An *unexpanded* column (`DataLoader(unique=[…])`) has each distinct list once, and `inverse` says which of them a row shows::

        values   7  8  9  8  9
        offsets  0        3  3     5        three lists
        inverse  0  0  1  0  2              five rows: the first, second and fourth show list 0

    So an embedding is looked up once a list: `embed(values, offsets)[inverse]`. That is torchrec's `inverse_indices`.

    Attributes:
        values: [total], torch tensor or NumPy array; the keys of a map.
        offsets: int64 [lists + 1], of the same kind and on the same device.
        weights: [total], the values of a map; None for a list.
        inverse: int64 [rows], the list of every row; None where row i shows list i.
    """

    values: Any
    offsets: Any
    weights: Any = None
    inverse: Any = None

    def __len__(self) -> int:
        """Rows."""
        return len(self.offsets) - 1 if self.inverse is None else len(self.inverse)

    def __getitem__(self, row: int) -> Any:
        """The values of one row; the keys of a map."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a jagged column of {len(self)} rows")
        row %= len(self)
        if self.inverse is not None:
            row = int(self.inverse[row])
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def lengths(self) -> Any:
        """int64 [rows]."""
        lengths = self.offsets[1:] - self.offsets[:-1]
        return lengths if self.inverse is None else lengths[self.inverse]

    def expand(self) -> Jagged:
        """The same rows with every list written out; itself where they are."""
        if self.inverse is None:
            return self
        lengths, starts = self.lengths(), self.offsets[:-1][self.inverse]
        if isinstance(self.values, np.ndarray):
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
            index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        else:
            torch = require("torch", extra="torch")
            offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            index = torch.repeat_interleave(starts - offsets[:-1], lengths)
            index = index + torch.arange(len(index), device=index.device)
        return Jagged(self.values[index], offsets, None if self.weights is None else self.weights[index])

    def to_nested(self) -> Any:
        """A torch nested tensor (jagged layout) over the same memory, of an unexpanded column over fresh memory; of a map, that of its keys."""
        torch = require("torch", extra="torch")
        rows = self.expand()
        return torch.nested.nested_tensor_from_jagged(rows.values, rows.offsets)

    def _map(self, change: Callable[[Any], Any]) -> Jagged:
        weights, inverse = (None if array is None else change(array) for array in (self.weights, self.inverse))
        return Jagged(change(self.values), change(self.offsets), weights, inverse)

    def to(self, device: Any, non_blocking: bool = False) -> Jagged:
        return self._map(lambda array: array.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Jagged:
        return self._map(lambda array: array.pin_memory())

    def record_stream(self, stream: Any) -> None:
        for array in (self.values, self.offsets, self.weights, self.inverse):
            if array is not None:
                array.record_stream(stream)
