"""Where the increments of a followed table end, as the ranks of a run agreed: the first to say so wins, the others take what it said.

A stream is one run's way through a table, by name. Where an increment ended (`since`: twice its snapshot, one more where only carried rows came) there is at
most one next end; or the stream is over there.
Every function takes a connection inside a transaction; those that write, inside a write transaction of the table, in which nobody else writes to it.
"""

from __future__ import annotations

import dataclasses

from loader.catalog.admin import add_pin, release_pin
from loader.catalog.commit import now_micros
from loader.catalog.connection import Connection
from loader.catalog.records import TableSpec

INCREMENT, FLUSH, OVER = "increment", "flush", "over"
KEPT_PINS = 8
KEPT_SECONDS = 7 * 24 * 3600
FORGETS_EVERY = 256
PIN_SECONDS = 24 * 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
    """The end of an increment.

    Attributes:
        until: The snapshot that it reads.
        is_flush: Its last rows come at once, though they fill no batch.
    """

    until: int
    is_flush: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The newest snapshot, and what came since another.

    Attributes:
        snapshot_id, watermark: Of it.
        num_rows: Rows of segments that hold any row committed after the other: at least as many as there are, to be read or not.
    """

    snapshot_id: int
    watermark: int | None
    num_rows: int


def last_mark(connection: Connection, table_id: int, stream: str) -> int:
    """The number of a stream's newest mark: one past it is newer than now, so that a stream that ended before goes on."""
    row = connection.execute("select max(number) from follow_ends where table_id = ? and stream = ?", (table_id, stream)).fetchone()
    return int(row[0] or 0)


def load_end(connection: Connection, table_id: int, stream: str, since: int) -> End | None:
    """Where the next increment ends, once it is agreed."""
    row = connection.execute(
        "select until, kind from follow_ends where table_id = ? and stream = ? and since = ? and kind <> ?", (table_id, stream, since, OVER)
    ).fetchone()
    return None if row is None else End(until=int(row[0]), is_flush=row[1] == FLUSH)


def is_over(connection: Connection, table_id: int, stream: str, since: int, after_mark: int) -> bool:
    """Whether a stream was told, after a mark, to be over where an increment ended."""
    row = connection.execute(
        "select 1 from follow_ends where table_id = ? and stream = ? and since = ? and kind = ? and number > ?", (table_id, stream, since, OVER, after_mark)
    ).fetchone()
    return row is not None


def load_head(connection: Connection, table_id: int, since: int) -> Head:
    """The newest snapshot and what came after another one."""
    (head,) = connection.execute("select head from tables where id = ?", (table_id,)).fetchone()
    row = connection.execute("select watermark from snapshots where table_id = ? and id = ?", (table_id, head)).fetchone()
    (rows,) = connection.execute(
        "select coalesce(sum(live_rows), 0) from segments where table_id = ? and added_in > ? and sequence_max > ? and removed_in is null",
        (table_id, since, since),
    ).fetchone()
    return Head(snapshot_id=int(head), watermark=None if row is None else row[0], num_rows=int(rows))


def propose(connection: Connection, spec: TableSpec, stream: str, since: int, end: End, after_mark: int) -> End | None:
    """Say where the increment after `since` ends, unless somebody has; returns what holds, None where the stream is over there.

    The snapshot is pinned, so that slower ranks find it: for a day, or until the stream is a few increments further.
    """
    if is_over(connection, spec.id, stream, since, after_mark):
        return None
    agreed = load_end(connection, spec.id, stream, since)
    if agreed is not None:
        return agreed
    pin = add_pin(connection, spec, end.until, f"follow {stream}", PIN_SECONDS)
    number = last_mark(connection, spec.id, stream) + 1
    _mark(connection, spec.id, stream, since, end.until, FLUSH if end.is_flush else INCREMENT, number, pin.id)
    _forget(connection, spec.id, stream, number)
    return end


def propose_over(connection: Connection, table_id: int, stream: str, since: int) -> bool:
    """Say that a stream is over where an increment ended; returns whether it is: not if the next increment is agreed already."""
    if load_end(connection, table_id, stream, since) is not None:
        return False
    number = last_mark(connection, table_id, stream) + 1  # before the last one goes: no number comes twice
    connection.execute("delete from follow_ends where table_id = ? and stream = ? and kind = ?", (table_id, stream, OVER))
    _mark(connection, table_id, stream, since, since, OVER, number, None)
    return True


def _mark(connection: Connection, table_id: int, stream: str, since: int, until: int, kind: str, number: int, pin_id: int | None) -> None:
    connection.execute(
        "insert into follow_ends (table_id, stream, since, kind, until, number, pin_id, made_at) values (?, ?, ?, ?, ?, ?, ?, ?)",
        (table_id, stream, since, kind, until, number, pin_id, now_micros()),
    )


def _forget(connection: Connection, table_id: int, stream: str, number: int) -> None:
    """Let go of pins a few increments back, and now and then of what nobody asks for after a week: a state that old agrees on new ends."""
    old = "table_id = ? and stream = ? and number between ? and ? and pin_id is not null"
    span = (table_id, stream, number - 4 * KEPT_PINS, number - KEPT_PINS)
    for (pin_id,) in connection.execute(f"select pin_id from follow_ends where {old}", span).fetchall():
        release_pin(connection, pin_id)
    connection.execute(f"update follow_ends set pin_id = null where {old}", span)
    if number % FORGETS_EVERY == 0:
        connection.execute("delete from follow_ends where table_id = ? and made_at < ?", (table_id, now_micros() - KEPT_SECONDS * 1_000_000))
