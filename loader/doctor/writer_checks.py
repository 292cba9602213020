"""Checks of what writers and readers leave in the catalog: key buckets, offsets, waiting labels, leases, pins and stored selections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from loader.doctor.checks import LAPSED_SECONDS, NOTICE, WARNING, Found, Patient, TableState, check
from loader.doctor.history_checks import FROM_BACKUP

BATCH_ROWS = 1_000
MAX_ROWS = 1_000


def _mend_bucket(patient: Patient, table: TableState | None, subject: tuple[Any, ...]) -> str | None:
    assert table is not None
    (bucket,) = subject
    ((head,),) = patient.rows("select head from tables where id = ?", (table.id,))
    patient.connection.execute(
        "insert into buckets (table_id, bucket, rows_changed_in, pending_changed_in) values (?, ?, ?, ?) on conflict (table_id, bucket) do update set "
        "rows_changed_in = excluded.rows_changed_in, pending_changed_in = excluded.pending_changed_in",
        (table.id, bucket, head, head),
    )
    return f"key bucket {bucket} counts as changed in snapshot {head}: the writers at work look up their keys once more"


@check(
    "bucket",
    scope="table",
    explains="writers look up their keys again where a key bucket changed since: one that says it changed after the head is never up to date, and one that "
    "is not there lets two writers insert one key",
    remedy="lets it count as changed in the head, which costs the writers at work one more look",
    repair=_mend_bucket,
)
def bucket(patient: Patient, table: TableState) -> Iterator[Found]:
    seen = set()
    for number, rows, pending in patient.rows(
        "select bucket, rows_changed_in, pending_changed_in from buckets where table_id = ? order by bucket", (table.id,)
    ):
        seen.add(number)
        if number < table.buckets and not (0 <= rows <= table.head and 0 <= pending <= table.head):
            yield Found(where=f"key bucket {number}", what=f"rows changed in {rows}, labels in {pending}, and the head is {table.head}", subject=(number,))
    for number in range(table.buckets):
        if number not in seen:
            yield Found(where=f"key bucket {number}", what=f"it is not there, and the table has {table.buckets}", subject=(number,))


def _mend_offset(patient: Patient, table: TableState | None, subject: tuple[Any, ...]) -> str | None:
    assert table is not None
    done = patient.connection.execute(
        "update source_offsets set committed_in = (select head from tables where id = ?) where table_id = ? and pipeline = ? and source = ? "
        "and source_partition = ? and committed_in > (select head from tables where id = ?)",
        (table.id, table.id, *subject, table.id),
    ).rowcount
    return f"offsets of {subject} count as committed in the head" if done else None


@check(
    "offset",
    scope="table",
    explains="a replay of these offsets is answered with the snapshot that committed them, which is not there",
    remedy="lets the head answer; what the offset itself says stays",
    repair=_mend_offset,
)
def offset(patient: Patient, table: TableState) -> Iterator[Found]:
    rows = patient.rows(
        "select pipeline, source, source_partition, next, committed_in from source_offsets where table_id = ? "
        f"and (committed_in > ? or committed_in < 1 or next < 0) order by pipeline, source, source_partition limit {MAX_ROWS}",
        (table.id, table.head),
    )
    for pipeline, source, partition, following, committed_in in rows:
        yield Found(
            where=f"pipeline {pipeline}, source {source}, partition {partition}",
            what=f"next {following}, committed in snapshot {committed_in}, and the head is {table.head}",
            subject=(pipeline, source, partition),
        )


@check(
    "waiting-labels",
    scope="table",
    explains="labels that wait for their row are found by their keys in the catalog: these would meet the wrong row, twice, or never",
    remedy=FROM_BACKUP,
)
def waiting_labels(patient: Patient, table: TableState) -> Iterator[Found]:
    last = 0
    while batch := patient.rows(
        "select id, bucket, num_held, length(keys), met, removed_in from pending where table_id = ? and id > ? order by id limit " + str(BATCH_ROWS),
        (table.id, last),
    ):
        last = batch[-1][0]
        for number, own_bucket, held, num_bytes, met, removed in batch:
            positions = np.frombuffer(bytes(met or b""), np.uint8)
            met_rows = positions[: len(positions) // 4 * 4].view("<u4").astype(np.int64)
            sane = len(positions) % 4 == 0 and bool((np.diff(met_rows) > 0).all()) and (not len(met_rows) or met_rows[-1] < held)
            if num_bytes not in (12 * held, 20 * held) or not 0 <= own_bucket < table.buckets or not sane:
                yield Found(
                    where=f"pending {number}", what=f"{held} labels of key bucket {own_bucket} in {num_bytes} bytes of keys, {len(met_rows)} of them met"
                )
            elif (len(met_rows) == held) != (removed is not None):
                yield Found(where=f"pending {number}", what=f"{len(met_rows)} of {held} labels are met, and it was removed in {removed}")


def _release_pin(patient: Patient, table: TableState | None, subject: tuple[Any, ...]) -> str | None:
    done = patient.connection.execute("delete from pins where id = ? and kind = 'pin'", subject).rowcount
    return f"pin {subject[0]} is released" if done else None


@check(
    "pin",
    scope="table",
    explains="somebody holds a snapshot that cannot be read any more",
    remedy="releases a job's pin; a tag is left to you: give the name to another snapshot, once it is free",
    repair=_release_pin,
)
def pin(patient: Patient, table: TableState) -> Iterator[Found]:
    rows = patient.rows(
        "select p.id, p.kind, p.name, p.snapshot_id, s.expired_at from pins p left join snapshots s on s.table_id = p.table_id and s.id = p.snapshot_id "
        "where p.table_id = ? and (p.expires_at is null or p.expires_at > ?) and ((s.id is null and p.snapshot_id <> 0) or s.expired_at is not null) "
        "order by p.id",
        (table.id, patient.now),
    )
    for number, kind, name, snapshot, expired_at in rows:
        what = "was forgotten" if expired_at is not None else "never was"
        yield Found(where=f"{kind} {name!r}", what=f"it holds snapshot {snapshot}, which {what}", subject=(number,))


@check(
    "pin-lapsed",
    scope="table",
    severity=NOTICE,
    explains="a job's pin ran out more than a day ago: nobody collects garbage in this lake",
    remedy="releases it; run headrace gc now and then",
    repair=_release_pin,
)
def pin_lapsed(patient: Patient, table: TableState) -> Iterator[Found]:
    long_ago = patient.now - LAPSED_SECONDS * 1_000_000
    for number, name, snapshot in patient.rows(
        "select id, name, snapshot_id from pins where table_id = ? and kind = 'pin' and expires_at < ? order by id", (table.id, long_ago)
    ):
        yield Found(where=f"pin {name!r}", what=f"it ran out, at snapshot {snapshot}", subject=(number,))


def _free_bucket(patient: Patient, table: TableState | None, subject: tuple[Any, ...]) -> str | None:
    assert table is not None
    done = patient.connection.execute(
        "update buckets set lease_owner = null, lease_until = null where table_id = ? and bucket = ? and lease_until < ?", (table.id, *subject, patient.now)
    ).rowcount
    return f"bucket {subject[0]} is free" if done else None


@check(
    "lease-lapsed",
    scope="table",
    severity=NOTICE,
    explains="the owner of a bucket died more than a day ago and nobody took the bucket over: it is not compacted",
    remedy="frees the bucket; is a compactor running?",
    repair=_free_bucket,
)
def lease_lapsed(patient: Patient, table: TableState) -> Iterator[Found]:
    long_ago = patient.now - LAPSED_SECONDS * 1_000_000
    for number, owner in patient.rows(
        "select bucket, lease_owner from buckets where table_id = ? and lease_owner is not null and lease_until < ? order by bucket", (table.id, long_ago)
    ):
        yield Found(where=f"bucket {number}", what=f"leased to {owner}, whose lease ran out", subject=(number,))


@check(
    "staged-lapsed",
    scope="table",
    severity=NOTICE,
    explains="a writer died more than a day ago, and the files that it never committed take up space",
    remedy="run headrace gc, which deletes them",
)
def staged_lapsed(patient: Patient, table: TableState) -> Iterator[Found]:
    long_ago = patient.now - LAPSED_SECONDS * 1_000_000
    rows = patient.rows("select prefix, owner from staged where table_id = ? and lease_until < ? order by prefix", (table.id, long_ago))
    for prefix, owner in rows:
        yield Found(where=prefix, what=f"staged by {owner}, whose lease ran out")


@check(
    "garbage-waits",
    scope="table",
    severity=NOTICE,
    explains="garbage whose grace period ended more than a day ago takes up space",
    remedy="run headrace gc, which deletes it",
)
def garbage_waits(patient: Patient, table: TableState) -> Iterator[Found]:
    long_ago = patient.now - LAPSED_SECONDS * 1_000_000
    ((count,),) = patient.rows("select count(*) from garbage where table_id = ? and not_before < ?", (table.id, long_ago))
    if count:
        yield Found(where="garbage", what=f"{count:,} objects")


def _drop_selection(patient: Patient, table: TableState | None, subject: tuple[Any, ...]) -> str | None:
    assert table is not None
    done = patient.connection.execute("delete from selections where table_id = ? and snapshot_id = ? and hash = ?", (table.id, *subject)).rowcount
    return f"selection {subject[1]} of snapshot {subject[0]} is gone" if done else None


@check(
    "selection",
    scope="table",
    severity=WARNING,
    explains="a stored selection belongs to a snapshot that cannot be read any more",
    remedy="deletes it; it is counted again where it is needed",
    repair=_drop_selection,
)
def selection(patient: Patient, table: TableState) -> Iterator[Found]:
    rows = patient.rows(
        "select x.snapshot_id, x.hash from selections x left join snapshots s on s.table_id = x.table_id and s.id = x.snapshot_id "
        "where x.table_id = ? and x.snapshot_id <> 0 and (s.id is null or s.expired_at is not null) order by x.snapshot_id, x.hash",
        (table.id,),
    )
    for snapshot, name in rows:
        yield Found(where=f"selection {name}", what=f"of snapshot {snapshot}, which is not kept", subject=(snapshot, name))
