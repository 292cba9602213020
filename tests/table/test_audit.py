"""The audit names what nothing refers to and what is not there, and touches neither."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

import loader
from loader.storage import ObjectStorage, Storage
from loader.table.audit import audit
from tests.table.samples import create, rows


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.table.files.INLINE_BYTES", 1000)


def test_orphans_and_what_is_missing_are_reported_and_left(lake: loader.lake.Lake, tmp_path: Path) -> None:
    table = create(lake, buckets=1)
    for start in range(0, 300, 100):
        table.append(rows(start, start + 100))
    clean = lake.audit()
    assert clean.num_objects == 3 and clean.num_bytes > 0 and clean.orphans == clean.missing == ()
    writer = table._context.new_stage()
    writer.put(b"not committed yet")
    lake.storage.files.put("data/9/gone/00000000.hr", b"left by nobody")
    lost = table.view().segments[1].path
    lake.storage.files.delete([lost])
    report = lake.audit()
    assert [(orphan.path, orphan.num_bytes) for orphan in report.orphans] == [("data/9/gone/00000000.hr", 14)]
    assert [(one.path, one.records) for one in report.missing] == [(lost, ("segments",))]
    assert report.staged_objects == 1
    report.save_list(tmp_path / "orphans")
    assert (tmp_path / "orphans").read_text().endswith("data/9/gone/00000000.hr\n")
    assert lake.audit() == report, "nothing was deleted"
    lake.drop_table("samples")
    after = lake.audit()
    assert after.garbage_objects == 2 and after.missing == ()


def test_any_store_is_listed(lake: loader.lake.Lake) -> None:
    """An object store lists as a folder does."""
    memory = Storage.open(f"memory://{uuid.uuid4().hex}")
    assert isinstance(memory, ObjectStorage)
    memory.put("data/1/a/00000000.hr", b"four")
    memory.put("elsewhere", b"five!")
    report = audit(lake.database, memory)
    assert [(orphan.path, orphan.num_bytes) for orphan in report.orphans] == [("data/1/a/00000000.hr", 4)]
