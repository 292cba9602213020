"""Packing the segments of a table, 1,000 a row, so that a reader of a million loads a thousand rows; and keeping the packs true.

The rows of `segments` remain: a pack is a copy of what never changes of them, and of their statistics by column. Packs are sealed in the order of commits,
each whole and in one transaction under the table's lock, so that every segment is either in exactly one pack or after the last. Whoever deletes rows of
`segments` says so with `forget`, whoever changes one in place with `repack`, in the same transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from loader.catalog.column_stats import by_column
from loader.catalog.connection import Connection
from loader.catalog.manifest import sealed_through
from loader.catalog.packed import I64
from loader.catalog.segments import SEGMENT_COLUMNS, SegmentPack, pack_segments

PACK_SEGMENTS = 1_000
_ROWS = f"select {SEGMENT_COLUMNS}, stats from segments where table_id = ? and "
_INSERT = (
    "insert into segment_packs (id, table_id, first_segment_id, last_segment_id, last_added, num_segments, time_min, time_max, gone, packed) "
    "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def num_unsealed(connection: Connection, table_id: int) -> int:
    """Segments that stand in no pack yet."""
    last_id, last_added = sealed_through(connection, table_id)
    (count,) = connection.execute("select count(*) from segments where table_id = ? and added_in >= ? and id > ?", (table_id, last_added, last_id)).fetchone()
    return int(count)


def seal(connection: Connection, table_id: int) -> bool:
    """Seal the oldest 1,000 segments that stand in no pack; False where there are fewer. Costs about ten milliseconds, whatever the table's size."""
    last_id, last_added = sealed_through(connection, table_id)
    rows = connection.execute(_ROWS + f"added_in >= ? and id > ? order by added_in, id limit {PACK_SEGMENTS}", (table_id, last_added, last_id)).fetchall()
    if len(rows) < PACK_SEGMENTS:
        return False
    _write(connection, table_id, rows)
    return True


def forget(connection: Connection, table_id: int, segment_ids: Iterable[int]) -> None:
    """Take segments out of the packs, once their rows are deleted in this transaction. A pack of which less than half is left is made anew."""
    ids = np.unique(np.fromiter(segment_ids, np.int64))
    sparse = []
    for pack_id, first, last, num_segments, gone in _packs(connection, table_id, ids):
        mine = ids[slice(*np.searchsorted(ids, [first, last + 1]).tolist())]
        if not len(mine):
            continue
        merged = np.union1d(np.frombuffer(gone or b"", "<u4"), mine - first).astype("<u4")
        connection.execute("update segment_packs set gone = ? where id = ?", (merged.tobytes(), pack_id))
        if 2 * len(merged) > num_segments:
            sparse.append(first)
    for first in sparse:
        _merge(connection, table_id, first)


def repack(connection: Connection, table_id: int, segment_ids: Iterable[int]) -> None:
    """Make the packs that hold any of these segments anew from their rows, which were changed in place in this transaction."""
    for pack_id, first, last, _, _ in _packs(connection, table_id, np.unique(np.fromiter(segment_ids, np.int64))):
        rows = connection.execute(_ROWS + "id >= ? and id <= ? order by id", (table_id, first, last)).fetchall()
        _replace(connection, table_id, [pack_id], rows)


def check(connection: Connection, table_id: int) -> list[str]:
    """What packs say that rows do not, one line a pack; `repack` of the segments named mends it. Empty where all agree."""
    problems = []
    before = 0
    for pack_id, first, last, gone, packed in connection.execute(
        "select id, first_segment_id, last_segment_id, gone, packed from segment_packs where table_id = ? order by first_segment_id", (table_id,)
    ).fetchall():
        rows = connection.execute(_ROWS + "id >= ? and id <= ? order by id", (table_id, first, last)).fetchall()
        forgotten = set((np.frombuffer(gone or b"", "<u4").astype(np.int64) + first).tolist())
        held = {row["segment_id"]: row for row in SegmentPack(bytes(packed)).rows() if row["segment_id"] not in forgotten}
        real = {row["segment_id"]: row for row in SegmentPack(pack_segments([row[:-1] for row in rows])).rows()}
        differ = sorted(segment_id for segment_id in held.keys() | real.keys() if held.get(segment_id) != real.get(segment_id))
        if differ:
            problems.append(f"pack {pack_id} of segments {first} to {last} differs from their rows in {len(differ)} segments, the first {differ[0]}")
        if first <= before:
            problems.append(f"pack {pack_id} begins at segment {first}, which the pack before it holds")
        before = last
    return problems


def _packs(connection: Connection, table_id: int, ids: I64) -> list[Any]:
    """(id, first and last segment, segments, gone) of the packs between the lowest and the highest of some segments that hold one of them."""
    if not len(ids):
        return []
    rows = connection.execute(
        "select id, first_segment_id, last_segment_id, num_segments, gone from segment_packs "
        "where table_id = ? and last_segment_id >= ? and first_segment_id <= ? order by first_segment_id",
        (table_id, int(ids[0]), int(ids[-1])),
    ).fetchall()
    return [row for row in rows if np.searchsorted(ids, row[1]) < np.searchsorted(ids, row[2], "right")]


def _merge(connection: Connection, table_id: int, first: int) -> None:
    """Make a sparse pack anew, together with the one before it where both fit into one."""
    rows = connection.execute(
        "select id, first_segment_id, last_segment_id from segment_packs where table_id = ? and first_segment_id <= ? order by first_segment_id desc limit 2",
        (table_id, first),
    ).fetchall()
    if not rows or rows[0][1] != first:
        return  # made anew already, with the one after it
    own = _live_rows(connection, table_id, rows[0])
    before = _live_rows(connection, table_id, rows[1]) if len(rows) > 1 else None
    if before is not None and len(before) + len(own) <= PACK_SEGMENTS:
        _replace(connection, table_id, [rows[0][0], rows[1][0]], [*before, *own])
    else:
        _replace(connection, table_id, [rows[0][0]], own)


def _live_rows(connection: Connection, table_id: int, pack: Sequence[Any]) -> list[Any]:
    return connection.execute(_ROWS + "id >= ? and id <= ? order by id", (table_id, pack[1], pack[2])).fetchall()


def _replace(connection: Connection, table_id: int, pack_ids: list[str], rows: Sequence[Any]) -> None:
    for pack_id in pack_ids:
        connection.execute("delete from segment_stats where pack_id = ?", (pack_id,))
        connection.execute("delete from segment_packs where id = ?", (pack_id,))
    if rows:
        _write(connection, table_id, rows)


def _write(connection: Connection, table_id: int, rows: Sequence[Any]) -> None:
    """One pack of rows of SEGMENT_COLUMNS and `stats`, by id."""
    pack_id = uuid.uuid4().hex  # never used again: a reader that knows an older pack finds no statistics, not another's
    times = [(row[14], row[15]) for row in rows]
    known = all(low is not None for low, _ in times)
    time_min, time_max = (min(low for low, _ in times), max(high for _, high in times)) if known else (None, None)
    packed = pack_segments([row[:-1] for row in rows])
    values = (pack_id, table_id, rows[0][0], rows[-1][0], rows[-1][16], len(rows), time_min, time_max, None, packed)
    connection.execute(_INSERT, values)
    stats = by_column([None if row[-1] is None else bytes(row[-1]) for row in rows])
    connection.executemany(
        "insert into segment_stats (pack_id, column_id, table_id, data) values (?, ?, ?, ?)",
        [(pack_id, column_id, table_id, ranges.to_bytes()) for column_id, ranges in stats.items()],
    )
