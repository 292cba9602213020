"""Arrow tables to segments: cuts rows into blocks, encodes columns, and lays out what FORMAT.md says.

Rows are written in the order given. Storage is not touched, except by `write_segment`, which writes one local file.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loader.errors import AlreadyExistsError, NotFoundError, StorageError, StorageFullError
from loader.segment.assemble import assemble
from loader.segment.blocks import cut_blocks
from loader.segment.encode import encode_columns, fits
from loader.segment.layout import MAX_BLOCK_ROWS
from loader.segment.options import WriteOptions as WriteOptions
from loader.segment.plan import WRITER as WRITER
from loader.segment.plan import WritePlan, plan_of
from loader.segment.stats import SegmentStats

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(kw_only=True, eq=False)
class EncodedSegment:
    """A segment in memory. Small commits make thousands: it is three times as fast where it is not frozen, and nobody changes one.

    Attributes:
        data: Its bytes.
        num_rows: Rows.
        block_rows: Rows of each block.
        segment_id: 16 bytes.
        plan: Of its schema.
        made: MADE records `[columns, blocks]`, columns by id.
        shared_bytes: int64 `[columns]`, of the dictionaries that the blocks of a column share.
    """

    data: memoryview
    num_rows: int
    block_rows: list[int]
    segment_id: bytes
    plan: WritePlan
    made: Array
    shared_bytes: Array

    @property
    def stats(self) -> SegmentStats:
        """By column id."""
        return SegmentStats(self.plan.column_ids, self.made, self.plan.value_types)

    @property
    def chunk_bytes(self) -> Array:
        """Bytes of each chunk, uint64 `[columns, blocks]`, columns by id."""
        sizes: Array = self.made["num_bytes"]
        return sizes

    @property
    def column_bytes(self) -> dict[int, int]:
        """Bytes of the column's chunks, by column id, those of what its blocks share included."""
        return dict(zip(self.stats, (self.chunk_bytes.sum(axis=1).astype(np.int64) + self.shared_bytes).tolist(), strict=True))


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
    plan = plan_of(table.schema, column_ids, options)
    if block_rows is None:
        block_rows = _blocks(table, [0, table.num_rows], plan, options)[0]
    else:
        _check_blocks(block_rows, table.num_rows)
    return _encode(table, [list(block_rows)], plan, options, [key_index], features)[0]


def encode_segments(
    table: pa.Table,
    bounds: Sequence[int],
    *,
    column_ids: Sequence[int],
    options: WriteOptions | None = None,
    key_indexes: Sequence[bytes | memoryview | None] | None = None,
    features: int = 0,
) -> list[EncodedSegment]:
    """Encode stretches of a table as segments of their own, in one go: many small ones cost little more than one.

    Args:
        table: Rows in their final order.
        bounds: The first row of each segment, and behind them the number of rows.
        column_ids: As in `encode_segment`.
        options: Defaults if None; no segment_id.
        key_indexes: The bytes of each segment's KEY_INDEX section, if any.
        features: Feature bits that the caller's use needs.

    Raises:
        SchemaError: A column's type cannot be stored.
        ValueError: Ids do not match the columns, or bounds the table.
    """
    options = WriteOptions() if options is None else options
    if not bounds or bounds[0] != 0 or bounds[-1] != table.num_rows or any(after < before for before, after in itertools.pairwise(bounds)):
        raise ValueError(f"bounds must rise from 0 to the table's {table.num_rows:,} rows, got {list(bounds)[:20]}")
    if options.segment_id is not None:
        raise ValueError("segments need an id each: leave segment_id out")
    plan = plan_of(table.schema, column_ids, options)
    indexes: Sequence[bytes | memoryview | None] = [None] * (len(bounds) - 1) if key_indexes is None else key_indexes
    return _encode(table, _blocks(table, bounds, plan, options), plan, options, indexes, features)


def _check_blocks(block_rows: Sequence[int], num_rows: int) -> None:
    if sum(block_rows) != num_rows or max(block_rows, default=1) > MAX_BLOCK_ROWS or min(block_rows, default=1) < 1:
        raise ValueError(f"blocks of {sum(block_rows):,} rows, each from 1 to {MAX_BLOCK_ROWS:,}, do not add up to a table of {num_rows:,}")


def _blocks(table: pa.Table, bounds: Sequence[int], plan: WritePlan, options: WriteOptions) -> list[list[int]]:
    """Rows of the blocks of each segment."""
    if max((after - before for before, after in itertools.pairwise(bounds)), default=0) <= options.block_rows and fits(table, plan, options.block_bytes):
        return [[after - before] if after > before else [] for before, after in itertools.pairwise(bounds)]
    return [
        cut_blocks(table.slice(start, stop - start), plan.leaves, max_rows=options.block_rows, max_bytes=options.block_bytes)
        for start, stop in itertools.pairwise(bounds)
    ]


def _encode(
    table: pa.Table, blocks: list[list[int]], plan: WritePlan, options: WriteOptions, key_indexes: Sequence[bytes | memoryview | None], features: int
) -> list[EncodedSegment]:
    block_rows = list(itertools.chain.from_iterable(blocks))
    first_blocks = [0, *itertools.accumulate(len(rows) for rows in blocks)]
    random = os.urandom(16 * len(blocks))
    ids = [random[16 * at : 16 * at + 16] if options.segment_id is None else options.segment_id for at in range(len(blocks))]
    chunks = encode_columns(table, block_rows, first_blocks, plan, options)
    properties = plan.properties(options)
    made = assemble(chunks, block_rows, first_blocks, plan, properties=properties, key_indexes=key_indexes, segment_ids=ids, features=features)
    unshared = np.zeros(len(plan.order), np.int64)
    return [
        EncodedSegment(
            data=data,
            num_rows=sum(rows),
            block_rows=rows,
            segment_id=segment_id,
            plan=plan,
            made=chunks.made[:, first : first + len(rows)],
            shared_bytes=chunks.shared_bytes(first) if chunks.shared else unshared,
        )
        for data, rows, first, segment_id in zip(made, blocks, first_blocks, ids, strict=False)
    ]


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
