"""A part of a batch: some rows of one window, wherever windows lie."""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

W = TypeVar("W")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(Generic[W]):
    """Rows start, start + step, … below stop of one window."""

    window: W
    start: int
    stop: int
    step: int = 1

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop, self.step)

    @property
    def num_rows(self) -> int:
        return len(range(self.start, self.stop, self.step))
