"""One column of a table to chunks by the encoders in Python, block by block, with a dictionary that the blocks of a segment share where that is smaller."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from loader.encodings.chunk import EncodedChunk, encode_chunk
from loader.encodings.leaf import LeafType
from loader.encodings.options import EncodeOptions
from loader.encodings.shared import MAX_ENTRIES, MIN_SAVING, PoolCollector, SharedDictionary, SharingEstimate, can_share, has_wide_range, present_values
from loader.encodings.shred import Node, shred
from loader.errors import SchemaError
from loader.kernels.native_columns import MADE
from loader.segment.checksum import crc32c
from loader.segment.layout import CHUNK_HEADER, STATS
from loader.segment.stats import measure

Array = np.ndarray[Any, np.dtype[Any]]
FIRST_LOOK_ROWS = 1024  # of a column, that say whether its values have range enough to be ids


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TableColumn:
    """A column and where it is cut.

    Attributes:
        values: All of it.
        name: For errors.
        leaf: Its physical type.
        block_rows: Rows of each block.
        first_blocks: The first block of each segment, and behind them the number of blocks.
    """

    values: pa.ChunkedArray
    name: str
    leaf: LeafType
    block_rows: Sequence[int]
    first_blocks: Sequence[int]

    def nodes(self, blocks: range) -> Iterator[Node]:
        """Some neighbouring blocks taken apart, one after another."""
        start = sum(self.block_rows[: blocks.start])
        for block in blocks:
            yield shred(contiguous(self.values.slice(start, self.block_rows[block]), self.name), self.leaf)
            start += self.block_rows[block]

    @property
    def segments(self) -> list[range]:
        """Blocks of each segment."""
        return [range(start, stop) for start, stop in itertools.pairwise(self.first_blocks)]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ColumnChunks:
    """A column, encoded.

    Attributes:
        chunks: By block.
        made: MADE records.
        shared: Chunks of the dictionaries that the blocks of a segment share, by the segment's first block.
    """

    chunks: list[EncodedChunk]
    made: Array
    shared: dict[int, Array]


def may_share(column: TableColumn) -> list[range]:
    """The segments whose blocks have so many values in common that a dictionary is worth trying: from samples, for columns of ids."""
    found: list[range] = []
    if not can_share(column.leaf):
        return found
    for blocks in column.segments:
        if len(blocks) < 2:
            continue
        start = sum(column.block_rows[: blocks.start])
        first = dataclasses.replace(column, values=column.values.slice(start), block_rows=[min(column.block_rows[blocks.start], FIRST_LOOK_ROWS)])
        if has_wide_range(present_values(next(first.nodes(range(1))))):
            estimate = SharingEstimate()
            for node in column.nodes(blocks):
                estimate.add(present_values(node))
            if estimate.is_worth_trying:
                found.append(blocks)
    return found


def encode_column(column: TableColumn, options: EncodeOptions, *, ranged: bool, sharing: Sequence[range]) -> ColumnChunks:
    """Encode all blocks of a column.

    Args:
        column: What.
        options: What encoders may use.
        ranged: Whether minimum and maximum mean something.
        sharing: From `may_share`.
    """
    made = ColumnChunks(chunks=[], made=np.zeros(len(column.block_rows), MADE), shared={})
    for blocks in column.segments:
        collector = PoolCollector(column.leaf) if blocks in sharing else None
        chunks, collecting = [], dataclasses.replace(options, shared=collector)
        for block, node in zip(blocks, column.nodes(blocks), strict=True):
            chunks.append(encode_chunk(node, column.leaf, column.block_rows[block], collecting))
            stats = measure(node, column.leaf, ranged=ranged)
            for name in STATS.names or ():
                made.made[name][block] = stats[name]
        features = 0
        if collector is not None and len(collector.pools) > 1:
            dictionary = SharedDictionary(collector.pools, column.leaf, options)
            again = _with_dictionary(column, blocks, options, dictionary)
            if again and dictionary.data.size + _size(again) < MIN_SAVING * _size(chunks):
                chunks, features, made.shared[blocks.start] = again, dictionary.features, dictionary.data
        for block, chunk in zip(blocks, chunks, strict=True):
            record = made.made[block]
            record["num_bytes"], record["arena_bytes"] = chunk.data.size, arena_bytes(chunk.data)
            record["features"], record["checksum"] = chunk.features | features, crc32c(chunk.data)
        made.chunks.extend(chunks)
    return made


def _with_dictionary(column: TableColumn, blocks: range, options: EncodeOptions, dictionary: SharedDictionary) -> list[EncodedChunk]:
    """The blocks with a dictionary to look up, where it helps each; none where it has too many entries."""
    if dictionary.count > MAX_ENTRIES:
        return []
    options = dataclasses.replace(options, shared=dictionary)
    return [encode_chunk(node, column.leaf, column.block_rows[block], options) for block, node in zip(blocks, column.nodes(blocks), strict=True)]


def _size(chunks: Sequence[EncodedChunk]) -> int:
    return sum(chunk.data.size for chunk in chunks)


def arena_bytes(chunk: Array) -> int:
    """What a chunk decodes to."""
    return int(chunk[: CHUNK_HEADER.itemsize].view(CHUNK_HEADER)["arena_bytes"][0])


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
