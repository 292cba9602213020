"""One value for all items: no stream at all, the value is the op's base."""

from __future__ import annotations

import dataclasses

from loader.encodings.target import Target
from loader.segment.layout import SourceKind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """Every item has this bit pattern."""

    pattern: int
    num_bytes: int = 0
    cost: float = 0.0
    text: str = "constant"

    def emit(self, target: Target) -> None:
        present = target.count if target.nulls is None else target.nulls.num_set
        source = target.builder.source(SourceKind.CONSTANT, count=present)
        target.op(level=0, source=source, base=self.pattern)
