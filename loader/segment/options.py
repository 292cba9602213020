"""How a segment is written: what a caller may ask for."""

from __future__ import annotations

import dataclasses
from typing import Any

from loader.encodings.options import EFFORTS
from loader.segment.layout import MAX_BLOCK_ROWS


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How a segment is written.

    Attributes:
        block_rows: Most rows of a block, at most 65,536.
        block_bytes: Most bytes of a block as Arrow arrays, all columns; one row may pass it. Decoded, repeated lists take much less.
        cluster_by: Names of the columns the caller sorted by; recorded.
        column_order: Names of columns that are read together, most wanted first: their chunks lie first in every block, in this order, so that
            reading them takes few requests. The others follow by id.
        dictionary: Try dictionaries.
        list_views: Share and overlap repeated list rows.
        effort: What to minimise: `size` bytes alone, `balanced` bytes and the time to decode them, `speed` mostly time.
        compress: Compress strings and blobs with zstd where that makes them smaller.
        quantise: `float16`, `bfloat16` or `int8` by the name of a float32 column: it loses precision and comes back as float32. A field's
            metadata `headrace.quantise` asks for the same.
        threads: Columns encoded at the same time, at most; None for the cores that this process may use. Small tables take one.
        encode_memory_bytes: What encoding may hold beside the table and the segment, about; fewer threads run where it would be more.
        segment_id: 16 bytes; a random UUID if None.
        properties: Anything else to record, as JSON values.
    """

    block_rows: int = MAX_BLOCK_ROWS
    block_bytes: int = 256 << 20
    cluster_by: tuple[str, ...] = ()
    column_order: tuple[str, ...] = ()
    dictionary: bool = True
    list_views: bool = True
    effort: str = "balanced"
    compress: bool = True
    quantise: dict[str, str] = dataclasses.field(default_factory=dict)
    threads: int | None = None
    encode_memory_bytes: int = 4 << 30
    segment_id: bytes | None = None
    properties: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.block_rows <= MAX_BLOCK_ROWS:
            raise ValueError(f"block_rows must be from 1 to {MAX_BLOCK_ROWS:,}, not {self.block_rows:,}")
        if self.effort not in EFFORTS:
            raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, not {self.effort!r}")
        if self.block_bytes < 1:
            raise ValueError(f"block_bytes must be positive, not {self.block_bytes}")
        if self.segment_id is not None and len(self.segment_id) != 16:
            raise ValueError(f"segment_id must be 16 bytes, not {len(self.segment_id)}")
