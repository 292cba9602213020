"""Expiry: what a kept snapshot needs stays readable to the byte, everything else goes, and nobody who still works is disturbed."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest

from loader import failpoints
from loader.catalog.commit import now_micros
from loader.catalog.garbage import collect
from loader.errors import KeyExistsError, SnapshotNotFoundError
from loader.lake import Lake
from tests.table.samples import create, labels, rows

NOW = datetime.timedelta(0)


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.table.files.INLINE_BYTES", 1000)


def stored(lake: Lake) -> set[str]:
    return {str(path.relative_to(lake.location)) for path in Path(lake.location).glob("data/**/*") if path.is_file()}


def collect_all(lake: Lake) -> None:
    collect(lake.database, lake.storage.files, now=now_micros() + 3_600_000_000 - 60_000_000)


def test_only_what_kept_snapshots_show_stays(lake: Lake) -> None:
    table = create(lake, buckets=1)
    for start in range(0, 100, 20):
        table.append(rows(start, start + 20))
        table.patch(labels([start], clicks=[1]))
    table.tag("half", 6)
    pin = lake.pin("samples", 4, "a job", 1000)
    shown = {snapshot: table.to_arrow(snapshot=snapshot) for snapshot in (4, 6, 10)}
    table.compact(full=True)
    shown[11] = table.to_arrow()
    report = table.expire(older_than=NOW, grace_seconds=0)
    assert report.snapshots == (1, 2, 3, 5, 7, 8, 9, 10) and report.records > 0
    assert [entry.id for entry in table.history()] == [4, 6, 11]
    before = stored(lake)
    collect_all(lake)
    assert stored(lake) < before
    for snapshot in (4, 6, 11):
        assert table.to_arrow(snapshot=snapshot).equals(shown[snapshot])
    with pytest.raises(SnapshotNotFoundError, match="snapshot 10 of table 'samples' expired on"):
        table.to_arrow(snapshot=10)
    with pytest.raises(SnapshotNotFoundError):
        lake.pin("samples", 10, "another job", 10)
    lake.unpin(pin)
    assert table.expire(older_than=NOW, grace_seconds=0).snapshots == (4,)
    collect_all(lake)
    assert table.to_arrow(snapshot="half").equals(shown[6])
    assert table.to_arrow().equals(shown[11])
    assert table.expire(older_than=NOW).records == 0, "there is nothing left to do"


def test_age_and_count_decide(lake: Lake) -> None:
    table = create(lake)
    for start in range(5):
        table.append(rows(start, start + 1))
    assert table.expire().snapshots == (), "nothing is a week old"
    assert table.expire(older_than=NOW, keep=3).snapshots == (1, 2)
    assert table.expire(older_than=datetime.datetime(2001, 1, 1)).snapshots == ()
    with pytest.raises(ValueError, match="keep is 0"):
        table.expire(keep=0)


def test_bytes_wait_for_the_grace_period(lake: Lake) -> None:
    table = create(lake, buckets=1)
    table.append(rows(0, 100))
    table.append(rows(100, 200))
    table.compact(full=True)
    before = stored(lake)
    table.expire(older_than=NOW)
    lake.collect_garbage()
    assert stored(lake) == before


def test_a_writer_that_stood_still_meanwhile_finds_every_key(lake: Lake, make_lake: Callable[..., Lake]) -> None:
    table = create(lake)
    table.append(rows(0, 20))
    idle = make_lake().table("samples")
    idle.patch(labels([1], clicks=[1]))  # its key directory stands here
    table.append(rows(20, 40))
    table.delete("item < 5")
    table.compact(full=True)
    table.expire(older_than=NOW, grace_seconds=0)
    collect_all(lake)
    summary = idle.patch(labels([1, 10, 30], clicks=[5, 5, 5]), on_missing="drop").summary
    assert summary == {"rows_patched": 2, "labels_held": 0, "labels_dropped": 1}
    idle.append(rows(0, 5))
    read = table.to_arrow(["item", "clicks"])
    assert dict(zip(read["item"].to_pylist(), read["clicks"].to_pylist(), strict=True)) == dict.fromkeys(range(40), 0) | {10: 5, 30: 5}


@pytest.mark.parametrize("write", ["append", "patch", "delete", "upsert"])
def test_a_retry_after_others_wrote_compacted_and_expired_finds_every_key(lake: Lake, make_lake: Callable[..., Lake], write: str) -> None:
    table, other = create(lake), make_lake().table("samples")
    for start in range(5):
        table.append(rows(start, start + 1))
    left = [1]

    def meanwhile() -> None:
        if left:
            left.pop()
            other.append(rows(30, 35))
            other.compact(full=True)
            other.expire(older_than=NOW)

    with failpoints.armed(f"{write}.resolved", meanwhile):
        if write == "append":
            with pytest.raises(KeyExistsError, match="5 of 10 keys"):
                table.append(rows(30, 40))
        elif write == "patch":
            assert table.patch(labels([1, 30], clicks=[1, 1])).summary["rows_patched"] == 2
        elif write == "delete":
            assert table.delete(labels([1, 30])).summary == {"rows_deleted": 2, "keys_missing": 0}
        else:
            assert table.upsert(rows(30, 40).select(["user", "item", "ts"])).summary == {"rows_inserted": 5, "rows_patched": 5, "rows_moved": 0}
    items = table.to_arrow(["item"])["item"].to_pylist()
    assert len(set(items)) == len(items) == table.history()[-1].num_rows


def test_offsets_and_commit_names_outlive_their_snapshot(lake: Lake) -> None:
    table = create(lake)
    table.append(rows(0, 5), commit_id="first")
    table.append(rows(5, 10))
    table.expire(older_than=NOW)
    assert table.append(rows(0, 5), commit_id="first").id == 1
    assert table.to_arrow().num_rows == 10
