"""Who waits for whom, said out loud: the board that `headrace top` reads, the warning with its cure, and Prometheus metrics."""

from __future__ import annotations

import json
import logging
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import loader
from loader.cli.app import run
from loader.train.board import Post, read_board
from loader.train.stats import STAGES, LoaderStats
from loader.train.watch import CURES, Watch, advice
from tests.train import sample_table

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_BOARD", str(tmp_path / "board"))
    return tmp_path / "board"


@pytest.fixture
def batches(tmp_path: Path) -> loader.DataLoader:
    table = sample_table.create(loader.connect(tmp_path / "lake"))
    return loader.DataLoader(table.scan(columns=["id", "history"]), global_batch_size=50)


def test_every_stage_has_a_cure() -> None:
    assert set(STAGES) <= set(CURES)


def test_advice_names_the_stage_that_cost_most() -> None:
    assert advice({"read": 0.2, "decode": 0.2}, 10.0) is None
    assert advice({}, 0.0) is None
    found = advice({"read": 3.0, "decode": 1.0}, 10.0)
    assert found is not None
    assert found.startswith("the trainer waited 40% of the last 10 s, 75% of it for read: storage is too slow")


def test_a_trainer_that_waits_is_warned_once_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    now, stats = 0.0, LoaderStats()
    watch = Watch("clicks", 0, 1, 4, lambda: stats, clock=lambda: now)
    with caplog.at_level(logging.WARNING):
        for second in range(100):
            now = float(second)
            stats = LoaderStats(batches=second, seconds=now, blocked_seconds={"decode": 5.0 + (0.5 * (second - 1) if second > 1 else 0.0)})
            watch.look()
    (record,) = caplog.records
    assert "clicks, rank 1: the trainer waited 45% of the last 10 s" in record.getMessage()
    assert "threads, decode on the GPU (device='cuda')" in record.getMessage()


def test_waiting_for_the_first_batch_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    now, stats = 0.0, LoaderStats()
    watch = Watch("clicks", 0, 0, 1, lambda: stats, clock=lambda: now)
    for second in range(60):
        now = float(second)
        stats = LoaderStats(batches=second + 1, seconds=20.0 + now, blocked_seconds={"plan": 20.0})
        watch.look()
    assert not caplog.records


def test_a_running_loader_is_on_the_board_until_it_ends(batches: loader.DataLoader, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_board() == []
    iterator = iter(batches)
    next(iterator)
    (shown,) = read_board()
    assert (shown["pid"], shown["loader"], shown["rank"], shown["world_size"], shown["batches"]) == (os.getpid(), "samples", 0, 1, 1)
    assert run(["top", "--once"]) == 0
    assert re.search(r"samples +0/1 +50", capsys.readouterr().out)
    assert run(["top", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["rows"] == 50
    batches.close()
    assert read_board() == []
    assert run(["top", "--once"]) == 0
    assert "no loader of this user runs" in capsys.readouterr().out


def test_the_dead_and_the_garbled_are_left_out(board: Path) -> None:
    Post("mine").write({"loader": "t"})
    (board / "4194304999-0.json").write_text(json.dumps({"pid": 2**22 + 999_999_999}))
    (board / "1-0.json").write_text("{")
    assert [values["loader"] for values in read_board()] == ["t"]
    assert not (board / "4194304999-0.json").exists()


def test_a_board_that_cannot_be_written_stops_nobody(batches: loader.DataLoader, board: Path) -> None:
    board.write_text("a file in the way")
    assert sum(len(batch) for batch in batches) == 50 * len(batches)
    assert batches.stats().batches == len(batches)


def test_metrics_say_what_stats_say(batches: loader.DataLoader) -> None:
    pytest.importorskip("prometheus_client")
    for _ in batches:
        pass
    stop = loader.serve_metrics(0, token="secret")
    try:
        url = f"http://127.0.0.1:{stop.port}/metrics"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url, timeout=10)
        request = urllib.request.Request(url, headers={"Authorization": "Bearer secret"})
        text = urllib.request.urlopen(request, timeout=10).read().decode()
    finally:
        stop()
    stats, number = batches.stats(), batches._watch.number
    labels = f'loader="{number}",rank="0"'
    assert f'headrace_loader_samples_total{{{labels},table="samples"}} {float(stats.rows)}' in text
    lines = re.findall(rf'headrace_loader_pipeline_seconds_total{{{labels},stage="(\w+)",table="samples"}} (\S+)', text)
    assert {stage: float(value) for stage, value in lines} == pytest.approx(dict(stats.pipeline_seconds))
    with pytest.raises(ValueError, match="only with token="):
        loader.serve_metrics(0, host="0.0.0.0")
