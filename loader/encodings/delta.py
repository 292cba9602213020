"""Delta: what each value adds to the one before, from an anchor for each vector; zigzagged where steps go both ways."""

from __future__ import annotations

from typing import Any

import numpy as np

from loader.encodings.builder import ChunkBuilder
from loader.encodings.stream import Input, Source, Stream, materialise
from loader.kernels import native
from loader.segment.layout import VECTOR, Scan

Array = np.ndarray[Any, np.dtype[Any]]
SUM_NS = 0.35  # a value


def differences(values: Array) -> tuple[Array, Array]:
    """Differences modulo 2^32 of a uint32 stream, and the value that each vector starts from (its anchor).

    The first value of a vector takes the step of the second, and its anchor lies that much before it: a step of its own would be wide.
    """
    library = native.load()
    if library is not None:
        return library.differences(np.ascontiguousarray(values))
    deltas = np.zeros(values.size, np.uint32)
    np.subtract(values[1:], values[:-1], out=deltas[1:])
    first, second = deltas[::VECTOR], deltas[1::VECTOR]
    first[: second.size] = second
    first[second.size :] = 0
    return deltas, values[::VECTOR] - first


def zigzag(deltas: Array) -> Array:
    """Differences as uint32 that are small for small steps up and down."""
    return np.asarray((deltas << np.uint32(1)) ^ (np.uint32(0) - (deltas >> np.uint32(31))))


class Delta:
    """Sums of a stream of differences."""

    scans = True

    def __init__(self, anchors: Array, steps: Stream, scan: Scan) -> None:
        """
        Args:
            anchors: From `differences`.
            steps: The differences, encoded.
            scan: SUM, or ZIGZAG_SUM where they are zigzagged.
        """
        self._anchors, self._steps, self._scan = anchors, steps, scan
        self.count = steps.count
        self.num_bytes = steps.num_bytes + anchors.nbytes
        self.decode_ns = steps.decode_ns + SUM_NS * steps.count

    @property
    def text(self) -> str:
        return f"delta({self._steps.text})"

    def place(self, builder: ChunkBuilder) -> Input:
        source = self._steps.as_source(builder, by_rank=False)
        return Input(source=source.add(builder), level=source.level, scan=self._scan, scan_anchors=builder.stream(self._anchors))

    def as_source(self, builder: ChunkBuilder, *, by_rank: bool = True) -> Source:
        return materialise(builder, self)
