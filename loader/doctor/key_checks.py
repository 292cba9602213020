"""Deep check of a table's keys: no key is live twice, and no label waits for a row that is there. Bounded memory: keys are taken by hash, a part at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from loader.catalog.records import PendingRef, SegmentRef, SnapshotView
from loader.doctor.checks import Found, check
from loader.errors import CorruptSegmentError
from loader.segment.key_index import KeyIndex, Keys, bucket_of, search
from loader.segment.layout import Section
from loader.storage import Storage
from loader.table.pending import unpack_keys
from loader.table.resolve import deleted_rows
from loader.table.segments import open_segment

KEY_MEMORY_BYTES = 512 * 1024 * 1024
BYTES_PER_KEY = 80  # key, row and segment, and what sorting them takes
MAX_FOUND = 100


def num_parts(view: SnapshotView, memory_bytes: int = KEY_MEMORY_BYTES) -> int:
    """In how many parts the keys of a snapshot are compared."""
    return max(1, math.ceil(sum(ref.num_rows for ref in view.segments) * BYTES_PER_KEY / memory_bytes))


@check(
    "key-twice",
    scope="keys",
    explains="a key names one row: two live ones are both read, and a label reaches only one of them",
    remedy="delete one of the two by what tells them apart (table.delete with an expression), then write the key again with upsert",
)
def keys_of_part(
    view: SnapshotView, waiting: Sequence[PendingRef], part: int, parts: int, storage: Storage, tick: Callable[[], None] = lambda: None
) -> Iterator[Found]:
    """Compare the live keys of one part, and the labels that wait for any of them.

    Args:
        view: The snapshot.
        waiting: Labels that wait in it.
        part, parts: Which part of how many.
        storage: The lake's.
        tick: Called once a segment.
    """
    pieces, ordinals, rows = [], [], []
    for at, ref in enumerate(view.segments):
        keys, own = _live_keys(ref, part, parts, storage)
        pieces.append(keys)
        ordinals.append(np.full(len(own), at, np.uint32))
        rows.append(own)
        tick()
    if not pieces:
        return
    keys, segment, row = Keys.concat(pieces), np.concatenate(ordinals), np.concatenate(rows)
    order = keys.order()
    keys, segment, row = keys.take(order), segment[order], row[order]
    same = keys.low[1:] == keys.low[:-1]
    if keys.high is not None:
        same &= keys.high[1:] == keys.high[:-1]
    twice = np.flatnonzero(same)
    for at in twice[:MAX_FOUND].tolist():
        first, second = (f"row {row[i]:,} of segment {view.segments[segment[i]].segment_id}" for i in (at, at + 1))
        more = f", and {len(twice) - 1:,} more such pairs" if at == twice[0] and len(twice) > MAX_FOUND else ""
        yield Found(where=first, what=f"it has the key of {second}{more}")
    yield from _due_labels(keys, segment, row, view, waiting, part, parts)


def _live_keys(ref: SegmentRef, part: int, parts: int, storage: Storage) -> tuple[Keys, npt.NDArray[np.uint32]]:
    """Keys of a segment's live rows that fall into a part, and the rows."""
    section = open_segment(storage, ref).section(Section.KEY_INDEX)
    if section is None:
        raise CorruptSegmentError(f"segment {ref.segment_id} at {ref.path} offset {ref.offset} has no key index")
    index = KeyIndex.open(section)
    chosen = np.ones(len(index), bool) if parts == 1 else bucket_of(index.keys, parts) == part
    gone = deleted_rows(ref, storage)
    if gone is not None:
        chosen &= ~gone[index.rows]
    at = np.flatnonzero(chosen)
    return index.keys.take(at), index.rows[at]


def _due_labels(
    keys: Keys,
    segment: npt.NDArray[np.uint32],
    row: npt.NDArray[np.uint32],
    view: SnapshotView,
    waiting: Sequence[PendingRef],
    part: int,
    parts: int,
) -> Iterator[Found]:
    for ref in waiting:
        held, _ = unpack_keys(ref.keys, ref.num_held)
        left = np.setdiff1d(np.arange(ref.num_held), np.frombuffer(ref.met or b"", "<u4"))
        if parts > 1:
            left = left[bucket_of(held.take(left), parts) == part]
        at = search(keys, held.take(left))
        due = np.flatnonzero(at >= 0)
        if len(due):
            first = at[due[0]]
            yield Found(
                where=f"pending {ref.pending_id}",
                what=f"{len(due):,} of its labels wait for a row that is there, as row {row[first]:,} of segment {view.segments[segment[first]].segment_id}",
            )
