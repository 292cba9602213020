"""Loading the segments that are live at a snapshot: sealed packs, the rows after them, and what was removed since. Reads; `sealing` writes packs.

A pack never changes, so what is dead of it is known from elsewhere: segments that were removed and are kept for earlier snapshots from their rows, those
that were forgotten from the pack's `gone`. Every function takes a connection inside a transaction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.catalog.column_stats import Ranges, of_column
from loader.catalog.connection import Connection
from loader.catalog.packed import I64
from loader.catalog.records import ALL_BUCKETS
from loader.catalog.segments import (
    COLUMN_FILE_COLUMNS,
    HAS_TIMES,
    OVERLAY_COLUMNS,
    SEGMENT_COLUMNS,
    Attached,
    Part,
    SegmentPack,
    Segments,
    join,
    pack_segments,
)

LIVE = "table_id = ? and added_in <= ? and (removed_in is null or removed_in > ?)"
_PACKS = "select id, first_segment_id, last_added, gone, packed from segment_packs where table_id = ?"
_MAX_PARAMETERS = 500  # of one statement
_FEW_SEGMENTS = 5_000  # whose overlays are asked for by segment
_MAX_TAILS = 32  # small parts of a handle's own, past which they are joined
_TAIL_SEGMENTS = 1_000  # from which a part is not small


@dataclasses.dataclass(frozen=True, kw_only=True)
class Within:
    """What a plan needs of a table, where it does not need all: columns that say where rows lie are never patched, so that this loses nothing.

    Attributes:
        time_min, time_max: Inclusive, in the time column's unit; None is open.
        buckets: Of rows; None is all.
    """

    time_min: int | None = None
    time_max: int | None = None
    buckets: tuple[int, ...] | None = None

    def mask(self, part: Part) -> npt.NDArray[np.bool_]:
        """bool[segments of the part]: which can hold such a row."""
        mask = np.ones(len(part), np.bool_)
        unknown = (part.array("known") & HAS_TIMES) == 0
        if self.time_min is not None:
            mask &= unknown | (part.array("time_max") >= self.time_min)
        if self.time_max is not None:
            mask &= unknown | (part.array("time_min") <= self.time_max)
        return mask & self.holds(part.array("bucket"))

    def holds(self, buckets: I64) -> npt.NDArray[np.bool_]:
        """bool[segments]: which can hold rows of the buckets, by the bucket of each."""
        return np.ones(len(buckets), np.bool_) if self.buckets is None else np.isin(buckets, np.array((ALL_BUCKETS, *self.buckets), np.int64))

    def condition(self, *, buckets: bool) -> tuple[str, list[int]]:
        """The same as SQL, over columns `time_min`, `time_max` and `bucket`."""
        text, values = "", []
        if self.time_min is not None:
            text += " and (time_max is null or time_max >= ?)"
            values.append(self.time_min)
        if self.time_max is not None:
            text += " and (time_min is null or time_min <= ?)"
            values.append(self.time_max)
        if buckets and self.buckets is not None and len(self.buckets) <= _MAX_PARAMETERS:
            text += f" and bucket in (?, {', '.join('?' * len(self.buckets))})"
            values.extend((ALL_BUCKETS, *self.buckets))
        return text, values


def load_segments(connection: Connection, table_id: int, snapshot_id: int, within: Within | None = None) -> Segments:
    """The live segments of a snapshot with their overlays and column files, by segment id.

    Args:
        connection: Inside a transaction.
        table_id: The table.
        snapshot_id: The snapshot.
        within: Only segments that can hold a row there.
    """
    within = within or Within()
    last_id, last_added = sealed_through(connection, table_id)
    condition, values = within.condition(buckets=False)
    parts = []
    if last_id:
        removed = _removed(connection, table_id, snapshot_id, last_id)
        for pack_id, first_id, added, gone, packed in connection.execute(_PACKS + condition + " order by first_segment_id", (table_id, *values)):
            part = _live_part(SegmentPack(bytes(packed), pack_id=pack_id), first_id, removed, gone, snapshot_id if added > snapshot_id else None)
            parts.append(part if within == Within() else part.where(within.mask(part)))
    condition, values = within.condition(buckets=True)
    rows = connection.execute(
        f"select {SEGMENT_COLUMNS} from segments where {LIVE} and added_in >= ? and id > ?{condition} order by added_in, id",
        (table_id, snapshot_id, snapshot_id, last_added, last_id, *values),
    ).fetchall()
    parts += [_part(rows)] if rows else []
    segments = Segments(parts)
    return Segments(segments.parts, *_load_attached(connection, table_id, snapshot_id, segments, whole=within == Within()))


def advance(connection: Connection, table_id: int, segments: Segments, since: int, snapshot_id: int) -> Segments:
    """The live segments of a snapshot, from those of an earlier one that stands at or after the table's floor."""
    span = (table_id, since, snapshot_id)
    live = (*span, snapshot_id)
    new = "table_id = ? and added_in > ? and added_in <= ? and (removed_in is null or removed_in > ?)"
    dead = "table_id = ? and removed_in > ? and removed_in <= ?"
    removed = _ids(connection, f"select id from segments where {dead}", span)
    rows = connection.execute(f"select {SEGMENT_COLUMNS} from segments where {new} order by added_in, id", live).fetchall()
    overlays = connection.execute(f"select {OVERLAY_COLUMNS} from overlays where {new} order by id", live).fetchall()
    files = connection.execute(f"select {COLUMN_FILE_COLUMNS} from column_files where {new} order by sequence, id", live).fetchall()
    kept = segments if not len(removed) else segments.where(~np.isin(segments.field("segment_id"), removed))
    parts = [*kept.parts, *([_part(rows)] if rows else [])]
    tails = [part for part in parts if not part.pack.pack_id and part.pack.num_segments < _TAIL_SEGMENTS]
    if len(tails) > _MAX_TAILS:
        parts = [part for part in parts if part not in tails] + [join(tails)]
    return Segments(
        parts,
        segments.overlays.changed(overlays, set(_ids(connection, f"select id from overlays where {dead}", span).tolist())),
        segments.column_files.changed(files, set(_ids(connection, f"select id from column_files where {dead}", span).tolist())),
    )


def sealed_through(connection: Connection, table_id: int) -> tuple[int, int]:
    """(id, added_in) of the last segment of a table's last pack; (0, 0) before the first. Ids of a table grow with its commits."""
    row = connection.execute(
        "select last_segment_id, last_added from segment_packs where table_id = ? order by first_segment_id desc limit 1", (table_id,)
    ).fetchone()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def _part(rows: Sequence[Sequence[Any]]) -> Part:
    return Part(pack=SegmentPack(pack_segments(rows)))


def _live_part(pack: SegmentPack, first_id: int, removed: I64, gone: bytes | None, snapshot_id: int | None) -> Part:
    """What is live of a pack.

    Args:
        pack: Whole.
        first_id: Its first segment.
        removed: Ids of segments that were removed by then, sorted.
        gone: Of segments that were forgotten, u32 offsets of their ids from the first, sorted.
        snapshot_id: Only what was added by then; None is all.
    """
    part = Part(pack=pack)
    last_id = pack.arrays.value("segment_id", pack.num_segments - 1)
    dead = removed[slice(*np.searchsorted(removed, [first_id, last_id + 1]).tolist())]
    if gone:
        dead = np.concatenate([dead, first_id + np.frombuffer(gone, "<u4").astype(np.int64)])
    if len(dead):
        part = part.where(~np.isin(pack.arrays.array("segment_id"), dead))
    return part if snapshot_id is None else part.where(part.array("added_in") <= snapshot_id)


def _removed(connection: Connection, table_id: int, snapshot_id: int, last_id: int) -> I64:
    """Ids of sealed segments that died at or before a snapshot and are kept for earlier ones, sorted."""
    ids = _ids(connection, "select id from segments where table_id = ? and removed_in <= ?", (table_id, snapshot_id))
    return np.sort(ids[ids <= last_id])


def _ids(connection: Connection, statement: str, parameters: Sequence[Any]) -> I64:
    return np.array([row[0] for row in connection.execute(statement, parameters)], np.int64)


def _load_attached(connection: Connection, table_id: int, snapshot_id: int, segments: Segments, *, whole: bool) -> tuple[Attached, Attached]:
    """Overlays and column files of segments; by segment where these are few of the table's."""
    live = (table_id, snapshot_id, snapshot_id)
    found: list[list[Any]] = []
    for columns, table, order in ((OVERLAY_COLUMNS, "overlays", "id"), (COLUMN_FILE_COLUMNS, "column_files", "sequence, id")):
        rows: list[Any] = []
        if whole or len(segments) > _FEW_SEGMENTS:
            rows = connection.execute(f"select {columns} from {table} where {LIVE} order by {order}", live).fetchall()
        else:
            ids = segments.field("segment_id").tolist()
            for first in range(0, len(ids), _MAX_PARAMETERS):
                some = ids[first : first + _MAX_PARAMETERS]
                listed = f"segment_id in ({', '.join('?' * len(some))})"
                rows += connection.execute(f"select {columns} from {table} where {LIVE} and {listed} order by {order}", (*live, *some)).fetchall()
        found.append(rows)
    return Attached(found[0]), Attached(found[1])


def load_ranges(connection: Connection, table_id: int, segments: Segments, column_id: int) -> Ranges:
    """The statistics of a column over segments, in their order; unknown where the catalog has none, or no longer."""
    names = [part.pack.pack_id for part in segments.parts if part.pack.pack_id]
    sealed: dict[str, bytes] = {}
    if len(names) > _MAX_PARAMETERS:
        rows = connection.execute("select pack_id, data from segment_stats where table_id = ? and column_id = ?", (table_id, column_id))
        sealed = {pack_id: bytes(data) for pack_id, data in rows}
    elif names:
        listed = ", ".join("?" * len(names))
        rows = connection.execute(f"select pack_id, data from segment_stats where column_id = ? and pack_id in ({listed})", (column_id, *names))
        sealed = {pack_id: bytes(data) for pack_id, data in rows}
    found = []
    for part in segments.parts:
        if part.pack.pack_id in sealed:
            ranges = Ranges.from_bytes(sealed[part.pack.pack_id])
            found.append(ranges if part.keep is None else ranges.at(part.keep))
        elif part.pack.pack_id:
            found.append(Ranges.unknown(len(part)))
        else:
            found.append(_row_ranges(connection, table_id, part, column_id))
    return Ranges.concat(found)


def _row_ranges(connection: Connection, table_id: int, part: Part, column_id: int) -> Ranges:
    ids = part.array("segment_id").tolist()
    stats: dict[int, bytes] = {}
    for first in range(0, len(ids), _MAX_PARAMETERS):
        some = ids[first : first + _MAX_PARAMETERS]
        rows = connection.execute(f"select id, stats from segments where table_id = ? and id in ({', '.join('?' * len(some))})", (table_id, *some))
        stats.update((segment_id, bytes(data)) for segment_id, data in rows if data is not None)
    return of_column([stats.get(segment_id) for segment_id in ids], column_id)
