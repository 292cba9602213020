"""Labels that came before their row: how their keys are kept, and how a row that comes later finds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.records import PendingRef
from loader.errors import CorruptSegmentError
from loader.segment.key_index import Keys, search
from loader.segment.layout import ORDER_COLUMN_ID
from loader.storage import Storage
from loader.table.merge import NO_ORDER
from loader.table.segments import encode_overlay, open_segment, operand_orders, read_by_id

U32 = npt.NDArray[np.uint32]


def pack_keys(keys: Keys, rows: npt.NDArray[np.integer]) -> bytes:
    """Held keys with the row of each in the operands' section: low words, high words if any, rows."""
    return keys.low.astype("<u8").tobytes() + (b"" if keys.high is None else keys.high.astype("<u8").tobytes()) + rows.astype("<u4").tobytes()


def unpack_keys(data: bytes, num_held: int) -> tuple[Keys, U32]:
    """The inverse of `pack_keys`.

    Raises:
        CorruptSegmentError: The length fits no kind of key.
    """
    if len(data) not in (12 * num_held, 20 * num_held):
        raise CorruptSegmentError(f"{num_held} pending keys take {12 * num_held} or {20 * num_held} bytes, the catalog holds {len(data)}")
    low = np.frombuffer(data, "<u8", count=num_held)
    high = np.frombuffer(data, "<u8", count=num_held, offset=8 * num_held) if len(data) == 20 * num_held else None
    return Keys(low, high), np.frombuffer(data, "<u4", count=num_held, offset=len(data) - 4 * num_held)


def held_for(waiting: Sequence[PendingRef], keys: Keys) -> dict[int, bytes]:
    """Pending id -> u32 positions of the labels in it that wait for one of these keys; entries without any are left out."""
    run, found = keys.take(keys.order()), {}
    for ref in waiting:
        held, _, left = _left(ref)
        hit = left[search(run, held) >= 0]
        if len(hit):
            found[ref.pending_id] = hit.astype("<u4").tobytes()
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedOverlay:
    """An overlay section."""

    data: memoryview
    num_rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meeting:
    """Labels of one pending entry whose rows come now.

    Attributes:
        pending_id, bucket, sequence: Of the entry.
        positions: u32 bytes: which of its keys are met.
        rows: i64[m], the new row that each label belongs to, sorted.
        operands: Their values, by column.
        orders: i64[m] or None.
        column_ids: Of the operands' columns.
    """

    pending_id: int
    bucket: int
    sequence: int
    positions: bytes
    rows: npt.NDArray[np.int64]
    operands: pa.Table
    orders: npt.NDArray[np.int64] | None
    column_ids: tuple[int, ...]

    def overlay(self, start: int, stop: int) -> EncodedOverlay | None:
        """The labels of rows start … stop − 1 as an overlay of a section that begins at `start`; None if there are none."""
        first, last = np.searchsorted(self.rows, [start, stop]).tolist()
        if first == last:
            return None
        orders = None if self.orders is None else self.orders[first:last]
        data = encode_overlay(self.operands.slice(first, last - first), self.column_ids, self.rows[first:last] - start, orders)
        return EncodedOverlay(data=data, num_rows=last - first)


def awaited(waiting: Sequence[PendingRef], keys: Keys, buckets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of these keys labels wait for; `waiting` and `buckets` as for `meet`."""
    found = np.zeros(len(keys), bool)
    for bucket in sorted({ref.bucket for ref in waiting}):
        mine = np.flatnonzero(buckets == bucket)
        order = mine[keys.take(mine).order()]
        run = keys.take(order)
        for ref in waiting:
            if ref.bucket == bucket:
                at = search(run, _left(ref)[0])
                found[order[at[at >= 0]]] = True
    return found


def meet(waiting: Sequence[PendingRef], keys: Keys, buckets: npt.NDArray[np.int64], storage: Storage) -> list[Meeting]:
    """Which waiting labels belong to these rows.

    Args:
        waiting: Pending entries of the rows' key buckets.
        keys: Of the new rows, in their final order.
        buckets: Key bucket of each row.
        storage: Holds the operands.
    """
    meetings = []
    for bucket in sorted({ref.bucket for ref in waiting}):
        mine = np.flatnonzero(buckets == bucket)
        order = mine[keys.take(mine).order()]
        run = keys.take(order)
        for ref in waiting:
            if ref.bucket == bucket:
                meeting = _meet_one(ref, run, order, storage)
                if meeting is not None:
                    meetings.append(meeting)
    return meetings


def _meet_one(ref: PendingRef, run: Keys, order: npt.NDArray[np.int64], storage: Storage) -> Meeting | None:
    held, held_rows, left = _left(ref)
    at = search(run, held)
    hit = np.flatnonzero(at >= 0)
    if not len(hit):
        return None
    rows, positions = order[at[hit]], left[hit]
    by_row = np.argsort(rows, kind="stable")  # labels of one row stay in the order they came
    rows, positions = rows[by_row], positions[by_row]
    reader = open_segment(storage, ref)
    read = read_by_id(reader, [*ref.column_ids, ORDER_COLUMN_ID], rows=held_rows[positions])
    operands = pa.table({reader.column_name(reader.column_index(column_id)): read[column_id] for column_id in ref.column_ids})
    orders = operand_orders(read, len(rows)) if ORDER_COLUMN_ID in read else None
    return Meeting(
        pending_id=ref.pending_id,
        bucket=ref.bucket,
        sequence=ref.sequence,
        positions=positions.astype("<u4").tobytes(),
        rows=rows,
        operands=operands,
        orders=None if orders is None or (orders == NO_ORDER).all() else orders,
        column_ids=ref.column_ids,
    )


def _left(ref: PendingRef) -> tuple[Keys, U32, npt.NDArray[np.int64]]:
    """The keys of an entry that are not met yet, the rows of all its operands, and which of its keys these are."""
    held, held_rows = unpack_keys(ref.keys, ref.num_held)
    left = np.setdiff1d(np.arange(ref.num_held), np.frombuffer(ref.met or b"", "<u4"))
    return held.take(left), held_rows, left
