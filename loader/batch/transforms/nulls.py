"""Nulls into values."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from loader.batch.jagged import Jagged
from loader.batch.transforms.base import Each, Features
from loader.extras import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class FillNulls(Each):
    """A value instead of null, and of NaN in columns of floating-point numbers. A null list is an empty one already, and stays so.

    Attributes:
        value: What it is; it must be one of the column's dtype.
        indicator: Name of a column to make, of a single column: 1 where it was null, else 0, float32.
    """

    kind: ClassVar[str] = "fill_nulls"
    value: float
    indicator: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.indicator is not None and len(self.columns) > 1:
            raise ValueError("indicator is for one column: make a step of each")

    @property
    def results(self) -> tuple[str, ...]:
        return (*super().results, *(() if self.indicator is None else (self.indicator,)))

    def apply(self, features: Features) -> None:
        torch = require("torch", "torch")
        for column, result in zip(self.columns, super().results, strict=True):
            value, missing = features.value(column), _missing(features, column)
            if not isinstance(value, Jagged) and missing is not None:
                value = torch.where(missing.view(-1, *[1] * (value.ndim - 1)) if missing.ndim < value.ndim else missing, self._fill(value), value)
            features.put(result, value)
            if self.indicator is not None:
                rows = len(value)
                device = value.values.device if isinstance(value, Jagged) else value.device
                features.put(self.indicator, torch.zeros(rows, device=device) if missing is None else missing.to(torch.float32))

    def _fill(self, values: Any) -> Any:
        torch = require("torch", "torch")
        if not values.is_floating_point() and self.value != int(self.value):
            raise ValueError(f"{self.value} is no {values.dtype}: cast first")
        return torch.tensor(self.value if values.is_floating_point() else int(self.value), dtype=values.dtype, device=values.device)


def _missing(features: Features, column: str) -> Any:
    """bool [rows], of matrices with NaN [rows, values]; None where nothing can be missing."""
    value, valid = features.value(column), features.valid(column)
    if isinstance(value, Jagged) or not value.is_floating_point():
        return None if valid is None else ~valid
    return value.isnan() if valid is None else value.isnan() | ~valid.view(-1, *[1] * (value.ndim - 1))
