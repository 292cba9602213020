"""The catalog's part of an erasure: its request, and the transaction that moves sections in place. Every function takes a connection inside a transaction.

Rows of `segments`, `overlays`, `column_files` and `pending` keep their number and get another place: the same rows, blank where they were erased. What is
moved was found at its old place; where another erasure moved it first, nothing happens here and the new place is never referred to.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loader.catalog import sealing
from loader.catalog.commit import TABLES_WITH_PATHS, now_micros, throw_away
from loader.catalog.connection import Connection
from loader.catalog.inline import unpacked_bytes
from loader.catalog.read import load_head
from loader.catalog.records import ERASED, TableSpec

REQUESTED, REWRITTEN, COMPLETE = "requested", "rewritten", "complete"
_ERASURE = "select id, state, num_keys, key_bytes, keys, deleted_in, requested_at, due_at, proof from erasures where "


@dataclasses.dataclass(frozen=True, kw_only=True)
class Erasure:
    """A recorded request.

    Attributes:
        id: Of the request.
        state: requested, rewritten (no live or retained section holds a row), complete (nor do bytes that wait to be deleted).
        num_keys, key_bytes: Of its keys.
        keys: Their words; None once it is complete.
        deleted_in: The snapshot without the rows; None before it is there.
        requested_at, due_at: Microseconds since 1970.
        proof: JSON, or None.
    """

    id: str
    state: str
    num_keys: int
    key_bytes: int
    keys: bytes | None
    deleted_in: int | None
    requested_at: int
    due_at: int
    proof: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredSection:
    """One row of a table with paths.

    Attributes:
        table: segments, overlays, column_files or pending.
        id: Of the row.
        segment_id: That it belongs to, or is; None for pending labels.
        offset, num_bytes: In its object.
    """

    table: str
    id: int
    segment_id: int | None
    path: str
    offset: int
    num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move:
    """A row's new place.

    Attributes:
        section: The row as it was found.
        path, offset, num_bytes: Where its bytes are now; path None drops the row.
        columns: What else changes in it.
        labels: Of waiting labels: which of the entry's keys are taken out, and count as met.
    """

    section: StoredSection
    path: str | None
    offset: int = 0
    num_bytes: int = 0
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: Sequence[int] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """Rows of a segment that are hidden at every snapshot, as a stored vector."""

    segment_id: int
    path: str
    offset: int
    num_bytes: int
    num_rows: int


@dataclasses.dataclass(kw_only=True)
class ErasureStep:
    """What one transaction of an erasure does.

    Attributes:
        spec: The table.
        erasure_id: For which request.
        moves: Rows that get another place.
        expected: Segment id -> numbers of its overlays and column files (table, id) that were looked at; where others came meanwhile, nothing is done.
        marks: Vectors of erased rows.
        touched: Segments whose vectors get new numbers, so that whoever read their rows before cannot commit.
        inline: Bytes for the catalog, by path.
        pending_buckets: Key buckets whose waiting labels change.
    """

    spec: TableSpec
    erasure_id: str
    moves: Sequence[Move] = ()
    expected: Mapping[int, frozenset[tuple[str, int]]] = dataclasses.field(default_factory=dict)
    marks: Sequence[Mark] = ()
    touched: Sequence[int] = ()
    inline: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    pending_buckets: Sequence[int] = ()

    @property
    def new_paths(self) -> set[str]:
        """Where it puts sections and vectors."""
        return {move.path for move in self.moves if move.path is not None} | {mark.path for mark in self.marks}


def load_erasures(connection: Connection, table_id: int, prefix: str = "") -> list[Erasure]:
    """Requests of a table whose id begins with `prefix`, oldest first."""
    rows = connection.execute(_ERASURE + "table_id = ? order by requested_at, id", (table_id,)).fetchall()
    return [_erasure(row) for row in rows if row[0].startswith(prefix)]


def _erasure(row: Sequence[Any]) -> Erasure:
    erasure_id, state, num_keys, key_bytes, keys, deleted_in, requested_at, due_at, proof = row
    return Erasure(
        id=erasure_id,
        state=state,
        num_keys=num_keys,
        key_bytes=key_bytes,
        keys=None if keys is None else bytes(keys),
        deleted_in=deleted_in,
        requested_at=requested_at,
        due_at=due_at,
        proof=proof,
    )


def record(connection: Connection, table_id: int, erasure: Erasure) -> None:
    """Write a new request down."""
    values = (erasure.id, table_id, erasure.state, erasure.num_keys, erasure.key_bytes, erasure.keys, erasure.requested_at, erasure.due_at)
    connection.execute(
        "insert into erasures (id, table_id, state, num_keys, key_bytes, keys, requested_at, due_at) values (?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing",
        values,
    )


def update(connection: Connection, erasure_id: str, **columns: Any) -> None:
    """Change what is recorded of a request."""
    named = ", ".join(f"{name} = ?" for name in columns)  # names are ours
    connection.execute(f"update erasures set {named} where id = ?", (*columns.values(), erasure_id))


def sections_of(connection: Connection, table_id: int, path: str) -> list[StoredSection]:
    """Every row that lies at a path, live or kept for earlier snapshots."""
    found = []
    for table in TABLES_WITH_PATHS:
        owner = {"segments": "id", "pending": "null"}.get(table, "segment_id")
        rows = connection.execute(f"select id, {owner}, section_offset, num_bytes from {table} where table_id = ? and path = ? order by id", (table_id, path))
        found += [
            StoredSection(table=table, id=row_id, segment_id=segment_id, path=path, offset=offset, num_bytes=num_bytes)
            for row_id, segment_id, offset, num_bytes in rows.fetchall()
        ]
    return found


def belongings(connection: Connection, table_id: int, segment_id: int) -> list[tuple[StoredSection, str, list[int]]]:
    """Overlays and column files of a segment, live or not: the section, the overlay's kind or "columns", and its column ids."""
    found = []
    for table, kind in (("overlays", "kind"), ("column_files", "'columns'")):
        rows = connection.execute(
            f"select id, path, section_offset, num_bytes, {kind}, column_ids from {table} where table_id = ? and segment_id = ? order by id",
            (table_id, segment_id),
        )
        for row_id, path, offset, num_bytes, what, column_ids in rows.fetchall():
            section = StoredSection(table=table, id=row_id, segment_id=segment_id, path=path, offset=offset, num_bytes=num_bytes)
            found.append((section, what, json.loads(column_ids)))
    return found


def apply(connection: Connection, step: ErasureStep, *, grace_seconds: float) -> int | None:
    """Do one step as a new snapshot of the table; its number, or None where what was read has changed and has to be read again."""
    spec = step.spec
    for segment_id, seen in step.expected.items():
        now = {(section.table, section.id) for section, kind, _ in belongings(connection, spec.id, segment_id) if kind != ERASED}
        if not now <= seen:
            return None
    new = load_head(connection, spec) + 1
    before = connection.execute("select schema_id, watermark, num_rows from snapshots where table_id = ? and id = ?", (spec.id, new - 1)).fetchone() or (
        spec.schema_id,
        None,
        0,
    )
    moved = sorted({(move.section.path, move.path) for move in step.moves if move.path is not None})
    summary = {"erasure": step.erasure_id, "moved": moved, "segments_blanked": len(step.touched), "rows_hidden": sum(mark.num_rows for mark in step.marks)}
    connection.execute(
        "insert into snapshots (table_id, id, commit_id, kind, schema_id, watermark, num_rows, created_at, summary) values (?, ?, ?, 'erase', ?, ?, ?, ?, ?)",
        (spec.id, new, f"{step.erasure_id}-{uuid.uuid4().hex}", *before, now_micros(), json.dumps(summary)),
    )
    inline: list[Sequence[Any]] = [(path, spec.id, data, unpacked_bytes(data)) for path, data in step.inline.items()]
    connection.executemany("insert into inline_data (path, table_id, data, num_bytes) values (?, ?, ?, ?)", inline)
    for move in step.moves:
        _move(connection, move)
        if move.labels:
            _mask_pending(connection, move, new)
    sealing.repack(connection, spec.id, [move.section.id for move in step.moves if move.section.table == "segments"])
    for segment_id in step.touched:
        _renumber(connection, spec.id, segment_id)
    for mark in step.marks:
        _insert_mark(connection, spec.id, mark)
    connection.executemany(
        "update buckets set pending_changed_in = ? where table_id = ? and bucket = ?", [(new, spec.id, bucket) for bucket in step.pending_buckets]
    )
    connection.execute("update tables set head = ?, erased_in = ? where id = ?", (new, new, spec.id))
    # the new places too: what was to lie there may have been forgotten meanwhile
    throw_away(
        connection,
        spec.id,
        sorted({move.section.path for move in step.moves} | step.new_paths),
        reason=f"erasure {step.erasure_id}",
        grace_seconds=grace_seconds,
    )
    return new


def _move(connection: Connection, move: Move) -> None:
    section = move.section
    if move.path is None:
        connection.execute(f"delete from {section.table} where id = ? and path = ?", (section.id, section.path))
        return
    named = "".join(f", {name} = ?" for name in move.columns)  # names are ours
    connection.execute(
        f"update {section.table} set path = ?, section_offset = ?, num_bytes = ?{named} where id = ? and path = ?",
        (move.path, move.offset, move.num_bytes, *move.columns.values(), section.id, section.path),
    )


def _insert_mark(connection: Connection, table_id: int, mark: Mark) -> None:
    """As long as its segment is shown, the vector is: at every snapshot that there is of it."""
    connection.execute(
        "insert into overlays (table_id, segment_id, kind, level, sequence, path, section_offset, num_bytes, num_rows, num_deleted, column_ids, added_in, "
        "removed_in) select ?, id, ?, 0, added_in, ?, ?, ?, ?, 0, '[]', added_in, removed_in from segments where id = ?",
        (table_id, ERASED, mark.path, mark.offset, mark.num_bytes, mark.num_rows, mark.segment_id),
    )


def _renumber(connection: Connection, table_id: int, segment_id: int) -> None:
    columns = "table_id, segment_id, kind, level, sequence, path, section_offset, num_bytes, num_rows, num_deleted, column_ids, added_in, removed_in"
    of_segment = (table_id, segment_id, ERASED)
    where = "table_id = ? and segment_id = ? and kind = ?"
    known = [row_id for (row_id,) in connection.execute(f"select id from overlays where {where}", of_segment)]
    connection.execute(f"insert into overlays ({columns}) select {columns} from overlays where {where} order by id", of_segment)
    connection.executemany("delete from overlays where id = ?", [(row_id,) for row_id in known])


def hurry_garbage(connection: Connection, table_id: int, due_at: int) -> None:
    """What waits to be deleted goes by the due date: nobody has looked whether it holds an erased row."""
    connection.execute("update garbage set not_before = ? where table_id = ? and not_before > ?", (due_at, table_id, due_at))


def waiting_garbage(connection: Connection, table_id: int) -> list[tuple[str, int]]:
    """(path, not before) of what waits to be deleted."""
    return [(path, not_before) for path, not_before in connection.execute("select path, not_before from garbage where table_id = ? order by path", (table_id,))]


def moved_paths(connection: Connection, table_id: int, erasure_id: str) -> list[tuple[str, str]]:
    """(from, to) of every object that an erasure has rewritten so far."""
    rows = connection.execute("select summary from snapshots where table_id = ? and kind = 'erase' order by id", (table_id,)).fetchall()
    summaries = [json.loads(text) for (text,) in rows]
    return [(old, new) for summary in summaries if summary.get("erasure") == erasure_id for old, new in summary["moved"]]


def open_writers(connection: Connection, table_id: int) -> int:
    """Writers that hold names for files which they may not have committed."""
    return int(connection.execute("select count(*) from staged where table_id = ?", (table_id,)).fetchone()[0])


def _mask_pending(connection: Connection, move: Move, new: int) -> None:
    """Take keys out of an entry of waiting labels: their words are zero, and they count as met."""
    row = connection.execute("select keys, met, num_held, removed_in from pending where id = ? and path = ?", (move.section.id, move.path)).fetchone()
    if row is None:
        return
    words, num_held = np.frombuffer(row[0], np.uint8).copy(), int(row[2])
    at = np.asarray(move.labels, np.int64)
    num_words = 1 if len(words) == 12 * num_held else 2
    words[: 8 * num_words * num_held].view("<u8").reshape(num_words, num_held)[:, at] = 0
    met = np.union1d(np.frombuffer(row[1] or b"", "<u4"), at.astype("<u4")).astype("<u4")
    removed_in = new if row[3] is None and len(met) >= num_held else row[3]
    connection.execute("update pending set keys = ?, met = ?, removed_in = ? where id = ?", (words.tobytes(), met.tobytes(), removed_in, move.section.id))


def make_id(digest: str, number: int) -> str:
    """The name of the n-th request for the same keys."""
    return f"erase-{digest[:24]}-{number}"


def number_of(erasure_id: str) -> int:
    """Which request for the same keys it is."""
    return int(erasure_id.rpartition("-")[2])


def family_of(erasure_id: str) -> str:
    """What the names of all requests for the same keys begin with."""
    return erasure_id[: erasure_id.rindex("-") + 1]
