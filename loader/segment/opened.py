"""An open segment's footer: which columns and blocks it has, and where their chunks are. Checks versions, bounds and checksums; reads only the pages it needs.

Owns no chunk: `SegmentReader` reads those.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from loader.encodings.leaf import LeafType
from loader.errors import ColumnNotFoundError, CorruptSegmentError, TruncatedSegmentError, did_you_mean
from loader.segment.checksum import crc32c
from loader.segment.footer import check_directory, check_version, name_hash, read_tail, stated_leaf
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
    STATS,
    TAIL,
    Section,
    ValueType,
)
from loader.segment.pages import SectionPages
from loader.segment.shared import SharedChunks
from loader.segment.source import open_source, source_name

Array = np.ndarray[Any, np.dtype[Any]]
TAIL_READ_BYTES = 64 << 10
FOOTER_COLUMN_BYTES = 512  # of a column's records, name and Arrow field


class OpenFooter:
    """The footer of a segment, read page by page; safe to share between threads.

    Attributes:
        num_rows: Rows.
        num_columns: Columns.
        num_blocks: Blocks.
        features: Feature bits.
        name: What errors call the file.
    """

    def __init__(self, source: Any) -> None:
        """
        Args:
            source: A path, bytes, or an object with `num_bytes` and `read_ranges([(offset, num_bytes)…]) -> list[memoryview]`.

        Raises:
            TruncatedSegmentError: The bytes end before the segment does.
            CorruptSegmentError: Checksum or structure does not hold.
            UnsupportedVersionError: A newer version, or an unknown feature.
        """
        self._source = open_source(source)
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

    @functools.cached_property
    def block_rows(self) -> Array:
        """Rows of each block, uint32."""
        return np.ascontiguousarray(self.blocks["num_rows"])

    @functools.cached_property
    def block_starts(self) -> Array:
        """The first row of each block, int64."""
        return np.asarray(self.blocks["row_start"].astype(np.int64))

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

    def rows_of(self, column_ids: Sequence[int]) -> Array:
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
        elif all(isinstance(column, int) for column in columns):
            chosen = self.rows_of(columns)  # type: ignore[arg-type]
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
        records = self.columns[self.rows_of(column_ids)]
        stated = zip(*(records[name].tolist() for name in ("value_type", "depth", "fixed_size", "flags", "weights")), strict=True)
        return [stated_leaf(*key) for key in stated]

    def chunks(self, column_ids: Sequence[int], blocks: Sequence[int] | Array) -> Array:
        """CHUNK records `[column, block]`, bounds checked; only their pages of the footer are read.

        Raises:
            ColumnNotFoundError: An id is not in the segment.
        """
        wanted = self.rows_of(column_ids)
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

    @functools.cached_property
    def shared(self) -> SharedChunks:
        """The dictionaries that blocks share."""
        return SharedChunks(self._sections.get(Section.SHARED_CHUNKS), self.num_columns, self.num_bytes, self.name, self._read)

    def dictionaries(self, column_ids: Sequence[int]) -> tuple[Array, Array]:
        """CHUNK records of the dictionaries that columns share among blocks, each once, and of each column which of them it looks up (int64, -1 for none)."""
        return self.shared.of(self.rows_of(column_ids))

    def column_bytes(self, column_ids: Sequence[int]) -> Array:
        """Bytes of the chunks of columns, dictionaries that blocks share included, int64."""
        chunks = self.chunks(column_ids, np.arange(self.num_blocks))["num_bytes"].sum(axis=1, dtype=np.int64)
        return np.asarray(chunks + self.shared.bytes_of(self.rows_of(column_ids)))

    @property
    def num_bytes(self) -> int:
        """Of the segment."""
        return self._source.num_bytes

    @property
    def footer_bytes(self) -> int:
        """About what the open footer takes in memory once all that reads need of it is there; its key index aside."""
        return len(self._end) + FOOTER_COLUMN_BYTES * self.num_columns + (CHUNK.itemsize + STATS.itemsize) * self.num_columns * self.num_blocks

    @property
    def section_kinds(self) -> list[Section]:
        """The sections that the segment has, of those that this version knows."""
        return [Section(kind) for kind in self._sections if kind in Section.__members__.values()]

    def section(self, kind: Section) -> memoryview | None:
        """The bytes of a section, verified; None where the segment has none."""
        return self._sections[kind].all().data if kind in self._sections else None

    def pages(self, kind: Section) -> SectionPages | None:
        """A section to be read page by page; None where the segment has none."""
        return self._sections.get(int(kind))

    @property
    def local_place(self) -> tuple[pathlib.Path, int] | None:
        """The file of this machine that the segment lies in and its first byte there; None where it lies elsewhere."""
        place: Any = getattr(self._source, "local_place", None)
        found: tuple[pathlib.Path, int] | None = None if place is None else place()
        return found

    def close(self) -> None:
        """Close the file, if the reader opened one."""
        close = getattr(self._source, "close", None)
        if close is not None:
            close()
