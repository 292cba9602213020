"""Checks of the records that make up snapshots: when they live, how many rows they have, their ranges, and sections that do not overlap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from loader.catalog import sealing
from loader.catalog.records import ALL_BUCKETS, OVERLAY_KINDS
from loader.doctor.checks import RECORDS, Found, Patient, TableState, check
from loader.doctor.history_checks import FROM_BACKUP
from loader.table.times import partition_of

BATCH_ROWS = 20_000
MAX_ROWS = 1_000  # of one question; more of the same is no news


@check(
    "lifetime",
    scope="table",
    explains="a record is live in the snapshots from added_in up to, not including, removed_in: outside the table's history it is shown never, or for ever",
    remedy=FROM_BACKUP,
)
def lifetime(patient: Patient, table: TableState) -> Iterator[Found]:
    for records in RECORDS:
        rows = patient.rows(
            f"select id, added_in, removed_in from {records} where table_id = ? and (added_in < 1 or added_in > ? or removed_in <= added_in or removed_in > ?) "
            f"order by id limit {MAX_ROWS}",
            (table.id, table.head, table.head),
        )
        for number, added, removed in rows:
            yield Found(where=f"{records} {number}", what=f"live from snapshot {added} to {removed}, and the head is {table.head}")


@check(
    "outlives-segment",
    scope="table",
    explains="overlays and column files belong to a segment and live within its time: others would be read with no rows under them",
    remedy=FROM_BACKUP,
)
def outlives_segment(patient: Patient, table: TableState) -> Iterator[Found]:
    for records in ("overlays", "column_files"):
        rows = patient.rows(
            f"select c.id, c.added_in, c.removed_in, s.id, s.added_in, s.removed_in, s.table_id from {records} c join segments s on s.id = c.segment_id "
            "where c.table_id = ? and (c.added_in < s.added_in or s.table_id <> c.table_id or (s.removed_in is not null and "
            f"(c.removed_in is null or c.removed_in > s.removed_in))) order by c.id limit {MAX_ROWS}",
            (table.id,),
        )
        for number, added, removed, segment, segment_added, segment_removed, owner in rows:
            other = "" if owner == table.id else f" of table number {owner}"
            yield Found(where=f"{records} {number}", what=f"lives {added} to {removed}, and its segment {segment}{other} {segment_added} to {segment_removed}")


@check(
    "segment-rows",
    scope="table",
    explains="row counts of segments add up to the plan's: positions of a shuffle are numbered by them before anything is read",
    remedy="verify the table (headrace doctor TABLE --deep says which files hold what); " + FROM_BACKUP,
)
def segment_rows(patient: Patient, table: TableState) -> Iterator[Found]:
    rows = patient.rows(
        "select s.id, s.num_rows, s.live_rows, coalesce(sum(o.num_deleted), 0) from segments s "
        "left join overlays o on o.segment_id = s.id and o.removed_in is null where s.table_id = ? and s.removed_in is null "
        "group by s.id, s.num_rows, s.live_rows "
        f"having s.live_rows > s.num_rows or s.live_rows < coalesce(sum(o.num_deleted), 0) order by s.id limit {MAX_ROWS}",
        (table.id,),
    )
    for segment, num_rows, live, deleted in rows:
        yield Found(where=f"segment {segment}", what=f"{num_rows:,} rows, {live:,} live at birth, {deleted:,} deleted since")
    last = 0
    while batch := patient.rows(
        f"select id, num_rows, block_rows from segments where table_id = ? and id > ? order by id limit {BATCH_ROWS}", (table.id, last)
    ):
        last = batch[-1][0]
        yield from _wrong_blocks(batch)


def _wrong_blocks(batch: list[Any]) -> Iterator[Found]:
    ids, num_rows = np.array([row[0] for row in batch]), np.array([row[1] for row in batch])
    sizes = np.array([len(row[2]) for row in batch])
    blocks = np.frombuffer(b"".join(bytes(row[2])[: size // 4 * 4] for row, size in zip(batch, sizes.tolist(), strict=True)), "<u4").astype(np.int64)
    stops = np.cumsum(sizes // 4)
    sums = np.append(0, np.cumsum(blocks))
    stated = sums[stops] - sums[stops - sizes // 4]
    for at in np.flatnonzero((stated != num_rows) | (sizes % 4 != 0)).tolist():
        yield Found(where=f"segment {ids[at]}", what=f"{num_rows[at]:,} rows, and its blocks have {stated[at]:,}")


@check(
    "segment-ranges",
    scope="table",
    explains="segments are skipped by their bucket and their ranges of key, time and sequence: a wrong one hides rows that are there",
    remedy="restore the catalog from a backup (headrace restore), or rewrite the segment with headrace compact --full after verifying it",
)
def segment_ranges(patient: Patient, table: TableState) -> Iterator[Found]:
    rows = patient.rows(
        "select id, bucket, num_rows, sequence_min, sequence_max, added_in, key_min, key_max, time_min, time_max from segments where table_id = ? and "
        "(bucket < ? or bucket >= ? or sequence_min > sequence_max or sequence_max > added_in or sequence_min < 1 or key_min > key_max or time_min > time_max "
        f"or num_rows < 0 or (key_min is null) <> (key_max is null) or (time_min is null) <> (time_max is null)) order by id limit {MAX_ROWS}",
        (table.id, ALL_BUCKETS, table.buckets),
    )
    for segment, bucket, num_rows, low, high, added, key_min, key_max, time_min, time_max in rows:
        yield Found(
            where=f"segment {segment}",
            what=f"bucket {bucket} of {table.buckets}, {num_rows:,} rows, sequence {low} to {high} added in {added}, keys {key_min} to {key_max}, "
            f"time {time_min} to {time_max}",
        )
    if table.spec is not None and table.spec.time_column is not None:
        yield from _wrong_partitions(patient, table)


def _wrong_partitions(patient: Patient, table: TableState) -> Iterator[Found]:
    spec = table.spec
    assert spec is not None and spec.time_column is not None
    last = 0
    while batch := patient.rows(
        f"select id, time_partition, time_min, time_max from segments where table_id = ? and id > ? and time_min is not null order by id limit {BATCH_ROWS}",
        (table.id, last),
    ):
        ids, partition, low, high = (np.array(column, np.int64) for column in zip(*batch, strict=True))
        last = int(ids[-1])
        first = partition_of(low, spec.time_column.type, spec.partition_by)
        final = partition_of(high, spec.time_column.type, spec.partition_by)
        for at in np.flatnonzero((first != partition) | (final != partition)).tolist():
            yield Found(
                where=f"segment {ids[at]}", what=f"time {low[at]} to {high[at]} is of partitions {first[at]} to {final[at]}, and it stands in {partition[at]}"
            )


@check(
    "overlay-record",
    scope="table",
    explains="a reader applies overlays by kind and sequence, and a plan subtracts their deleted rows without opening them",
    remedy="verify the table (headrace doctor TABLE --deep); " + FROM_BACKUP,
)
def overlay_record(patient: Patient, table: TableState) -> Iterator[Found]:
    kinds = ", ".join("?" * len(OVERLAY_KINDS))
    rows = patient.rows(
        f"select id, segment_id, kind, num_rows, num_deleted, sequence, added_in from overlays where table_id = ? and (kind not in ({kinds}) "
        "or num_rows < 0 or num_deleted < 0 or num_deleted > num_rows or (kind = 'patch' and num_deleted <> 0) or sequence < 1 or sequence > added_in) "
        f"order by id limit {MAX_ROWS}",
        (table.id, *OVERLAY_KINDS),
    )
    for number, segment, kind, num_rows, deleted, sequence, added in rows:
        yield Found(
            where=f"overlay {number} of segment {segment}", what=f"kind {kind!r}, {num_rows:,} rows, {deleted:,} deleted, sequence {sequence} added in {added}"
        )


def _repack(patient: Patient, table: TableState | None, subject: tuple[Any, ...]) -> str | None:
    assert table is not None
    if not sealing.check(patient.connection, table.id):
        return None
    ids = [segment for (segment,) in patient.rows("select id from segments where table_id = ? order by id", (table.id,))]
    sealing.repack(patient.connection, table.id, ids)
    return "the packs of segments are made anew from their rows"


@check(
    "segment-pack",
    scope="table",
    explains="readers load segments by the thousand from packs, copies of their rows: where one differs, they read another table than the writers",
    remedy="makes the packs anew from the rows",
    repair=_repack,
    needs_sound=True,
)
def segment_pack(patient: Patient, table: TableState) -> Iterator[Found]:
    """Row by row: in a deep run."""
    if patient.deep:
        for problem in sealing.check(patient.connection, table.id):
            yield Found(where="segment_packs", what=problem)


@check(
    "segment-twice",
    scope="table",
    explains="two live segments are the same one: all of its rows are read twice",
    remedy=FROM_BACKUP,
)
def segment_twice(patient: Patient, table: TableState) -> Iterator[Found]:
    rows = patient.rows(
        "select a.id, b.id, a.path, a.section_offset from segments a "
        "join segments b on b.path = a.path and b.section_offset = a.section_offset and b.id > a.id "
        "where a.table_id = ? and (a.removed_in is null or a.removed_in > b.added_in) and (b.removed_in is null or b.removed_in > a.added_in) "
        f"order by a.id limit {MAX_ROWS}",
        (table.id,),
    )
    for first, second, path, offset in rows:
        yield Found(where=f"segments {first} and {second}", what=f"both are the section at {offset} of {path}")


SECTIONS = " union ".join(f"select path, section_offset, num_bytes from {records} where table_id = ?" for records in RECORDS)


@check(
    "section-overlap",
    scope="table",
    explains="the sections of one object lie beside each other: where two overlap, one of them reads the other's bytes",
    remedy="verify the table (headrace doctor TABLE --deep says which of them is whole); " + FROM_BACKUP,
)
def section_overlap(patient: Patient, table: TableState) -> Iterator[Found]:
    rows = patient.rows(
        "select path, section_offset, num_bytes, previous_end from (select path, section_offset, num_bytes, max(section_offset + num_bytes) over "
        f"(partition by path order by section_offset, num_bytes rows between unbounded preceding and 1 preceding) as previous_end from ({SECTIONS}) as s) as o "
        f"where previous_end > section_offset or section_offset < 0 or num_bytes < 1 order by path, section_offset limit {MAX_ROWS}",
        (table.id,) * len(RECORDS),
    )
    for path, offset, num_bytes, before in rows:
        yield Found(where=path, what=f"the section at {offset} of {num_bytes} bytes" + ("" if before is None else f", where one before it ends at {before}"))
