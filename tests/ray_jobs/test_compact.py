"""The Ray compaction job: several beside each other, actors that die, SIGTERM, and what it says of a wrong command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import loader
from loader import CompactionOptions
from loader.errors import ConfigError, HeadraceError
from ray_jobs import compact, compaction
from tests.table.samples import create, labels, rows

ROOT = Path(__file__).parents[2]
ROWS, BUCKETS = 600, 3


@pytest.fixture
def lake(tmp_path: Path, in_buckets: None) -> Path:
    """A table of many small segments with labels."""
    with loader.connect(tmp_path / "lake") as opened:
        table = create(opened, buckets=BUCKETS, durability="relaxed")
        for start in range(0, ROWS, ROWS // 15):
            table.append(rows(start, start + ROWS // 15))
        table.patch(labels(list(range(ROWS)), clicks=[1] * ROWS))
    return tmp_path / "lake"


def job(lake: Path, **keys: object) -> compact.CompactConfig:
    return compact.load({"lake": {"location": str(lake), "table": "samples"}, **keys}, [], "test")


def check(lake: Path, *, segments: int = BUCKETS) -> None:
    with loader.connect(lake, create=False) as opened:
        table = opened.table("samples")
        assert len(table.view().segments) == segments
        read = table.to_arrow(["item", "clicks"])
        assert sorted(read["item"].to_pylist()) == list(range(ROWS)) and set(read["clicks"].to_pylist()) == {1}
        with opened.database.read() as connection:
            assert connection.execute("select count(*) from buckets where lease_owner is not null").fetchone() == (0,)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_job_compacts_every_bucket_and_cleans_up(lake: Path) -> None:
    totals = compact.compact(job(lake, workers=2, expire_older_than_days=0, collect_garbage=True), threading.Event())
    assert (totals.rounds, totals.num_tasks, totals.segments_before, totals.segments_after) == (1, BUCKETS, 15 * BUCKETS, BUCKETS)
    assert totals.overlays_folded == 15 * BUCKETS and totals.rows_written == ROWS and totals.snapshots_expired > 10
    check(lake)
    assert compact.compact(job(lake), threading.Event()).num_tasks == 0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_jobs_beside_each_other_do_the_work_once(lake: Path) -> None:
    totals = []
    threads = [threading.Thread(target=lambda: totals.append(compact.compact(job(lake, workers=1, full=True), threading.Event()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.num_tasks for one in totals) == BUCKETS and sum(one.rows_written for one in totals) == ROWS
    assert sum(one.num_abandoned for one in totals) == 0, "leases keep them apart"
    check(lake)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_continuous_job_follows_the_writers_until_it_is_stopped(lake: Path) -> None:
    stop, totals = threading.Event(), []
    thread = threading.Thread(target=lambda: totals.append(compact.compact(job(lake, continuous=True, interval_seconds=0.05), stop)))
    thread.start()
    with loader.connect(lake, create=False) as opened:
        table = opened.table("samples")
        for number in range(40):
            table.patch(labels(list(range(ROWS)), clicks=[1] * ROWS if number % 2 else [-1] * ROWS))
        deadline = time.monotonic() + 60
        while any(len(ref.overlays) > 9 for ref in table.view().segments) or len(table.view().segments) > BUCKETS:
            assert time.monotonic() < deadline, "the job folds what is written"
            stop.wait(0.05)
    stop.set()
    thread.join()
    assert totals[0].num_tasks == BUCKETS and totals[0].overlays_folded > 15 * BUCKETS
    check(lake)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_that_dies_is_replaced_and_its_bucket_taken_over(lake: Path, tmp_path: Path) -> None:
    class DiesOnce(compaction.Worker):
        def compact(self, bucket: int) -> object:
            if bucket == 1 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                with self._lake.database.write() as connection:
                    connection.execute("update buckets set lease_owner = ?, lease_until = ? where bucket = 1", (_owner(), 1 << 60))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().compact(bucket)

    pool = compaction.Pool(_work(lake), 2)
    pool._make = pool._ray.remote(num_cpus=1, max_concurrency=2)(DiesOnce).remote
    reports = list(pool.run(range(BUCKETS), threading.Event(), lambda rows: None))
    assert pool.num_lost == 1 and sum(report.num_tasks for report in reports) == BUCKETS
    check(lake)


def _owner() -> str:
    from loader.table.compaction.lease import new_owner

    return new_owner()


def _work(lake: Path) -> compaction.Work:
    return compaction.Work(location=str(lake), catalog=None, table="samples", full=True, options=CompactionOptions())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_bucket_that_kills_every_actor_is_an_error_that_says_so(lake: Path) -> None:
    class Dies(compaction.Worker):
        def compact(self, bucket: int) -> object:
            os.kill(os.getpid(), signal.SIGKILL)

    pool = compaction.Pool(_work(lake), 1)
    pool._make = pool._ray.remote(num_cpus=1, max_concurrency=2)(Dies).remote
    with pytest.raises(HeadraceError, match="bucket 2 of 'samples': 3 actors died"):
        list(pool.run([2], threading.Event(), lambda rows: None))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_stopped_pool_gives_up_what_is_in_hand(lake: Path) -> None:
    stop = threading.Event()
    stop.set()
    assert list(compaction.Pool(_work(lake), 2).run(range(BUCKETS), stop, lambda rows: None)) == []
    check(lake, segments=15 * BUCKETS)


@pytest.mark.ray
def test_sigterm_ends_a_continuous_job_in_good_order(lake: Path) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "ray_jobs.compact", str(lake), "samples", "--continuous", "--interval", "0.1", "--workers", "1"]
    child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    try:
        with loader.connect(lake, create=False) as opened:
            deadline = time.monotonic() + 120
            while len(opened.table("samples").view().segments) > BUCKETS:
                assert time.monotonic() < deadline and child.poll() is None
                time.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 0 and "45 segments became 3" in said
    check(lake)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["only-one"], "give LAKE and TABLE"),
        (["a", "b", "compaction.memory=3"], "no option 'memory'"),
        (["a", "b", "worker=3"], "worker: extra inputs"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: not a compaction job"),
        (["a", "b", "compaction.max_segments=1"], "max_segments must be at least 2"),
    ],
)
def test_what_is_wrong_with_a_command_line_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _configured(words)


def _configured(words: list[str]) -> compact.CompactConfig:
    return compact._config(compact.parser().parse_intermixed_args(words))


def test_a_job_from_a_file_and_words(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("lake: {location: /a, table: t}\ncompaction: {max_segments: 20}\n")
    config = _configured(["--config", str(path), "--continuous", "lake.location=s3://b/c?x=y", "compaction.threads=1"])
    assert (config.lake.location, config.continuous, config.compaction) == ("s3://b/c?x=y", True, CompactionOptions(max_segments=20, threads=1))
    assert _configured(["memory://a", "t", "--catalog", "postgresql://u@h/d?a=b"]).lake.catalog == "postgresql://u@h/d?a=b"
