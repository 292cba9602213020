"""Numbers into other numbers, value by value."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from loader.batch.transforms.base import Each
from loader.extras import require

DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip(Each):
    """Values below `min` become it, values above `max` too; NaN stays.

    Attributes:
        min: None: no limit.
        max: None: no limit.
    """

    kind: ClassVar[str] = "clip"
    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")

    def change(self, values: Any) -> Any:
        if values.is_floating_point():
            return values.clamp(min=self.min, max=self.max)
        low, high = (None if limit is None else nearest(limit) for limit, nearest in ((self.min, math.ceil), (self.max, math.floor)))
        return values.clamp(min=low, max=high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log1p(Each):
    """log(1 + max(x, 0)), float32: counts and amounts that spread over decades."""

    kind: ClassVar[str] = "log1p"

    def change(self, values: Any) -> Any:
        return values.to(require("torch", "torch").float32).clamp(min=0).log1p()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standardise(Each):
    """(x - mean) / deviation, float32.

    Attributes:
        mean: Of the training rows.
        deviation: Likewise; above 0.
    """

    kind: ClassVar[str] = "standardise"
    mean: float
    deviation: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.deviation > 0:
            raise ValueError(f"deviation is {self.deviation}; it must be above 0")

    def change(self, values: Any) -> Any:
        return (values.to(require("torch", "torch").float32) - self.mean) / self.deviation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucketise(Each):
    """The number of boundaries at or below a value: int64 in [0, len(boundaries)]; NaN comes last.

    Attributes:
        boundaries: Growing.
    """

    kind: ClassVar[str] = "bucketise"
    boundaries: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.boundaries or any(low >= high for low, high in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ValueError("boundaries must be some numbers that grow")

    def change(self, values: Any) -> Any:
        torch = require("torch", "torch")
        kind = values.dtype if values.is_floating_point() else torch.float64
        return torch.bucketize(values.to(kind), torch.tensor(self.boundaries, dtype=kind, device=values.device), right=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cast(Each):
    """Another dtype.

    Attributes:
        dtype: One of torch's, by name.
    """

    kind: ClassVar[str] = "cast"
    dtype: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")

    def change(self, values: Any) -> Any:
        return values.to(getattr(require("torch", "torch"), self.dtype))
