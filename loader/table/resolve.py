"""Overlays to values: what a segment's rows hold at a snapshot, by position. Reads overlays and, where a merge rule needs them, base values.

A scan never merges by key: it decodes a segment, scatters these patches, and masks deleted rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.inline import LakeStorage
from loader.catalog.kept import Kept
from loader.catalog.records import DELETES, ERASED, OverlayRef, SegmentRef, SnapshotView, TableSpec
from loader.errors import CorruptSegmentError
from loader.schema import Column, take
from loader.segment.column_files import JoinedReader
from loader.segment.layout import ORDER_COLUMN_ID, ROW_COLUMN_ID
from loader.segment.reader import SegmentReader
from loader.storage import Storage
from loader.table.merge import ORDER_BASE_ID, ORDERED_RULES, RULES_WITH_BASE, Folded, Operands, fold_base
from loader.table.merge import fold as fold_operands
from loader.table.segments import column_ids_of, one_type, open_columns, open_segment, operand_orders, operand_rows, read_by_id


@dataclasses.dataclass(frozen=True)
class Patch:
    """New values of one column of a segment: rows u32[m], sorted and distinct; values of length m in the column's type, all rules applied."""

    rows: npt.NDArray[np.uint32]
    values: pa.Array


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What overlays change in a segment.

    Attributes:
        deleted: bool[num_rows], rows that are not to be shown, or None.
        patches: By column id, for columns that have any.
        left: bool[num_rows], the deleted rows without those that were erased only: an erased row is blank and keeps its place in the order of samples, so that
            no job that holds an older snapshot loses its position. None for none.
    """

    deleted: npt.NDArray[np.bool_] | None
    patches: dict[int, Patch]
    left: npt.NDArray[np.bool_] | None = None


def fold(
    view: SnapshotView,
    ref: SegmentRef,
    column_ids: Iterable[int],
    storage: Storage,
    stored: Mapping[int, pa.Array] | None = None,
    reader: SegmentReader | JoinedReader | None = None,
) -> Resolved:
    """Fold the overlays of one segment of a view. What was folded stays in memory for the next read, as far as the lake's `read_cache_bytes` go.

    Args:
        view: The snapshot.
        ref: One of its segments.
        column_ids: Columns wanted; patches of others are not read.
        storage: The lake's.
        stored: Columns of the segment by id, where they are read already.
        reader: The segment, where it is open already.

    Raises:
        CorruptSegmentError: An overlay points to a row that the segment does not have.
    """
    if not ref.overlays:
        return Resolved(None, {})
    patches = _patches(view, ref, list(column_ids), storage, stored, reader)
    deleted = _deleted(ref, storage, (DELETES, ERASED))
    left = _deleted(ref, storage, (DELETES,)) if any(overlay.kind == ERASED for overlay in ref.overlays) else deleted
    return Resolved(deleted, patches, left)


def _patches(
    view: SnapshotView,
    ref: SegmentRef,
    column_ids: Sequence[int],
    storage: Storage,
    stored: Mapping[int, pa.Array] | None,
    reader: SegmentReader | JoinedReader | None,
) -> dict[int, Patch]:
    kept = storage.kept if isinstance(storage, LakeStorage) else Kept(0)
    patched = {column_id for overlay in ref.overlays if overlay.kind not in (DELETES, ERASED) for column_id in overlay.column_ids}
    wanted = [column for column in view.schema if column.id in patched and column.id in set(column_ids)]
    made_of = _state(ref)
    keys = {column.id: ("patch", *made_of, view.spec.id, column.id, str(column.type), view.spec.rule(column.id)) for column in wanted}
    found: dict[int, Patch] = {column_id: patch for column_id, key in keys.items() if (patch := kept.find(key)) is not None}
    missing = [column_id for column_id in keys if column_id not in found]
    if missing:
        begun = kept.cleared
        folded = fold_overlays(view.spec, ref, missing, storage, reader, stored=stored)
        for column in wanted:
            if column.id in missing:
                fresh = folded.get(column.id)
                patch = Patch(np.zeros(0, np.uint32), column.missing(0)) if fresh is None else Patch(fresh.rows, fresh.values)
                found[column.id] = patch
                kept.keep(keys[column.id], patch, patch.rows.nbytes + patch.values.nbytes + 512, begun=begun)
    return {column_id: patch for column_id, patch in found.items() if len(patch.rows)}


def _state(ref: SegmentRef) -> tuple[Hashable, ...]:
    """All that a segment's values are made of."""
    overlays = tuple((overlay.path, overlay.offset, overlay.sequence) for overlay in ref.overlays)
    return ref.path, ref.offset, tuple((file.path, file.offset) for file in ref.column_files), overlays


def _deleted(ref: SegmentRef, storage: Storage, kinds: tuple[str, ...]) -> npt.NDArray[np.bool_] | None:
    """`deleted_rows`, kept."""
    vectors = tuple((overlay.path, overlay.offset) for overlay in ref.overlays if overlay.kind in kinds)
    if not vectors or not isinstance(storage, LakeStorage):
        return deleted_rows(ref, storage, kinds=kinds)

    def make() -> npt.NDArray[np.bool_]:
        deleted = deleted_rows(ref, storage, kinds=kinds)
        assert deleted is not None
        deleted.flags.writeable = False  # it is shared
        return deleted

    return storage.kept.get(("deleted", ref.path, ref.offset, vectors), make, lambda deleted: deleted.nbytes)


def deleted_rows(ref: SegmentRef, storage: Storage, *, kinds: Sequence[str] = (DELETES, ERASED)) -> npt.NDArray[np.bool_] | None:
    """bool[num_rows], True where a row is deleted or erased; None if none is."""
    vectors = [overlay for overlay in ref.overlays if overlay.kind in kinds]
    if not vectors:
        return None
    deleted = np.zeros(ref.num_rows, bool)
    for overlay in vectors:
        read = read_by_id(open_segment(storage, overlay), [ROW_COLUMN_ID])
        deleted[_checked_rows(ref, overlay, read)] = True
    return deleted


def fold_overlays(
    spec: TableSpec,
    ref: SegmentRef,
    column_ids: Iterable[int],
    storage: Storage,
    reader: SegmentReader | JoinedReader | None = None,
    *,
    keep_orders: bool = False,
    stored: Mapping[int, pa.Array] | None = None,
) -> dict[int, Folded]:
    """Final values of patched rows by column id.

    Args:
        spec: The table, for types and merge rules.
        ref: The segment.
        column_ids: Columns wanted.
        storage: The lake's.
        reader: The segment if it is open already.
        keep_orders: For compaction: give the order of each value of the rules last and first.
        stored: Columns of the segment by id, where they are read already.
    """
    wanted = set(column_ids)
    columns = [column for column in spec.schema if column.id in wanted]
    operands = read_operands(ref, columns, storage)
    folded = {}
    for column in columns:
        if column.id in operands:
            rule = spec.rule(column.id)
            found = fold_operands(rule, Operands.concat(operands[column.id]))
            if rule in RULES_WITH_BASE or (rule == "last" and (ref.level > 0 or ref.column_files)):
                reader = reader or open_columns(storage, ref)
                found = _with_base(rule, column, found, reader, stored or {})
            folded[column.id] = found if keep_orders and rule in ORDERED_RULES else dataclasses.replace(found, orders=None)
    return folded


def read_operands(ref: SegmentRef, columns: Sequence[Column], storage: Storage) -> dict[int, list[Operands]]:
    """The operands of some columns of a segment by column id, overlay by overlay in the order they were written; null ones left out."""
    operands: dict[int, list[Operands]] = {}
    for overlay in ref.overlays:
        present = [column for column in columns if column.id in overlay.column_ids]
        if overlay.kind in (DELETES, ERASED) or not present:
            continue
        read = read_by_id(open_segment(storage, overlay), [ROW_COLUMN_ID, ORDER_COLUMN_ID, *(column.id for column in present)])
        rows = _checked_rows(ref, overlay, read)
        orders = operand_orders(read, len(rows))
        sequences = np.full(len(rows), overlay.sequence)
        for column in present:
            values = one_type(read[column.id], column.type)
            if not len(values):
                continue  # an erasure took all of it
            if values.null_count == 0:
                operands.setdefault(column.id, []).append(Operands(rows, orders, sequences, values))
                continue
            touched = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
            if len(touched):
                operands.setdefault(column.id, []).append(Operands(rows[touched], orders[touched], sequences[touched], take(values, touched)))
    return operands


def _with_base(rule: str, column: Column, folded: Folded, reader: SegmentReader | JoinedReader, stored: Mapping[int, pa.Array]) -> Folded:
    order_id = ORDER_BASE_ID + column.id
    if rule == "last" and order_id not in column_ids_of(reader):
        return folded
    missing = [] if column.id in stored else [column.id]
    read = read_by_id(reader, [*missing, *([order_id] if rule in ORDERED_RULES else [])], rows=folded.rows)
    if column.id in stored:
        read[column.id] = take(stored[column.id], folded.rows)
    base = one_type(read[column.id], column.type) if column.id in read else column.missing(len(folded.rows))
    return fold_base(rule, folded, base, read.get(order_id))


def _checked_rows(ref: SegmentRef, overlay: OverlayRef, read: dict[int, pa.Array]) -> npt.NDArray[np.uint32]:
    rows = operand_rows(read)
    if len(rows) and int(rows.max()) >= ref.num_rows:
        raise CorruptSegmentError(
            f"overlay {overlay.overlay_id} at {overlay.path} offset {overlay.offset} patches row {int(rows.max())} "
            f"of segment {ref.segment_id}, which has {ref.num_rows} rows"
        )
    return rows


def scatter(base: pa.Array, rows: npt.NDArray[np.integer], values: pa.Array) -> pa.Array:
    """The base array with `values` at `rows`; any type."""
    if not len(rows):
        return base
    if _is_plain(base.type):
        return _scatter_plain(base, rows, values)
    at = np.arange(len(base))
    at[rows] = len(base) + np.arange(len(rows))
    return take(pa.concat_arrays([base, values]), at)


def _is_plain(kind: pa.DataType) -> bool:
    """Whether values are numbers of whole bytes."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind)) and kind.bit_width in (8, 16, 32, 64)


def _scatter_plain(base: pa.Array, rows: npt.NDArray[np.integer], values: pa.Array) -> pa.Array:
    """As `scatter`, by one copy of the bytes."""
    out = _plain_values(base).copy()
    out[rows] = _plain_values(values)
    valid = None
    if base.null_count or values.null_count:
        mask = base.is_valid().to_numpy(zero_copy_only=False).copy()
        mask[rows] = values.is_valid().to_numpy(zero_copy_only=False)
        valid = pa.array(mask).buffers()[1]
    return pa.Array.from_buffers(base.type, len(base), [valid, pa.py_buffer(out)])


def _plain_values(array: pa.Array) -> npt.NDArray[Any]:
    """The bytes of plain values as unsigned numbers, those of nulls included."""
    width = array.type.bit_width // 8
    return np.frombuffer(array.buffers()[1], f"u{width}", count=len(array), offset=array.offset * width) if len(array) else np.zeros(0, f"u{width}")
