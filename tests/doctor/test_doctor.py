"""Every kind of damage that a catalog or a file can have is planted, and the doctor names it; a healthy lake has nothing to name."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import loader
from loader import SourceOffsets
from loader.catalog import sealing
from loader.catalog.column_stats import RECORD
from loader.catalog.commit import now_micros
from loader.doctor import run as doctor_run
from loader.doctor.checks import REGISTRY
from loader.doctor.content_checks import Opened
from loader.errors import TableNotFoundError
from tests import postgres
from tests.table.samples import create, labels, rows

DAY = 86_400_000_000


def fill(place: Path, catalog: str | None) -> None:
    """Files and inline commits, a backfill, deletes, labels that wait, a compaction, expired snapshots, a tag and offsets."""
    with pytest.MonkeyPatch.context() as patch, loader.connect(place, catalog=catalog) as opened:
        patch.setattr("loader.table.files.INLINE_BYTES", 1200)
        table = create(opened, partition_by="day")
        table.append(rows(0, 300), watermark=100, offsets=SourceOffsets("pipe", "events", {0: (0, 300)}))
        table.append(rows(300, 2000), watermark=200)
        table.compact(full=True)
        table.expire(older_than=datetime.timedelta(0), keep=1, grace_seconds=0)
        table.patch(labels([1, 2, 5000], clicks=[1, 2, 3]))
        table.patch(labels(list(range(0, 2000, 2)), clicks=list(range(1000))))
        table.delete("item in (7, 9, 1999)")
        table.delete("item < 3")
        table.backfill(rows(100, 900).select(["user", "item"]).append_column("place", pa.array(range(100, 900))))
        table.append(rows(3000, 3010))
        table.tag("baseline")
        opened.collect_garbage()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("template") / "lake"
    fill(place, None)
    return place


@pytest.fixture
def lake(request: pytest.FixtureRequest, tmp_path: Path, template: Path) -> Iterator[Any]:
    """The filled lake, to do with as one likes: on SQLite, or where the test asks for it on PostgreSQL."""
    catalog = postgres.new_catalog() if getattr(request, "param", "sqlite") == "postgresql" else None
    if catalog is None:
        shutil.copytree(template, tmp_path / "lake")
    else:
        fill(tmp_path / "lake", catalog)
    with loader.connect(tmp_path / "lake", catalog=catalog) as opened:
        yield opened
    if catalog is not None:
        postgres.drop_catalog(catalog)


BOTH = pytest.mark.parametrize("lake", ["sqlite", "postgresql"], indirect=True)


def execute(lake: Any, *statements: str) -> None:
    with lake.database.write() as connection:
        if lake.catalog_url is not None:
            connection.execute("set local session_replication_role = replica")  # as a server that lost a row: foreign keys are not asked
        for statement in statements:
            connection.execute(statement.replace("?now", str(now_micros())))


def asked(lake: Any, question: str) -> Any:
    with lake.database.read() as connection:
        return connection.execute(question).fetchone()[0]


def codes(report: Any) -> set[str]:
    return {finding.code for finding in report.findings}


@BOTH
def test_a_healthy_lake_has_nothing_to_find(lake: Any) -> None:
    steps: list[tuple[int, int]] = []
    report = lake.doctor(deep=True, progress=lambda done, total: steps.append((done, total)))
    assert report.findings == ()
    assert report.is_clean
    assert report.num_sections == sum(asked(lake, f"select count(*) from {kind}") for kind in ("segments", "overlays", "column_files", "pending"))
    assert report.num_objects > 1
    assert steps[-1][0] == steps[-1][1]
    assert asked(lake, "select count(*) from pins where kind = 'pin'") == 0, "what held the heads is let go"
    with pytest.raises(TableNotFoundError, match="did you mean samples"):
        lake.doctor("sample")


FIRST = "(select min(id) from segments)"
DELETES = "(select min(id) from overlays where kind = 'deletes')"
INLINE = "(select min(path) from overlays where path like 'inline/%')"
COPIED = (
    "segment_uuid, bucket, time_partition, level, path, section_offset, num_bytes, schema_id, num_rows, live_rows, sequence_min, sequence_max, "
    "key_min, key_max, time_min, time_max, block_rows, added_in"
)
DAMAGE: dict[str, tuple[str, ...]] = {
    "head": ("update tables set head = head + 1",),
    "head: a gap": ("delete from snapshots where id = 2",),
    "head: the floor": ("update tables set floor = 900",),
    "head: expired": ("update snapshots set expired_at = 1 where id = (select head from tables)",),
    "snapshot-rows": ("update snapshots set num_rows = num_rows + 1 where id = (select head from tables)",),
    "snapshot-rows: a segment": (f"update segments set live_rows = live_rows - 1 where id = {FIRST}",),
    "watermark": ("update snapshots set watermark = 1 where id = (select head from tables)", "update tables set watermark = 1"),
    "watermark: not the head's": ("update tables set watermark = 5000",),
    "schema": ("update snapshots set schema_id = 17 where id = 4",),
    "schema: unreadable": ("update schemas set json = '{}' where id = 1",),
    "schema: unknown": ("update schemas set json = replace(json, '\"version\": 1', '\"version\": 2') where id = 1",),
    "definition": ("update tables set primary_key = '[99]'",),
    "definition: a rule": ('update tables set merge = \'{"6": "median"}\'',),
    "lifetime": (f"update overlays set added_in = 900 where id = {DELETES}",),
    "lifetime: backwards": (f"update overlays set removed_in = added_in where id = {DELETES}",),
    "outlives-segment": (f"update segments set removed_in = (select head from tables) where id = {FIRST}",),
    "segment-rows": (f"update segments set live_rows = num_rows + 1 where id = {FIRST}",),
    "segment-rows: blocks": (f"update segments set num_rows = num_rows + 1 where id = {FIRST}",),
    "segment-ranges": (f"update segments set bucket = 99 where id = {FIRST}",),
    "segment-ranges: sequence": (f"update segments set sequence_max = 900 where id = {FIRST}",),
    "segment-ranges: partition": (f"update segments set time_partition = time_partition + 1 where id = {FIRST}",),
    "overlay-record": (f"update overlays set kind = 'merged' where id = {DELETES}",),
    "overlay-record: count": (f"update overlays set num_deleted = num_rows + 1 where id = {DELETES}",),
    "segment-twice": (f"insert into segments (table_id, {COPIED}) select table_id, {COPIED} from segments where id = {FIRST}",),
    "section-overlap": ("update segments set section_offset = section_offset - 64 where id = (select max(id) from segments)",),
    "live-garbage": (f"insert into garbage select path, table_id, 0, 'planted' from segments where id = {FIRST}",),
    "live-staged": ("update staged set next_file = 0",),
    "inline-bytes": (f"delete from inline_data where path = {INLINE}",),
    "inline-bytes: short": (f"update overlays set num_bytes = 9999999 where path = {INLINE}",),
    "inline-orphan": ("insert into inline_data select 'inline/planted', table_id, data, num_bytes from inline_data limit 1",),
    "stored-object": (f"update segments set num_bytes = num_bytes + 99999999 where id = {FIRST}",),
    "bucket": ("update buckets set rows_changed_in = 900 where bucket = 1",),
    "bucket: missing": ("delete from buckets where bucket = 2",),
    "offset": ("update source_offsets set committed_in = 900",),
    "waiting-labels": ("update pending set num_held = num_held + 1",),
    "waiting-labels: met": ("update pending set removed_in = (select head from tables)",),
    "pin": ("insert into pins (table_id, snapshot_id, kind, name, created_at) select id, 900, 'pin', 'job', 1 from tables",),
    "pin-lapsed": (
        f"insert into pins (table_id, snapshot_id, kind, name, created_at, expires_at) select id, 4, 'pin', 'job', 1, ?now - 2 * {DAY} from tables",
    ),
    "lease-lapsed": (f"update buckets set lease_owner = 'gone', lease_until = ?now - 2 * {DAY} where bucket = 0",),
    "staged-lapsed": (f"update staged set lease_until = ?now - 2 * {DAY}",),
    "garbage-waits": ("insert into garbage select 'data/9/x', id, 5, 'planted' from tables",),
    "selection": ("insert into selections select id, 900, 'h', null, 1, '' from tables",),
    "dangling-row": ("update overlays set segment_id = 900 where kind = 'patch'",),
    "catalog-version": ("update catalog_version set version = 0",),
}
MENDED = ("snapshot-rows", "live-garbage", "live-staged", "inline-orphan", "bucket", "offset", "pin", "pin-lapsed", "lease-lapsed", "selection")


@pytest.mark.parametrize(("lake", "damage"), [("sqlite", damage) for damage in DAMAGE] + [("postgresql", damage) for damage in MENDED], indirect=["lake"])
def test_planted_damage_is_named_and_mended_where_that_is_safe(lake: Any, damage: str) -> None:
    code = damage.split(":")[0]
    execute(lake, *DAMAGE[damage])
    report = lake.doctor()
    named = [finding for finding in report.findings if finding.code == code]
    assert named, report.findings
    assert all(finding.what and finding.where and finding.explanation and finding.remedy for finding in report.findings)
    assert report.is_clean == all(finding.severity == "notice" for finding in report.findings)
    assert any(finding.is_repairable for finding in named) == (code in MENDED)
    if damage not in MENDED and damage != "bucket: missing":
        return
    mended = lake.doctor(repair=True)
    assert any(line.startswith(code) for line in mended.repaired), mended
    assert lake.doctor(deep=True).findings == ()
    assert asked(lake, "select count(*) from repairs") == len(mended.repaired)
    table = lake.table("samples")
    table.append(rows(4000, 4001))
    assert table.to_arrow().num_rows == table.history()[-1].num_rows


def test_a_count_is_not_mended_where_the_table_is_not_sound(lake: Any) -> None:
    execute(lake, *DAMAGE["snapshot-rows"], *DAMAGE["segment-ranges"])
    report = lake.doctor(repair=True)
    assert report.repaired == ()
    assert {"snapshot-rows", "segment-ranges"} <= codes(report)


def file_of(lake: Any, records: str) -> tuple[Path, int, int]:
    """The stored file of some record, and its section."""
    with lake.database.read() as connection:
        path, offset, size = connection.execute(
            f"select path, section_offset, num_bytes from {records} where path like 'data/%' and removed_in is null order by num_bytes desc limit 1"
        ).fetchone()
    return Path(lake.location) / path, offset, size


@pytest.mark.parametrize("records", ["segments", "overlays"])
def test_damaged_files_are_named(lake: Any, records: str) -> None:
    path, offset, size = file_of(lake, records)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[offset + size // 2] ^= 1
    path.write_bytes(flipped)
    assert lake.doctor().is_clean, "lengths alone do not show it"
    (finding,) = [finding for finding in lake.doctor(deep=True).findings if finding.code == "section-damaged"]
    assert path.name in finding.where
    path.write_bytes(whole[: offset + size - 1])
    assert "stored-object" in codes(lake.doctor())
    path.unlink()
    (finding,) = [finding for finding in lake.doctor().findings if finding.code == "stored-object"]
    assert "is not there" in finding.what
    path.write_bytes(whole)
    assert lake.doctor(deep=True).findings == ()


LIES: dict[str, str] = {
    "segment-content": f"update segments set segment_uuid = 'ff' where id = {FIRST}",
    "key-index": f"update segments set key_max = key_max - 1 where id = {FIRST}",
    "place-of-rows": f"update segments set time_min = time_min + 1 where id = {FIRST}",
    "place-of-rows: bucket": f"update segments set bucket = (bucket + 1) % 3 where id = {FIRST}",
    "overlay-content": "update overlays set num_rows = num_rows + 1 where kind = 'patch'",
    "overlay-content: deletes": f"update overlays set num_deleted = num_deleted - 1 where id = {DELETES}",
    "overlay-content: columns": "update overlays set column_ids = '[2]' where kind = 'patch'",
    "column-file-content": "update column_files set segment_id = (select max(id) from segments)",
    "waiting-content": "update pending set bucket = (bucket + 1) % 3",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_record_that_lies_about_its_section_is_named(lake: Any, lie: str) -> None:
    execute(lake, LIES[lie])
    assert lie.split(":")[0] in codes(lake.doctor(deep=True))


def test_a_row_deleted_twice_is_named(lake: Any) -> None:
    execute(
        lake,
        "insert into overlays (table_id, segment_id, kind, level, sequence, path, section_offset, num_bytes, num_rows, num_deleted, column_ids, added_in) "
        "select table_id, segment_id, kind, level, sequence, path, section_offset, num_bytes, num_rows, num_deleted, column_ids, "
        f"(select head from tables) from overlays where id = {DELETES}",
    )
    assert "deleted-twice" in codes(lake.doctor(deep=True))


@BOTH
def test_a_key_that_is_live_twice_is_named_whatever_memory_there_is(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.table("samples").append(rows(30, 40), on_conflict="trust")
    for memory_bytes in (1 << 30, 20_000):
        monkeypatch.setattr("loader.doctor.key_checks.KEY_MEMORY_BYTES", memory_bytes)
        found = [finding for finding in lake.doctor(deep=True).findings if finding.code == "key-twice"]
        assert len(found) == 10
        assert all("has the key of row" in finding.what for finding in found)


@BOTH
def test_an_erased_lake_is_healthy(lake: Any) -> None:
    """Of the head, of the tagged snapshot, of what was patched and of a label that waits: blanks are no damage."""
    items = [2, 10, 11, 150, 1500, 5000]
    lake.table("samples").erase(pa.table({"user": [item % 7 for item in items], "item": items}))
    assert lake.doctor(deep=True).findings == ()


@BOTH
def test_a_label_that_should_have_met_its_row_is_named(lake: Any) -> None:
    table = lake.table("samples")
    with lake.database.read() as connection:
        held = connection.execute("select id, met, removed_in from pending").fetchall()
    table.append(rows(5000, 5001))
    assert lake.doctor(deep=True).is_clean
    with lake.database.write() as connection:
        for number, met, removed_in in held:
            connection.execute("update pending set met = ?, removed_in = ? where id = ?", (met, removed_in, number))
    (finding,) = lake.doctor(deep=True).findings
    assert finding.code == "key-twice"
    assert "wait for a row that is there" in finding.what


def test_a_run_that_was_stopped_goes_on(lake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, offset, size = file_of(lake, "segments")
    damaged = bytearray(path.read_bytes())
    damaged[offset + size // 2] ^= 1
    path.write_bytes(damaged)
    read: list[str] = []
    really = doctor_run.sections.examine

    def examine(record: Any, *others: Any) -> Any:
        read.append(record.name)
        return really(record, *others)

    def stop(done: int, total: int) -> None:
        if len(read) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("loader.doctor.run.sections.examine", examine)
    with pytest.raises(KeyboardInterrupt):
        lake.doctor(deep=True, progress=stop, state=tmp_path / "state.json")
    before = len(read)
    report = lake.doctor(deep=True, state=tmp_path / "state.json")
    assert report.num_resumed >= 2
    assert len(read) == len(set(read)) + (len(read) - before - report.num_sections)
    assert "section-damaged" in codes(report)
    assert not (tmp_path / "state.json").exists()


def test_the_marker_and_the_catalogs_file_are_looked_at(lake: Any) -> None:
    marker = Path(lake.location) / "headrace-lake.json"
    whole = marker.read_text()
    marker.write_text(whole.replace('"lake_id": "', '"lake_id": "0'))
    assert codes(lake.doctor()) == {"marker"}
    marker.unlink()
    assert codes(lake.doctor()) == {"marker"}
    marker.write_text(whole)
    with lake.database.write() as connection:
        connection.execute("pragma writable_schema = on")
        connection.execute("update sqlite_master set sql = replace(sql, '(table_id, added_in)', '(table_id, removed_in)') where name = 'segments_added'")
    lake.close()
    with loader.connect(lake.location) as again:
        assert "catalog-damaged" in codes(again.doctor(deep=True))


def test_a_footer_that_states_wrong_statistics_is_named(lake: Any) -> None:
    """A segment whose smallest value is stated too high, under checksums that match."""
    from loader.doctor.content_checks import block_statistics

    class Lying:
        def __init__(self, reader: Any) -> None:
            self._reader = reader

        def __getattr__(self, name: str) -> Any:
            return getattr(self._reader, name)

        def stats(self, column_id: int) -> Any:
            stated = self._reader.stats(column_id).copy()
            stated["min"] += 1
            stated["null_count"] += column_id == 6
            return stated

    with lake.database.read() as connection:
        path, offset, size = connection.execute("select path, section_offset, num_bytes from segments limit 1").fetchone()
    reader = loader.SegmentReader(lake.storage.section(path, offset, size))
    record = {"path": path, "section_offset": offset}
    opened = {"record": record, "spec": None, "segment": None, "overlays": (), "storage": lake.storage}
    assert list(block_statistics(Opened(reader=reader, **opened))) == []
    wrong = [found.what for found in block_statistics(Opened(reader=Lying(reader), **opened))]  # type: ignore[arg-type]
    assert any("column 'item', block 0: values" in what for what in wrong)
    assert any("column 'clicks', block 0: 0 nulls, and its footer states 1" in what for what in wrong)


def test_statistics_that_hide_rows_are_named(lake: Any) -> None:
    with lake.database.write() as connection:
        segment, stats = connection.execute("select id, stats from segments where stats is not null order by id limit 1").fetchone()
        records = np.frombuffer(bytes(stats), RECORD).copy()
        records["min"][records["column_id"] == 2] += np.uint64(1)
        records["null_count"][records["column_id"] == 1] += np.uint64(1)
        connection.execute("update segments set stats = ? where id = ?", (records.tobytes(), segment))
    shown = [finding.what for finding in lake.doctor(deep=True).findings if finding.code == "segment-statistics"]
    assert len(shown) == 2
    assert any(what.startswith("column 2: values") for what in shown)
    assert any(what.startswith("column 1: 0 nulls, and the catalog states 1") for what in shown)


@BOTH
def test_a_pack_that_differs_from_its_rows_is_made_anew(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.catalog.sealing.PACK_SEGMENTS", 2)
    with lake.database.write() as connection:
        while sealing.seal(connection, 1):
            pass
        connection.execute("update segments set key_max = key_max + 1 where id = (select min(id) from segments)")
    assert lake.doctor().is_clean, "only a deep run compares them"
    (finding,) = lake.doctor(deep=True).findings
    assert finding.code == "segment-pack"
    report = lake.doctor(deep=True, repair=True)
    assert (len(report.repaired), report.findings) == (1, ())


def test_every_check_has_a_test() -> None:
    tested = {damage.split(":")[0] for damage in (*DAMAGE, *LIES)}
    apart = {
        "section-damaged",
        "deleted-twice",
        "key-twice",
        "block-statistics",
        "marker",
        "catalog-damaged",
        "segment-pack",
        "segment-statistics",
        "quarantine",
    }
    assert set(REGISTRY) == tested | apart
