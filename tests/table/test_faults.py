"""Storage and catalog fail at random: what was acknowledged is there once, what was not may be repeated, nothing half-done shows, and no file is left."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable

import pytest

import loader
from loader.errors import ConflictError, KeyExistsError, StorageError, UnknownOutcomeError
from loader.lake import Lake
from loader.table.table import Table
from scripts.soak_table_model import MERGE, SCHEMA, Model, operation, write
from scripts.soak_table_verify import check_files, differences
from tests.faults import FaultyStorage, Rates, break_catalog

PASSING = (StorageError, UnknownOutcomeError, ConflictError)
RATES = Rates(refused=0.05, lost=0.05, read=0.002, slow=0.0)
TRIES = 40


def open_faulty(make_lake: Callable[..., Lake], rng: random.Random) -> tuple[Lake, Callable[[], int]]:
    """The lake with faults, and how many came."""
    lake = make_lake()
    files = FaultyStorage(lake.storage.files, rng, RATES)
    lake.storage.files = files
    counts = break_catalog(lake.database, rng, RATES)
    return lake, lambda: sum(files.counts.values()) + sum(counts.values())


def repeated(call: Callable[[], object]) -> bool:
    """Whether a call came to an answer, however often it had to be repeated; False where a key existed."""
    for _ in range(TRIES):
        try:
            call()
        except KeyExistsError:
            return False
        except PASSING:
            continue
        return True
    raise AssertionError(f"no answer in {TRIES} tries")


@pytest.mark.parametrize("seed", range(2))
def test_acknowledged_writes_are_there_once_whatever_fails(make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr("loader.table.files.INLINE_BYTES", 1000)
    rng = random.Random(seed)
    clean = make_lake()
    clean.create_table("t", SCHEMA, primary_key=["key"], bucket_by=["user"], buckets=2, cluster_by=["ts"], time_column="ts", partition_by="day", merge=MERGE)
    opened = [open_faulty(make_lake, rng) for _ in range(2)]
    tables: list[Table] = [lake.table("t") for lake, _ in opened]
    refused, told = set(), {}
    for turn in range(60):
        at = rng.randrange(2)
        commit_id = f"{seed}-{turn}"

        def once(at: int = at, commit_id: str = commit_id) -> None:
            tables[at] = opened[at][0].table("t")  # by the schema that another may have changed
            told[commit_id] = write(tables[at], commit_id).id

        if not repeated(once):
            refused.add(commit_id)
        if turn % 15 == 7:
            repeated(lambda: tables[0].compact(full=True, options=loader.CompactionOptions(threads=1)))
        if turn % 20 == 19:
            repeated(lambda: tables[1].expire(older_than=datetime.timedelta(0), keep=3, grace_seconds=0))
            repeated(opened[0][0].collect_garbage)
    assert sum(count() for _, count in opened) > 10
    names = committed(clean)
    assert {name: number for name, number in names.items() if name in told} == told and not refused & names.keys()
    model = Model()
    for name in sorted(told, key=told.__getitem__):
        assert model.apply(operation(name)) is None, name
    table = clean.table("t")
    assert differences(table, max(names.values()), model.rows) == []
    assert table.describe()["num_pending"] == model.num_held
    for lake, _ in opened:
        lake.close()
    problems: list[str] = []
    check_files(clean, 2 * 3600, problems)
    assert problems == []
    assert [str(finding) for finding in clean.doctor(deep=True).findings] == []


def committed(lake: Lake) -> dict[str, int]:
    with lake.database.read() as connection:
        return dict(connection.execute("select commit_id, id from snapshots order by id").fetchall())
