"""Checks of a table's history: the head, snapshots without gaps, their row counts, watermarks and schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from loader.doctor.checks import Found, Patient, TableState, check
from loader.errors import HeadraceError
from loader.schema import MERGE_RULES, Schema

FROM_BACKUP = "restore the catalog from a backup (headrace restore)"


@check(
    "head",
    scope="table",
    explains="the head is the newest snapshot and numbers have no gap: time travel, follow mode and every conflict check count on it",
    remedy=FROM_BACKUP,
)
def head(patient: Patient, table: TableState) -> Iterator[Found]:
    ((count, first, last),) = patient.rows("select count(*), coalesce(min(id), 1), coalesce(max(id), 0) from snapshots where table_id = ?", (table.id,))
    if (first, last) != (1, table.head) or count != table.head:
        yield Found(where="tables.head", what=f"head {table.head}, with {count} snapshots numbered {first} to {last}")
    if not 0 <= table.floor <= table.head:
        yield Found(where="tables.floor", what=f"floor {table.floor}, outside 0 to the head {table.head}")
    if patient.rows("select 1 from snapshots where table_id = ? and id = ? and expired_at is not null", (table.id, table.head)):
        yield Found(where=f"snapshot {table.head}", what="the head is marked as expired: the table cannot be read")


def counted_rows(patient: Patient, table: TableState) -> dict[int, tuple[int, int]]:
    """Kept snapshot -> (rows that it states, rows that are live in it by the records of segments and overlays)."""
    kept = patient.rows("select id, num_rows from snapshots where table_id = ? and expired_at is null order by id", (table.id,))
    if not kept:
        return {}
    ids, stated = (np.array(column, np.int64) for column in zip(*kept, strict=True))
    total = np.zeros(len(ids), np.int64)
    for records, rows, sign in (("segments", "live_rows", 1), ("overlays", "num_deleted", -1)):
        for moment, gain in (("added_in", sign), ("removed_in", -sign)):
            events = patient.rows(
                f"select {moment}, sum({rows}) from {records} where table_id = ? and {moment} is not null group by {moment} order by {moment}", (table.id,)
            )
            if events:
                at, counts = (np.array([int(value) for value in column], np.int64) for column in zip(*events, strict=True))
                total += gain * np.append(0, np.cumsum(counts))[np.searchsorted(at, ids, side="right")]
    return {int(snapshot): (int(rows), int(live)) for snapshot, rows, live in zip(ids, stated, total, strict=True)}


def _recount(patient: Patient, table: TableState | None, subject: tuple[Any, ...]) -> str | None:
    assert table is not None
    wrong = {snapshot: live for snapshot, (stated, live) in counted_rows(patient, table).items() if stated != live}
    if subject[0] not in wrong:
        return None
    patient.connection.execute("update snapshots set num_rows = ? where table_id = ? and id = ?", (wrong[subject[0]], table.id, subject[0]))
    return f"snapshot {subject[0]} states {wrong[subject[0]]:,} rows"


@check(
    "snapshot-rows",
    scope="table",
    explains="a plan knows its exact row count from the snapshot before it reads anything; the next commit adds to it",
    remedy="counts the live rows of its segments again and states that (a deep run says whether those are true)",
    repair=_recount,
    needs_sound=True,
)
def snapshot_rows(patient: Patient, table: TableState) -> Iterator[Found]:
    for snapshot, (stated, live) in counted_rows(patient, table).items():
        if stated != live:
            yield Found(where=f"snapshot {snapshot}", what=f"states {stated:,} rows, and {live:,} are live in its segments", subject=(snapshot,))


@check(
    "watermark",
    scope="table",
    explains="a watermark never goes back: windows that were closed, and labels that were read as their default, would open again",
    remedy=FROM_BACKUP,
)
def watermark(patient: Patient, table: TableState) -> Iterator[Found]:
    rows = patient.rows(
        "select s.id, s.watermark, p.watermark from snapshots s join snapshots p on p.table_id = s.table_id and p.id = s.id - 1 "
        "where s.table_id = ? and p.watermark is not null and (s.watermark is null or s.watermark < p.watermark) order by s.id",
        (table.id,),
    )
    for snapshot, now, before in rows:
        yield Found(where=f"snapshot {snapshot}", what=f"watermark {now}, after {before} in the snapshot before it")
    rows = patient.rows(
        "select t.watermark, s.watermark from tables t join snapshots s on s.table_id = t.id and s.id = t.head where t.id = ? "
        "and coalesce(t.watermark, -1) <> coalesce(s.watermark, -1)",
        (table.id,),
    )
    for stated, shown in rows:
        yield Found(where="tables.watermark", what=f"{stated}, and the head's is {shown}")


@check(
    "schema",
    scope="table",
    explains="snapshots and segments are read by the schema they were written with",
    remedy=FROM_BACKUP,
)
def schema(patient: Patient, table: TableState) -> Iterator[Found]:
    known = {}
    for number, text, added_in in patient.rows("select id, json, added_in from schemas where table_id = ? order by id", (table.id,)):
        try:
            known[int(number)] = Schema.from_json(json.loads(text))
        except (HeadraceError, ValueError, KeyError, TypeError, OSError, pa.ArrowException) as error:
            yield Found(where=f"schema {number}", what=f"it cannot be read: {error}")
            known[int(number)] = Schema(columns=(), next_id=1)
        if added_in > table.head:
            yield Found(where=f"schema {number}", what=f"of snapshot {added_in}, and the head is {table.head}")
    for records in ("tables", "snapshots", "segments"):
        own = "id" if records == "tables" else "table_id"
        for (number,) in patient.rows(f"select distinct schema_id from {records} where {own} = ?", (table.id,)):
            if number not in known:
                yield Found(where=f"{records}.schema_id = {number}", what=f"the table has the schemas {sorted(known)}")


@check(
    "definition",
    scope="table",
    explains="keys, buckets, time and merge rules name columns by id: each must be in the schema, and each rule must be known",
    remedy=FROM_BACKUP,
)
def definition(patient: Patient, table: TableState) -> Iterator[Found]:
    if table.spec is None:
        ((count,),) = patient.rows("select count(*) from schemas where table_id = ? and id = ?", (table.id, table.schema_id))
        yield Found(where=f"table {table.name}", what="its definition cannot be read" if count else f"its schema {table.schema_id} is not there")
        return
    spec = table.spec
    there = {column.id for column in spec.schema}
    time_column = () if spec.time_column_id is None else (spec.time_column_id,)
    places = {"primary_key": spec.primary_key_ids, "bucket_by": spec.bucket_by_ids, "cluster_by": spec.cluster_by_ids, "time_column": time_column}
    for place, ids in places.items():
        for column_id in ids:
            if column_id not in there:
                yield Found(where=f"tables.{place}", what=f"column {column_id} is not in schema {spec.schema_id}")
    for column_id, rule in spec.merge_by_id.items():
        if rule not in MERGE_RULES:
            yield Found(where="tables.merge", what=f"rule {rule!r} of column {column_id} is none of {', '.join(MERGE_RULES)}")
    if max(there, default=0) >= spec.schema.next_id:
        yield Found(
            where=f"schema {spec.schema_id}", what=f"its next column would be {spec.schema.next_id}, and there is a column {max(there)}: an id is used once"
        )
