"""Opens a segment from its end and reads the columns and rows that are asked for; checks versions, bounds and checksums before use."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from loader.decode.arrow import to_arrow
from loader.decode.lookup import decode_and_take, look_up
from loader.decode.program import MAX_ARENA_BYTES, Program
from loader.decode.result import DecodedBlock, DecodedColumn, decode_block
from loader.encodings.leaf import LeafType, leaf_type
from loader.errors import ColumnNotFoundError, CorruptSegmentError, TruncatedSegmentError, did_you_mean
from loader.schema import take
from loader.segment import requests
from loader.segment.checksum import crc32c, first_mismatch
from loader.segment.footer import check_directory, check_version, name_hash, read_tail, stated_leaf
from loader.segment.inspect import SegmentLayout, column_layout
from loader.segment.layout import (
    ALIGNMENT,
    BLOCK,
    CHUNK,
    COLUMN,
    DIRECTORY_ENTRY,
    HEADER,
    MAGIC,
    MAX_BLOCK_ROWS,
    NAME_ENTRY,
    PADDING_BYTES,
    STATS,
    TAIL,
    Section,
    ValueType,
)
from loader.segment.pages import SectionPages
from loader.segment.source import fill, open_source, source_name

Array = np.ndarray[Any, np.dtype[Any]]
Allocate = Callable[[int], Array]  # uint8 of at least so many bytes, on 8 bytes
TAIL_READ_BYTES = 64 << 10
LOOK_UP_ARENA_BYTES = 1 << 20  # a smaller column is decoded faster than it is looked up in
LOOK_UP_SHARE = 64  # and so is one of which more than this part of the rows is wanted


class SegmentReader:
    """A segment, open for reading; safe to share between threads once its footer is loaded.

    Attributes:
        num_rows: Rows.
        num_columns: Columns.
        num_blocks: Blocks.
        features: Feature bits.
        name: What errors call the file.
    """

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
        self._source, self._verify = open_source(source), verify
        self.name = source_name(self._source)
        total = self._source.num_bytes
        if total < HEADER.itemsize + TAIL.itemsize:
            raise TruncatedSegmentError(f"{self.name} has {total:,} bytes, less than any segment: it was cut off or is no segment; fetch or write it again")
        self._end_start = max(0, total - TAIL_READ_BYTES)
        self._end = self._source.read_ranges([(self._end_start, total - self._end_start)])[0]
        tail_bytes = self._end[len(self._end) - TAIL.itemsize :]
        tail = read_tail(tail_bytes, total, self.name)
        directory = self._read([(int(tail["directory_offset"]), int(tail["num_sections"]) * DIRECTORY_ENTRY.itemsize)])[0]
        entries = check_directory(directory, tail_bytes, self.name, total)
        self._sections = {int(entry["kind"]): SectionPages(entry, self._read, self.name) for entry in entries}
        self.num_rows, self.features = int(tail["num_rows"]), int(tail["features"])
        self.num_columns, self.num_blocks = int(tail["num_columns"]), int(tail["num_blocks"])
        if self._end_start == 0:
            self._check_header(self._end[: HEADER.itemsize])

    def _read(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Ranges of the segment, from the end that is in memory where it covers them."""
        outside = [item for item in ranges if item[0] < self._end_start]
        parts = iter(self._source.read_ranges(outside)) if outside else iter(())
        found = []
        for offset, num_bytes in ranges:
            part = next(parts) if offset < self._end_start else self._end[offset - self._end_start : offset - self._end_start + num_bytes]
            if len(part) != num_bytes:
                raise TruncatedSegmentError(f"{self.name}: {num_bytes:,} bytes at offset {offset:,} could not be read whole; fetch or write the file again")
            found.append(part)
        return found

    def _check_header(self, raw: memoryview) -> bytes:
        header = np.frombuffer(raw, HEADER)[0]
        if header["magic"] != MAGIC or int(header["features"]) != self.features or int(header["header_bytes"]) != HEADER.itemsize:
            raise CorruptSegmentError(f"{self.name}: the header at offset 0 is not that of this segment; fetch or write the file again")
        check_version(int(header["version"]), int(header["features"]), self.name)
        if crc32c(bytes(raw[: HEADER.itemsize - 4])) != int(header["checksum"]):
            raise CorruptSegmentError(f"{self.name}: checksum of the header at offset 0 does not match; fetch or write the file again")
        return bytes(raw[24:40])

    @functools.cached_property
    def segment_id(self) -> bytes:
        """16 bytes, from the header."""
        return self._check_header(self._read([(0, HEADER.itemsize)])[0])

    def _section(self, kind: Section) -> SectionPages:
        if kind not in self._sections:
            raise CorruptSegmentError(f"{self.name}: section {kind.name} is missing; fetch or write the file again")
        return self._sections[kind]

    def _records(self, kind: Section, dtype: np.dtype[Any], count: int, rows: Array | None = None) -> Array:
        pages = self._section(kind)
        if pages.count != count:
            raise CorruptSegmentError(f"{self.name}: section {kind.name} has {pages.count:,} records instead of {count:,}")
        return pages.records(dtype, rows)

    @functools.cached_property
    def columns(self) -> Array:
        """COLUMN records, sorted by column id."""
        columns = self._records(Section.COLUMNS, COLUMN, self.num_columns)
        bad = (columns["value_type"] > ValueType.BFLOAT16) | (columns["schema_index"] >= self.num_columns)
        if bad.any() or (np.diff(columns["column_id"].astype(np.int64)) <= 0).any():
            raise CorruptSegmentError(f"{self.name}: the COLUMNS section does not hold together; fetch or write the file again")
        return columns

    @functools.cached_property
    def blocks(self) -> Array:
        """BLOCK records."""
        blocks = self._records(Section.BLOCKS, BLOCK, self.num_blocks)
        rows = blocks["num_rows"].astype(np.int64)
        if (
            (rows > MAX_BLOCK_ROWS).any()
            or int(rows.sum()) != self.num_rows
            or not np.array_equal(blocks["row_start"].astype(np.int64), np.cumsum(rows) - rows)
        ):
            raise CorruptSegmentError(f"{self.name}: the BLOCKS section does not add up to {self.num_rows:,} rows; fetch or write the file again")
        return blocks

    @property
    def block_rows(self) -> Array:
        """Rows of each block, uint32."""
        return np.asarray(self.blocks["num_rows"])

    @functools.cached_property
    def arrow_schema(self) -> pa.Schema:
        """Logical types and metadata, in the field order of the table that was written."""
        raw = self._section(Section.ARROW_SCHEMA).all()
        try:
            schema = pa.ipc.read_schema(pa.py_buffer(raw))
            _ = schema.names, schema.metadata
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise CorruptSegmentError(f"{self.name}: the Arrow schema cannot be read ({error}); fetch or write the file again") from None
        if len(schema) != self.num_columns:
            raise CorruptSegmentError(f"{self.name}: the Arrow schema has {len(schema):,} fields for {self.num_columns:,} columns")
        return schema

    @functools.cached_property
    def properties(self) -> dict[str, Any]:
        """What the writer recorded."""
        try:
            found = json.loads(bytes(self._section(Section.PROPERTIES).all()))
        except (ValueError, RecursionError) as error:
            raise CorruptSegmentError(f"{self.name}: the properties are not JSON ({error}); fetch or write the file again") from None
        if not isinstance(found, dict):
            raise CorruptSegmentError(f"{self.name}: the properties are not a JSON object; fetch or write the file again")
        return found

    def column_name(self, index: int) -> str:
        """The name of a row of `columns`, as it was when the segment was written."""
        record = self.columns[index]
        start = int(record["name_offset"])
        try:
            return bytes(self._section(Section.NAMES).slice(start, start + int(record["name_bytes"]))).decode()
        except UnicodeDecodeError:
            raise CorruptSegmentError(f"{self.name}: the name of column {int(record['column_id'])} is not UTF-8") from None

    def column_index(self, column: str | int) -> int:
        """The row of `columns` of a name, or of an id.

        Raises:
            ColumnNotFoundError: There is none.
        """
        if isinstance(column, str):
            index = self._records(Section.NAME_INDEX, NAME_ENTRY, self.num_columns)
            wanted = np.uint64(name_hash(column))
            position = int(np.searchsorted(index["name_hash"], wanted))
            while position < index.size and index["name_hash"][position] == wanted:
                row = int(index["column_index"][position])
                if row < self.num_columns and self.column_name(row) == column:
                    return row
                position += 1
            raise ColumnNotFoundError(f"{self.name} has no column {column!r}: {did_you_mean(column, self.arrow_schema.names)}")
        row = int(np.searchsorted(self.columns["column_id"], column))
        if row >= self.num_columns or int(self.columns["column_id"][row]) != column:
            raise ColumnNotFoundError(f"{self.name} has no column with id {column}: it has {self.num_columns:,} columns, see `headrace inspect`")
        return row

    def _rows_of(self, column_ids: Sequence[int]) -> Array:
        """`column_index` of many ids, int64."""
        ids = np.asarray(column_ids, np.int64)
        known = self.columns["column_id"].astype(np.int64)
        rows = np.searchsorted(known, ids)
        missing = np.flatnonzero(known[np.minimum(rows, known.size - 1)] != ids) if known.size else np.arange(ids.size)
        if missing.size:
            self.column_index(int(ids[missing[0]]))
        return rows

    def resolve(self, columns: Sequence[str | int] | None) -> list[int]:
        """Ids of columns given by name or id; None is all, in the order they were written.

        Raises:
            ColumnNotFoundError: One is not in the segment.
        """
        if columns is None:
            chosen = np.argsort(self.columns["schema_index"])
        else:
            names = [column for column in columns if isinstance(column, str)]
            known = dict(zip(names, self._rows_of_names(names), strict=True)) if len(names) > 1 else {}
            chosen = np.array([known[column] if column in known else self.column_index(column) for column in columns], np.int64)
        found: list[int] = self.columns["column_id"][chosen].tolist()
        return found

    def _rows_of_names(self, names: Sequence[str]) -> list[int]:
        """`column_index` of many names: the pages of their index entries and of their names are read in one go each."""
        index = self._records(Section.NAME_INDEX, NAME_ENTRY, self.num_columns)
        hashes = np.array([name_hash(name) for name in names], np.uint64)
        place = np.searchsorted(index["name_hash"], hashes)
        inside = np.minimum(place, max(index.size - 1, 0))
        rows = index["column_index"][inside].astype(np.int64) if index.size else np.zeros(len(names), np.int64)
        if not index.size or (index["name_hash"][inside] != hashes).any() or int(rows.max()) >= self.num_columns:
            return [self.column_index(name) for name in names]  # says which one is not there
        records = self.columns[rows]
        starts = records["name_offset"].astype(np.int64)
        stops = starts + records["name_bytes"]
        raw = self._section(Section.NAMES).require(starts, stops)
        spans = zip(rows.tolist(), names, starts.tolist(), stops.tolist(), strict=True)
        # names whose hashes are equal are told apart one by one
        return [row if raw[start:stop] == name.encode() else self.column_index(name) for row, name, start, stop in spans]

    def leaf(self, column: str | int) -> LeafType:
        """The physical type of a column."""
        return self.leaves([column] if isinstance(column, int) else self.resolve([column]))[0]

    def leaves(self, column_ids: Sequence[int]) -> list[LeafType]:
        """The physical types of columns."""
        records = self.columns[self._rows_of(column_ids)]
        stated = zip(*(records[name].tolist() for name in ("value_type", "depth", "fixed_size", "flags", "weights")), strict=True)
        return [stated_leaf(*key) for key in stated]

    def chunks(self, column_ids: Sequence[int], blocks: Sequence[int] | Array) -> Array:
        """CHUNK records `[column, block]`, bounds checked; only their pages of the footer are read.

        Raises:
            ColumnNotFoundError: An id is not in the segment.
        """
        wanted = self._rows_of(column_ids)
        numbers = np.asarray(blocks, np.int64)
        if numbers.size and not (int(numbers.min()) >= 0 and int(numbers.max()) < self.num_blocks):
            raise ValueError(f"blocks go from 0 to {self.num_blocks - 1}, not {numbers.min()} to {numbers.max()}")
        rows = wanted[:, None] * self.num_blocks + numbers
        found: Array = self._records(Section.CHUNKS, CHUNK, self.num_columns * self.num_blocks, rows.reshape(-1))[rows]
        ends = found["offset"] + found["num_bytes"]
        if found.size and ((ends > self._source.num_bytes) | (ends < found["offset"]) | (found["offset"] % ALIGNMENT != 0)).any():
            raise CorruptSegmentError(f"{self.name}: a chunk lies outside of the file; fetch or write the file again")
        return found

    def stats(self, column_id: int) -> Array:
        """STATS records of a column, one a block."""
        rows = self.column_index(column_id) * self.num_blocks + np.arange(self.num_blocks)
        return self._records(Section.STATS, STATS, self.num_columns * self.num_blocks, rows)[rows]

    @property
    def num_bytes(self) -> int:
        """Of the segment."""
        return self._source.num_bytes

    @property
    def section_kinds(self) -> list[Section]:
        """The sections that the segment has, of those that this version knows."""
        return [Section(kind) for kind in self._sections if kind in Section.__members__.values()]

    def section(self, kind: Section) -> memoryview | None:
        """The bytes of a section, verified; None where the segment has none."""
        return self._sections[kind].all().data if kind in self._sections else None

    def read_block(
        self, block: int, column_ids: Sequence[int], *, verify: bool | None = None, threads: int = 1, allocate: Allocate | None = None
    ) -> DecodedBlock:
        """Fetch, verify and decode some columns of a block.

        Args:
            block: Its number.
            column_ids: Which columns.
            verify: Compare checksums; default as the reader was opened.
            threads: Of the native executor.
            allocate: Where the arena comes from; default fresh memory. A reader of many blocks hands out the same memory again.

        Raises:
            ColumnNotFoundError: An id is not in the segment.
            CorruptSegmentError: A checksum or the structure does not hold; names file, block, column and offset.
        """
        slab, offsets, records = self._fetch(block, column_ids, verify)
        arena = None
        if allocate is not None:
            stated = int(records["arena_bytes"].sum(dtype=np.float64))
            arena = allocate(stated + PADDING_BYTES) if stated <= MAX_ARENA_BYTES else None
        with self._locating(block, column_ids, records):
            decoded = decode_block(slab, offsets, records["num_bytes"].astype(np.int64), self.leaves(column_ids), threads=threads, arena=arena)
        self._check_rows(block, decoded.program)
        return decoded

    def take_block(self, block: int, column_ids: Sequence[int], rows: Array, *, verify: bool | None = None) -> list[DecodedColumn]:
        """Some rows of a block. A column whose block is large is read in the few vectors that hold them, the others are decoded.

        Args:
            block: Its number.
            column_ids: Which columns.
            rows: int64, row numbers inside the block, in any order.
            verify: Compare checksums; default as the reader was opened.

        Raises:
            ColumnNotFoundError: An id is not in the segment.
            CorruptSegmentError: A checksum or the structure does not hold; names file, block, column and offset.
        """
        slab, offsets, records = self._fetch(block, column_ids, verify)
        sizes, leaves = records["num_bytes"].astype(np.int64), self.leaves(column_ids)
        few = rows.size * LOOK_UP_SHARE <= int(self.blocks["num_rows"][block])
        large = (records["arena_bytes"] > LOOK_UP_ARENA_BYTES) & few
        found: dict[int, DecodedColumn] = {}
        for chosen, method in ((np.flatnonzero(large), look_up), (np.flatnonzero(~large), decode_and_take)):
            if chosen.size:
                numbers = chosen.tolist()
                with self._locating(block, [column_ids[index] for index in numbers], records[chosen]):
                    program, columns = method(slab, offsets[chosen], sizes[chosen], [leaves[index] for index in numbers], rows)
                self._check_rows(block, program)
                found.update(zip(numbers, columns, strict=True))
        return [found[index] for index in range(len(column_ids))]

    def _check_rows(self, block: int, program: Program) -> None:
        if (program.num_rows != int(self.blocks["num_rows"][block])).any():
            raise CorruptSegmentError(f"{self.name}, block {block}: chunks have another number of rows than the block; fetch or write the file again")

    @contextlib.contextmanager
    def _locating(self, block: int, column_ids: Sequence[int], records: Array) -> Iterator[None]:
        """Errors of decoders name file, column and offset."""
        try:
            yield
        except CorruptSegmentError as error:
            ranges = list(zip(records["offset"].tolist(), records["num_bytes"].tolist(), strict=True))
            raise self._located(error, block, column_ids, ranges) from None

    def _fetch(self, block: int, column_ids: Sequence[int], verify: bool | None) -> tuple[Array, Array, Array]:
        """The chunks of some columns of a block: (slab, chunk offsets in it, CHUNK records), checksums compared."""
        records = self.chunks(column_ids, [block])[:, 0]
        sizes = records["num_bytes"].astype(np.int64)
        wanted = requests.plan(records["offset"].astype(np.int64), sizes)
        slab = np.empty(wanted.slab_bytes, np.uint8)
        slab[-PADDING_BYTES:] = 0
        fill(self._source, wanted.ranges, wanted.starts, slab.data)
        if self._verify if verify is None else verify:
            index = first_mismatch(slab, wanted.chunk_offsets, sizes, records["checksum"])
            if index is not None:
                what = "its checksum does not match: the bytes changed since they were written"
                raise CorruptSegmentError(self._where_chunk(block, column_ids[index], int(records["offset"][index]), what))
        return slab, wanted.chunk_offsets, records

    def _located(self, error: CorruptSegmentError, block: int, column_ids: Sequence[int], ranges: Sequence[tuple[int, int]]) -> CorruptSegmentError:
        """A decoder's error with file, column and offset in place of the chunk's position in the request."""
        found = re.match(r"chunk (\d+) of the request (is corrupt: )?", str(error))
        if found is None:
            return CorruptSegmentError(f"{self.name}, block {block}: {error}; fetch or write the file again")
        chunk = int(found.group(1))
        return CorruptSegmentError(self._where_chunk(block, column_ids[chunk], ranges[chunk][0], str(error)[found.end() :]))

    def _where_chunk(self, block: int, column_id: int, offset: int, what: str) -> str:
        name = self.column_name(self.column_index(column_id))
        return f"{self.name}: block {block} of column {name!r} at offset {offset:,}: {what}; fetch the file again or restore it"

    def read(
        self, columns: Sequence[str | int] | None = None, rows: slice | range | Sequence[int] | Array | None = None, *, verify: bool | None = None
    ) -> pa.Table:
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
        fields = [self._field(index) for index in self._rows_of(ids).tolist()]
        schema = pa.schema(fields, metadata=self.arrow_schema.metadata)
        if isinstance(rows, range) or rows is None or isinstance(rows, slice):
            span = range(*rows.indices(self.num_rows)) if isinstance(rows, slice) else range(self.num_rows) if rows is None else rows
            if span.step == 1:
                return self._read_span(schema, ids, span, verify)
            rows = np.array(span, np.int64)
        return self._read_rows(schema, ids, np.asarray(rows, np.int64), verify)

    def _field(self, index: int) -> pa.Field:
        field = self.arrow_schema.field(int(self.columns["schema_index"][index]))
        stated = self.leaves([int(self.columns["column_id"][index])])[0]
        if leaf_type(field.type, field.name) != stated:
            raise CorruptSegmentError(f"{self.name}: column {field.name!r} is {field.type} in the Arrow schema and {stated} in the columns")
        return field

    def _block_table(self, schema: pa.Schema, ids: Sequence[int], block: int, verify: bool | None, rows: Array | None = None) -> pa.Table:
        columns = self.read_block(block, ids, verify=verify) if rows is None else self.take_block(block, ids, rows, verify=verify)
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

    def _read_rows(self, schema: pa.Schema, ids: Sequence[int], rows: Array, verify: bool | None) -> pa.Table:
        if not rows.size:
            return schema.empty_table()
        if int(rows.min()) < 0 or int(rows.max()) >= self.num_rows:
            raise ValueError(f"rows go from 0 to {self.num_rows - 1:,}, not {int(rows.min()):,} to {int(rows.max()):,}")
        starts = self.blocks["row_start"].astype(np.int64)
        owner = np.searchsorted(starts, rows, side="right") - 1
        order = np.argsort(owner, kind="stable")
        parts = []
        for block in np.unique(owner).tolist():
            inside = rows[order[owner[order] == block]] - starts[block]
            parts.append(self._block_table(schema, ids, block, verify, inside))
        back = np.empty(rows.size, np.int64)
        back[order] = np.arange(rows.size)
        whole = pa.concat_tables(parts)
        if np.array_equal(back, np.arange(rows.size)):
            return whole
        reordered: pa.Table = take(whole, back)
        return reordered

    def layout(self) -> SegmentLayout:
        """What `headrace inspect` prints."""
        ids = [int(column) for column in self.columns["column_id"]]
        sizes = self.chunks(ids, np.arange(self.num_blocks))["num_bytes"].sum(axis=1, dtype=np.int64)
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

    def close(self) -> None:
        """Close the file, if the reader opened one."""
        close = getattr(self._source, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
