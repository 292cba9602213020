"""Keyed jagged tensors: the list and id columns of a batch as one tensor of values, key after key, as TorchRec's embedding collections take them.

Owns the key-major layout. TorchRec is not needed: without it the result is a `KeyedJagged`, which has the same fields.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loader.batch.jagged import Jagged
from loader.errors import SchemaError
from loader.extras import require


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class KeyedJagged:
    """Lists of several keys in one tensor, key after key; what torchrec.KeyedJaggedTensor holds, after its docstring.

    Two rows, `a` = [[1, 2], []] and `b` = [[7], [8, 9]]::

        values   1 2  7  8 9
        lengths  2 0  1  2        key a, then key b

    Attributes:
        keys: Names, in the order of the values.
        values: [total].
        lengths: int64 [sum of strides]: of every list of the first key, then of the second.
        stride: Lists of each key; rows, but for keys that come unexpanded.
        weights: [total], or None.
        inverse: int64 [keys, rows], the list of every row, where some key comes unexpanded; else None.
    """

    keys: tuple[str, ...]
    values: Any
    lengths: Any
    stride: tuple[int, ...]
    weights: Any = None
    inverse: Any = None

    @functools.cached_property
    def offsets(self) -> Any:
        """int64 [sum of strides + 1]."""
        torch = require("torch", "torch")
        return torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)])

    def __getitem__(self, key: str) -> Jagged:
        """One key's lists, over the same memory."""
        number = self.keys.index(key)
        first, count = sum(self.stride[:number]), self.stride[number]
        offsets = self.offsets[first : first + count + 1]
        begin, end = int(offsets[0]), int(offsets[-1])
        weights = None if self.weights is None else self.weights[begin:end]
        return Jagged(self.values[begin:end], offsets - begin, weights, None if self.inverse is None else self.inverse[number])

    def _map(self, change: Callable[[Any], Any]) -> KeyedJagged:
        weights, inverse = (None if tensor is None else change(tensor) for tensor in (self.weights, self.inverse))
        return dataclasses.replace(self, values=change(self.values), lengths=change(self.lengths), weights=weights, inverse=inverse)

    def to(self, device: Any, non_blocking: bool = False) -> KeyedJagged:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> KeyedJagged:
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: Any) -> None:
        for tensor in (self.values, self.lengths, self.weights, self.inverse):
            if tensor is not None:
                tensor.record_stream(stream)

    def to_torchrec(self) -> Any:
        """torchrec.KeyedJaggedTensor over the same memory; unexpanded keys bring `inverse_indices` and strides of their own."""
        kind = require("torchrec", "torchrec").KeyedJaggedTensor
        more: dict[str, Any] = {"stride": self.stride[0] if self.stride else 0}
        if self.inverse is not None:
            more = {"stride_per_key_per_rank": [[count] for count in self.stride], "inverse_indices": (list(self.keys), self.inverse)}
        return kind(keys=list(self.keys), values=self.values, weights=self.weights, lengths=self.lengths, **more)


def has_torchrec() -> bool:
    """Whether TorchRec is installed."""
    return importlib.util.find_spec("torchrec") is not None


def keyed_jagged(batch: Mapping[str, Any], validity: Mapping[str, Any], keys: Sequence[str]) -> KeyedJagged:
    """Columns of a batch as one.

    Args:
        batch: Tensors by name; those of `keys` are jagged, or int [rows], of which a null is an empty list.
        validity: bool [rows] by name.
        keys: Their order. Values that lie one behind the other already, as those of neighbours of one dtype do, are not copied.

    Raises:
        SchemaError: A column has a place in no keyed jagged tensor.
    """
    torch = require("torch", "torch")
    if not keys:
        raise SchemaError("to_kjt: no column is a list of integers: name the keys")
    lists = [_as_lists(name, batch[name], validity.get(name)) for name in keys]
    kind = lists[0].values.dtype if len({one.values.dtype for one in lists}) == 1 else torch.int64
    values = _behind_each_other([one.values for one in lists]) if all(one.values.dtype == kind for one in lists) else None
    if values is None:
        values = torch.cat([one.values.to(kind) for one in lists])
    lengths = torch.cat([one.offsets[1:] - one.offsets[:-1] for one in lists])
    weights = None
    if any(one.weights is not None for one in lists):
        weights = torch.cat([torch.ones(len(one.values), device=one.values.device) if one.weights is None else one.weights for one in lists])
    inverse = None
    if any(one.inverse is not None for one in lists):
        rows = torch.arange(len(lists[0]), device=lengths.device)
        inverse = torch.stack([rows if one.inverse is None else one.inverse for one in lists])
    stride = tuple(len(one.offsets) - 1 for one in lists)
    return KeyedJagged(keys=tuple(keys), values=values, lengths=lengths, stride=stride, weights=weights, inverse=inverse)


def _as_lists(name: str, value: Any, valid: Any) -> Jagged:
    torch = require("torch", "torch")
    values = value.values if isinstance(value, Jagged) else value
    if values.is_floating_point() or values.dtype == torch.bool or values.ndim != 1:
        raise SchemaError(f"to_kjt: column {name!r} holds {values.dtype} of {values.ndim} dimensions, and keys have integers or lists of them: name other keys")
    if isinstance(value, Jagged):
        return value
    present = torch.ones(len(value), dtype=torch.bool, device=value.device) if valid is None else valid
    return Jagged(value[present], torch.cat([present.new_zeros(1, dtype=torch.int64), present.cumsum(0)]))


def _behind_each_other(parts: Sequence[Any]) -> Any:
    """A view of all parts where they lie in one storage without a gap, or None."""
    held = [part for part in parts if len(part)]
    if not held:
        return parts[0]
    first = held[0]
    at = first.data_ptr()
    for part in held:
        if part.data_ptr() != at or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or not part.is_contiguous():
            return None
        at += part.numel() * part.element_size()
    return first.as_strided((sum(len(part) for part in held),), (1,))
