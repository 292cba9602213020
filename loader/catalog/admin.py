"""Creating and dropping tables, tags, pins and stored selections. Every function takes a connection inside a write transaction."""

from __future__ import annotations

import datetime
import json
from typing import Any

from loader.catalog.commit import STAGED_LEASE_SECONDS, TABLES_WITH_PATHS, now_micros, throw_away
from loader.catalog.connection import Connection
from loader.catalog.read import LOOKUP_COLUMNS, RESOLVE_HORIZON, attribution_json, from_micros, load_spec
from loader.catalog.records import Pin, TableSpec
from loader.errors import AlreadyExistsError, ConflictError, SnapshotNotFoundError


def create_table(connection: Connection, spec: TableSpec) -> TableSpec:
    """Insert a table; `spec.id` is not read.

    Raises:
        AlreadyExistsError: A table of this name is there.
    """
    if connection.execute("select 1 from tables where name = ? and dropped_at is null", (spec.name,)).fetchone():
        raise AlreadyExistsError(f"table {spec.name!r} is already there: open it with lake.table({spec.name!r}), or drop it first")
    rows = connection.execute(
        "insert into tables (name, head, schema_id, primary_key, bucket_by, buckets, cluster_by, time_column, partition_by, merge, attribution, durability, "
        "properties, created_at) values (?, 0, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) returning id",
        (
            spec.name,
            json.dumps(spec.primary_key_ids),
            json.dumps(spec.bucket_by_ids),
            spec.buckets,
            json.dumps(spec.cluster_by_ids),
            spec.time_column_id,
            spec.partition_by,
            json.dumps(dict(spec.merge_by_id)),
            attribution_json(spec),
            spec.durability,
            json.dumps(_properties(spec)),
            now_micros(),
        ),
    ).fetchall()
    table_id = int(rows[0][0])
    connection.execute("insert into schemas values (?, 1, ?, 0)", (table_id, json.dumps(spec.schema.to_json())))
    connection.executemany(
        "insert into buckets (table_id, bucket, rows_changed_in, pending_changed_in) values (?, ?, 0, 0)",
        [(table_id, bucket) for bucket in range(spec.buckets)],
    )
    return load_spec(connection, spec.name)


def _properties(spec: TableSpec) -> dict[str, Any]:
    """Settings that came after the catalog's first version."""
    found: dict[str, Any] = {}
    if spec.lookup_column_ids:
        found[LOOKUP_COLUMNS] = list(spec.lookup_column_ids)
    if spec.resolve_horizon_seconds is not None:
        found[RESOLVE_HORIZON] = spec.resolve_horizon_seconds
    return found


def load_property(connection: Connection, spec: TableSpec, name: str, default: Any) -> Any:
    """One of a table's properties, or what it is where it was never set."""
    (text,) = connection.execute("select properties from tables where id = ?", (spec.id,)).fetchone()
    return json.loads(text).get(name, default)


def set_property(connection: Connection, spec: TableSpec, name: str, value: Any) -> None:
    """Set one of a table's properties."""
    (text,) = connection.execute("select properties from tables where id = ?", (spec.id,)).fetchone()
    connection.execute("update tables set properties = ? where id = ?", (json.dumps(json.loads(text) | {name: value}), spec.id))


def drop_table(connection: Connection, spec: TableSpec) -> None:
    """Forget a table; its files go to garbage.

    Raises:
        ConflictError: A running job holds a pin on it.
    """
    held = active_pins(connection, spec)
    if held:
        raise ConflictError(
            f"table {spec.name!r} is pinned by {held[0].owner!r} at snapshot {held[0].snapshot_id}: stop that job, or wait until its pin expires"
        )
    paths: set[str] = set()
    for table in TABLES_WITH_PATHS:
        paths.update(path for (path,) in connection.execute(f"select distinct path from {table} where table_id = ?", (spec.id,)))
        connection.execute(f"delete from {table} where table_id = ?", (spec.id,))
    throw_away(connection, spec.id, sorted(paths), reason=f"table {spec.name} was dropped")
    related = ("follow_ends", "erasures", "segment_stats", "segment_packs", "pins", "quarantine", "selections", "source_offsets", "buckets", "snapshots")
    for table in related:
        connection.execute(f"delete from {table} where table_id = ?", (spec.id,))
    connection.execute("update tables set dropped_at = ? where id = ?", (now_micros(), spec.id))


def set_tag(connection: Connection, spec: TableSpec, name: str, snapshot_id: int) -> None:
    """Give a snapshot a name; a name is given once.

    Raises:
        AlreadyExistsError: The tag stands at another snapshot.
        SnapshotNotFoundError: The table has no snapshot yet.
    """
    if snapshot_id == 0:
        raise SnapshotNotFoundError(f"table {spec.name!r} has no snapshot to tag yet: write to it first")
    there = connection.execute("select snapshot_id from pins where table_id = ? and kind = 'tag' and name = ?", (spec.id, name)).fetchone()
    if there is not None and there[0] != snapshot_id:
        raise AlreadyExistsError(f"tag {name!r} of table {spec.name!r} stands at snapshot {there[0]}: choose another name")
    if there is None:
        connection.execute(
            "insert into pins (table_id, snapshot_id, kind, name, created_at) values (?, ?, 'tag', ?, ?)", (spec.id, snapshot_id, name, now_micros())
        )


def load_tags(connection: Connection, spec: TableSpec) -> dict[str, int]:
    rows = connection.execute("select name, snapshot_id from pins where table_id = ? and kind = 'tag' order by name", (spec.id,))
    return dict(rows.fetchall())


def add_pin(connection: Connection, spec: TableSpec, snapshot_id: int, owner: str, ttl_seconds: float | None) -> Pin:
    """Hold a snapshot for `owner`, for a time or until it is released."""
    now = now_micros()
    expires_at = None if ttl_seconds is None else now + int(ttl_seconds * 1e6)
    rows = connection.execute(
        "insert into pins (table_id, snapshot_id, kind, name, created_at, expires_at) values (?, ?, 'pin', ?, ?, ?) returning id",
        (spec.id, snapshot_id, owner, now, expires_at),
    ).fetchall()
    return Pin(id=int(rows[0][0]), table=spec.name, snapshot_id=snapshot_id, owner=owner, expires_at=_expiry(expires_at))


def renew_pin(connection: Connection, spec: TableSpec, pin: Pin, ttl_seconds: float) -> None:
    """Hold a pinned snapshot for so long from now; a pin that has lapsed meanwhile stands again."""
    now = now_micros()
    connection.execute(
        "insert into pins (id, table_id, snapshot_id, kind, name, created_at, expires_at) values (?, ?, ?, 'pin', ?, ?, ?) "
        "on conflict (id) do update set expires_at = excluded.expires_at",
        (pin.id, spec.id, pin.snapshot_id, pin.owner, now, now + int(ttl_seconds * 1e6)),
    )


def active_pins(connection: Connection, spec: TableSpec) -> list[Pin]:
    """Pins (not tags) that have not expired."""
    rows = connection.execute(
        "select id, snapshot_id, name, expires_at from pins where table_id = ? and kind = 'pin' and (expires_at is null or expires_at > ?) order by id",
        (spec.id, now_micros()),
    )
    return [Pin(id=pin_id, table=spec.name, snapshot_id=at, owner=owner, expires_at=_expiry(expires)) for pin_id, at, owner, expires in rows]


def release_pin(connection: Connection, pin_id: int) -> None:
    connection.execute("delete from pins where id = ? and kind = 'pin'", (pin_id,))


def _expiry(micros: int | None) -> datetime.datetime | None:
    return None if micros is None else from_micros(micros)


def save_selection(connection: Connection, table_id: int, snapshot_id: int, selection_hash: str, data: bytes, pin_id: int | None) -> None:
    """Keep a counted predicate; the same hash twice keeps the first."""
    connection.execute(
        "insert into selections values (?, ?, ?, ?, ?, ?) on conflict do nothing", (table_id, snapshot_id, selection_hash, pin_id, now_micros(), data)
    )


def load_selection(connection: Connection, table_id: int, snapshot_id: int, selection_hash: str) -> bytes | None:
    row = connection.execute(
        "select data from selections where table_id = ? and snapshot_id = ? and hash = ?", (table_id, snapshot_id, selection_hash)
    ).fetchone()
    return None if row is None else bytes(row[0])


def add_stage(connection: Connection, table_id: int, prefix: str, owner: str) -> None:
    """Lease a prefix to a writer: the files that it writes before it commits."""
    connection.execute("insert into staged values (?, ?, ?, 0, ?)", (prefix, table_id, owner, now_micros() + STAGED_LEASE_SECONDS * 1_000_000))


def drop_stage(connection: Connection, prefix: str) -> None:
    """Give a lease back; all files under the prefix are committed or garbage."""
    connection.execute("delete from staged where prefix = ?", (prefix,))
