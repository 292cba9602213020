"""The columns of a table to chunks, block by block: natively where the whole-column encoder knows the type, else one by one.

Owns which columns go which way, and threads; the bytes are the same either way. Where chunks lie in a file is the writer's.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from loader.encodings import compressed
from loader.encodings.chunk import encode_chunk
from loader.encodings.leaf import LeafType
from loader.encodings.options import EncodeOptions
from loader.encodings.shred import shred
from loader.errors import SchemaError
from loader.kernels import native
from loader.kernels.native_columns import TASK, ColumnOptions, NativeChunks
from loader.segment.checksum import crc32c
from loader.segment.layout import CHUNK_HEADER, STATS
from loader.segment.stats import has_range, measure

Array = np.ndarray[Any, np.dtype[Any]]
ITEMS_PER_THREAD = 1 << 17  # fewer are encoded before another thread has started
WORKING_BYTES_PER_ITEM = 160  # that the encoder holds at most, about, while it looks at a chunk


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedChunks:
    """Chunks of columns by blocks; arrays are `[columns, blocks]`, columns by id.

    Attributes:
        num_bytes: uint64.
        arena_bytes: uint64.
        checksums: uint32, CRC32C.
        stats: STATS records.
        features: Feature bits that decoding all of them needs, those of their types apart.
        notes: Of each column what was chosen for its first block and why, as JSON text; empty without blocks.
    """

    num_bytes: Array
    arena_bytes: Array
    checksums: Array
    stats: Array
    features: int
    notes: list[str]
    native_chunks: NativeChunks | None
    native_places: Array  # of its chunks among all, `column × blocks + block`
    own_chunks: dict[int, Array]  # by place

    def copy_to(self, offsets: Array, out: Array) -> None:
        """Put every chunk at its offset (uint64 `[columns, blocks]`) in `out` (uint8)."""
        flat = offsets.reshape(-1)
        if self.native_chunks is not None:
            self.native_chunks.copy_to(np.ascontiguousarray(flat[self.native_places]), out)
        for place, chunk in self.own_chunks.items():
            out[int(flat[place]) : int(flat[place]) + chunk.size] = chunk


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodePlan:
    """How columns of a table are encoded.

    Attributes:
        leaves: Physical type of each column, by its place in the table.
        order: Places of the columns, by id.
        quantise: How much precision each column may lose, by its place; None for none.
        options: What encoders may use.
        threads: At most; None for the cores that this process may use.
        memory_bytes: That encoders may hold, about, beside the table and the chunks; bounds the threads.
    """

    leaves: Sequence[LeafType]
    order: Sequence[int]
    quantise: Sequence[str | None]
    options: EncodeOptions
    threads: int | None
    memory_bytes: int


def encode_columns(table: pa.Table, block_rows: Sequence[int], plan: EncodePlan) -> EncodedChunks:
    """Encode all columns of a table.

    Args:
        table: Its rows.
        block_rows: Rows of each block.
        plan: How.

    Raises:
        SchemaError: A block holds more of a column than one Arrow array can.
        ValueError: A chunk would pass 4 GiB.
    """
    shape = (len(plan.order), len(block_rows))
    made = EncodedChunks(
        num_bytes=np.zeros(shape, np.uint64),
        arena_bytes=np.zeros(shape, np.uint64),
        checksums=np.zeros(shape, np.uint32),
        stats=np.zeros(shape, STATS),
        features=0,
        notes=[""] * shape[0] if block_rows else [],
        native_chunks=None,
        native_places=np.zeros(0, np.int64),
        own_chunks={},
    )
    by_native = _native_columns(table, plan) if block_rows else np.zeros(len(plan.order), np.bool_)
    if by_native.any():
        made = _encode_natively(table, block_rows, plan, np.flatnonzero(by_native), made)
    others = np.flatnonzero(~by_native).tolist() if block_rows else []
    return _encode_one_by_one(table, block_rows, plan, others, made) if others else made


def num_threads(asked: int | None, num_items: int, largest: int, memory_bytes: int) -> int:
    """Threads that pay for so many items, of which the largest chunk has `largest`, within the memory."""
    most = len(os.sched_getaffinity(0)) if asked is None else asked
    return max(min(most, 1 + num_items // ITEMS_PER_THREAD, memory_bytes // max(largest * WORKING_BYTES_PER_ITEM, 1)), 1)


class _Exported:
    """A record batch as the C data interface's structs, which live as long as this does."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._capsules = batch.__arrow_c_array__()
        self.schema, self.array = (_pointer(capsule, name) for capsule, name in zip(self._capsules, (b"arrow_schema", b"arrow_array"), strict=True))


def _pointer(capsule: Any, name: bytes) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.argtypes, get.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    return int(get(capsule, name))


def _native_columns(table: pa.Table, plan: EncodePlan) -> Array:
    """Which columns (by their place in the order) the native encoder takes, bool."""
    library = native.load()
    if library is None:
        return np.zeros(len(plan.order), np.bool_)
    schema = table.schema.__arrow_c_schema__()
    supported = library.encodable_columns(_pointer(schema, b"arrow_schema"), table.num_columns)
    return supported[list(plan.order)] & np.array([plan.quantise[index] is None for index in plan.order], np.bool_)


def _batches(table: pa.Table, block_rows: Sequence[int]) -> tuple[list[pa.RecordBatch], Array, Array]:
    """The table as record batches of whole blocks: batches, and for each block its batch and first row in it."""
    starts = np.cumsum(block_rows) - block_rows
    if all(column.num_chunks == 1 for column in table.columns):
        return table.to_batches(), np.zeros(len(block_rows), np.int64), starts
    batches = []
    for start, rows in zip(starts.tolist(), block_rows, strict=True):
        found = table.slice(start, rows).combine_chunks().to_batches()
        if len(found) != 1:
            raise _too_large(table.slice(start, rows).combine_chunks())
        batches.append(found[0])
    return batches, np.arange(len(block_rows)), np.zeros(len(block_rows), np.int64)


def _too_large(block: pa.Table) -> SchemaError:
    name, kind = next((field.name, field.type) for field, column in zip(block.schema, block.columns, strict=True) if column.num_chunks > 1)
    return SchemaError(f"column {name!r}: a block holds more than 2 GiB of {kind}: use the large type or a smaller block_rows")


def _encode_natively(table: pa.Table, block_rows: Sequence[int], plan: EncodePlan, places: Array, made: EncodedChunks) -> EncodedChunks:
    library, options = native.load(), plan.options
    assert library is not None
    indexes = np.array(plan.order, np.int64)[places]
    chosen = table if indexes.size == table.num_columns else table.select(indexes.tolist())
    columns = indexes if indexes.size == table.num_columns else np.arange(indexes.size)
    batches, batch_of, first_rows = _batches(chosen, block_rows)
    exported = [_Exported(batch) for batch in batches]
    tasks = np.zeros((places.size, len(block_rows)), TASK)
    tasks["batch"] = np.array([batch.array for batch in exported], np.uint64)[batch_of]
    tasks["schema"] = np.array([batch.schema for batch in exported], np.uint64)[batch_of]
    tasks["column"], tasks["first_row"], tasks["num_rows"] = columns[:, None], first_rows, block_rows
    noted = np.zeros(tasks.shape, np.uint8)
    noted[:, 0] = 1
    asked = ColumnOptions(
        bytes_per_ns=options.bytes_per_ns, min_pool_saving=options.min_pool_saving, max_slide_items=options.max_slide_items, dictionary=options.dictionary,
        list_views=options.list_views, nested_splits=options.nested_splits, compress=compressed.compress_bytes if options.compress else None,
    )  # fmt: skip
    threads = num_threads(plan.threads, places.size * table.num_rows, max(block_rows), plan.memory_bytes)
    chunks = library.encode_columns(tasks.reshape(-1), noted.reshape(-1), asked, threads)
    if chunks.made["failed"].any():
        failed = int(np.flatnonzero(chunks.made["failed"])[0])
        name = table.schema.field(int(indexes[failed // len(block_rows)])).name
        raise ValueError(f"column {name!r}: a chunk passes the limit of 4 GiB: write smaller blocks (WriteOptions.block_bytes)")
    records = chunks.made.reshape(places.size, len(block_rows))
    for name in ("num_bytes", "arena_bytes"):
        getattr(made, name)[places] = records[name]
    made.checksums[places] = records["checksum"]
    for name in STATS.names or ():
        made.stats[name][places] = records[name]
    text, ends = chunks.notes()
    bounds = [0, *ends.reshape(records.shape)[:, 0].tolist()]
    for place, start, end in zip(places.tolist(), bounds[:-1], bounds[1:], strict=True):
        made.notes[place] = text[start:end].decode()
    features = int(np.bitwise_or.reduce(records["features"], axis=None))
    at = (places[:, None] * len(block_rows) + np.arange(len(block_rows))).reshape(-1)
    return dataclasses.replace(made, features=made.features | features, native_chunks=chunks, native_places=at)


def _encode_one_by_one(table: pa.Table, block_rows: Sequence[int], plan: EncodePlan, places: list[int], made: EncodedChunks) -> EncodedChunks:
    starts = [0, *np.cumsum(block_rows).tolist()]

    def run(place: int) -> int:
        index = plan.order[place]
        leaf, field, column = plan.leaves[index], table.schema.field(index), table.column(index)
        ranged, options = has_range(field.type), dataclasses.replace(plan.options, quantise=plan.quantise[index])
        features = 0
        for block, (start, rows) in enumerate(zip(starts[:-1], block_rows, strict=True)):
            node = shred(contiguous(column.slice(start, rows), field.name), leaf)
            chunk = encode_chunk(node, leaf, rows, options)
            made.own_chunks[place * len(block_rows) + block] = chunk.data
            made.num_bytes[place, block] = chunk.data.size
            made.arena_bytes[place, block] = chunk.data[: CHUNK_HEADER.itemsize].view(CHUNK_HEADER)["arena_bytes"][0]
            made.checksums[place, block] = crc32c(chunk.data)
            made.stats[place, block] = measure(node, leaf, ranged=ranged)
            features |= chunk.features
            if block == 0:
                made.notes[place] = json.dumps(dataclasses.asdict(chunk.decision), separators=(",", ":"))
        return features

    threads = min(num_threads(plan.threads, len(places) * table.num_rows, max(block_rows), plan.memory_bytes), len(places))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(run, places))
    else:
        found = [run(place) for place in places]
    return dataclasses.replace(made, features=made.features | int(np.bitwise_or.reduce(found)))


def contiguous(column: pa.ChunkedArray, name: str) -> pa.Array:
    """The column as one array.

    Raises:
        SchemaError: Arrow cannot join its chunks.
    """
    if column.num_chunks == 1:
        return column.chunk(0)
    merged = column.combine_chunks()
    if isinstance(merged, pa.ChunkedArray):
        if merged.num_chunks > 1:
            raise SchemaError(f"column {name!r}: a block holds more than 2 GiB of {column.type}: use the large type or a smaller block_rows")
        merged = merged.chunk(0) if merged.num_chunks else pa.array([], column.type)
    return merged
