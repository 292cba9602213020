"""Claims about flow: depths follow the trainer's waiting, memory stays inside its setting, and whoever is slow is named."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import loader
from loader.cli.top import _table
from loader.errors import StorageError
from loader.scan import fetch
from loader.scan.counts import FetchCounts
from loader.train.board import read_board
from loader.train.flow import CALM_BATCHES, FIRST_BATCHES, Flow
from tests.train import sample_table

pytest.importorskip("torch")
DELAY_SECONDS = 0.1


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    lake = loader.connect(str(tmp_path_factory.mktemp("flow") / "lake"))
    yield sample_table.create(lake)
    lake.close()


def make(table, **options):
    scan = table.scan(columns=["id", "history"])
    return loader.DataLoader(scan, **{"global_batch_size": 12, "window_rows": 20, "canonical_shards": 4, "threads": 1, **options})


def culprit(stats):
    return max(stats.blocked_seconds, key=lambda stage: stats.blocked_seconds[stage])


def test_a_slow_store_is_the_culprit_and_more_is_fetched_ahead(table, monkeypatch):
    real = fetch.retry
    monkeypatch.setattr(fetch, "retry", lambda action, **options: (time.sleep(DELAY_SECONDS), real(action, **options))[1])
    with make(table) as batches:
        first = batches._flow.blocks
        for _ in range(2):
            assert sum(1 for _ in batches) == 50
        stats = batches.stats()
    assert culprit(stats) == "read"
    assert stats.blocks_ahead > first and stats.batches_ahead > FIRST_BATCHES
    assert stats.to_dict()["trainer_share"] < 0.5


def test_slow_checksums_are_told_from_a_slow_store(table, monkeypatch):
    real = fetch.crc32c
    monkeypatch.setattr(fetch, "crc32c", lambda part: (time.sleep(DELAY_SECONDS), real(part))[1])
    with make(table) as batches:
        for _ in batches:
            pass
        assert culprit(batches.stats()) == "checksum"


def test_a_slow_trainer_leaves_the_depths_small(table):
    with make(table) as batches:
        first, left = batches._flow.blocks, len(batches)
        for _ in batches:
            left -= 1
            while batches._prefetcher.queued < min(left, FIRST_BATCHES):
                time.sleep(0.001)
        stats = batches.stats()
    assert (stats.batches_ahead, stats.blocks_ahead) == (FIRST_BATCHES, first)


def test_memory_stays_inside_its_setting_however_far_ahead_the_loader_may_work(table):
    with pytest.raises(ValueError, match="windows need"):
        make(table, memory_bytes=1_000)
    with make(table) as roomy:
        needed = next(size for size in range(1_000, 10_000_000, 1_000) if _fits(table, size))
        roomy.close()
    with make(table, memory_bytes=needed + 20_000) as batches:
        batches._flow.batches = 256  # as if the trainer had waited long
        for _ in batches:
            pass
        stats = batches.stats()
    assert 0 < stats.peak_window_bytes + stats.peak_queued_bytes <= needed + 20_000
    assert stats.peak_queued_bytes > 0


def _fits(table, memory_bytes):
    try:
        make(table, memory_bytes=memory_bytes).close()
    except ValueError:
        return False
    return True


def test_lost_reads_are_tried_again_and_counted(table, monkeypatch):
    real, lost = fetch.retry, []

    def once(action, **options):
        def flaky():
            if not lost:
                lost.append(True)
                raise StorageError("connection reset")
            return action()

        return real(flaky, **options, delay_seconds=0.001)

    monkeypatch.setattr(fetch, "retry", once)
    with make(table) as batches:
        assert sum(len(batch) for batch in batches) == 600
        counts = batches.stats().storage
    assert counts.retries == 1 and counts.reads > 1 and counts.cache_misses > 0 and counts.cache_hits > 0


def test_depths_grow_by_waiting_stop_at_the_limit_and_shrink_when_calm():
    flow = Flow(threads=2)
    flow.queue_bytes = 1_000
    flow.taken({}, 1.0, queued=0, num_bytes=100)
    assert (flow.batches, flow.blocks) == (FIRST_BATCHES, 4)
    flow.taken({"decode": 0.5}, 1.0, queued=0, num_bytes=100)
    assert (flow.batches, flow.blocks) == (4, 4)
    for _ in range(3):
        flow.taken({"read": 0.5}, 1.0, queued=0, num_bytes=100)
    assert (flow.batches, flow.blocks) == (10, 32)  # ten of 100 bytes fit
    for _ in range(CALM_BATCHES + 1):
        flow.taken({"read": 0.001}, 1.0, queued=8, num_bytes=100)
    assert flow.batches == 6
    flow.begin(is_fixed=True)
    assert flow.most_batches == FIRST_BATCHES


def test_counts_add_up():
    total = FetchCounts(reads=1, read_seconds=3.0) + FetchCounts(reads=2, checksum_seconds=1.0)
    assert total == FetchCounts(reads=3, read_seconds=3.0, checksum_seconds=1.0)
    assert total.checksum_share == 0.25


def test_the_board_shows_retries_and_depths(table, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HEADRACE_BOARD", str(tmp_path))
    with make(table) as batches:
        iterator = iter(batches)
        next(iterator)
        shown = _table(read_board(), {}, wide=True)
    cells = {column.header: list(column.cells) for column in shown.columns}
    assert cells["retries"] == ["0"] and cells["ahead"] == ["2+2"]
