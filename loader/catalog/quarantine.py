"""Blocks in quarantine: damaged ones that a run met and went on without, kept in the catalog so that later runs skip them knowingly. Owns their rows."""

from __future__ import annotations

import dataclasses

from loader.catalog.connection import Connection

WHOLE_BLOCK = -1  # in the place of a column's id
MAX_REASON = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A block in quarantine.

    Attributes:
        segment_id: Its segment.
        block: Its number there.
        column_id: The column that is damaged, or WHOLE_BLOCK.
        reason: What was met.
        found_at: When, in microseconds of the wall clock.
    """

    segment_id: int
    block: int
    column_id: int
    reason: str
    found_at: int


def add(connection: Connection, table_id: int, found: Quarantined) -> None:
    """Put a block in quarantine; the first reason stays."""
    connection.execute(
        "insert into quarantine (table_id, segment_id, block, column_id, reason, found_at) values (?, ?, ?, ?, ?, ?) on conflict do nothing",
        (table_id, found.segment_id, found.block, found.column_id, found.reason[:MAX_REASON], found.found_at),
    )


def load(connection: Connection, table_id: int) -> list[Quarantined]:
    """All of a table, by segment and block."""
    rows = connection.execute(
        "select segment_id, block, column_id, reason, found_at from quarantine where table_id = ? order by segment_id, block, column_id", (table_id,)
    )
    return [Quarantined(segment_id=row[0], block=row[1], column_id=row[2], reason=row[3], found_at=row[4]) for row in rows]


def lift(connection: Connection, table_id: int, found: Quarantined) -> None:
    """Let a block be read again."""
    connection.execute(
        "delete from quarantine where table_id = ? and segment_id = ? and block = ? and column_id = ?",
        (table_id, found.segment_id, found.block, found.column_id),
    )
