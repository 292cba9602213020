"""The audit believes only records: it passes an exact history through rollbacks, and finds one planted loss, repeat, stranger or lost step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from loader.errors import NotFoundError
from ray_jobs import audit
from ray_jobs.training import journal
from ray_jobs.training.journal import RunFolder
from ray_jobs.training.records import RecordWriter, read_records

RANKS, STEPS, BATCH, ROWS = 2, 10, 8, 83  # ten batches of 8 an epoch, 3 rows dropped
Change = Callable[[int, int, int, np.ndarray], np.ndarray | None]


def unchanged(epoch: int, step: int, rank: int, positions: np.ndarray) -> np.ndarray:
    return positions


def planned() -> np.ndarray:
    rows = np.arange(ROWS)
    return np.stack([rows // 30 + 5, rows % 30], axis=1).astype(np.int64)


def write_run(path: Path, *, crash_after: int = 0, restored: int = 0, change: Change = unchanged, epochs: int = 2, seeds: tuple[int, ...] = (17,)) -> RunFolder:
    """A run as the job leaves it; with `crash_after`, the first attempt ends there and the second begins at step `restored`."""
    run = RunFolder(path)
    run.ids.mkdir(parents=True)
    np.save(run.ids / "planned.npy", planned())
    plan = {"rows": ROWS, "rows_per_epoch": STEPS * BATCH, "batches_per_epoch": STEPS, "ranks": RANKS, "epochs": epochs, "seeds": list(seeds)}
    journal.write_json(run.plan, plan)
    spans = [(0, crash_after), (restored, STEPS * epochs)] if crash_after else [(0, STEPS * epochs)]
    for attempt, (first, last) in enumerate(spans):
        journal.append(
            run.attempts, {"attempt": attempt, "restored": {"seed_index": 0, "epoch": first // STEPS, "step": first, "rows_seen": first % STEPS * BATCH}}
        )
        for rank in range(RANKS):
            writer = RecordWriter(run.ids, attempt=attempt, rank=rank)
            for seed_index in range(len(seeds)):
                for step in range(first + 1 if seed_index == 0 else 1, last + 1):
                    epoch = (step - 1) // STEPS
                    order = np.random.default_rng(epoch).permutation(ROWS)
                    batch = order[(step - 1) % STEPS * BATCH :][:BATCH][rank::RANKS]
                    positions = change(epoch, step, rank, planned()[batch])
                    if positions is not None:
                        writer.write(seed_index=seed_index, epoch=epoch, step=step, positions=positions)
            writer.sync()
            writer.close()
    journal.write_json(run.result, {})
    return run


def test_an_undisturbed_run_is_exact(tmp_path: Path) -> None:
    result = audit.audit(write_run(tmp_path, seeds=(17, 18)).path)
    assert result.exact and result.attempts == 1 and result.rolled_back == 0
    assert [(epoch.seed, epoch.epoch) for epoch in result.epochs] == [(17, 0), (17, 1), (18, 0), (18, 1)]
    assert {(epoch.trained, epoch.dropped, epoch.num_steps) for epoch in result.epochs} == {(80, 3, 10)}


def test_ranks_may_be_others_after_a_restart(tmp_path: Path) -> None:
    run = write_run(tmp_path, crash_after=7, restored=5)
    attempts = journal.read(run.attempts)
    run.attempts.unlink()
    for attempt, ranks in zip(attempts, (2, 1), strict=True):
        journal.append(run.attempts, {**attempt, "ranks": ranks})
    first, lost = sorted(run.ids.glob("attempt-0001-*"))
    found = audit.audit(run.path).epochs
    assert [epoch.broken_steps for epoch in found] == [5, 10], "a start of one rank that left records of two"
    lost.unlink()
    found = audit.audit(run.path).epochs
    assert [(epoch.broken_steps, epoch.missing) for epoch in found] == [(0, 20), (0, 40)]
    assert first.exists()


@pytest.mark.parametrize(("crash_after", "restored"), [(7, 5), (7, 0), (7, 7), (13, 10), (15, 12)])
def test_steps_after_the_restored_checkpoint_do_not_count(tmp_path: Path, crash_after: int, restored: int) -> None:
    result = audit.audit(write_run(tmp_path, crash_after=crash_after, restored=restored).path)
    assert result.exact and result.attempts == 2
    assert result.rolled_back == (crash_after - restored) * BATCH


def test_a_repeated_sample_is_found_with_the_one_it_displaced(tmp_path: Path) -> None:
    def change(epoch: int, step: int, rank: int, positions: np.ndarray) -> np.ndarray:
        return np.concatenate([positions[:1], positions[:1], positions[2:]]) if (epoch, step, rank) == (0, 4, 1) else positions

    result = audit.audit(write_run(tmp_path, crash_after=7, restored=5, change=change).path)
    assert not result.exact
    assert [(epoch.duplicates, epoch.missing) for epoch in result.epochs] == [(1, 1), (0, 0)]


def test_a_lost_sample_is_found(tmp_path: Path) -> None:
    def change(epoch: int, step: int, rank: int, positions: np.ndarray) -> np.ndarray:
        return positions[1:] if (step, rank) == (12, 0) else positions

    result = audit.audit(write_run(tmp_path, change=change).path)
    assert [(epoch.missing, epoch.duplicates, epoch.exact) for epoch in result.epochs] == [(0, 0, True), (1, 0, False)]


def test_a_sample_that_was_never_planned_is_found(tmp_path: Path) -> None:
    def change(epoch: int, step: int, rank: int, positions: np.ndarray) -> np.ndarray:
        return np.concatenate([positions[1:], [[99, 0]]]) if (step, rank) == (3, 0) else positions

    result = audit.audit(write_run(tmp_path, change=change).path)
    assert result.epochs[0].unplanned == 1 and result.epochs[0].missing == 1 and not result.exact


def test_a_step_without_one_rank_is_found(tmp_path: Path) -> None:
    result = audit.audit(write_run(tmp_path, change=lambda epoch, step, rank, positions: None if (step, rank) == (6, 1) else positions).path)
    assert result.epochs[0].broken_steps == 1 and result.epochs[0].missing == BATCH // RANKS and not result.exact


def test_a_restart_that_trains_on_from_too_early_is_found(tmp_path: Path) -> None:
    run = write_run(tmp_path, crash_after=7, restored=5)
    lines = journal.read(run.attempts)
    lines[1]["restored"]["step"] = 6  # the run says that it restored step 6, and its second attempt trained step 6 again
    run.attempts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = audit.audit(run.path)
    assert not result.exact and result.epochs[0].duplicates == BATCH and result.epochs[0].broken_steps == 1


def test_a_checkpoint_at_another_position_is_found(tmp_path: Path) -> None:
    run = write_run(tmp_path, crash_after=7, restored=5)
    lines = journal.read(run.attempts)
    lines[1]["restored"]["rows_seen"] -= BATCH
    run.attempts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = audit.audit(run.path)
    assert result.misplaced == 1 and not result.exact


def test_an_unfinished_run_is_not_exact(tmp_path: Path) -> None:
    run = write_run(tmp_path, epochs=1)
    journal.write_json(run.plan, json.loads(run.plan.read_text()) | {"epochs": 2})
    result = audit.audit(run.path)
    assert all(epoch.exact for epoch in result.epochs) and not result.exact


def test_a_run_that_was_lost_after_its_last_record_is_not_exact(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    run.result.unlink()  # a sample is on record before the model has seen it
    result = audit.audit(run.path)
    assert all(epoch.exact for epoch in result.epochs) and not result.exact
    assert any("not finished" in line for line in audit.describe(result))


def test_records_of_an_attempt_that_is_not_listed_prove_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    RecordWriter(run.ids, attempt=1, rank=1).write(seed_index=0, epoch=0, step=1, positions=planned()[:4])
    with pytest.raises(ValueError, match="lists 1 attempts, and attempt 1 left records"):
        audit.audit(run.path)


def test_three_attempts_keep_the_earliest_rollback() -> None:
    points = [{"seed_index": 0, "step": 0}, {"seed_index": 0, "step": 20}, {"seed_index": 0, "step": 15}, {"seed_index": 1, "step": 3}]
    infinity = float("inf")
    assert audit.surviving_until(points) == [(0, 15), (0, 15), (1, 3), (infinity, infinity)]


def test_a_record_torn_by_a_kill_is_dropped_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, epochs=1)
    path = min(run.ids.glob("*.ids"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert len(list(read_records(run.ids))) == 2 * STEPS - 1
    assert audit.audit(run.path).epochs[0].broken_steps == 1
    path.write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    with pytest.raises(ValueError, match="at byte 0 is damaged"):
        audit.audit(run.path)


def test_a_folder_without_records_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="record_ids=true"):
        audit.audit(tmp_path)


def test_the_command_line_answers_by_its_status(tmp_path: Path) -> None:
    assert audit.main([str(write_run(tmp_path / "good").path)]) == 0
    bad = write_run(tmp_path / "bad", change=lambda epoch, step, rank, positions: positions[1:] if step == 1 else positions)
    assert audit.main([str(bad.path)]) == 1
    assert audit.main([str(tmp_path / "none")]) == 2
