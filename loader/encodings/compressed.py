"""Compressed bytes: the pool of strings and blobs as one zstd frame, where no structure of ours fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from loader.encodings.target import Target
from loader.segment.layout import COPY_IS_ZSTD, OpKind, SourceKind

Array = np.ndarray[Any, np.dtype[Any]]
LEVEL = 3
SAMPLE_BYTES = 1 << 16
MIN_BYTES = 2048  # below, a frame saves little for the 100 µs that it takes
MIN_SAVING = 0.9
INFLATE_NS = 0.9  # a byte


def compress_bytes(buffer: Any) -> pa.Buffer:
    """One zstd frame of a contiguous buffer."""
    return pa.Codec("zstd", compression_level=LEVEL).compress(pa.py_buffer(buffer))


def compress(values: Array) -> Array:
    """One zstd frame."""
    return np.frombuffer(compress_bytes(np.ascontiguousarray(values)), np.uint8)


def worth_trying(values: Array) -> bool:
    """Whether a stretch from the middle gets smaller."""
    if values.nbytes < MIN_BYTES:
        return False
    middle = max(values.size // 2 - SAMPLE_BYTES // 2, 0)
    stretch = values[middle : middle + SAMPLE_BYTES]
    return compress(stretch).nbytes < MIN_SAVING * stretch.nbytes


class Compressed:
    """Bytes as a zstd frame."""

    def __init__(self, values: Array) -> None:
        self._frame = compress(values)
        self.num_bytes = self._frame.nbytes
        self.decode_ns = INFLATE_NS * values.nbytes
        self.text = "zstd"

    def emit(self, target: Target) -> int:
        builder = target.builder
        source = builder.source(SourceKind.PLAIN, count=target.count, data=builder.stream(self._frame), num_words=self._frame.size)
        builder.op(
            OpKind.COPY, out=target.region, out_kind=target.out_kind, count=target.count, level=0, source=source, flags=COPY_IS_ZSTD
        )  # fmt: skip
        return 0
