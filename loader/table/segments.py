"""Opening the segments, overlays and pending labels that a snapshot names, and reading their columns by id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.inline import LakeStorage
from loader.catalog.records import ColumnFileRef, SegmentRef
from loader.segment.column_files import JoinedReader
from loader.segment.layout import LOOKUP_ROWS_COLUMN_ID, ORDER_COLUMN_ID, ROW_COLUMN_ID, Feature
from loader.segment.reader import SegmentReader
from loader.segment.writer import encode_segments
from loader.storage import Storage
from loader.table.merge import NO_ORDER

Arrow = TypeVar("Arrow", pa.Array, pa.ChunkedArray)
ROW_NAME, ORDER_NAME = "__row", "__order"
LOOKUP_ROWS_IDS = (LOOKUP_ROWS_COLUMN_ID,)  # column_ids of a column file that holds a row group, see `row_groups`


class Section(Protocol):
    """Anything that says where a stored segment is."""

    @property
    def path(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...


def open_segment(storage: Storage, section: Section) -> SegmentReader:
    """A reader of the segment in this section."""
    return SegmentReader(storage.section(section.path, section.offset, section.num_bytes))


def kept_segment(storage: Storage, section: Section) -> SegmentReader:
    """As `open_segment`; its footer stays in memory for the next read."""
    if not isinstance(storage, LakeStorage):
        return open_segment(storage, section)
    key = ("segment", section.path, section.offset, section.num_bytes)
    return storage.kept.get(key, lambda: open_segment(storage, section), lambda reader: reader.footer_bytes)


def kept_columns(storage: Storage, ref: SegmentRef) -> SegmentReader | JoinedReader:
    """As `open_columns`; the footers stay in memory for the next read."""
    files = data_files(ref)
    if not files or not isinstance(storage, LakeStorage):
        return kept_segment(storage, ref) if not files else open_columns(storage, ref)
    key = ("columns", ref.path, ref.offset, tuple((file.path, file.offset) for file in files))
    return storage.kept.get(
        key, lambda: JoinedReader(kept_segment(storage, ref), [kept_segment(storage, file) for file in files]), lambda joined: 1024 * len(joined.readers)
    )


def open_columns(storage: Storage, ref: SegmentRef) -> SegmentReader | JoinedReader:
    """A reader of a segment with the column files beside it."""
    base, files = open_segment(storage, ref), data_files(ref)
    return JoinedReader(base, [open_segment(storage, file) for file in files]) if files else base


def data_files(ref: SegmentRef) -> list[ColumnFileRef]:
    """The column files that hold columns; what is there for look-ups alone is left out."""
    return [file for file in ref.column_files if file.column_ids != LOOKUP_ROWS_IDS]


def group_of(ref: SegmentRef) -> int | None:
    """Which of a segment's column files is its row group, the last one; None without."""
    found = [at for at, file in enumerate(ref.column_files) if file.column_ids == LOOKUP_ROWS_IDS]
    return found[-1] if found else None


def later_columns(ref: SegmentRef, group: int) -> set[int]:
    """Columns that came beside the segment after its group: the group's values of them are old."""
    return {column_id for file in ref.column_files[group + 1 :] for column_id in file.column_ids}


def column_ids_of(reader: SegmentReader | JoinedReader) -> set[int]:
    """Ids of the columns that the segment has, hidden ones included."""
    return set(reader.column_ids if isinstance(reader, JoinedReader) else reader.columns["column_id"].tolist())


def read_by_id(reader: SegmentReader | JoinedReader, column_ids: Iterable[int], rows: npt.NDArray[np.integer] | range | None = None) -> dict[int, pa.Array]:
    """Columns of a segment by id; ids that the segment does not have are left out.

    Args:
        reader: The segment.
        column_ids: What to read.
        rows: Row numbers to read, in any order; default all.
    """
    return {column_id: one_chunk(column) for column_id, column in read_chunked(reader, column_ids, rows).items()}


def read_chunked(
    reader: SegmentReader | JoinedReader, column_ids: Iterable[int], rows: npt.NDArray[np.integer] | range | None = None
) -> dict[int, pa.ChunkedArray]:
    """As `read_by_id`, a chunk a block: nothing is copied to lay them end to end."""
    there = column_ids_of(reader)
    wanted = [column_id for column_id in column_ids if column_id in there]
    if not wanted:
        return {}
    table = reader.read(columns=wanted, rows=rows)
    return dict(zip(wanted, table.columns, strict=True))


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece."""
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)


def one_type(array: Arrow, kind: pa.DataType) -> Arrow:
    """The array in the table's type: a segment may hold an older, narrower one."""
    return array if array.type.equals(kind) else array.cast(kind)


def encode_overlay(columns: pa.Table, column_ids: Sequence[int], rows: npt.NDArray[np.integer] | None, orders: npt.NDArray[np.int64] | None) -> memoryview:
    """Operands as a segment: with the rows they patch, or without (pending labels).

    Args:
        columns: The operands by column; null where a column is not touched.
        column_ids: Ids of those columns.
        rows: The patched row of each, sorted; repeats allowed.
        orders: The order value of each, if the patch has an order.
    """
    return encode_overlays(columns, column_ids, rows, orders, [0, columns.num_rows if rows is None else len(rows)])[0]


def encode_overlays(
    columns: pa.Table, column_ids: Sequence[int], rows: npt.NDArray[np.integer] | None, orders: npt.NDArray[np.int64] | None, bounds: Sequence[int]
) -> list[memoryview]:
    """Overlays of several segments in one go, which costs little more than one; see `encode_overlay`.

    Args:
        columns: The operands of all, end to end.
        column_ids: Ids of the columns.
        rows: Of all, sorted within each overlay.
        orders: Of all.
        bounds: The first operand of each overlay, and behind them the number of operands.
    """
    arrays: list[pa.Array | pa.ChunkedArray] = list(columns.columns)
    names, ids = list(columns.column_names), list(column_ids)
    if rows is not None:
        arrays.append(pa.array(rows.astype(np.uint32)))
        names.append(ROW_NAME)
        ids.append(ROW_COLUMN_ID)
    if orders is not None:
        arrays.append(pa.array(orders))
        names.append(ORDER_NAME)
        ids.append(ORDER_COLUMN_ID)
    table = pa.Table.from_arrays(arrays, names=names)
    return [encoded.data for encoded in encode_segments(table, bounds, column_ids=ids, features=int(Feature.OVERLAY))]


def operand_rows(read: dict[int, pa.Array]) -> npt.NDArray[np.uint32]:
    """The patched rows of an overlay, u32[n]."""
    rows: npt.NDArray[np.uint32] = read[ROW_COLUMN_ID].to_numpy(zero_copy_only=False).astype(np.uint32, copy=False)
    return rows


def operand_orders(read: dict[int, pa.Array], num_rows: int) -> npt.NDArray[np.int64]:
    """The order values of an overlay, i64[n]; NO_ORDER where it has none."""
    if ORDER_COLUMN_ID not in read:
        return np.full(num_rows, NO_ORDER)
    orders: npt.NDArray[np.int64] = read[ORDER_COLUMN_ID].fill_null(NO_ORDER).to_numpy(zero_copy_only=False)
    return orders
