"""The parts of a run that need no cluster: checkpoints hold no pickle, journals survive a torn line, the watcher speaks plainly, errors are one line."""

from __future__ import annotations

import logging
import resource
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("ray.train")

import numpy as np
import ray.train
import torch

import loader.config
from loader.errors import ConfigError, HeadraceError, MissingDependencyError, StateMismatchError, StorageFullError
from ray_jobs import train
from ray_jobs.training import checkpoint, evaluation, journal
from ray_jobs.training.checkpoint import Progress
from ray_jobs.training.journal import RunFolder
from ray_jobs.training.records import RecordWriter
from ray_jobs.training.watch import Watcher
from tests.ray_jobs.test_train import make_config


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    progress = Progress(seed_index=1, epoch=2, step=30, rows_seen=512, train_seconds=1.5, finished=[{"seed": 1, "steps": 90}])
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adagrad(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors = {"model": model.state_dict(), "embedding_optimizer": optimizer.state_dict()}
    with checkpoint.save(progress, {"position": 512}, tensors) as saved:
        loaded_progress, state, loaded = checkpoint.load(saved)
    assert loaded_progress == progress and state == {"position": 512}
    torch.testing.assert_close(loaded["model"], tensors["model"])
    torch.testing.assert_close(loaded["embedding_optimizer"]["state"], tensors["embedding_optimizer"]["state"])


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"version": 99}')
    with pytest.raises(StateMismatchError, match="version 99"):
        checkpoint.load(ray.train.Checkpoint.from_directory(tmp_path))


def test_progress_counts_and_moves_to_the_next_seed() -> None:
    progress = Progress()
    progress.count(256, 0.5, 1.0, first=True)
    progress.count(256, 0.25, 1.0)
    assert (progress.rows_seen, progress.wait_seconds, progress.first_wait_seconds) == (512, 0.75, 0.5)
    progress.next_seed({"seed": 4})
    assert progress.point == {"seed_index": 1, "epoch": 0, "step": 0, "rows_seen": 0} and progress.rows_trained == 512


def test_a_line_torn_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal.append(path, {"event": "start"})
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"event": "che')
    assert [event["event"] for event in journal.read(path)] == ["start"]
    journal.append(path, {"event": "resume"})
    assert [event["event"] for event in journal.read(path)] == ["start", "resume"]


def test_test_rows_of_one_label_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "gather", lambda values, device: values)
    scores = evaluation.Scores(logits=torch.zeros(5), labels=torch.zeros(5))
    with pytest.raises(HeadraceError, match="the 5 rows of data.test_where hold one label only"):
        evaluation.measure(scores, torch.device("cpu"))


def test_a_full_disk_is_told_at_once(tmp_path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        records = RecordWriter(tmp_path, attempt=0, rank=0)
        with pytest.raises(StorageFullError, match=r"rank-0000\.ids: free some"):
            records.write(seed_index=0, epoch=0, step=1, positions=np.zeros((80, 2), np.int64))
        journal.append(tmp_path / "attempts.jsonl", {"text": "x" * 900})
        with pytest.raises(StorageFullError, match=r"attempts\.jsonl: free some"):
            journal.append(tmp_path / "attempts.jsonl", {"text": "x" * 900})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    records.close()
    assert len(journal.read(tmp_path / "attempts.jsonl")) == 1


def test_the_watcher_says_what_is_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunFolder(tmp_path)
    journal.append(run.events, {"event": "start", "ranks": 2})
    watcher = Watcher(run, batches_per_epoch=19, epochs=2)
    journal.append(run.events, {"event": "kill", "rank": 1, "pid": 77, "step": 21})
    journal.append(run.events, {"event": "resume", "ranks": 2, "attempt": 1, "seed": 3, "step": 18})
    step = {"seed": 3, "epoch": 1, "step": 21, "loss": 0.5, "seconds": 2.0, "wait_seconds": 0.1, "samples_per_second": 1000.0}
    journal.append(run.metrics, step)
    with caplog.at_level(logging.INFO, "headrace.train"):
        watcher.look()
        watcher.look()
    assert caplog.messages == [
        "killing rank 1 (process 77) after step 21, as train.kill_rank_at_step asks",
        "2 ranks start again (restart 1) from the checkpoint of seed 3, step 18",
        "seed 3, epoch 2 of 2, step 2 of 19: loss 0.5000, 1,000 samples/s, waited 5% for data",
    ]


def test_a_typo_is_one_line_and_status_1(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.yaml"
    make_config(tmp_path / "lake", tmp_path, "typo").dump(path)
    with caplog.at_level(logging.ERROR):
        assert train.main(["--config", str(path), "train.epoch=3"]) == 1
    assert "train.epoch" in caplog.messages[-1] and "epochs" in caplog.messages[-1] and "\n" not in caplog.messages[-1]


def test_batches_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path / "lake", tmp_path, "arrow")
    wrong = config.model_copy(update={"loader": config.loader.model_copy(update={"output": "arrow"})})
    with pytest.raises(ConfigError, match="loader.output=dict"):
        train.prepare(wrong)


def test_without_ray_the_job_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = loader.config.parse(make_config(tmp_path / "lake", tmp_path, "none").model_dump(mode="json"), source="test")
    with pytest.raises(MissingDependencyError, match=r"pip install 'headrace\[ray\]'"):
        train.train(config)


def test_an_error_of_a_rank_is_one_line_and_its_trace_is_kept(tmp_path: Path) -> None:
    from ray.train import WorkerGroupError

    log = tmp_path / "error.log"
    wrong = ValueError("windows need 3 GiB on this rank\nand more lines")
    line = str(train._cause(WorkerGroupError("rank 1:\nTraceback (most recent call last): …", {1: wrong}), log))
    assert line == f"rank 1 stopped the run: ValueError: windows need 3 GiB on this rank (the traces of all ranks: {log})"
    assert "Traceback (most recent call last): …" in log.read_text()
    ours = StateMismatchError("order.seed: state 3, loader 4")
    assert train._cause(WorkerGroupError("", {0: wrong, 1: ours}), log) is ours


def test_a_submitted_job_keeps_nothing_in_its_copy_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / train.WORKING_DIRECTORIES / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    config = make_config(tmp_path / "lake", Path("runs"), "submitted")
    with pytest.raises(ConfigError, match="run.folder = runs: .* absolute path"):
        train.prepare(config)


def test_sigterm_ends_a_run_as_ctrl_c_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.yaml"
    make_config(tmp_path / "lake", tmp_path, "stopped").dump(path)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train, "train", lambda config: signal.raise_signal(signal.SIGTERM))
    assert train.main(["--config", str(path)]) == 130
    assert "goes on from the newest checkpoint" in caplog.messages[-1] and signal.getsignal(signal.SIGTERM) == before
