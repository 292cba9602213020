"""What encoders may use, and how they weigh bytes against the time to decode them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loader.encodings.shared import PoolCollector, SharedDictionary

EFFORTS = {"size": 0.0, "balanced": 0.03, "speed": 2.0}  # bytes that a nanosecond of decoding is worth


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What encoders may use.

    Attributes:
        dictionary: Try dictionaries.
        list_views: Share and overlap views of repeated list rows.
        effort: `size` counts bytes alone, `balanced` also what decoding them takes, `speed` mostly that.
        min_pool_saving: Share of a pool that sliding must save before it is used: accidental matches cost more than they save.
        max_slide_items: Most items a window may drop from one row to the next and still be found.
        compress: Compress strings and blobs where that makes them smaller.
        quantise: `float16`, `bfloat16` or `int8`: store float32 values with less precision; None keeps every bit.
        shared: The dictionary that the blocks of a column share, or what collects their values for one.
    """

    dictionary: bool = True
    list_views: bool = True
    effort: str = "balanced"
    min_pool_saving: float = 0.15
    max_slide_items: int = 8
    compress: bool = True
    quantise: str | None = None
    shared: SharedDictionary | PoolCollector | None = None

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, not {self.effort!r}")

    @property
    def nested_splits(self) -> bool:
        """Whether classes of a split may be split again: a few per cent of bytes for half as much decoding again."""
        return self.effort == "size"

    @property
    def bytes_per_ns(self) -> float:
        return EFFORTS[self.effort]
