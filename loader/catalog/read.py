"""Reading the catalog: tables, snapshots and what is live in them. Every function takes a connection inside a transaction."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from loader.catalog.connection import Connection
from loader.catalog.manifest import Within, load_segments
from loader.catalog.records import Attribution, ColumnFileRef, OverlayRef, PendingRef, SegmentRef, Snapshot, SnapshotView, TableSpec
from loader.catalog.segments import COLUMN_FILE_COLUMNS, OVERLAY_COLUMNS, SEGMENT_COLUMNS, Segments, make_column_file, make_overlay
from loader.errors import SnapshotNotFoundError, TableNotFoundError, did_you_mean
from loader.schema import Schema

_SPEC = (
    "select t.id, t.name, t.schema_id, t.primary_key, t.bucket_by, t.buckets, t.cluster_by, t.time_column, t.partition_by, t.merge, t.attribution, "
    "t.durability, t.properties, s.json from tables t join schemas s on s.table_id = t.id and s.id = {schema} where t.dropped_at is null and "
)
LOOKUP_COLUMNS, RESOLVE_HORIZON = "lookup_column_ids", "resolve_horizon_seconds"  # names among a table's properties
SNAPSHOT = "select id, kind, commit_id, created_at, watermark, num_rows, summary from snapshots where table_id = ?"
OFFSETS = "select source_partition, next, epoch, committed_in from source_offsets where table_id = ? and pipeline = ? and source = ?"
BUCKETS = "select bucket, rows_changed_in, pending_changed_in from buckets where table_id = ?"
_SEGMENT = f"select {SEGMENT_COLUMNS} from segments where "
_OVERLAY = f"select {OVERLAY_COLUMNS} from overlays where "
_COLUMN_FILE = f"select {COLUMN_FILE_COLUMNS} from column_files where "
_PENDING = "select id, bucket, sequence, path, section_offset, num_bytes, num_held, keys, met, column_ids from pending where "


def from_micros(micros: int) -> datetime.datetime:
    """Wall-clock microseconds since 1970 as a UTC datetime."""
    return datetime.datetime.fromtimestamp(micros / 1e6, tz=datetime.UTC)


def table_names(connection: Connection) -> list[str]:
    return [name for (name,) in connection.execute("select name from tables where dropped_at is null order by name")]


def load_spec(connection: Connection, name: str) -> TableSpec:
    """The table of this name by its present schema.

    Raises:
        TableNotFoundError: There is none; the message names the closest.
    """
    row = connection.execute(_SPEC.format(schema="t.schema_id") + "t.name = ?", (name,)).fetchone()
    if row is None:
        raise TableNotFoundError(f"no table {name!r}: {did_you_mean(name, table_names(connection))}")
    return _spec(row)


def load_spec_by_id(connection: Connection, table_id: int) -> TableSpec:
    """A table by its present schema.

    Raises:
        TableNotFoundError: It was dropped.
    """
    row = connection.execute(_SPEC.format(schema="t.schema_id") + "t.id = ?", (table_id,)).fetchone()
    if row is None:
        raise TableNotFoundError(f"table number {table_id} was dropped")
    return _spec(row)


def load_spec_as_of(connection: Connection, spec: TableSpec, schema_id: int) -> TableSpec:
    """The same table by another of its schemas."""
    if schema_id == spec.schema_id:
        return spec
    return _spec(connection.execute(_SPEC.format(schema="?") + "t.id = ?", (schema_id, spec.id)).fetchone())


def load_spec_at(connection: Connection, spec: TableSpec, snapshot_id: int) -> TableSpec:
    """The same table by the schema that a snapshot was committed with."""
    row = connection.execute("select schema_id from snapshots where table_id = ? and id = ?", (spec.id, snapshot_id)).fetchone()
    return spec if row is None else load_spec_as_of(connection, spec, int(row[0]))


def _spec(row: Sequence[Any]) -> TableSpec:
    table_id, name, schema_id, primary_key, bucket_by, buckets, cluster_by, time_column, partition_by, merge, attribution, durability, properties, schema = row
    columns = Schema.from_json(json.loads(schema))
    settings = json.loads(properties)
    known = {column.id for column in columns}
    return TableSpec(
        id=table_id,
        name=name,
        schema=columns,
        schema_id=schema_id,
        primary_key_ids=tuple(json.loads(primary_key)),
        bucket_by_ids=tuple(json.loads(bucket_by)),
        buckets=buckets,
        cluster_by_ids=tuple(json.loads(cluster_by)),
        time_column_id=time_column,
        partition_by=partition_by,
        merge_by_id={int(key): rule for key, rule in json.loads(merge).items()},
        attribution=_attribution(columns, attribution),
        durability=durability,
        lookup_column_ids=tuple(column_id for column_id in settings.get(LOOKUP_COLUMNS, ()) if column_id in known),
        resolve_horizon_seconds=settings.get(RESOLVE_HORIZON),
    )


def _attribution(schema: Schema, text: str | None) -> Attribution | None:
    """Its column by the name it has in this schema."""
    if not text:
        return None
    stored = json.loads(text)
    column_id = stored.pop("column_id", None)
    if column_id is None:
        return Attribution(**stored)
    name = next((column.name for column in schema if column.id == column_id), None)
    return None if name is None else Attribution(**stored | {"column": name})


def attribution_json(spec: TableSpec) -> str | None:
    """As the catalog keeps it: by column id, so that it outlives a renaming."""
    if spec.attribution is None:
        return None
    return json.dumps(dataclasses.asdict(spec.attribution) | {"column_id": spec.schema.column(spec.attribution.column).id})


def load_head(connection: Connection, spec: TableSpec) -> int:
    """Number of the newest snapshot.

    Raises:
        TableNotFoundError: The table was dropped meanwhile.
    """
    row = connection.execute("select head from tables where id = ? and dropped_at is null", (spec.id,)).fetchone()
    if row is None:
        raise TableNotFoundError(f"table {spec.name!r} was dropped")
    return int(row[0])


def load_floor(connection: Connection, spec: TableSpec) -> int:
    """The snapshot up to which what a handle knows may be gone: forgotten, or moved by an erasure. One that stands lower begins anew."""
    floor, erased_in = connection.execute("select floor, erased_in from tables where id = ?", (spec.id,)).fetchone()
    return max(int(floor), int(erased_in))


def load_erased(connection: Connection, table_id: int) -> int:
    """The newest snapshot that moved sections in place, 0 before the first: what was read of any snapshot before it may lie elsewhere by now."""
    return int(connection.execute("select erased_in from tables where id = ?", (table_id,)).fetchone()[0])


def load_head_and_floor(connection: Connection, spec: TableSpec) -> tuple[int, int]:
    """Number of the newest snapshot, and of the one that `load_floor` gives.

    Raises:
        TableNotFoundError: The table was dropped meanwhile.
    """
    row = connection.execute("select head, floor, erased_in from tables where id = ? and dropped_at is null", (spec.id,)).fetchone()
    if row is None:
        raise TableNotFoundError(f"table {spec.name!r} was dropped")
    return int(row[0]), max(int(row[1]), int(row[2]))


def resolve_snapshot(connection: Connection, spec: TableSpec, snapshot: int | str | Snapshot | None) -> int:
    """The number of a snapshot given as a number, a tag, a Snapshot, or None for the newest.

    Raises:
        SnapshotNotFoundError: There is no such snapshot or tag, or it has expired.
    """
    head = load_head(connection, spec)
    if snapshot is None:
        return head
    if isinstance(snapshot, Snapshot):
        if snapshot.table != spec.name:
            raise ValueError(f"snapshot {snapshot.id} is of table {snapshot.table!r}, not of {spec.name!r}")
        snapshot = snapshot.id
    if isinstance(snapshot, str):
        row = connection.execute("select snapshot_id from pins where table_id = ? and kind = 'tag' and name = ?", (spec.id, snapshot)).fetchone()
        if row is None:
            tags = [name for (name,) in connection.execute("select name from pins where table_id = ? and kind = 'tag'", (spec.id,))]
            raise SnapshotNotFoundError(f"table {spec.name!r} has no tag {snapshot!r}: {did_you_mean(snapshot, tags)}")
        return int(row[0])
    if isinstance(snapshot, bool) or not isinstance(snapshot, int):
        raise ValueError(f"snapshot is a number, a tag or None, not {snapshot!r}")
    found = connection.execute("select expired_at from snapshots where table_id = ? and id = ?", (spec.id, snapshot)).fetchone()
    if snapshot != 0 and found is None:
        raise SnapshotNotFoundError(f"table {spec.name!r} has no snapshot {snapshot}: it has 1 to {head}")
    if found is not None and found[0] is not None:
        raise SnapshotNotFoundError(f"snapshot {snapshot} of table {spec.name!r} expired on {from_micros(found[0]):%Y-%m-%d}: see history() for those kept")
    return snapshot


def load_snapshots(connection: Connection, spec: TableSpec) -> list[Snapshot]:
    rows = connection.execute(SNAPSHOT + " and expired_at is null order by id", (spec.id,)).fetchall()
    return [make_snapshot(spec, row) for row in rows]


def load_snapshot(connection: Connection, spec: TableSpec, snapshot_id: int) -> Snapshot:
    return make_snapshot(spec, connection.execute(SNAPSHOT + " and id = ?", (spec.id, snapshot_id)).fetchone())


def find_commit(connection: Connection, spec: TableSpec, commit_id: str) -> Snapshot | None:
    """The snapshot that this commit made, if it happened."""
    row = connection.execute(SNAPSHOT + " and commit_id = ?", (spec.id, commit_id)).fetchone()
    return None if row is None else make_snapshot(spec, row)


def make_snapshot(spec: TableSpec, row: Sequence[Any]) -> Snapshot:
    """From a row of `SNAPSHOT`."""
    snapshot_id, kind, commit_id, created_at, watermark, num_rows, summary = row
    return Snapshot(
        table=spec.name,
        id=snapshot_id,
        kind=kind,
        commit_id=commit_id,
        created_at=from_micros(created_at),
        watermark=watermark,
        num_rows=num_rows,
        summary=json.loads(summary),
    )


def load_view(connection: Connection, spec: TableSpec, snapshot: int | str | Snapshot | None, within: Within | None = None) -> SnapshotView:
    """Everything live at a snapshot, or what of it can hold rows within some times and buckets."""
    snapshot_id = resolve_snapshot(connection, spec, snapshot)
    return make_view(connection, spec, snapshot_id, load_segments(connection, spec.id, snapshot_id, within))


def make_view(connection: Connection, spec: TableSpec, snapshot_id: int, segments: Segments) -> SnapshotView:
    """A snapshot by the schema and the watermark that it was committed with."""
    at = load_spec_at(connection, spec, snapshot_id)
    return SnapshotView(spec=at, snapshot_id=snapshot_id, watermark=load_watermark(connection, spec, snapshot_id), segments=segments)


def load_segments_by_id(connection: Connection, table_id: int, segment_ids: Sequence[int], snapshot_id: int | None = None) -> list[SegmentRef]:
    """Those of these segments that are live, with their live overlays and column files, by number; now, or at a snapshot."""
    live, at = ("removed_in is null", ()) if snapshot_id is None else ("added_in <= ? and (removed_in is null or removed_in > ?)", (snapshot_id, snapshot_id))
    found = []
    for segment_id in sorted(segment_ids):
        own = (table_id, segment_id, *at)
        row = connection.execute(_SEGMENT + "table_id = ? and id = ? and " + live, own).fetchone()
        if row is not None:
            overlays = [make_overlay(one) for one in connection.execute(_OVERLAY + f"table_id = ? and segment_id = ? and {live} order by id", own)]
            files = connection.execute(_COLUMN_FILE + f"table_id = ? and segment_id = ? and {live} order by sequence, id", own)
            found.append(_segment(row, overlays, [make_column_file(one) for one in files]))
    return found


def load_changed_segments(connection: Connection, table_id: int, since: int, head: int) -> list[int]:
    """Segments that gained overlays or column files after `since`, up to `head`."""
    changed = (table_id, since, head) * 2
    rows = connection.execute(
        "select segment_id from overlays where table_id = ? and added_in > ? and added_in <= ? "
        "union select segment_id from column_files where table_id = ? and added_in > ? and added_in <= ?",
        changed,
    )
    return [segment_id for (segment_id,) in rows]


def load_watermark(connection: Connection, spec: TableSpec, snapshot_id: int) -> int | None:
    """The watermark of a snapshot; None before the first was given."""
    row = connection.execute("select watermark from snapshots where table_id = ? and id = ?", (spec.id, snapshot_id)).fetchone()
    return None if row is None else row[0]


def load_segment_changes(connection: Connection, table_id: int, since: int, head: int) -> tuple[list[SegmentRef], list[int]]:
    """Segments (without overlays) added after `since` and live at `head`, and ids of those that died in between."""
    added = [
        _segment(row, (), ())
        for row in connection.execute(
            _SEGMENT + "table_id = ? and added_in > ? and added_in <= ? and (removed_in is null or removed_in > ?) order by id", (table_id, since, head, head)
        )
    ]
    removed = connection.execute("select id from segments where table_id = ? and removed_in > ? and removed_in <= ?", (table_id, since, head)).fetchall()
    return added, [segment_id for (segment_id,) in removed]


def load_deletes(connection: Connection, table_id: int, since: int, head: int) -> list[tuple[int, OverlayRef]]:
    """(segment id, vector of deleted or erased rows) of those added after `since` and live at `head`."""
    rows = connection.execute(
        _OVERLAY + "table_id = ? and kind <> 'patch' and added_in > ? and added_in <= ? and (removed_in is null or removed_in > ?) order by id",
        (table_id, since, head, head),
    )
    return [(row[0], make_overlay(row)) for row in rows]


def load_overlays_since(connection: Connection, table_id: int, segment_ids: Iterable[int], after_overlay: int) -> list[tuple[int, OverlayRef]]:
    """(segment id, overlay) of live overlays numbered above `after_overlay`, by number."""
    wanted = set(segment_ids)
    rows = connection.execute(_OVERLAY + "table_id = ? and id > ? and removed_in is null order by id", (table_id, after_overlay))
    return [(row[0], make_overlay(row)) for row in rows if row[0] in wanted]


def load_pending(connection: Connection, table_id: int, pending_buckets: Iterable[int]) -> list[PendingRef]:
    """Labels that wait for their row, of these key buckets, in the order they came."""
    wanted = set(pending_buckets)
    rows = connection.execute(_PENDING + "table_id = ? and removed_in is null order by id", (table_id,))
    return [
        PendingRef(
            pending_id=row[0],
            bucket=row[1],
            sequence=row[2],
            path=row[3],
            offset=row[4],
            num_bytes=row[5],
            num_held=row[6],
            keys=row[7],
            met=row[8],
            column_ids=tuple(json.loads(row[9])),
        )
        for row in rows
        if row[1] in wanted
    ]


def load_pending_changed(connection: Connection, table_id: int) -> int:
    """The newest snapshot in which labels began or ended to wait for their row."""
    return int(connection.execute("select coalesce(max(pending_changed_in), 0) from buckets where table_id = ?", (table_id,)).fetchone()[0])


def load_bucket_changes(connection: Connection, table_id: int) -> dict[int, tuple[int, int]]:
    """Key bucket -> (rows_changed_in, pending_changed_in)."""
    rows = connection.execute(BUCKETS, (table_id,))
    return {bucket: (rows_changed, pending_changed) for bucket, rows_changed, pending_changed in rows}


def load_offsets(connection: Connection, table_id: int, pipeline: str, source: str) -> dict[str, tuple[int, int, int]]:
    """Partition -> (next, epoch, snapshot that committed it)."""
    rows = connection.execute(OFFSETS, (table_id, pipeline, source))
    return {partition: (following, epoch, committed_in) for partition, following, epoch, committed_in in rows}


def _segment(row: Sequence[Any], overlays: Sequence[OverlayRef], column_files: Sequence[ColumnFileRef]) -> SegmentRef:
    return SegmentRef(
        segment_id=row[0],
        path=row[1],
        offset=row[2],
        num_bytes=row[3],
        bucket=row[4],
        partition=row[5],
        level=row[6],
        num_rows=row[7],
        live_rows=row[8] - sum(overlay.num_deleted for overlay in overlays),
        block_rows=tuple(np.frombuffer(row[9], "<u4").tolist()),
        sequence_min=row[10],
        sequence_max=row[11],
        key_min=row[12],
        key_max=row[13],
        time_min=row[14],
        time_max=row[15],
        added_in=row[16],
        overlays=tuple(overlays),
        column_files=tuple(column_files),
    )
