"""Whole rows of a segment as they stand: patches applied, with the hidden columns that a rewritten row keeps (its commit sequence, the order of its values)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.records import SegmentRef, TableSpec
from loader.schema import take
from loader.segment.column_files import JoinedReader
from loader.segment.layout import SEQUENCE_COLUMN_ID
from loader.segment.reader import SegmentReader
from loader.storage import Storage
from loader.table.merge import NO_ORDER, ORDER_BASE_ID, ORDERED_RULES, Folded
from loader.table.resolve import fold_overlays, scatter
from loader.table.segments import column_ids_of, one_type, open_columns, read_by_id

I64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredRows:
    """A segment opened to read whole rows of it."""

    ref: SegmentRef
    reader: SegmentReader | JoinedReader
    folded: dict[int, Folded]


def open_rows(spec: TableSpec, ref: SegmentRef, storage: Storage) -> StoredRows:
    """Open a segment and fold its overlays."""
    reader = open_columns(storage, ref)
    ids = [column.id for column in spec.schema]
    folded = fold_overlays(spec, ref, ids, storage, reader, keep_orders=True) if ref.overlays else {}
    return StoredRows(ref=ref, reader=reader, folded=folded)


def order_columns(spec: TableSpec, inputs: Sequence[StoredRows]) -> list[int]:
    """Hidden order columns that some input has, or that its operands bring."""
    found = []
    for column in spec.schema:
        if spec.rule(column.id) not in ORDERED_RULES:
            continue
        hidden = ORDER_BASE_ID + column.id
        for item in inputs:
            orders = item.folded[column.id].orders if column.id in item.folded else None
            if hidden in column_ids_of(item.reader) or (orders is not None and (orders != NO_ORDER).any()):
                found.append(hidden)
                break
    return found


def read_rows(spec: TableSpec, item: StoredRows, hidden: list[int], rows: I64, column_ids: Collection[int] | None = None) -> dict[int, pa.Array]:
    """Some rows of one input, all columns or some, patches applied."""
    columns = {column.id: column for column in spec.schema if column_ids is None or column.id in column_ids}
    whole = len(rows) == item.ref.num_rows and bool((np.diff(rows) == 1).all())
    read = read_by_id(item.reader, [*columns, SEQUENCE_COLUMN_ID, *hidden], rows=None if whole else rows)
    part = {}
    for column_id, column in columns.items():
        array = one_type(read[column_id], column.type) if column_id in read else column.missing(len(rows))
        at, patched = _patched(item, column_id, rows)
        part[column_id] = scatter(array, at, take(item.folded[column_id].values, patched)) if len(at) else array
    for column_id in hidden:
        array = read.get(column_id, pa.nulls(len(rows), pa.int64()))
        at, patched = _patched(item, column_id - ORDER_BASE_ID, rows)
        if len(at):
            orders = item.folded[column_id - ORDER_BASE_ID].orders
            assert orders is not None
            array = scatter(array, at, pa.array(orders[patched], mask=orders[patched] == NO_ORDER))
        part[column_id] = array
    part[SEQUENCE_COLUMN_ID] = read.get(SEQUENCE_COLUMN_ID, pa.array(np.full(len(rows), item.ref.sequence_min)))
    return part


def _patched(item: StoredRows, column_id: int, rows: I64) -> tuple[I64, I64]:
    """Positions in `rows` that are patched, and the position of each one's patch."""
    if column_id not in item.folded:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    patched = item.folded[column_id].rows.astype(np.int64)
    where = np.searchsorted(patched, rows)
    inside = np.flatnonzero(where < len(patched))
    hit = inside[patched[where[inside]] == rows[inside]]
    return hit, where[hit]
