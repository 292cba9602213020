"""Values as they are: one COPY op. Only without nulls, which spread a packed stream instead."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from loader.encodings.target import Target
from loader.segment.layout import OpKind, SourceKind

Array = np.ndarray[Any, np.dtype[Any]]
COPY_NS = 0.05  # a byte


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
    """The items' bytes in the chunk."""

    values: Array
    text: str = "plain"

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes

    @property
    def decode_ns(self) -> float:
        return COPY_NS * self.values.nbytes

    def emit(self, target: Target) -> int:
        builder = target.builder
        source = builder.source(SourceKind.PLAIN, count=target.count, data=builder.stream(self.values))
        builder.op(OpKind.COPY, out=target.region, out_kind=target.out_kind, count=target.count, level=0, source=source)
        return 0
