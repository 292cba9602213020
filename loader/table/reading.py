"""A snapshot as an Arrow table: segment by segment, overlays folded, deleted rows left out, closed windows read as their default."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loader.catalog.records import SegmentRef, SnapshotView
from loader.schema import Column, keep
from loader.segment.column_files import JoinedReader
from loader.storage import Storage
from loader.table.resolve import fold, scatter
from loader.table.segments import kept_columns, one_chunk, one_type, open_columns, read_chunked
from loader.table.times import closed_limit, time_value, time_words

if TYPE_CHECKING:
    from loader.scan.predicate import Predicate

Moment = int | str | datetime.date | datetime.datetime
WATERMARK = "watermark"
Prune = Callable[[SnapshotView, "Predicate | None", "int | None"], Sequence[SegmentRef]]  # the last: rows after it are not selected


def closed_time(view: SnapshotView, closed_before: Moment) -> int:
    """The latest row time whose window is closed at `closed_before`, in the time column's unit.

    Args:
        view: The snapshot.
        closed_before: A moment, or "watermark".

    Raises:
        ValueError: The table has no time column, no watermark yet, or the moment lies after the watermark, where windows are still open.
    """
    column = view.spec.time_column
    if column is None:
        raise ValueError(f"closed_before needs a time column, and table {view.table!r} has none: create it with time_column=…")
    if view.watermark is None:
        raise ValueError(f"snapshot {view.snapshot_id} of table {view.table!r} has no watermark yet: give watermark=… when you write")
    moment = view.watermark if closed_before == WATERMARK else time_value(closed_before, column.type)
    if moment > view.watermark:
        raise ValueError(
            f"closed_before {closed_before!r} ({moment}) lies after the watermark {view.watermark} of snapshot {view.snapshot_id}: "
            'windows are still open there, use closed_before="watermark"'
        )
    return closed_limit(view.attribution, column.type, moment)


def read_view(
    view: SnapshotView,
    storage: Storage,
    *,
    columns: Sequence[str] | None = None,
    where: str | None = None,
    closed_before: Moment | None = None,
    prune: Prune | None = None,
) -> pa.Table:
    """Read a snapshot.

    Args:
        view: Which.
        storage: The lake's.
        columns: Names in the order wanted; default all.
        where: A SQL boolean expression over the table's columns, as rows are shown.
        closed_before: Only rows whose attribution window is closed then.
        prune: Leaves out segments without a selected row; default none.
    """
    predicate = None if where is None else predicate_of(view, where)
    closed = None if closed_before is None else closed_time(view, closed_before)
    wanted, read = columns_to_read(view, columns, predicate, closed)
    schema = pa.schema([column.to_arrow() for column in read], metadata=view.schema.metadata)
    segments = view.segments if prune is None else prune(view, predicate, closed)
    tables = [read_segment(view, ref, read, storage) for ref in segments]
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    if closed is not None:
        table = keep(table, time_words(table[view.spec.time_column.name]) <= closed)  # type: ignore[union-attr]
    if predicate is not None:
        table = keep(table, predicate.mask(table))
    return table.select([column.name for column in wanted])


def columns_to_read(
    view: SnapshotView, columns: Sequence[str] | None, predicate: Predicate | None, closed: int | None
) -> tuple[tuple[Column, ...], list[Column]]:
    """The columns that are wanted, and those with what else decides which rows are shown and how.

    Raises:
        ColumnNotFoundError: A name is not in the schema.
        ValueError: `columns` is empty, or names one twice.
    """
    used = set() if predicate is None else set(predicate.columns)
    wanted = view.schema.select(columns)
    names = {column.name for column in wanted}
    if not names or len(names) < len(wanted):
        raise ValueError(f"columns names at least one column, and each once, not {columns!r}")
    extra = [column for column in view.schema if column.name not in names and (column.name in used or _needed(view, column, names | used, closed))]
    return wanted, [*wanted, *extra]


def predicate_of(view: SnapshotView, where: str) -> Predicate:
    """An expression over a snapshot's columns.

    Raises:
        ColumnNotFoundError: It names a column that is not there.
        ValueError: It is not an expression that is allowed.
    """
    from loader.scan.predicate import parse  # a sibling that imports this package

    return parse(where, view.schema.to_arrow())


def live_rows(view: SnapshotView, ref: SegmentRef, predicate: Predicate, storage: Storage) -> npt.NDArray[np.uint32]:
    """Numbers of the live rows of a segment that an expression selects, as rows are shown."""
    columns = [column for column in view.schema if column.name in predicate.columns or _needed(view, column, set(predicate.columns), None)]
    table, deleted = _stored_rows(view, ref, columns, storage)
    mask = predicate.mask(table)
    if deleted is not None:
        mask &= ~deleted
    return np.flatnonzero(mask).astype(np.uint32)


def _needed(view: SnapshotView, column: Column, names: set[str], closed: int | None) -> bool:
    """Whether the time column has to be read though nobody asked for it."""
    default = view.attribution is not None and view.attribution.column in names
    return column.name == view.time_column and (default or closed is not None)


def read_segment(view: SnapshotView, ref: SegmentRef, columns: Sequence[Column], storage: Storage) -> pa.Table:
    """The live rows of one segment; the time column must be among `columns` where the label is."""
    table, deleted = _stored_rows(view, ref, columns, storage)
    return table if deleted is None else keep(table, ~deleted)


def _stored_rows(view: SnapshotView, ref: SegmentRef, columns: Sequence[Column], storage: Storage) -> tuple[pa.Table, npt.NDArray[np.bool_] | None]:
    """All rows of one segment as they are shown, and which of them are deleted."""
    schema = pa.schema([column.to_arrow() for column in columns], metadata=view.schema.metadata)
    reader = kept_columns(storage, ref)
    read = read_chunked(reader, [column.id for column in columns])
    touched = {column_id for overlay in ref.overlays for column_id in overlay.column_ids}
    stored = {column_id: one_chunk(column) for column_id, column in read.items() if column_id in touched}
    resolved = fold(view, ref, [column.id for column in columns], storage, stored, reader)
    arrays: list[pa.Array | pa.ChunkedArray] = []
    for column in columns:
        if column.id not in resolved.patches:
            arrays.append(one_type(read[column.id], column.type) if column.id in read else column.missing(ref.num_rows))
            continue
        patch = resolved.patches[column.id]
        base = one_type(stored[column.id], column.type) if column.id in stored else column.missing(ref.num_rows)
        arrays.append(scatter(base, patch.rows, patch.values))
    table = pa.Table.from_arrays(arrays, schema=schema)
    return fill_default(view, table), resolved.deleted


def state_of(ref: SegmentRef) -> tuple[int, ...]:
    """A segment with all that changes what its rows show, but for the watermark: what is equal holds the same."""
    return (ref.segment_id, len(ref.column_files), *(overlay.overlay_id for overlay in ref.overlays))


def fill_default(view: SnapshotView, table: pa.Table) -> pa.Table:
    """Null labels whose window is closed at the watermark as the attribution's default."""
    attribution, time_column = view.attribution, view.spec.time_column
    if attribution is None or time_column is None or view.watermark is None or attribution.column not in table.column_names:
        return table
    label = table[attribution.column].combine_chunks()
    if not label.null_count:
        return table
    times = table[time_column.name]
    closed = times.is_valid().to_numpy()  # a row that a look-up did not find has none
    closed[closed] = time_words(times.drop_null()) <= closed_limit(attribution, time_column.type, view.watermark)
    default = pa.scalar(attribution.default, label.type)
    filled = pc.if_else(pa.array(closed & label.is_null().to_numpy(zero_copy_only=False)), default, label)
    return table.set_column(table.column_names.index(attribution.column), table.schema.field(attribution.column), filled)


def bytes_by_column(view: SnapshotView, storage: Storage) -> dict[str, int]:
    """Stored bytes of each column's chunks over the live segments, overlays left out."""
    names = {column.id: column.name for column in view.schema}
    total = {column.name: 0 for column in view.schema}
    for ref in view.segments:
        whole = open_columns(storage, ref)
        for reader in whole.readers if isinstance(whole, JoinedReader) else [whole]:
            ids = [column_id for column_id in reader.columns["column_id"].tolist() if column_id in names]
            for column_id, size in zip(ids, reader.column_bytes(ids).tolist(), strict=True):
                total[names[column_id]] += size
    return total
