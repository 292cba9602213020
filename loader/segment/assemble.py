"""Segments from their chunks: header, chunks in file order, footer, as FORMAT.md says. Native where the library is there, the same bytes without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loader.kernels import native
from loader.kernels.native_segments import SECTION, SEGMENT_PART, SEGMENT_PLAN
from loader.segment.checksum import crc32c
from loader.segment.column import arena_bytes
from loader.segment.encode import EncodedChunks
from loader.segment.footer import SectionContent, record_bytes, write_footer
from loader.segment.layout import ALIGNMENT, BLOCK, CHUNK, FORMAT_VERSION, HEADER, MAGIC, SHARED_CHUNK, STATS, Feature, Section, round_up
from loader.segment.plan import WritePlan

Array = np.ndarray[Any, np.dtype[Any]]


def assemble(
    chunks: EncodedChunks,
    block_rows: Sequence[int],
    first_blocks: Sequence[int],
    plan: WritePlan,
    *,
    properties: str,
    key_indexes: Sequence[bytes | memoryview | None],
    segment_ids: Sequence[bytes],
    features: int,
) -> list[memoryview]:
    """Lay out segments.

    Args:
        chunks: Of all blocks.
        block_rows: Rows of each block.
        first_blocks: The first block of each segment, and behind them the number of blocks.
        plan: Of their schema.
        properties: From `plan.properties`.
        key_indexes: The bytes of each segment's KEY_INDEX section, if any.
        segment_ids: 16 bytes each.
        features: Feature bits that the caller's use needs.

    Returns:
        The bytes of each segment.
    """
    library = native.load()
    if library is None or chunks.shared:
        return [
            _segment(chunks, block_rows, range(start, stop), plan, properties=properties, key_index=index, segment_id=segment_id, features=features)
            for start, stop, index, segment_id in zip(first_blocks[:-1], first_blocks[1:], key_indexes, segment_ids, strict=True)
        ]
    contents = [(kind, content.count, np.frombuffer(content.data, np.uint8)) for kind, content in plan.sections.items()]
    sections = np.array([(kind, record_bytes(kind), count, data.ctypes.data, data.size) for kind, count, data in contents], SECTION)
    text, notes = (np.frombuffer(raw, np.uint8) for raw in (properties.encode(), chunks.notes))
    rows = np.array(block_rows, np.uint32)
    record = np.array(
        (
            sections.ctypes.data, sections.size, plan.column_ids.ctypes.data, plan.file_order.ctypes.data, plan.column_ids.size, rows.size,
            text.ctypes.data, text.size, plan.features | features, chunks.pointers.ctypes.data, chunks.made.ctypes.data, notes.ctypes.data,
            chunks.note_ends.ctypes.data, rows.ctypes.data, 0,
        ),
        SEGMENT_PLAN,
    )  # fmt: skip
    indexes = [None if index is None else np.frombuffer(index, np.uint8) for index in key_indexes]
    parts = np.array(
        [
            (start, stop - start, 0 if index is None else index.ctypes.data, 0 if index is None else index.size, 0, 0, segment_id)
            for start, stop, index, segment_id in zip(first_blocks[:-1], first_blocks[1:], indexes, segment_ids, strict=True)
        ],
        SEGMENT_PART,
    )
    out = memoryview(library.write_segments(record, parts).data).toreadonly()
    return [out[start : start + size] for start, size in zip(parts["offset"].tolist(), parts["num_bytes"].tolist(), strict=True)]


def _segment(
    chunks: EncodedChunks,
    block_rows: Sequence[int],
    blocks: range,
    plan: WritePlan,
    *,
    properties: str,
    key_index: bytes | memoryview | None,
    segment_id: bytes,
    features: int,
) -> memoryview:
    """`assemble` for one segment, in NumPy."""
    made = chunks.made[:, blocks.start : blocks.stop]
    features |= plan.features | int(np.bitwise_or.reduce(made["features"], axis=None)) | (int(Feature.NULLS) if made["null_count"].any() else 0)
    dictionaries = {place: chunk for (place, first_block), chunk in chunks.shared.items() if first_block == blocks.start and len(blocks)}
    shared, blocks_offset = _lay_shared(dictionaries)
    placed, footer_offset = _lay_chunks(made, plan.file_order, blocks_offset)
    stats, records = np.zeros(made.shape, STATS), np.zeros(len(blocks), BLOCK)
    for name in STATS.names or ():
        stats[name] = made[name]
    records["num_rows"] = block_rows[blocks.start : blocks.stop]
    records["row_start"] = np.cumsum(records["num_rows"]) - records["num_rows"]
    sections = plan.sections | {
        Section.BLOCKS: SectionContent(data=records.tobytes(), count=records.size),
        Section.CHUNKS: SectionContent(data=placed.tobytes(), count=placed.size),
        Section.STATS: SectionContent(data=stats.tobytes(), count=stats.size),
        Section.PROPERTIES: SectionContent(data=_properties(chunks, blocks, plan, properties), count=1),
    }
    if shared.size:
        sections[Section.SHARED_CHUNKS] = SectionContent(data=shared.tobytes(), count=shared.size)
    if key_index is not None:
        sections[Section.KEY_INDEX] = SectionContent(data=bytes(key_index), count=1)
    num_rows = int(records["num_rows"].sum())
    footer = write_footer(
        offset=footer_offset, sections=sections, features=features, num_rows=num_rows, num_columns=plan.column_ids.size, num_blocks=len(blocks)
    )  # fmt: skip
    data = np.zeros(footer_offset + len(footer), np.uint8)
    data[: HEADER.itemsize] = np.frombuffer(_header(features, segment_id), np.uint8)
    for record in shared:
        data[int(record["offset"]) : int(record["offset"]) + int(record["num_bytes"])] = dictionaries[int(record["column_index"])]
    for column, block in np.ndindex(*made.shape):
        start = int(placed["offset"][column, block])
        data[start : start + int(made["num_bytes"][column, block])] = chunks.chunk(column, blocks.start + block)
    data[footer_offset:] = np.frombuffer(footer, np.uint8)
    return memoryview(data.data).toreadonly()


def _header(features: int, segment_id: bytes) -> bytes:
    header = np.zeros(1, HEADER)
    header["magic"], header["version"], header["header_bytes"], header["features"] = MAGIC, FORMAT_VERSION, HEADER.itemsize, features
    raw = bytearray(header.tobytes())
    raw[24:40] = segment_id
    raw[60:64] = crc32c(bytes(raw[:60])).to_bytes(4, "little")
    return bytes(raw)


def _lay_shared(dictionaries: dict[int, Array]) -> tuple[Array, int]:
    """SHARED_CHUNK records of the dictionaries that blocks share, by rows of COLUMNS, and where the blocks start after them."""
    placed, position = np.zeros(len(dictionaries), SHARED_CHUNK), HEADER.itemsize
    for record, (place, chunk) in zip(placed, sorted(dictionaries.items()), strict=True):
        record["column_index"], record["offset"], record["num_bytes"] = place, position, chunk.size
        record["checksum"], record["arena_bytes"] = crc32c(chunk), arena_bytes(chunk)
        position = round_up(position + chunk.size)
    return placed, position


def _lay_chunks(made: Array, file_order: Array, start: int) -> tuple[Array, int]:
    """CHUNKS records, and where the footer starts. A block's chunks are neighbours."""
    placed = np.zeros(made.shape, CHUNK)
    taken = (made["num_bytes"][file_order].T + np.uint64(ALIGNMENT - 1)) // np.uint64(ALIGNMENT) * np.uint64(ALIGNMENT)
    ends = start + np.cumsum(taken.reshape(-1), dtype=np.uint64).reshape(taken.shape)
    placed["offset"][file_order] = (ends - taken).T
    for name in ("num_bytes", "checksum", "arena_bytes"):
        placed[name] = made[name]
    return placed, int(ends[-1, -1]) if ends.size else start


def _properties(chunks: EncodedChunks, blocks: range, plan: WritePlan, properties: str) -> bytes:
    """What PROPERTIES records; encodings are those of the first block."""
    columns = enumerate(plan.column_ids.tolist()) if len(blocks) else []
    encodings = ",".join([f'"{column_id}":{chunks.note(place, blocks.start)}' for place, column_id in columns])
    return f'{properties},"encodings":{{{encodings}}}}}'.encode()
