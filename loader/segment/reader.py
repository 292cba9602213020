"""Reads the columns and rows of a segment that are asked for: fetches chunks, compares their checksums, hands them to a decoder, makes Arrow of the result."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from loader.decode.arrow import to_arrow
from loader.decode.program import MAX_ARENA_BYTES, Program
from loader.decode.result import DecodedBlock, decode_block
from loader.encodings.leaf import leaf_type
from loader.errors import CorruptSegmentError
from loader.schema import take
from loader.segment import requests
from loader.segment.checksum import first_mismatch
from loader.segment.inspect import SegmentLayout, column_layout
from loader.segment.layout import PADDING_BYTES, Section, round_up
from loader.segment.opened import OpenFooter
from loader.segment.rows import RowReader
from loader.segment.shared import behind_columns
from loader.segment.source import fill

Array = np.ndarray[Any, np.dtype[Any]]
Allocate = Callable[[int], Array]  # uint8 of at least so many bytes, on 8 bytes
Rows = slice | range | Sequence[int] | Array
_REMEDY = "fetch the file again or restore it"
PLANNED_COLUMNS, PLANNED_READS = 64, 32  # of one read, and of them: what an open segment remembers of where its chunks are
LOOK_UP_ROWS = 1024  # at a time
LOOK_UP_SHARE = 16  # blocks of which more than this part of the rows is wanted are decoded faster than they are looked up in


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Chunks:
    """Chunks of a block in memory: those of some columns, then the dictionaries that they share with other blocks.

    Attributes:
        slab: uint8, PADDING_BYTES after the last chunk.
        offsets: int64 `[chunks]`, where they are in it.
        records: Their CHUNK records.
        shared: int64 `[columns]`, which chunk is a column's dictionary, -1 where it has none; None where none has.
    """

    slab: Array
    offsets: Array
    records: Array
    shared: Array | None = None

    @property
    def sizes(self) -> Array:
        """int64 `[chunks]`."""
        return np.asarray(self.records["num_bytes"].astype(np.int64))


class _Planned(NamedTuple):
    """Of one read of some columns of a block: CHUNK records, their sizes, what to ask for, the shared dictionaries, and which column looks up which."""

    records: Array
    sizes: Array
    requests: requests.Requests
    dictionaries: Array
    shared: Array | None


class SegmentReader(OpenFooter):
    """A segment, open for reading; safe to share between threads once its footer is loaded."""

    def __init__(self, source: Any, *, verify: bool = True) -> None:
        """
        Args:
            source: A path, bytes, or an object with `num_bytes` and `read_ranges([(offset, num_bytes)…]) -> list[memoryview]`.
            verify: Compare the checksums of chunks; the footer's are always compared, structure and bounds always checked.

        Raises:
            TruncatedSegmentError: The bytes end before the segment does.
            CorruptSegmentError: Checksum or structure does not hold.
            UnsupportedVersionError: A newer version, or an unknown feature.
        """
        super().__init__(source)
        self._verify = verify
        self._plans: dict[tuple[int, tuple[int, ...]], _Planned] = {}
        self._schemas: dict[tuple[int, ...], pa.Schema] = {}

    def read_block(
        self, block: int, column_ids: Sequence[int], *, verify: bool | None = None, threads: int = 1, allocate: Allocate | None = None
    ) -> DecodedBlock:
        """Fetch, verify and decode some columns of a block.

        Args:
            block: Its number.
            column_ids: Which columns.
            verify: Compare checksums; default as the reader was opened.
            threads: Of the native executor, and of comparing checksums.
            allocate: Where the arena comes from; default fresh memory. A reader of many blocks hands out the same memory again.

        Raises:
            ColumnNotFoundError: An id is not in the segment.
            CorruptSegmentError: A checksum or the structure does not hold; names file, block, column and offset.
        """
        found = self.fetch(block, column_ids, verify=verify, threads=threads)
        arena = None
        if allocate is not None:
            stated = int(found.records["arena_bytes"].sum(dtype=np.float64))
            arena = allocate(stated + PADDING_BYTES) if stated <= MAX_ARENA_BYTES else None
        with self.locating(block, column_ids, found.records, found.shared):
            decoded = decode_block(found.slab, found.offsets, found.sizes, self.leaves(column_ids), threads=threads, arena=arena, shared=found.shared)
        self.check_rows(block, decoded.program, len(column_ids))
        return decoded

    def fetch(self, block: int, column_ids: Sequence[int], *, verify: bool | None = None, threads: int = 1) -> Chunks:
        """The chunks of some columns of a block, and the dictionaries that they share with others.

        Args:
            block: Its number.
            column_ids: Which columns.
            verify: Compare checksums; default as the reader was opened.
            threads: How many compare them.

        Raises:
            ColumnNotFoundError: An id is not in the segment.
            CorruptSegmentError: A checksum does not match; names file, block, column and offset.
        """
        verify = self._verify if verify is None else verify
        records, sizes, wanted, dictionaries, shared = self._planned(block, tuple(column_ids))
        slab, offsets = np.empty(wanted.slab_bytes + sum(map(round_up, dictionaries["num_bytes"].tolist())), np.uint8), wanted.chunk_offsets
        self.read_into(wanted.ranges, wanted.starts, slab)
        at = wanted.slab_bytes - PADDING_BYTES
        for data in self.shared.data(dictionaries, verify=verify):
            slab[at : at + data.size] = data
            offsets = np.append(offsets, at)
            at += round_up(data.size)
        slab[-PADDING_BYTES:] = 0
        if verify:
            bad = first_mismatch(slab, wanted.chunk_offsets, sizes, records["checksum"], threads=threads)
            if bad is not None:
                where = self.where_chunk(block, column_ids[bad], int(records["offset"][bad]))
                raise CorruptSegmentError(f"{where}: its checksum does not match: the bytes changed since they were written; {_REMEDY}")
        return Chunks(slab=slab, offsets=offsets, records=np.concatenate([records, dictionaries]) if dictionaries.size else records, shared=shared)

    def _planned(self, block: int, column_ids: tuple[int, ...]) -> _Planned:
        """Where the chunks of a read are: of a few columns it is remembered, for whoever reads them again."""
        found = self._plans.get((block, column_ids))
        if found is None:
            records, (dictionaries, numbers) = self.chunks(column_ids, [block])[:, 0], self.dictionaries(column_ids)
            sizes = records["num_bytes"].astype(np.int64)
            found = _Planned(records, sizes, requests.plan(records["offset"].astype(np.int64), sizes), dictionaries, behind_columns(numbers))
            if len(column_ids) <= PLANNED_COLUMNS and len(self._plans) < PLANNED_READS:
                self._plans[block, column_ids] = found
        return found

    def read_into(self, ranges: Sequence[tuple[int, int]], starts: Sequence[int], slab: Array) -> None:
        """Read (offset, num_bytes) ranges of the segment to their places in a slab (uint8)."""
        fill(self._source, ranges, starts, slab.data)

    def verifies(self, verify: bool | None) -> bool:
        """Whether a read with this argument compares checksums."""
        return self._verify if verify is None else verify

    def check_rows(self, block: int, program: Program, num_columns: int) -> None:
        """Refuse chunks of columns, the first of a program, that are not of a block.

        Raises:
            CorruptSegmentError: They have another number of rows.
        """
        if (program.num_rows[:num_columns] != int(self.blocks["num_rows"][block])).any():
            raise CorruptSegmentError(f"{self.name}, block {block}: chunks have another number of rows than the block; fetch or write the file again")

    @contextlib.contextmanager
    def locating(self, block: int, column_ids: Sequence[int], records: Array, shared: Array | None) -> Iterator[None]:
        """Errors of decoders name file, column and offset in place of a chunk's position in the request."""
        try:
            yield
        except CorruptSegmentError as error:
            found = re.match(r"chunk (\d+) of the request (is corrupt: )?", str(error))
            if found is None:
                raise CorruptSegmentError(f"{self.name}, block {block}: {error}; fetch or write the file again") from None
            where = self.where_of(block, column_ids, records, shared, int(found.group(1)))
            raise CorruptSegmentError(f"{where}: {str(error)[found.end() :]}; {_REMEDY}") from None

    def where_of(self, block: int, column_ids: Sequence[int], records: Array, shared: Array | None, chunk: int) -> str:
        """What errors call a chunk of a request: one of a column, or a dictionary behind them."""
        offset = int(records["offset"][chunk])
        if chunk < len(column_ids):
            return self.where_chunk(block, column_ids[chunk], offset)
        assert shared is not None
        return f"{self.where_chunk(block, column_ids[shared.tolist().index(chunk)], offset)}, the dictionary that its blocks share"

    def where_chunk(self, block: int, column_id: int, offset: int) -> str:
        """What errors call a chunk."""
        return f"{self.name}: block {block} of column {self.column_name(self.column_index(column_id))!r} at offset {offset:,}"

    def read(self, columns: Sequence[str | int] | None = None, rows: Rows | None = None, *, verify: bool | None = None) -> pa.Table:
        """Read to Arrow.

        Args:
            columns: Names or ids in the order wanted; default all, in the order they were written.
            rows: A slice or range with step 1, or row numbers in any order; default all. Only their blocks are read.
            verify: Compare chunk checksums; default as the reader was opened.

        Raises:
            ColumnNotFoundError: A column is not in the segment.
            CorruptSegmentError: A checksum or the structure does not hold; names file, block, column and offset.
        """
        ids = self.resolve(columns)
        if isinstance(rows, range) or rows is None or isinstance(rows, slice):
            span = range(*rows.indices(self.num_rows)) if isinstance(rows, slice) else range(self.num_rows) if rows is None else rows
            if span.step == 1:
                return self._read_span(self.schema_of(ids), ids, span, verify)
            rows = np.array(span, np.int64)
        return self._read_rows(ids, np.asarray(rows, np.int64), verify)

    def take(self, rows: Sequence[int] | Array, columns: Sequence[str | int] | None = None, *, verify: bool | None = None) -> pa.RecordBatch:
        """A few rows by number, in the order given, each value in a bounded number of vectors. For many look-ups see `RowReader`, which keeps what it has read.

        Args:
            rows: Row numbers, in any order; repeats allowed.
            columns: Names or ids in the order wanted; default all, in the order they were written.
            verify: Compare checksums, for which chunks are read whole; default as the reader was opened. Without, large chunks are read in parts.

        Raises:
            ColumnNotFoundError: A column is not in the segment.
            CorruptSegmentError: A checksum or the structure does not hold; names file, block, column and offset.
            ValueError: A row is not in the segment.
        """
        return RowReader(self, verify=verify).take(rows, columns)

    def schema_of(self, column_ids: Sequence[int]) -> pa.Schema:
        """Arrow fields of columns, and the schema's metadata.

        Raises:
            CorruptSegmentError: The Arrow schema has other types than the columns.
        """
        known = self._schemas.get(tuple(column_ids))
        if known is not None:
            return known
        schema, chosen = self.arrow_schema, self.rows_of(column_ids)
        fields = [schema.field(index) for index in self.columns["schema_index"][chosen].tolist()]
        for field, stated in zip(fields, self.leaves(column_ids), strict=True):
            if leaf_type(field.type, field.name) != stated:
                raise CorruptSegmentError(f"{self.name}: column {field.name!r} is {field.type} in the Arrow schema and {stated} in the columns")
        found = pa.schema(fields, metadata=schema.metadata)
        if len(fields) <= PLANNED_COLUMNS and len(self._schemas) < PLANNED_READS:
            self._schemas[tuple(column_ids)] = found
        return found

    def _block_table(self, schema: pa.Schema, ids: Sequence[int], block: int, verify: bool | None) -> pa.Table:
        columns = self.read_block(block, ids, verify=verify)
        try:
            arrays = [to_arrow(column, field.type) for column, field in zip(columns, schema, strict=True)]
        except CorruptSegmentError as error:
            raise CorruptSegmentError(f"{self.name}, block {block}: {error}; fetch or write the file again") from None
        return pa.Table.from_arrays(arrays, schema=schema)

    def _read_span(self, schema: pa.Schema, ids: Sequence[int], span: range, verify: bool | None) -> pa.Table:
        if span and not 0 <= span.start < span.stop <= self.num_rows:
            raise ValueError(f"rows {span.start} to {span.stop} of a segment of {self.num_rows:,}")
        tables = []
        for block, (start, count) in enumerate(zip(self.blocks["row_start"].tolist(), self.block_rows.tolist(), strict=True)):
            low, high = max(span.start, start), min(span.stop, start + count)
            if low < high:
                tables.append(self._block_table(schema, ids, block, verify).slice(low - start, high - low))
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def _read_rows(self, ids: Sequence[int], rows: Array, verify: bool | None) -> pa.Table:
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        blocks, cuts = self.cut_at_blocks(ascending)
        if (np.diff(cuts) * LOOK_UP_SHARE <= self.block_rows[blocks]).all():
            taken = RowReader(self, verify=verify)
            slices = range(0, max(rows.size, 1), LOOK_UP_ROWS)
            return pa.Table.from_batches([taken.take(rows[start : start + LOOK_UP_ROWS], ids) for start in slices])
        schema = self.schema_of(ids)
        parts = [take(self._block_table(schema, ids, block, verify), ascending[low:high] - self.block_starts[block])
                 for block, low, high in zip(blocks, cuts, cuts[1:], strict=False)]  # fmt: skip
        back = np.empty(rows.size, np.int64)
        back[order] = np.arange(rows.size)
        found: pa.Table = take(pa.concat_tables(parts), back)
        return found

    def cut_at_blocks(self, rows: Array) -> tuple[list[int], list[int]]:
        """Ascending row numbers (int64) by block: the blocks, and where the rows of each begin and those of the last end.

        Raises:
            ValueError: A row is not in the segment.
        """
        if not rows.size:
            return [], [0]
        if rows[0] < 0 or rows[-1] >= self.num_rows:
            raise ValueError(f"rows go from 0 to {self.num_rows - 1:,}, not {int(rows[0]):,} to {int(rows[-1]):,}")
        if self.num_blocks == 1:
            return [0], [0, rows.size]
        ends = np.searchsorted(rows, self.block_starts[1:]).tolist() + [rows.size]
        filled = [block for block, (low, high) in enumerate(zip([0, *ends], ends, strict=False)) if low < high]
        return filled, [0, *(ends[block] for block in filled)]

    def layout(self) -> SegmentLayout:
        """What `headrace inspect` prints."""
        ids = [int(column) for column in self.columns["column_id"]]
        sizes = self.column_bytes(ids)
        fields = [self.arrow_schema.field(index) for index in self.columns["schema_index"].tolist()]
        noted = self.properties.get("encodings")
        columns = [column_layout(noted, ids[i], self.column_name(i), fields[i], size) for i, size in enumerate(sizes.tolist())]
        return SegmentLayout(
            name=self.name,
            num_bytes=self._source.num_bytes,
            num_rows=self.num_rows,
            block_rows=tuple(int(rows) for rows in self.block_rows),
            sections={Section(kind).name.lower(): pages.num_bytes for kind, pages in self._sections.items() if kind in Section.__members__.values()},
            columns=tuple(columns),
        )

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
