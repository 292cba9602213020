"""One value for all items: no stream at all, the value is the op's base."""

from __future__ import annotations

import dataclasses

import numpy as np

from loader.encodings.stream import Packed
from loader.encodings.target import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """Every item has this bit pattern."""

    pattern: int
    num_bytes: int = 0
    decode_ns: float = 0.0
    text: str = "constant"

    def emit(self, target: Target) -> int:
        present = target.count if target.nulls is None else target.nulls.num_set
        return target.read(Packed(np.zeros(present, np.uint32)), base=self.pattern)
