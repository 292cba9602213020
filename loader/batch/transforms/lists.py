"""Lists into shorter lists, or into rows of one length."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from loader.batch.jagged import Jagged
from loader.batch.transforms.base import Each, Features
from loader.extras import require

KEEPS = ("first", "last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Lists(Each):
    """A step on list columns.

    Attributes:
        length: Values that stay of a list.
        keep: `last` or `first` ones; a history grows at its end.
    """

    length: int
    keep: str = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ValueError(f"length is {self.length}; it must be at least 1")
        if self.keep not in KEEPS:
            raise ValueError(f"keep is {self.keep!r}; it must be one of {', '.join(KEEPS)}")

    def _kept(self, lists: Jagged) -> tuple[Any, Any]:
        """int64 [lists] each: where what stays of each list begins, and its length."""
        lengths = lists.offsets[1:] - lists.offsets[:-1]
        kept = lengths.clamp(max=self.length)
        return (lists.offsets[:-1] if self.keep == "first" else lists.offsets[1:] - kept), kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truncate(_Lists):
    """Lists of at most `length` values, still as lists; unexpanded ones stay so."""

    kind: ClassVar[str] = "truncate"

    def apply(self, features: Features) -> None:
        torch = require("torch", "torch")
        for column, result in zip(self.columns, self.results, strict=True):
            lists = _lists(features, column)
            starts, kept = self._kept(lists)
            offsets = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
            index = torch.repeat_interleave(starts - offsets[:-1], kept)
            index = index + torch.arange(len(index), device=index.device)
            weights = None if lists.weights is None else lists.weights[index]
            features.put(result, Jagged(lists.values[index], offsets, weights, lists.inverse), features.valid(column))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pad(_Lists):
    """A matrix [rows, length] of each row's values; missing ones are `value`, at the right of `first` ones and at the left of `last` ones.

    Attributes:
        value: What stands where a list is shorter.
        mask: Name of a column to make, of a single column: bool [rows, length], True where a value is the list's own.
    """

    kind: ClassVar[str] = "pad"
    value: float = 0.0
    mask: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is not None and len(self.columns) > 1:
            raise ValueError("mask is for one column: make a step of each")

    @property
    def results(self) -> tuple[str, ...]:
        return (*super().results, *(() if self.mask is None else (self.mask,)))

    def apply(self, features: Features) -> None:
        torch = require("torch", "torch")
        for column, result in zip(self.columns, super().results, strict=True):
            lists = _lists(features, column)
            starts, kept = self._kept(lists)
            if lists.inverse is not None:
                starts, kept = starts[lists.inverse], kept[lists.inverse]
            slot = torch.arange(self.length, device=starts.device)
            if self.keep == "last":
                slot = slot - self.length + kept[:, None]
                present = slot >= 0
            else:
                present = slot < kept[:, None]
            index = torch.where(present, starts[:, None] + slot, 0)
            fill = torch.tensor(self.value, device=starts.device).to(lists.values.dtype)
            taken = lists.values[index] if len(lists.values) else fill.expand(index.shape)
            features.put(result, torch.where(present, taken, fill), features.valid(column))
            if self.mask is not None:
                features.put(self.mask, present)


def _lists(features: Features, column: str) -> Jagged:
    value = features.value(column)
    if not isinstance(value, Jagged):
        raise TypeError(f"column {column!r} holds no lists")
    return value
