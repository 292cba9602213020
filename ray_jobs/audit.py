"""Was every planned sample trained exactly once an epoch? `python -m ray_jobs.audit RUN_FOLDER` proves it from the run's own files, or says what is wrong.

When ranks restart from a checkpoint, the steps after it never happened to the model: only the surviving history counts. The records of an attempt
survive up to the earliest point that a later attempt restored. Within that history, of every (seed, epoch): no id twice, none that was not
planned, none missing (but for a remainder that the plan itself says is dropped), every rank present in every step, no step skipped; and the position
in a restored checkpoint is the number of samples that were trained before it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.errors import NotFoundError
from ray_jobs.training import journal
from ray_jobs.training.journal import RunFolder
from ray_jobs.training.records import Positions, Record, read_records

logger = logging.getLogger(__name__)

_ROW_BITS = 40  # a position as one integer: segment ids above, rows below


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochAudit:
    """The surviving history of one epoch against the plan.

    Attributes:
        seed, epoch: Which.
        num_steps: Global batches.
        trained: Samples, repeats counted.
        duplicates: Samples trained more often than once, each repeat counted.
        missing: Planned samples never trained, beyond the remainder that is dropped by policy.
        dropped: Planned samples left out by policy.
        unplanned: Trained samples that the plan does not hold.
        broken_steps: Steps that lack a rank, stand twice or do not follow on each other.
    """

    seed: int
    epoch: int
    num_steps: int
    trained: int
    duplicates: int
    missing: int
    dropped: int
    unplanned: int
    broken_steps: int

    @property
    def exact(self) -> bool:
        return not (self.duplicates or self.missing or self.unplanned or self.broken_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """The whole run.

    Attributes:
        planned: Rows of the plan.
        per_epoch: What the plan says an epoch trains.
        attempts: Starts of the ranks; one more than restarts.
        rolled_back: Samples trained by steps that a later attempt did again.
        misplaced: Restarts whose checkpoint holds another position than the records give.
        planned_epochs: (seed, epoch) pairs that the run is to train.
        finished: Whether the run came to its end; until then a restart may roll back its last steps, which the model may never have seen.
        epochs: One entry for each (seed, epoch) in the surviving history.
    """

    planned: int
    per_epoch: int
    attempts: int
    rolled_back: int
    misplaced: int
    planned_epochs: int
    finished: bool
    epochs: tuple[EpochAudit, ...]

    @property
    def exact(self) -> bool:
        return self.finished and not self.misplaced and len(self.epochs) == self.planned_epochs and all(epoch.exact for epoch in self.epochs)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "exact": self.exact}


def audit(folder: str | Path) -> Audit:
    """Read a run's records and judge them.

    Args:
        folder: The run's folder; the run had `train.record_ids`.

    Raises:
        NotFoundError: The folder holds no plan or no records.
        ValueError: A file is damaged, or attempts.jsonl lacks an attempt that left records.
    """
    run = RunFolder(Path(folder))
    if not run.plan.exists() or not (run.ids / "planned.npy").exists():
        raise NotFoundError(f"{run.path} holds no plan and ids: run the job with train.record_ids=true, then give its folder")
    plan = json.loads(run.plan.read_text(encoding="utf-8"))
    planned = _keys(np.load(run.ids / "planned.npy", allow_pickle=False))
    attempts = journal.read(run.attempts)
    restored = [attempt["restored"] for attempt in attempts]
    ranks = [attempt.get("ranks", plan["ranks"]) for attempt in attempts]
    limits = surviving_until(restored)
    kept: dict[tuple[int, int], list[Record]] = defaultdict(list)
    rolled_back = 0
    for record in read_records(run.ids):
        if record.attempt >= len(limits):
            raise ValueError(f"{run.attempts} lists {len(limits)} attempts, and attempt {record.attempt} left records: go on with the run, then audit it again")
        if record.progress <= limits[record.attempt]:
            kept[record.seed_index, record.epoch].append(record)
        else:
            rolled_back += len(record.positions)
    epochs = [
        _judge(records, planned, per_epoch=plan["rows_per_epoch"], ranks=ranks, steps=plan["batches_per_epoch"], seed=plan["seeds"][key[0]])
        for key, records in sorted(kept.items())
    ]
    return Audit(
        planned=len(planned),
        per_epoch=plan["rows_per_epoch"],
        attempts=len(limits),
        rolled_back=rolled_back,
        misplaced=sum(not _in_place(kept, number, point) for number, point in enumerate(restored) if number),
        planned_epochs=len(plan["seeds"]) * plan["epochs"],
        finished=run.result.exists(),
        epochs=tuple(epochs),
    )


def surviving_until(restored: Sequence[Mapping[str, int]]) -> list[tuple[float, float]]:
    """For each attempt, the last (seed_index, step) that survives: the earliest point that a later attempt restored.

    Args:
        restored: By attempt, where it started: {"seed_index", "step"}.
    """
    limits, limit = [], (float("inf"), float("inf"))
    for point in reversed(restored):
        limits.append(limit)
        limit = min(limit, (point["seed_index"], point["step"]))
    return limits[::-1]


def _in_place(kept: Mapping[tuple[int, int], Sequence[Record]], attempt: int, point: Mapping[str, int]) -> bool:
    """Whether the epoch held as many samples before a restart as its checkpoint's position says. An epoch that is over has none of the next."""
    records = kept.get((point["seed_index"], point["epoch"]), ())
    trained = sum(len(record.positions) for record in records if record.attempt < attempt and record.step <= point["step"])
    return trained == point["rows_seen"]


def _judge(records: Sequence[Record], planned: npt.NDArray[np.int64], *, per_epoch: int, ranks: Sequence[int], steps: int, seed: int) -> EpochAudit:
    trained = np.sort(_keys(np.concatenate([record.positions for record in records])))
    unique = np.unique(trained)
    known = np.isin(unique, planned, assume_unique=True)
    dropped = len(planned) - per_epoch
    return EpochAudit(
        seed=seed,
        epoch=records[0].epoch,
        num_steps=len({record.step for record in records}),
        trained=len(trained),
        duplicates=len(trained) - len(unique),
        missing=len(planned) - int(known.sum()) - dropped,
        dropped=dropped,
        unplanned=int((~known).sum()),
        broken_steps=_broken_steps(records, ranks, records[0].epoch * steps, steps),
    )


def _broken_steps(records: Iterable[Record], ranks: Sequence[int], first: int, steps: int) -> int:
    """Steps of the epoch that are not there from every rank of one attempt exactly once, and steps that do not belong to it.

    Args:
        records: Of the surviving history.
        ranks: By attempt, how many there were.
        first: Steps before the epoch.
        steps: Of an epoch.
    """
    seen: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for record in records:
        seen[record.step].append((record.attempt, record.rank))
    wanted = range(first + 1, first + steps + 1)
    whole = {step for step, found in seen.items() if sorted(found) == [(found[0][0], rank) for rank in range(ranks[found[0][0]])]}
    return len(set(wanted) - whole) + len(seen.keys() - set(wanted))


def _keys(positions: Positions) -> npt.NDArray[np.int64]:
    """Positions as single integers, in the order given."""
    if len(positions) and (int(positions.max()) >= 1 << _ROW_BITS or int(positions[:, 0].max()) >= 1 << (63 - _ROW_BITS)):
        raise ValueError(f"segment {int(positions[:, 0].max())}, row {int(positions[:, 1].max())}: beyond what the audit can tell apart")
    return (positions[:, 0] << _ROW_BITS) | positions[:, 1]


def describe(result: Audit) -> list[str]:
    """The verdict in plain lines, one for each epoch and one for the run."""
    lines = []
    for epoch in result.epochs:
        counts = f"{epoch.duplicates} twice, {epoch.missing} missing, {epoch.unplanned} unplanned, {epoch.dropped} dropped as remainder"
        verdict = "each id exactly once" if epoch.exact else f"NOT exact ({epoch.broken_steps} broken steps)"
        lines.append(f"seed {epoch.seed}, epoch {epoch.epoch + 1}: {epoch.trained:,} trained of {result.planned:,} planned, {counts}: {verdict}")
    restarts = f"{result.attempts - 1} restart{'' if result.attempts == 2 else 's'}"
    if len(result.epochs) < result.planned_epochs:
        lines.append(f"only {len(result.epochs)} of {result.planned_epochs} epochs have begun")
    if not result.finished:
        lines.append("the run is not finished: its last steps may never have reached the model")
    lines.append(f"{restarts}; {result.rolled_back:,} samples rolled back and trained again: {'exact' if result.exact else 'NOT exact'}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 0 only for an exact history."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.audit", description="Prove that a run trained each planned sample exactly once an epoch.")
    parser.add_argument("folder", help="the run's folder, such as runs/train")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        result = audit(options.folder)
    except (NotFoundError, ValueError) as error:
        logger.error("%s", error)
        return 2
    for line in describe(result):
        logger.info("%s", line)
    return 0 if result.exact else 1


if __name__ == "__main__":
    sys.exit(main())
