"""Arrow tables to segments: cuts rows into blocks, encodes columns, and lays out the footer as FORMAT.md says.

Rows are written in the order given. Storage is not touched, except by `write_segment`, which writes one local file.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loader.encodings.leaf import LeafType, leaf_type
from loader.encodings.options import EFFORTS, EncodeOptions
from loader.encodings.quantise import KINDS
from loader.errors import AlreadyExistsError, NotFoundError, SchemaError, StorageError, StorageFullError
from loader.segment.blocks import cut_blocks
from loader.segment.checksum import crc32c
from loader.segment.encode import EncodedChunks, EncodePlan, encode_columns
from loader.segment.footer import ColumnEntry, write_footer
from loader.segment.layout import (
    ALIGNMENT,
    BLOCK,
    CHUNK,
    FORMAT_VERSION,
    HEADER,
    MAGIC,
    MAX_BLOCK_ROWS,
    Feature,
    Section,
    ValueType,
)
from loader.segment.stats import ColumnStats, SegmentStats

Array = np.ndarray[Any, np.dtype[Any]]
WRITER = "headrace"
QUANTISE_KEY = b"headrace.quantise"


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedSegment:
    """A segment in memory.

    Attributes:
        data: Its bytes.
        num_rows: Rows.
        block_rows: Rows of each block.
        stats: By column id.
        column_bytes: Bytes of the column's chunks, by column id.
        segment_id: 16 bytes.
    """

    data: memoryview
    num_rows: int
    block_rows: list[int]
    stats: Mapping[int, ColumnStats]
    column_bytes: dict[int, int]
    segment_id: bytes


def _check_blocks(block_rows: Sequence[int], num_rows: int) -> None:
    if sum(block_rows) != num_rows or max(block_rows, default=1) > MAX_BLOCK_ROWS or min(block_rows, default=1) < 1:
        raise ValueError(f"blocks of {sum(block_rows):,} rows, each from 1 to {MAX_BLOCK_ROWS:,}, do not add up to a table of {num_rows:,}")


def _entry(field: pa.Field, column_id: int, leaf: LeafType, index: int) -> ColumnEntry:
    return ColumnEntry(column_id=column_id, name=field.name, leaf=leaf, nullable=field.nullable, schema_index=index)


def _header(features: int, segment_id: bytes) -> bytes:
    header = np.zeros(1, HEADER)
    header["magic"], header["version"], header["header_bytes"], header["features"] = MAGIC, FORMAT_VERSION, HEADER.itemsize, features
    raw = bytearray(header.tobytes())
    raw[24:40] = segment_id
    raw[60:64] = crc32c(bytes(raw[:60])).to_bytes(4, "little")
    return bytes(raw)


def encode_segment(
    table: pa.Table,
    *,
    column_ids: Sequence[int],
    options: WriteOptions | None = None,
    key_index: bytes | None = None,
    features: int = 0,
    block_rows: Sequence[int] | None = None,
) -> EncodedSegment:
    """Encode a table as one segment.

    Args:
        table: Rows in their final order. Dictionary-encoded columns are stored as their values and encoded again when they are read.
        column_ids: The stable id of each column of the table, below 2^32, each once.
        options: Defaults if None.
        key_index: The bytes of the KEY_INDEX section, if any.
        features: Feature bits that the caller's use needs (COLUMN_FILE, OVERLAY).
        block_rows: Rows of each block, where they must be those of another segment; default as the options limit them.

    Raises:
        SchemaError: A column's type cannot be stored.
        ValueError: Ids do not match the columns.
    """
    options = WriteOptions() if options is None else options
    if len(column_ids) != table.num_columns or len(set(column_ids)) != len(column_ids):
        raise ValueError(f"{table.num_columns} columns need as many different ids, got {list(column_ids)[:20]}")
    leaves = [leaf_type(field.type, field.name) for field in table.schema]
    if unknown := sorted(set(options.quantise) - set(table.column_names)):
        raise SchemaError(f"quantise names columns that are not there: {', '.join(unknown[:5])}")
    order = sorted(range(table.num_columns), key=lambda index: column_ids[index])
    if block_rows is None:
        block_rows = cut_blocks(table, leaves, max_rows=options.block_rows, max_bytes=options.block_bytes)
    else:
        _check_blocks(block_rows, table.num_rows)
    encode = EncodeOptions(dictionary=options.dictionary, list_views=options.list_views, compress=options.compress, effort=options.effort)
    quantise = [_quantise(field, leaf, options) for field, leaf in zip(table.schema, leaves, strict=True)]
    plan = EncodePlan(leaves=leaves, order=order, quantise=quantise, options=encode, threads=options.threads, memory_bytes=options.encode_memory_bytes)
    chunks = encode_columns(table, block_rows, plan)
    segment_id = uuid.uuid4().bytes if options.segment_id is None else options.segment_id
    features |= chunks.features | _features(leaves, chunks.stats)
    placed, footer_offset = _lay_chunks(chunks, _file_order(table, order, options.column_order))
    ordered_ids = [column_ids[index] for index in order]
    entries = [_entry(table.schema.field(index), column_ids[index], leaves[index], index) for index in order]
    blocks = np.zeros(len(block_rows), BLOCK)
    blocks["num_rows"] = block_rows
    blocks["row_start"] = np.cumsum(block_rows) - block_rows if block_rows else 0
    sections: dict[Section, tuple[Array | bytes, int]] = {
        Section.BLOCKS: (blocks, len(blocks)),
        Section.CHUNKS: (placed, placed.size),
        Section.STATS: (chunks.stats, chunks.stats.size),
        Section.ARROW_SCHEMA: (table.schema.serialize().to_pybytes(), 1),
        Section.PROPERTIES: (_properties(chunks.notes, ordered_ids, options), 1),
    }
    if key_index is not None:
        sections[Section.KEY_INDEX] = (key_index, 1)
    footer = write_footer(offset=footer_offset, columns=entries, sections=sections, features=features, num_rows=table.num_rows, num_blocks=len(block_rows))
    data = np.zeros(footer_offset + len(footer), np.uint8)
    chunks.copy_to(placed["offset"], data)
    data[: HEADER.itemsize] = np.frombuffer(_header(features, segment_id), np.uint8)
    data[footer_offset:] = np.frombuffer(footer, np.uint8)
    return EncodedSegment(
        data=memoryview(data.data).toreadonly(),
        num_rows=table.num_rows,
        block_rows=list(block_rows),
        stats=SegmentStats(ordered_ids, chunks.stats, [leaves[index].value_type for index in order]),
        column_bytes=dict(zip(ordered_ids, chunks.num_bytes.sum(axis=1).tolist(), strict=True)),
        segment_id=segment_id,
    )


def _features(leaves: Sequence[LeafType], stats: Array) -> int:
    features = 0
    if stats["null_count"].any() or any(leaf.fixed_size for leaf in leaves):
        features |= Feature.NULLS
    if any(leaf.depth for leaf in leaves):
        features |= Feature.LIST_VIEWS | Feature.NULLS
    if any(leaf.weights is not None for leaf in leaves):
        features |= Feature.MAPS
    return int(features)


def _quantise(field: pa.Field, leaf: LeafType, options: WriteOptions) -> str | None:
    """How much precision a column may lose, by the options or its field's metadata; None for none, the default."""
    kind = options.quantise.get(field.name) or ((field.metadata or {}).get(QUANTISE_KEY) or b"").decode() or None
    if kind is not None and (kind not in KINDS or leaf.value_type != ValueType.FLOAT32):
        raise SchemaError(f"column {field.name!r} ({field.type}) cannot be quantised to {kind!r}: float32 columns can, to {', '.join(KINDS)}")
    return kind


def _file_order(table: pa.Table, order: Sequence[int], first: Sequence[str]) -> list[int]:
    """Places in `order` as their chunks lie in a block: the columns of the hint, then the others by id."""
    if unknown := sorted(set(first) - set(table.column_names)):
        raise SchemaError(f"column_order names columns that are not there: {', '.join(unknown[:5])}")
    rank = {name: place for place, name in enumerate(first)}
    names = [table.schema.field(index).name for index in order]
    return sorted(range(len(order)), key=lambda place: rank.get(names[place], len(rank)))


def _lay_chunks(chunks: EncodedChunks, file_order: Sequence[int]) -> tuple[Array, int]:
    """CHUNKS records, and where the footer starts. A block's chunks are neighbours."""
    placed = np.zeros(chunks.num_bytes.shape, CHUNK)
    taken = (chunks.num_bytes[list(file_order)].T + np.uint64(ALIGNMENT - 1)) // np.uint64(ALIGNMENT) * np.uint64(ALIGNMENT)
    ends = HEADER.itemsize + np.cumsum(taken.reshape(-1), dtype=np.uint64).reshape(taken.shape)
    placed["offset"][list(file_order)] = (ends - taken).T
    placed["num_bytes"], placed["checksum"], placed["arena_bytes"] = chunks.num_bytes, chunks.checksums, chunks.arena_bytes
    return placed, int(ends[-1, -1]) if ends.size else HEADER.itemsize


def _properties(notes: Sequence[str], column_ids: Sequence[int], options: WriteOptions) -> bytes:
    """What PROPERTIES records; encodings are those of the first block."""
    properties = json.dumps({"writer": WRITER, "cluster_by": list(options.cluster_by), **options.properties}, separators=(",", ":"))
    encodings = ",".join([f'"{column_id}":{note}' for column_id, note in zip(column_ids, notes, strict=False)])
    return f'{properties[:-1]},"encodings":{{{encodings}}}}}'.encode()


def write_segment(
    path: str | os.PathLike[str], table: pa.Table, *, column_ids: Sequence[int] | None = None, options: WriteOptions | None = None
) -> EncodedSegment:
    """Write a table as a segment file: complete and synced to disk under its name, or not there at all.

    Args:
        path: A name that does not exist yet.
        table: Rows in their final order.
        column_ids: Default 1, 2, 3…
        options: Defaults if None.

    Raises:
        AlreadyExistsError: The file is there; segments are never overwritten.
        NotFoundError: Its folder is not there.
        StorageFullError: No space left on the disk.
        SchemaError: A column's type cannot be stored.
    """
    target = Path(path)
    encoded = encode_segment(table, column_ids=range(1, table.num_columns + 1) if column_ids is None else column_ids, options=options)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(encoded.data)
            file.flush()
            os.fsync(file.fileno())
        # a link fails where a rename would replace
        os.link(temporary, target)
    except FileExistsError:
        raise AlreadyExistsError(f"{target} exists: segments are never overwritten, choose another name or delete it first") from None
    except FileNotFoundError:
        raise NotFoundError(f"no folder {target.parent} to write {target.name} into: create it first") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                f"no space left for {target} ({len(encoded.data):,} bytes): free some and write it again; nothing was left behind"
            ) from error
        raise StorageError(f"{target} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return encoded


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
