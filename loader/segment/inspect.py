"""What a segment looks like inside: bytes and encodings by column, for `headrace inspect`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnLayout:
    """One column.

    Attributes:
        column_id: Stable id.
        name: When it was written.
        type: Arrow type as text.
        num_bytes: Of its chunks in all blocks.
        encoding: Of its first block, e.g. `views(pool=packed 7 bits, lengths=packed 3 bits)`.
        reason: Why that was chosen.
    """

    column_id: int
    name: str
    type: str
    num_bytes: int
    encoding: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentLayout:
    """A segment.

    Attributes:
        name: Of the file.
        num_bytes: All bytes.
        num_rows: Rows.
        block_rows: Rows of each block.
        sections: Bytes of each footer section.
        columns: Sorted by id.
    """

    name: str
    num_bytes: int
    num_rows: int
    block_rows: tuple[int, ...]
    sections: dict[str, int]
    columns: tuple[ColumnLayout, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


def column_layout(encodings: Any, column_id: int, name: str, field: pa.Field, num_bytes: int) -> ColumnLayout:
    """One column, with what the writer noted of its encoding; `encodings` is what the properties hold, which nothing checks."""
    noted = encodings.get(str(column_id)) if isinstance(encodings, dict) else None
    tree, reason = (str(noted.get(key, "")) for key in ("tree", "reason")) if isinstance(noted, dict) else ("", "")
    return ColumnLayout(column_id=column_id, name=name, type=str(field.type), num_bytes=num_bytes, encoding=tree, reason=reason)
