"""The columns of a table to chunks, block by block: natively where the whole-column encoder knows the type, else one by one.

Owns which columns go which way, and threads; the bytes are the same either way. Where chunks lie in a file is `assemble`'s.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from loader.encodings import compressed
from loader.encodings.chunk import EncodedChunk
from loader.kernels import native
from loader.kernels.native_columns import MADE, TASK, ColumnOptions, NativeChunks
from loader.segment.column import ColumnChunks, TableColumn, contiguous, encode_column, may_share
from loader.segment.options import WriteOptions
from loader.segment.plan import WritePlan, pointer
from loader.segment.stats import has_range

Array = np.ndarray[Any, np.dtype[Any]]
BYTES_PER_THREAD = 1 << 20  # fewer are encoded before another thread has started
WORKING_BYTES = 12  # that the encoder holds, at most, about, for a byte of a column while it looks at a chunk


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodedChunks:
    """Chunks of columns by blocks; arrays are `[columns, blocks]`, columns by id.

    Attributes:
        made: MADE records: sizes, checksums, features and statistics.
        pointers: uint64, addresses of the chunks' bytes, good as long as this object lives.
        notes: What was chosen for the first block of each column and segment, and why: JSON objects end to end.
        note_ends: uint64, where the notes end.
        kept: What holds the bytes.
        shared: Chunks of the dictionaries that the blocks of a column and segment share, by the column's row and the segment's first block.
    """

    made: Array
    pointers: Array
    notes: bytes
    note_ends: Array
    kept: Any
    shared: dict[tuple[int, int], Array] = dataclasses.field(default_factory=dict)

    def chunk(self, column: int, block: int) -> Array:
        """The bytes of a chunk, uint8."""
        size = int(self.made["num_bytes"][column, block])
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(self.pointers[column, block])))

    def shared_bytes(self, first_block: int) -> Array:
        """Bytes of the dictionaries that the columns of the segment with this first block share among its blocks, int64 `[columns]`."""
        sizes = np.zeros(self.made.shape[0], np.int64)
        for (column, block), chunk in self.shared.items():
            sizes[column] += chunk.size if block == first_block else 0
        return sizes

    def note(self, column: int, block: int) -> str:
        """What was chosen for a chunk and why, as JSON."""
        place = column * self.made.shape[1] + block
        ends = self.note_ends.reshape(-1)
        return self.notes[int(ends[place - 1]) if place else 0 : int(ends[place])].decode()


def encode_columns(table: pa.Table, block_rows: Sequence[int], first_blocks: Sequence[int], plan: WritePlan, options: WriteOptions) -> EncodedChunks:
    """Encode all columns of a table.

    Args:
        table: Its rows.
        block_rows: Rows of each block.
        first_blocks: The first block of each segment, and behind them the number of blocks.
        plan: Of its schema.
        options: For threads and memory.

    Raises:
        SchemaError: A block holds more of a column than one Arrow array can.
        ValueError: A chunk would pass 4 GiB.
    """
    noted = np.zeros(len(block_rows), np.uint8)
    noted[[block for block in first_blocks[:-1] if block < len(block_rows)]] = 1
    columns = _table_columns(table, block_rows, first_blocks, plan)
    sharing = {place: blocks for place, column in columns.items() if (blocks := may_share(column))} if plan.encode.dictionary else {}
    by_native = plan.native & ~np.isin(np.arange(len(plan.order)), list(sharing))
    if by_native.all() and block_rows and plan.order:
        return _natively(table, block_rows, np.arange(len(plan.order)), noted, plan, options)
    shape = (len(plan.order), len(block_rows))
    made, pointers, notes = np.zeros(shape, MADE), np.zeros(shape, np.uint64), [[""] * shape[1] for _ in plan.order]
    kept: list[Any] = []
    places = np.flatnonzero(by_native)
    if places.size and block_rows:
        found = _natively(table, block_rows, places, noted, plan, options)
        made[places], pointers[places] = found.made, found.pointers
        for row, place in enumerate(places.tolist()):
            notes[place] = [found.note(row, block) for block in range(shape[1])]
        kept.append(found)
    shared: dict[tuple[int, int], Array] = {}
    others = {place: columns[place] for place in np.flatnonzero(~by_native).tolist()} if block_rows else {}
    for place, column in _one_by_one(others, sharing, plan, options).items():
        made[place] = column.made
        kept.append(column)
        pointers[place] = [chunk.data.ctypes.data for chunk in column.chunks]
        notes[place] = [_note(chunk) if asked else "" for chunk, asked in zip(column.chunks, noted, strict=True)]
        shared.update({(place, first_block): chunk for first_block, chunk in column.shared.items()})
    flat = [note.encode() for column in notes for note in column]
    ends = np.cumsum([len(note) for note in flat], dtype=np.uint64).reshape(shape)
    return EncodedChunks(made=made, pointers=pointers, notes=b"".join(flat), note_ends=ends, kept=kept, shared=shared)


def _table_columns(table: pa.Table, block_rows: Sequence[int], first_blocks: Sequence[int], plan: WritePlan) -> dict[int, TableColumn]:
    """The columns that Python may have to encode, by their places in the order: all where a segment has several blocks, for those may share a dictionary."""
    several = any(stop - start > 1 for start, stop in itertools.pairwise(first_blocks))
    return {
        place: TableColumn(
            values=table.column(index), name=table.schema.field(index).name, leaf=plan.leaves[index], block_rows=block_rows, first_blocks=first_blocks
        )
        for place, index in enumerate(plan.order)
        if several or not plan.native[place]
    }


def fits(table: pa.Table, plan: WritePlan, most_bytes: int) -> bool:
    """Whether the table surely takes no more bytes as Arrow arrays: cheaper than to count them, for columns that the native encoder knows."""
    library = native.load()
    if library is None or not plan.native.all() or not plan.order or any(column.num_chunks != 1 for column in table.columns):
        return False
    return not table.num_rows or int(_Exported(table.to_batches()[0]).decoded_bytes(library).sum()) <= most_bytes


def num_threads(asked: int | None, num_bytes: int, largest_bytes: int, memory_bytes: int) -> int:
    """Threads that pay for so many bytes of columns, of which the largest chunk has `largest_bytes`, within the memory."""
    most = len(os.sched_getaffinity(0)) if asked is None else asked
    return max(min(most, 1 + num_bytes // BYTES_PER_THREAD, memory_bytes // max(largest_bytes * WORKING_BYTES, 1)), 1)


class _Exported:
    """A record batch as the C data interface's structs, which live as long as this does."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._capsules = batch.__arrow_c_array__()
        self.schema, self.array = (pointer(capsule, name) for capsule, name in zip(self._capsules, (b"arrow_schema", b"arrow_array"), strict=True))
        self._num_columns = batch.num_columns

    def decoded_bytes(self, library: native.NativeLibrary) -> Array:
        """Bytes of each column as an Arrow array, at most, int64."""
        return np.minimum(library.decoded_bytes(self.array, self.schema, self._num_columns), np.uint64(1 << 40)).astype(np.int64)


def _batches(table: pa.Table, block_rows: Sequence[int]) -> tuple[list[pa.RecordBatch], Array, Array]:
    """The table as record batches of whole blocks: batches, and for each block its batch and first row in it."""
    starts = np.cumsum(block_rows) - block_rows
    if all(column.num_chunks == 1 for column in table.columns):
        return table.to_batches(), np.zeros(len(block_rows), np.int64), starts
    batches = []
    for start, rows in zip(starts.tolist(), block_rows, strict=True):
        block = table.slice(start, rows).combine_chunks()
        for field, column in zip(block.schema, block.columns, strict=True):
            contiguous(column, field.name)
        batches.extend(block.to_batches())
    return batches, np.arange(len(block_rows)), np.zeros(len(block_rows), np.int64)


def _natively(table: pa.Table, block_rows: Sequence[int], places: Array, noted: Array, plan: WritePlan, options: WriteOptions) -> EncodedChunks:
    library, encode = native.load(), plan.encode
    assert library is not None
    indexes = np.array(plan.order, np.int64)[places]
    if places.size < table.num_columns:
        table, columns = table.select(indexes.tolist()), np.arange(places.size)
    else:
        columns = indexes
    batches, batch_of, first_rows = _batches(table, block_rows)
    exported = [_Exported(batch) for batch in batches]
    tasks = np.zeros((places.size, len(block_rows)), TASK)
    tasks["batch"] = np.array([batch.array for batch in exported], np.uint64)[batch_of]
    tasks["schema"] = np.array([batch.schema for batch in exported], np.uint64)[batch_of]
    tasks["column"], tasks["first_row"], tasks["num_rows"] = columns[:, None], first_rows, block_rows
    asked = ColumnOptions(
        bytes_per_ns=encode.bytes_per_ns, min_pool_saving=encode.min_pool_saving, max_slide_items=encode.max_slide_items, dictionary=encode.dictionary,
        list_views=encode.list_views, nested_splits=encode.nested_splits, compress=compressed.compress_bytes if encode.compress else None,
    )  # fmt: skip
    sizes = np.sum([batch.decoded_bytes(library) for batch in exported], axis=0)
    largest = int(sizes.max()) * max(block_rows) // table.num_rows
    threads = num_threads(options.threads, int(sizes.sum()), largest, options.encode_memory_bytes)
    chunks: NativeChunks = library.encode_columns(tasks.reshape(-1), np.tile(noted, places.size), asked, threads)
    if chunks.made["failed"].any():
        failed = int(np.flatnonzero(chunks.made["failed"])[0]) // len(block_rows)
        name = table.schema.field(int(columns[failed])).name
        raise ValueError(f"column {name!r}: a chunk passes the limit of 4 GiB: write smaller blocks (WriteOptions.block_bytes)")
    text, ends = chunks.notes()
    shape = tasks.shape
    return EncodedChunks(made=chunks.made.reshape(shape), pointers=chunks.pointers().reshape(shape), notes=text, note_ends=ends.reshape(shape), kept=chunks)


def _one_by_one(columns: dict[int, TableColumn], sharing: dict[int, list[range]], plan: WritePlan, options: WriteOptions) -> dict[int, ColumnChunks]:
    """Columns by the encoders in Python, by their places in the order."""

    def run(place: int) -> ColumnChunks:
        column, encode = columns[place], dataclasses.replace(plan.encode, quantise=plan.quantise[plan.order[place]])
        ranged = has_range(column.values.type) and encode.quantise is None  # what is read back is not what is measured here
        return encode_column(column, encode, ranged=ranged, sharing=sharing.get(place, []))

    if not columns:
        return {}
    sizes, block_rows = [column.values.nbytes for column in columns.values()], next(iter(columns.values())).block_rows
    # a column whose blocks may share a dictionary is held whole
    held = max([max(block_rows), *(sum(block_rows[blocks.start : blocks.stop]) for found in sharing.values() for blocks in found)])
    threads = num_threads(options.threads, sum(sizes), max(sizes) * held // max(sum(block_rows), 1), options.encode_memory_bytes)
    if min(threads, len(columns)) == 1:
        return {place: run(place) for place in columns}
    with ThreadPoolExecutor(min(threads, len(columns))) as pool:
        return dict(zip(columns, pool.map(run, columns), strict=True))


def _note(chunk: EncodedChunk) -> str:
    return json.dumps(dataclasses.asdict(chunk.decision), separators=(",", ":"))
