"""The LOOKUP_ROWS section: some columns of a segment once more, rows side by side, so that a cold look-up reads a page a row and not one a column.

Owns the section's bytes and both ways between them and Arrow. A row is a fixed-width part; strings and lists of it lie together in a heap behind all rows.
Where pages come from is `segment.pages`'. FORMAT.md states the layout. Nothing else depends on the section: a reader that does not know it reads columns.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from loader.encodings.overlap import ranges
from loader.errors import CorruptSegmentError, UnsupportedVersionError
from loader.segment.layout import round_up
from loader.segment.pages import SectionPages

Array = np.ndarray[Any, np.dtype[Any]]
I64 = npt.NDArray[np.int64]
LOOKUP_ROWS_VERSION = 1
HEADER = np.dtype(
    [("version", "<u4"), ("num_columns", "<u4"), ("num_rows", "<u8"), ("row_bytes", "<u4"), ("schema_bytes", "<u4"), ("rows_at", "<u8"), ("heap_at", "<u8"),
     ("heap_bytes", "<u8"), ("reserved", "V16")]
)  # fmt: skip
COLUMN = np.dtype([("column_id", "<u4"), ("offset", "<u4"), ("item_bytes", "<u4"), ("valid_bit", "<u4"), ("flags", "<u4"), ("reserved", "<u4")])
IS_VARIABLE = 1
SLOT = np.dtype([("start", "<u8"), ("length", "<u4")])  # of a value in the heap: its first byte, and its items


def item_bytes(kind: pa.DataType) -> int | None:
    """Bytes of a fixed-width value; None where the type has none."""
    if pt.is_boolean(kind):
        return 1
    views = pt.is_string_view(kind) or pt.is_binary_view(kind)
    if views or pt.is_dictionary(kind) or pt.is_nested(kind) or pt.is_null(kind) or isinstance(kind, pa.BaseExtensionType):
        return None
    try:
        return int(kind.bit_width) // 8
    except ValueError:
        return None


def heap_item(kind: pa.DataType) -> pa.DataType | None:
    """What a value in the heap is a list of; None for other types."""
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_binary(kind) or pt.is_large_binary(kind):
        return pa.uint8()
    if (pt.is_list(kind) or pt.is_large_list(kind)) and not pt.is_boolean(kind.value_type) and item_bytes(kind.value_type):
        return kind.value_type
    return None


def can_hold(kind: pa.DataType) -> bool:
    """Whether a column of this type can be in a row group."""
    return item_bytes(kind) is not None or heap_item(kind) is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowLayout:
    """How the rows of a group are laid out: equal layouts can be read as one.

    Attributes:
        column_ids: The columns.
        schema: Their fields.
        records: COLUMN records, as bytes.
        row_bytes: Of the fixed-width part.
    """

    column_ids: tuple[int, ...]
    schema: pa.Schema
    records: bytes
    row_bytes: int

    @staticmethod
    def of(schema: pa.Schema, column_ids: Sequence[int]) -> RowLayout:
        """Lay out columns: a bit each for what is null, then their values."""
        records = np.zeros(len(column_ids), COLUMN)
        at = -(-len(column_ids) // 8)
        for number, (record, field) in enumerate(zip(records, schema, strict=True)):
            width, inner = item_bytes(field.type), heap_item(field.type)
            record["column_id"], record["offset"], record["valid_bit"] = column_ids[number], at, number
            record["flags"] = IS_VARIABLE if width is None else 0
            record["item_bytes"] = width or (item_bytes(inner) if inner is not None else 0) or 0
            at += SLOT.itemsize if width is None else width
        return RowLayout(column_ids=tuple(column_ids), schema=schema, records=records.tobytes(), row_bytes=at)

    @property
    def columns(self) -> Array:
        """COLUMN records."""
        return np.frombuffer(self.records, COLUMN)


class RowsBuilder:
    """Encodes a group piece by piece.

    Args:
        layout: Of the rows.
    """

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout
        self._rows: list[Array] = []
        self._heap: list[Array] = []
        self._heap_bytes = 0

    def add(self, arrays: Sequence[pa.Array]) -> None:
        """The next rows, an array of each column in its type; lists without null items."""
        count = len(arrays[0]) if arrays else 0
        rows = np.zeros((count, self.layout.row_bytes), np.uint8)
        variable: list[tuple[int, I64, I64, Array, int]] = []
        for record, array in zip(self.layout.columns, arrays, strict=True):
            valid = np.ones(count, bool) if not array.null_count else array.is_valid().to_numpy(zero_copy_only=False)
            bit, at, width = int(record["valid_bit"]), int(record["offset"]), int(record["item_bytes"])
            rows[:, bit // 8] |= valid.view(np.uint8) << np.uint8(bit % 8)
            if record["flags"] & IS_VARIABLE:
                starts, lengths, data = _heap_values(array, valid)
                variable.append((at, starts, lengths, data, width))
            else:
                rows[:, at : at + width] = _fixed_values(array, valid, width)
        self._rows.append(rows)
        self._add_heap(rows, variable)

    def _add_heap(self, rows: Array, variable: list[tuple[int, I64, I64, Array, int]]) -> None:
        """Values of a row stand together, so that a page or two hold them all."""
        if not variable:
            return
        sizes = np.stack([lengths * width for _, _, lengths, _, width in variable], axis=1)
        ends = np.cumsum(sizes.reshape(-1)).reshape(sizes.shape)
        heap = np.empty(int(ends[-1, -1]) if len(ends) else 0, np.uint8)
        for number, (at, starts, lengths, data, width) in enumerate(variable):
            begins = ends[:, number] - sizes[:, number]
            heap[ranges(begins, sizes[:, number])] = data[ranges(starts * width, sizes[:, number])]
            slots = np.zeros(len(rows), SLOT)
            slots["start"], slots["length"] = begins + self._heap_bytes, lengths
            rows[:, at : at + SLOT.itemsize] = slots.view(np.uint8).reshape(-1, SLOT.itemsize)
        self._heap.append(heap)
        self._heap_bytes += heap.size

    def finish(self) -> bytes:
        """The section."""
        layout, header = self.layout, np.zeros(1, HEADER)
        schema = layout.schema.serialize().to_pybytes()
        head = HEADER.itemsize + len(layout.records) + len(schema)
        num_rows = sum(map(len, self._rows))
        header["version"], header["num_columns"], header["num_rows"], header["row_bytes"] = (
            LOOKUP_ROWS_VERSION,
            len(layout.column_ids),
            num_rows,
            layout.row_bytes,
        )
        header["schema_bytes"], header["rows_at"], header["heap_bytes"] = len(schema), round_up(head), self._heap_bytes
        header["heap_at"] = round_up(round_up(head) + num_rows * layout.row_bytes)
        out = bytearray((header.tobytes() + layout.records + schema).ljust(round_up(head), b"\0"))
        for rows in self._rows:
            out += rows.data
        out += bytes(-len(out) % 64)
        for heap in self._heap:
            out += heap.data
        return bytes(out)


def _fixed_values(array: pa.Array, valid: Array, width: int) -> Array:
    """Values as uint8 [rows, width], zero where null."""
    if pt.is_boolean(array.type):
        flags: Array = (array.fill_null(False) if array.null_count else array).to_numpy(zero_copy_only=False).view(np.uint8)
        return flags[:, None]
    data = array.buffers()[1]
    values = np.zeros((len(array), width), np.uint8)
    if data is not None:
        values[:] = np.frombuffer(data, np.uint8, count=len(array) * width, offset=array.offset * width).reshape(-1, width)
        values[~valid] = 0
    return values


def _heap_values(array: pa.Array, valid: Array) -> tuple[I64, I64, Array]:
    """Starts and lengths in items (0 where null), and the bytes they are of."""
    wide = pt.is_large_string(array.type) or pt.is_large_binary(array.type) or pt.is_large_list(array.type)
    dtype = np.dtype(np.int64 if wide else np.int32)
    raw = array.buffers()[1]
    offsets = np.zeros(len(array) + 1, np.int64)
    if raw is not None and len(array):
        offsets[:] = np.frombuffer(raw, dtype, count=len(array) + 1, offset=array.offset * dtype.itemsize)
    if pt.is_list(array.type) or pt.is_large_list(array.type):
        child, width = array.values, item_bytes(array.type.value_type) or 1
        data, skip = child.buffers()[1], child.offset * width
    else:
        data, skip = array.buffers()[2], 0
    content = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)[skip:]
    return offsets[:-1], np.where(valid, np.diff(offsets), 0), content


class LookupRows:
    """An open LOOKUP_ROWS section; its pages are read, and their checksums verified, as rows are asked for. Not thread-safe.

    Attributes:
        layout: Of its rows.
        layout_key: Equal for groups whose rows can be read as one.
        num_rows: Rows.
        place: As given.
    """

    layout: RowLayout

    def __init__(self, pages: SectionPages, where: str, place: tuple[pathlib.Path, int] | None = None) -> None:
        """
        Args:
            pages: The section.
            where: What errors call its segment.
            place: The local file of its segment and the first byte there, if it has one.

        Raises:
            UnsupportedVersionError: A newer version of the section.
            CorruptSegmentError: It does not hold together.
        """
        self._pages, self._where, self.place = pages, where, place
        if pages.num_bytes < HEADER.itemsize:
            raise self._corrupt(f"has {pages.num_bytes} bytes, its header alone {HEADER.itemsize}")
        header = np.frombuffer(pages.slice(0, HEADER.itemsize), HEADER)[0]
        if header["version"] > LOOKUP_ROWS_VERSION:
            raise UnsupportedVersionError(f"{where}: rows for look-ups have version {header['version']}, this Headrace reads up to {LOOKUP_ROWS_VERSION}")
        self.num_rows, row_bytes = int(header["num_rows"]), int(header["row_bytes"])
        self._rows_at, self._heap_at, self._heap_bytes = int(header["rows_at"]), int(header["heap_at"]), int(header["heap_bytes"])
        records_end = HEADER.itemsize + int(header["num_columns"]) * COLUMN.itemsize
        schema_end = records_end + int(header["schema_bytes"])
        if schema_end > self._rows_at or self._rows_at + self.num_rows * row_bytes > self._heap_at or self._heap_at + self._heap_bytes > pages.num_bytes:
            raise self._corrupt("does not hold the rows that its header states")
        raw = bytes(pages.slice(HEADER.itemsize, schema_end))
        self.layout_key = raw
        records, schema = raw[: records_end - HEADER.itemsize], raw[records_end - HEADER.itemsize :]
        columns = np.frombuffer(records, COLUMN)
        try:
            self.layout = RowLayout(
                column_ids=tuple(columns["column_id"].tolist()), schema=pa.ipc.read_schema(pa.py_buffer(schema)), records=records, row_bytes=row_bytes
            )
        except (pa.ArrowException, OSError) as error:
            raise self._corrupt(f"has a schema that cannot be read ({error})") from None
        if self.layout != RowLayout.of(self.layout.schema, self.layout.column_ids):
            raise self._corrupt("states columns that do not fit its schema")

    def _corrupt(self, what: str) -> CorruptSegmentError:
        return CorruptSegmentError(f"{self._where}: section LOOKUP_ROWS {what}; build it again with table.build_lookup()")

    @functools.cached_property
    def types(self) -> dict[int, pa.DataType]:
        """Type of each column, by id."""
        return dict(zip(self.layout.column_ids, self.layout.schema.types, strict=True))

    @property
    def loaded_bytes(self) -> int:
        """Memory of the pages read so far."""
        return self._pages.loaded_bytes

    def missing(self, rows: I64) -> I64:
        """Pages to `load` before these rows can be read.

        Raises:
            CorruptSegmentError: A row is not in the group.
        """
        if rows.size and int(rows.max()) >= self.num_rows:
            raise self._corrupt(f"has {self.num_rows:,} rows and row {int(rows.max()):,} was asked for")
        starts = self._rows_at + rows * self.layout.row_bytes
        return self._pages.missing(starts, starts + self.layout.row_bytes)

    def missing_heap(self, starts: I64, sizes: I64) -> I64:
        """Pages to `load` before these ranges of the heap can be read.

        Raises:
            CorruptSegmentError: A range leaves the heap.
        """
        if starts.size and (int(starts.min()) < 0 or int((starts + sizes).max()) > self._heap_bytes):
            raise self._corrupt("has a value that leaves its heap")
        return self._pages.missing(self._heap_at + starts, self._heap_at + starts + sizes)

    def load(self, pages: I64) -> None:
        """Read pages; several threads may read different ones."""
        self._pages.load(pages)

    @property
    def pages(self) -> SectionPages:
        """The section, for readers of many at a time."""
        return self._pages

    def rows(self, rows: I64) -> Array:
        """The fixed-width parts, uint8 [rows, row_bytes]; their pages are loaded."""
        found: Array = self._pages.content[(self._rows_at + rows * self.layout.row_bytes)[:, None] + np.arange(self.layout.row_bytes)]
        return found

    def heap(self, starts: I64, sizes: I64) -> Array:
        """Ranges of the heap end to end, uint8; their pages are loaded."""
        found: Array = self._pages.content[ranges(self._heap_at + starts, sizes)]
        return found


def fixed_array(matrix: Array, record: Any, field: pa.Field) -> pa.Array:
    """A fixed-width column of rows (uint8 [n, row_bytes])."""
    at, width, count = int(record["offset"]), int(record["item_bytes"]), len(matrix)
    values = np.ascontiguousarray(matrix[:, at : at + width])
    if pt.is_boolean(field.type):
        values = np.packbits(values[:, 0], bitorder="little")
    return pa.Array.from_buffers(field.type, count, [validity(matrix, record), pa.py_buffer(values)])


def validity(matrix: Array, record: Any) -> pa.Buffer | None:
    """Arrow's validity bits of a column of rows; None where nothing is null."""
    bit = int(record["valid_bit"])
    valid = (matrix[:, bit // 8] >> np.uint8(bit % 8)) & np.uint8(1)
    return None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def slots(matrix: Array, record: Any) -> Array:
    """Where the values of a column in the heap are, SLOT records."""
    at = int(record["offset"])
    found: Array = np.ascontiguousarray(matrix[:, at : at + SLOT.itemsize]).view(SLOT)[:, 0]
    return found


def heap_array(field: pa.Field, lengths: I64, data: Array, valid: pa.Buffer | None) -> pa.Array:
    """A column of strings or lists from its values end to end."""
    kind = field.type
    wide = pt.is_large_string(kind) or pt.is_large_binary(kind) or pt.is_large_list(kind)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [valid, pa.py_buffer(offsets if wide else offsets.astype(np.int32))]
    if not (pt.is_list(kind) or pt.is_large_list(kind)):
        return pa.Array.from_buffers(kind, len(lengths), [*buffers, pa.py_buffer(data)])
    child = pa.Array.from_buffers(kind.value_type, int(offsets[-1]), [None, pa.py_buffer(data)])
    return pa.Array.from_buffers(kind, len(lengths), buffers, children=[child])


def encode_rows(layout: RowLayout, pieces: Iterable[Sequence[pa.Array]]) -> bytes:
    """The section of rows that come in pieces."""
    builder = RowsBuilder(layout)
    for arrays in pieces:
        builder.add(arrays)
    return builder.finish()
