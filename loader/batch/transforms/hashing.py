"""Ids into buckets: by a hash of one column, or of several crossed. Integer arithmetic alone, so that every device gives the same buckets."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from loader.batch.jagged import Jagged
from loader.batch.transforms.base import Each, Features, Transform
from loader.extras import require

# Odd constants of splitmix64, as signed 64-bit integers: torch has no unsigned ones that multiply.
MIX_A = 0xBF58476D1CE4E5B9 - 2**64
MIX_B = 0x94D049BB133111EB - 2**64
STEP = 0x9E3779B97F4A7C15 - 2**64


def mix(ids: Any) -> Any:
    """splitmix64's finalizer (Steele, Lea, Flood 2014) of int64 words; shifts must first lose the sign."""
    ids = (ids ^ (ids >> 30 & (1 << 34) - 1)) * MIX_A
    ids = (ids ^ (ids >> 27 & (1 << 37) - 1)) * MIX_B
    return ids ^ (ids >> 31 & (1 << 33) - 1)


def buckets_of(words: Any, buckets: int) -> Any:
    """int64 in [0, buckets), of the top 62 bits of mixed words."""
    return (words >> 2 & (1 << 62) - 1).remainder(buckets)


def words_of(values: Any) -> Any:
    """int64 words of ids.

    Raises:
        TypeError: They are floating-point numbers, of which -0.0 and 0.0 would be two.
    """
    torch = require("torch", "torch")
    if values.is_floating_point():
        raise TypeError(f"{values.dtype} is hashed: only integers and bools are; cast or bucketise first")
    return values.to(torch.int64)


def _check_buckets(buckets: int) -> None:
    if buckets < 1:
        raise ValueError(f"buckets is {buckets}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hash(Each):
    """Spread ids over buckets: int64 in [0, buckets).

    Attributes:
        buckets: How many.
        seed: Another seed, another hash: for two tables that should not collide alike.
    """

    kind: ClassVar[str] = "hash"
    buckets: int
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_buckets(self.buckets)

    def change(self, values: Any) -> Any:
        return buckets_of(mix(words_of(values) + _start(self.seed)), self.buckets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cross(Transform):
    """One id of several columns together: int64 in [0, buckets). A row is null where one of them is. List columns cross value by value, of equal lists.

    Attributes:
        into: Name of the result.
        buckets: How many.
        seed: As of `hash`.
    """

    kind: ClassVar[str] = "cross"
    into: str
    buckets: int
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_buckets(self.buckets)
        if len(self.columns) < 2:
            raise ValueError("cross needs two columns or more; of one, take hash")

    @property
    def results(self) -> tuple[str, ...]:
        return (self.into,)

    def apply(self, features: Features) -> None:
        torch = require("torch", "torch")
        parts = [features.value(name) for name in self.columns]
        shown, lists = [part.values if isinstance(part, Jagged) else part for part in parts], [part for part in parts if isinstance(part, Jagged)]
        if lists and len(lists) != len(parts):
            raise ValueError("some of them are lists and some are not")
        if any(len(part.values) != len(lists[0].values) or not torch.equal(part.lengths(), lists[0].lengths()) for part in lists[1:]):
            raise ValueError("their lists are not of the same lengths")
        words = torch.full_like(words_of(shown[0]), _start(self.seed))
        for values in shown:
            words = mix(words * STEP + words_of(values))
        crossed = buckets_of(words, self.buckets)
        valid = None
        for name in self.columns:
            present = features.valid(name)
            if present is not None:
                valid = present if valid is None else valid & present
        features.put(self.into, dataclasses.replace(lists[0], values=crossed, weights=None) if lists else crossed, valid)


def _start(seed: int) -> int:
    """A signed 64-bit word of a seed."""
    word = seed * (STEP + 2**64) % 2**64
    return word - 2**64 if word >= 2**63 else word
