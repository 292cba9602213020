"""Checks every byte of a segment that a checksum covers, and decodes every chunk. Finds all that is wrong, not only the first."""

from __future__ import annotations

import dataclasses
from typing import Any

from loader.errors import FormatError, NotFoundError, StorageError
from loader.segment.reader import SegmentReader


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentReport:
    """What a check found.

    Attributes:
        num_chunks: Chunks checked.
        num_bytes: Of the segment.
        num_rows: Rows that the segment states; 0 where it cannot be opened.
        problems: One line each, with file, block, column and offset; empty when all is well.
    """

    num_chunks: int
    num_bytes: int
    num_rows: int
    problems: tuple[str, ...]


def verify_segment(source: Any) -> SegmentReport:
    """Check one segment: header, footer, every chunk's checksum and structure, and that it reads: lists inside their pools, strings UTF-8.

    Memory stays below a block, encoded and as Arrow arrays.

    Args:
        source: As for SegmentReader.

    Raises:
        NotFoundError: The file is not there.
    """
    try:
        reader = SegmentReader(source, verify=True)
        ids, num_blocks = _check_footer(reader), reader.num_blocks
    except NotFoundError:
        raise
    except (FormatError, StorageError) as error:
        return SegmentReport(num_chunks=0, num_bytes=int(getattr(source, "num_bytes", 0)), num_rows=0, problems=(str(error),))
    problems: list[str] = []
    for block in range(num_blocks):
        if _problem(reader, block, ids) is not None:
            # column by column, to name every one that is damaged
            problems += [found for column in ids if (found := _problem(reader, block, [column])) is not None]
    reader.close()
    num_chunks = len(ids) * num_blocks + len(reader.dictionaries(ids)[0])
    return SegmentReport(num_chunks=num_chunks, num_bytes=reader.num_bytes, num_rows=reader.num_rows, problems=tuple(problems))


def _check_footer(reader: SegmentReader) -> list[int]:
    """Read every page of the footer; the ids of the columns."""
    for kind in reader.section_kinds:
        reader.section(kind)
    _ = reader.segment_id, reader.blocks, reader.properties, reader.shared
    reader.read(rows=[])  # the Arrow schema and the columns must agree
    return reader.resolve(None)


def _problem(reader: SegmentReader, block: int, ids: list[int]) -> str | None:
    start, num_rows = int(reader.blocks["row_start"][block]), int(reader.block_rows[block])
    try:
        if num_rows:
            reader.read(ids, range(start, start + num_rows))
        else:
            reader.read_block(block, ids)
    except (FormatError, StorageError) as error:
        name = reader.column_name(reader.column_index(ids[0]))
        return str(error) if repr(name) in str(error) else f"column {name!r}: {error}"
    return None
