"""Several columns into one dense matrix."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from loader.batch.jagged import Jagged
from loader.batch.transforms.base import Features, Transform
from loader.batch.transforms.numbers import DTYPES
from loader.extras import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack(Transform):
    """A feature group: columns [rows] and matrices [rows, n] side by side, in the order they are named.

    Attributes:
        into: Name of the matrix [rows, sum of widths].
        dtype: Of the matrix.
    """

    kind: ClassVar[str] = "stack"
    into: str
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")

    @property
    def results(self) -> tuple[str, ...]:
        return (self.into,)

    def apply(self, features: Features) -> None:
        torch = require("torch", "torch")
        parts = [features.value(name) for name in self.columns]
        for name, part in zip(self.columns, parts, strict=True):
            if isinstance(part, Jagged):
                raise TypeError(f"column {name!r} holds lists: pad it first")
        kind = getattr(torch, self.dtype)
        widths = [1 if part.ndim == 1 else part.shape[1] for part in parts]
        matrix = torch.empty((len(parts[0]), sum(widths)), dtype=kind, device=parts[0].device)
        at = 0
        for part, width in zip(parts, widths, strict=True):
            matrix[:, at : at + width] = part.view(len(part), width)  # casts on the way: one copy a column, none in between
            at += width
        features.put(self.into, matrix)
