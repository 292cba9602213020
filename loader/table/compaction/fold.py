"""Folding the overlays of a segment without rewriting it: many patches become one, or a column file; many deletion vectors become one.

Pure planning and encoding but for reading overlays; `run` commits. A fold changes no row, and it is right whatever is patched meanwhile: everything that a
live segment gains has a higher sequence than all that it had, so a folded operand needs only the highest sequence of those in it, and what came since lies
on top. Operands stay operands (a sum that is folded still adds up with what comes), until they make up so much of a segment that values are written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.records import DELETES, NewColumnFile, NewOverlay, OverlayRef, SegmentRef, TableSpec
from loader.errors import CorruptSegmentError
from loader.schema import take
from loader.segment.column_files import JoinedReader, encode_column_file
from loader.segment.writer import WriteOptions
from loader.storage import Storage
from loader.table.compaction.pick import FoldTask
from loader.table.files import Stage, place
from loader.table.merge import NO_ORDER, ORDER_BASE_ID, Folded, Operands
from loader.table.merge import fold as fold_operands
from loader.table.resolve import deleted_rows, read_operands
from loader.table.rows import hidden_name
from loader.table.segments import encode_overlay
from loader.table.stored import open_rows, order_columns, read_rows

I64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldedOverlays:
    """What stands for the overlays of some segments.

    Attributes:
        overlays, column_files: To commit.
        inline: Bytes for the catalog, where they are few.
        removed_overlays, removed_column_files: Ids of what they stand for.
        segments: Numbers of the segments that they are of.
        latest_overlay: The highest number of an overlay of these that was there.
        num_bytes: Written.
    """

    overlays: list[NewOverlay]
    column_files: list[NewColumnFile]
    inline: dict[str, bytes]
    removed_overlays: tuple[int, ...]
    removed_column_files: tuple[int, ...]
    segments: tuple[int, ...]
    latest_overlay: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class _Part:
    """One section to place, and how the catalog will know it."""

    segment: SegmentRef
    kind: str  # patch, deletes, columns
    data: memoryview
    num_rows: int
    column_ids: tuple[int, ...]
    inputs: tuple[OverlayRef, ...]
    replaced_files: tuple[int, ...] = ()


def fold_batches(spec: TableSpec, tasks: list[FoldTask], storage: Storage, stage: Stage, *, batch_bytes: int, threads: int) -> Iterator[FoldedOverlays]:
    """Fold segment by segment; what is held until it is written is about `batch_bytes`, and one commit takes a batch."""
    parts: list[_Part] = []
    batch: list[FoldTask] = []
    held = 0
    for task in tasks:
        made = list(_fold_segment(spec, task, storage, threads))
        batch.append(task)
        parts += made
        held += sum(part.data.nbytes for part in made)
        if held >= batch_bytes:
            yield _placed(parts, batch, stage)
            parts, batch, held = [], [], 0
    if batch:
        yield _placed(parts, batch, stage)


def _placed(parts: list[_Part], tasks: list[FoldTask], stage: Stage) -> FoldedOverlays:
    inline: dict[str, bytes] = {}
    overlays, files = [], []
    placed = place([part.data for part in parts], stage, inline) if parts else None
    for part, (offset, num_bytes) in zip(parts, () if placed is None else placed.sections, strict=True):
        assert placed is not None
        where: dict[str, Any] = {
            "segment_id": part.segment.segment_id,
            "path": placed.path,
            "offset": offset,
            "num_bytes": num_bytes,
            "column_ids": part.column_ids,
        }
        if part.kind == "columns":
            files.append(NewColumnFile(**where))
            continue
        deleted = sum(overlay.num_deleted for overlay in part.inputs)
        sequence = max(overlay.sequence for overlay in part.inputs)
        overlays.append(NewOverlay(kind=part.kind, level=1, num_rows=part.num_rows, num_deleted=deleted, sequence=sequence, **where))
    return FoldedOverlays(
        overlays=overlays,
        column_files=files,
        inline=inline,
        removed_overlays=tuple(overlay.overlay_id for task in tasks for overlay in (*task.patches, *task.deletes)),
        removed_column_files=tuple(file_id for part in parts for file_id in part.replaced_files),
        segments=tuple(task.segment.segment_id for task in tasks),
        latest_overlay=max(overlay.overlay_id for task in tasks for overlay in task.segment.overlays),
        num_bytes=sum(part.data.nbytes for part in parts),
    )


def _fold_segment(spec: TableSpec, task: FoldTask, storage: Storage, threads: int) -> Iterator[_Part]:
    if task.patches:
        part = _column_file(spec, task, storage, threads) if task.to_columns else _patch(spec, task, storage)
        if part is not None:  # all its columns were dropped
            yield part
    if task.deletes:
        yield _deletion_vector(task, storage)


def _patch(spec: TableSpec, task: FoldTask, storage: Storage) -> _Part | None:
    ref = dataclasses.replace(task.segment, overlays=task.patches)
    folded: dict[int, Folded] = {}
    columns = [column for column in spec.schema if any(column.id in overlay.column_ids for overlay in task.patches)]
    operands = read_operands(ref, columns, storage)
    for column in columns:
        if column.id in operands:
            folded[column.id] = fold_operands(spec.rule(column.id), Operands.concat(operands[column.id]))
    if not folded:
        return None
    rows, orders, values = join_operands(folded)
    table = pa.table({column.name: values[column.id] for column in columns if column.id in folded})
    data = encode_overlay(table, tuple(folded), rows, orders)
    return _Part(task.segment, "patch", data, len(rows), tuple(folded), task.patches)


def join_operands(folded: dict[int, Folded]) -> tuple[npt.NDArray[np.uint32], I64 | None, dict[int, pa.Array]]:
    """Folded operands of several columns side by side.

    A row stands once for each order that its operands came with, as it may in any overlay; operands of rules without an order go with the row's first.

    Returns:
        Rows u32[n], sorted; orders i64[n] or None where there is none; and by column n values, null where the column is not touched.
    """
    ordered = {column_id: found for column_id, found in folded.items() if found.orders is not None}
    rows = np.concatenate([np.zeros(0, np.uint32), *(found.rows for found in ordered.values())])
    orders = np.concatenate([np.zeros(0, np.int64), *(found.orders for found in ordered.values() if found.orders is not None)])
    loose = np.unique(np.concatenate([np.zeros(0, np.uint32), *(found.rows for column_id, found in folded.items() if column_id not in ordered)]))
    loose = np.setdiff1d(loose, rows)
    rows, orders = np.append(rows, loose), np.append(orders, np.full(len(loose), NO_ORDER))
    entry = np.lexsort((orders, rows))
    sorted_rows, sorted_orders = rows[entry], orders[entry]
    is_first = np.append(True, (sorted_rows[1:] != sorted_rows[:-1]) | (sorted_orders[1:] != sorted_orders[:-1])) if len(entry) else np.zeros(0, bool)
    place_of = np.empty(len(entry), np.int64)
    place_of[entry] = np.cumsum(is_first) - 1
    all_rows, all_orders = sorted_rows[is_first], sorted_orders[is_first]
    values, start = {}, 0
    for column_id, found in folded.items():
        if column_id in ordered:
            at = place_of[start : start + len(found.rows)]
            start += len(found.rows)
        else:
            at = np.searchsorted(all_rows, found.rows)
        source = np.full(len(all_rows), -1, np.int64)
        source[at] = np.arange(len(found.rows))
        values[column_id] = found.values.take(pa.array(source, mask=source < 0)) if len(at) < len(all_rows) else take(found.values, source)
    return all_rows.astype(np.uint32), None if (all_orders == NO_ORDER).all() else all_orders, values


def _column_file(spec: TableSpec, task: FoldTask, storage: Storage, threads: int) -> _Part | None:
    """The patched columns in full, all rules applied, with the orders that later operands are compared with."""
    ref = dataclasses.replace(task.segment, overlays=task.patches)
    item = open_rows(spec, ref, storage)
    columns = [column for column in spec.schema if column.id in item.folded]
    if not columns:
        return None
    ids = [column.id for column in columns]
    hidden = [column_id for column_id in order_columns(spec, [item]) if column_id - ORDER_BASE_ID in item.folded]
    read = read_rows(spec, item, hidden, np.arange(ref.num_rows), ids)
    fields = [column.to_arrow() for column in columns] + [pa.field(hidden_name(column_id), pa.int64()) for column_id in hidden]
    table = pa.Table.from_arrays([read[column_id] for column_id in (*ids, *hidden)], schema=pa.schema(fields))
    base = item.reader.readers[0] if isinstance(item.reader, JoinedReader) else item.reader
    encoded = encode_column_file(base, table, column_ids=(*ids, *hidden), options=WriteOptions(threads=threads))
    replaced = tuple(file.file_id for file in ref.column_files if {*file.column_ids} <= {*ids, *hidden})
    return _Part(task.segment, "columns", encoded.data, ref.num_rows, (*ids, *hidden), task.patches, replaced)


def _deletion_vector(task: FoldTask, storage: Storage) -> _Part:
    deleted = deleted_rows(dataclasses.replace(task.segment, overlays=task.deletes), storage)
    rows = np.zeros(0, np.int64) if deleted is None else np.flatnonzero(deleted)
    counted = sum(overlay.num_deleted for overlay in task.deletes)
    if len(rows) != counted:
        raise CorruptSegmentError(
            f"the deletion vectors of segment {task.segment.segment_id} delete {len(rows)} rows and the catalog counts {counted}: run headrace doctor"
        )
    return _Part(task.segment, DELETES, encode_overlay(pa.table({}), (), rows, None), len(rows), (), task.deletes)
