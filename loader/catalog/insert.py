"""The rows that commits add to the catalog's tables: one statement a table, however many commits there are. Decides nothing and reads nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from loader.catalog.connection import Connection
from loader.catalog.inline import unpacked_bytes
from loader.catalog.records import CommitPlan, NewOverlay, NewSegment

Numbered = Sequence[tuple[int, CommitPlan]]  # the snapshot that each plan becomes; all of one table

_SNAPSHOT = "insert into snapshots (table_id, id, commit_id, kind, schema_id, watermark, num_rows, created_at, summary) values (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SEGMENT = (
    "insert into segments (table_id, segment_uuid, bucket, time_partition, level, path, section_offset, num_bytes, schema_id, num_rows, live_rows, "
    "sequence_min, sequence_max, key_min, key_max, time_min, time_max, block_rows, added_in, stats) "
    "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_OVERLAY = (
    "insert into overlays (table_id, segment_id, kind, level, sequence, path, section_offset, num_bytes, num_rows, num_deleted, column_ids, added_in) "
    "values (?, {segment}, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_NEW_SEGMENT_ID = "(select id from segments where table_id = ? and added_in = ? and segment_uuid = ?)"  # of this commit's own, which has no number yet
_COLUMN_FILE = (
    "insert into column_files (table_id, segment_id, column_ids, sequence, path, section_offset, num_bytes, added_in) values (?, ?, ?, ?, ?, ?, ?, ?)"
)
_PENDING = (
    "insert into pending (table_id, bucket, sequence, path, section_offset, num_bytes, num_held, keys, column_ids, added_in) "
    "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_OFFSETS = (
    "insert into source_offsets values (?, ?, ?, ?, ?, ?, ?) on conflict (table_id, pipeline, source, source_partition) "
    "do update set next = excluded.next, epoch = excluded.epoch, committed_in = excluded.committed_in"
)


def insert_many(connection: Connection, statement: str, rows: Sequence[Sequence[object]]) -> None:
    """Run a statement for each row; nothing at all for none."""
    if rows:
        connection.executemany(statement, list(rows))


def insert_snapshots(connection: Connection, rows: Sequence[Sequence[object]]) -> None:
    """Rows of (table_id, id, commit_id, kind, schema_id, watermark, num_rows, created_at, summary)."""
    insert_many(connection, _SNAPSHOT, rows)


def insert_parts(connection: Connection, table_id: int, numbered: Numbered) -> None:
    """Everything that the plans bring: inline bytes, segments, overlays, column files and pending labels."""
    inline = [(path, table_id, data, unpacked_bytes(data)) for _, plan in numbered for path, data in plan.inline.items()]
    insert_many(connection, "insert into inline_data (path, table_id, data, num_bytes) values (?, ?, ?, ?)", inline)
    insert_many(connection, _SEGMENT, [_segment(plan.spec.id, plan.spec.schema_id, segment, new) for new, plan in numbered for segment in plan.segments])
    of_old = [(table_id, overlay.segment_id, *_overlay(overlay, new)) for new, plan in numbered for overlay in plan.overlays if overlay.new_segment is None]
    of_new = [
        (table_id, table_id, new, plan.segments[overlay.new_segment].uuid, *_overlay(overlay, new))
        for new, plan in numbered
        for overlay in plan.overlays
        if overlay.new_segment is not None
    ]
    insert_many(connection, _OVERLAY.format(segment="?"), of_old)
    insert_many(connection, _OVERLAY.format(segment=_NEW_SEGMENT_ID), of_new)
    files = [
        (table_id, file.segment_id, json.dumps(list(file.column_ids)), new, file.path, file.offset, file.num_bytes, new)
        for new, plan in numbered
        for file in plan.column_files
    ]
    insert_many(connection, _COLUMN_FILE, files)
    held = [
        (table_id, held.bucket, new, held.path, held.offset, held.num_bytes, held.num_held, held.keys, json.dumps(list(held.column_ids)), new)
        for new, plan in numbered
        for held in plan.pending
    ]
    insert_many(connection, _PENDING, held)


def _segment(table_id: int, schema_id: int, segment: NewSegment, new: int) -> tuple[object, ...]:
    return (
        table_id,
        segment.uuid,
        segment.bucket,
        segment.partition,
        segment.level,
        segment.path,
        segment.offset,
        segment.num_bytes,
        schema_id,
        segment.num_rows,
        segment.num_rows - segment.num_deleted,
        new if segment.sequence_min is None else segment.sequence_min,
        new if segment.sequence_max is None else segment.sequence_max,
        segment.key_min,
        segment.key_max,
        segment.time_min,
        segment.time_max,
        segment.block_rows,
        new,
        segment.stats,
    )


def _overlay(overlay: NewOverlay, new: int) -> tuple[object, ...]:
    return (
        overlay.kind,
        overlay.level,
        new if overlay.sequence is None else overlay.sequence,
        overlay.path,
        overlay.offset,
        overlay.num_bytes,
        overlay.num_rows,
        overlay.num_deleted,
        json.dumps(list(overlay.column_ids)),
        new,
    )


def meet_pending(connection: Connection, numbered: Numbered, held: dict[int, tuple[int, bytes | None]]) -> None:
    """Note which pending labels have met their rows.

    Args:
        numbered: The plans.
        held: (num_held, met so far) of each pending entry that they name.
    """
    for new, plan in numbered:
        for pending_id, positions in plan.met.items():
            num_held, met = held[pending_id]
            merged = np.union1d(np.frombuffer(met or b"", "<u4"), np.frombuffer(positions, "<u4")).astype("<u4")
            removed_in = new if len(merged) >= num_held else None
            connection.execute("update pending set met = ?, removed_in = ? where id = ?", (merged.tobytes(), removed_in, pending_id))
            held[pending_id] = (num_held, merged.tobytes())


def remove_inputs(connection: Connection, numbered: Numbered) -> None:
    """The inputs of compactions are live no more, nor what belongs to them, nor the overlays and column files that were folded."""
    for new, plan in numbered:
        for segment_id in plan.removed_segments:
            connection.execute("update segments set removed_in = ? where id = ?", (new, segment_id))
            connection.execute("update overlays set removed_in = ? where segment_id = ? and removed_in is null", (new, segment_id))
            connection.execute("update column_files set removed_in = ? where segment_id = ? and removed_in is null", (new, segment_id))
        insert_many(connection, "update overlays set removed_in = ? where id = ?", [(new, overlay_id) for overlay_id in plan.removed_overlays])
        insert_many(connection, "update column_files set removed_in = ? where id = ?", [(new, file_id) for file_id in plan.removed_column_files])


def advance_buckets(connection: Connection, table_id: int, numbered: Numbered) -> None:
    """Each key bucket has the last snapshot that changed its rows, and its pending labels."""
    rows = {bucket: new for new, plan in numbered for bucket in plan.rows_changed}
    labels = {bucket: new for new, plan in numbered for bucket in plan.pending_changed}
    for column, changed in (("rows_changed_in", rows), ("pending_changed_in", labels)):
        statement = f"update buckets set {column} = ? where table_id = ? and bucket = ?"
        insert_many(connection, statement, [(new, table_id, bucket) for bucket, new in changed.items()])


def advance_offsets(connection: Connection, table_id: int, numbered: Numbered) -> None:
    """What was consumed from sources, in the order of the commits."""
    rows = [
        (table_id, offsets.pipeline, offsets.source, str(partition), end, offsets.epoch, new)
        for new, plan in numbered
        if (offsets := plan.offsets) is not None
        for partition, (_, end) in offsets.ranges.items()
    ]
    insert_many(connection, _OFFSETS, rows)
