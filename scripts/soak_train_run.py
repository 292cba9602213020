"""One soak of training: starts a job, kills its ranks, its actors and the job itself where a seeded plan says, and has the records judged.

Owns processes, never what they train: that is `ray_jobs.examples`. A kill is due when the run has come to a step, so a slow machine changes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

import loader
from ray_jobs import audit
from ray_jobs.training import journal
from ray_jobs.training.journal import RunFolder

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCHEMA = pa.schema([("id", pa.int64()), ("user", pa.int64()), ("price", pa.float32()), ("age", pa.float32()), ("label", pa.int8())])
POLL_SECONDS = 0.02
ACTOR = "FetchActor"
WAIT_FOR_ACTOR_SECONDS = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soak:
    """What is run.

    Attributes:
        mode: `ray` or `torchrun`.
        seed: Of the kills.
        rows: Of the table.
        epochs: Of the run.
        worlds: Ranks of the jobs one after another; each but the last is killed as a whole, and the next goes on.
        rank_kills: Ranks killed, over all jobs.
        actor_kills: Fetch actors killed, over all jobs; with `ray`.
        batch_rows: Rows of a global batch, a multiple of every world.
        limit_seconds: No run may take longer: a hang is a failure.
    """

    mode: str
    seed: int = 1
    rows: int = 60_000
    epochs: int = 10
    worlds: tuple[int, ...] = (2,)
    rank_kills: int = 6
    actor_kills: int = 6
    batch_rows: int = 384
    limit_seconds: float = 900.0

    @property
    def steps(self) -> int:
        return self.epochs * -(-self.rows // self.batch_rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill: `rank`, `actor` or `job`, due at a step of the run."""

    kind: str
    step: int
    victim: int = 0


def plan_kills(soak: Soak) -> list[list[Kill]]:
    """For each job its kills in the order of their steps; the last of every job but the last is its own."""
    chance = random.Random(f"{soak.mode}/{soak.seed}")
    ends = [soak.steps * (index + 1) // len(soak.worlds) for index in range(len(soak.worlds))]
    kinds = ["rank"] * soak.rank_kills + ["actor"] * (soak.actor_kills if soak.mode == "ray" else 0)
    kills = [Kill(kind=kind, step=chance.randrange(2, max(int(soak.steps * 0.95), 3)), victim=chance.randrange(64)) for kind in kinds]
    jobs = []
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        own = sorted((kill for kill in kills if first <= kill.step < end), key=lambda kill: kill.step)
        jobs.append([*own, *([Kill(kind="job", step=end)] if end != ends[-1] else [])])
    return jobs


def fill(location: str, rows: int, *, seed: int = 5, parts: int = 24) -> None:
    """The table `samples`, in many small blocks, so that actors have work to the end."""
    chance = np.random.default_rng(seed)
    with loader.connect(location) as lake:
        table = lake.create_table("samples", SCHEMA, primary_key=["id"], bucket_by=["user"], buckets=2, durability="relaxed")
        for ids in np.array_split(np.arange(rows), parts):
            price, age = chance.random(len(ids), np.float32), chance.random(len(ids), np.float32)
            columns = [ids, chance.integers(0, 500, len(ids)), price, age, (price > age).astype(np.int8)]
            table.append(pa.Table.from_arrays([pa.array(column) for column in columns], schema=SCHEMA), on_conflict="trust")


def run(soak: Soak, folder: pathlib.Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Train through all kills and judge the records.

    Raises:
        RuntimeError: A job ended with an error, or the run took too long.
    """
    location, run_folder = str(folder / "lake"), RunFolder(folder / f"run-{soak.mode}")
    if not (folder / "lake").exists():
        fill(location, soak.rows)
    began, deadline = time.monotonic(), time.monotonic() + soak.limit_seconds
    done: list[dict[str, Any]] = []
    for world, kills in zip(soak.worlds, plan_kills(soak), strict=True):
        say(f"{soak.mode}: a job of {world} ranks, {len(kills)} kills to come")
        with _job(soak, world, location, run_folder) as process:
            done += _kill_as_planned(process, kills, run_folder, deadline, say)
            _wait(process, run_folder, deadline, killed=bool(kills) and kills[-1].kind == "job")
    verdict = audit.audit(run_folder.path)
    counts = {f"{kind}_kills": sum(kill["kind"] == kind for kill in done) for kind in ("rank", "actor", "job")}
    return {
        **dataclasses.asdict(soak),
        **counts,
        "seconds": round(time.monotonic() - began, 1),
        "starts_of_ranks": verdict.attempts,
        "worlds_seen": [attempt["ranks"] for attempt in journal.read(run_folder.attempts)],
        "rows_planned": verdict.planned,
        "rows_trained": [epoch.trained for epoch in verdict.epochs],
        "rows_rolled_back": verdict.rolled_back,
        "duplicates": sum(epoch.duplicates for epoch in verdict.epochs),
        "missing": sum(epoch.missing for epoch in verdict.epochs),
        "unplanned": sum(epoch.unplanned for epoch in verdict.epochs),
        "exact": verdict.exact,
        "kills": done,
    }


@contextlib.contextmanager
def _job(soak: Soak, world: int, location: str, run_folder: RunFolder) -> Iterator[subprocess.Popen[bytes]]:
    """A job in processes of its own, all of which are gone afterwards."""
    run_folder.path.mkdir(parents=True, exist_ok=True)
    options = ["--lake", location, "--table", "samples", "--features", "price", "age", "--label", "label", "--folder", str(run_folder.path)]
    options += ["--epochs", str(soak.epochs), "--global-batch-size", str(soak.batch_rows), "--checkpoint-every-steps", "12"]
    options += ["--prefetch-bytes", "40000", "--timeout-seconds", "30"]
    if soak.mode == "ray":
        command = [sys.executable, "-m", "ray_jobs.examples.ray_train", *options, "--ranks", str(world)]
    else:
        launch = ["--standalone", "--nproc-per-node", str(world), "--max-restarts", "1000", "--monitor-interval", "0.1"]
        command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "ray_jobs.examples.torchrun", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "OMP_NUM_THREADS": "1"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # see ray_jobs.examples.torchrun
    environment.pop("RAY_ADDRESS", None)
    with open(run_folder.path / "job.log", "ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process
        finally:
            kill_tree(process.pid)
            process.wait()


def _kill_as_planned(
    process: subprocess.Popen[bytes], kills: list[Kill], run_folder: RunFolder, deadline: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Every kill of a job when it is due; what was done, with the step at which it was."""
    done = []
    for kill in kills:
        while process.poll() is None and time.monotonic() < deadline and _step(run_folder) < kill.step:
            time.sleep(POLL_SECONDS)
        if process.poll() is not None or time.monotonic() >= deadline:
            break
        pid = _victim(process.pid, kill, run_folder)
        if pid is None:
            say(f"step {_step(run_folder):,}: no {kill.kind} to kill")
            continue
        say(f"step {_step(run_folder):,}: SIGKILL to {kill.kind} (process {pid})")
        if kill.kind == "job":
            kill_tree(pid)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        done.append({"kind": kill.kind, "planned_step": kill.step, "step": _step(run_folder)})
    return done


def _step(run_folder: RunFolder) -> int:
    """The furthest step that any start of the ranks has come to."""
    return max((line["step"] for line in journal.read(run_folder.metrics)), default=0)


def _victim(job: int, kill: Kill, run_folder: RunFolder) -> int | None:
    if kill.kind == "job":
        return job
    deadline = time.monotonic() + WAIT_FOR_ACTOR_SECONDS
    while time.monotonic() < deadline:  # ranks or actors may just be starting again
        alive = dict(_descendants(job))
        events = [event for event in journal.read(run_folder.events) if event["event"] == "rank"]
        ranks = [event["pid"] for event in events if event["attempt"] == events[-1]["attempt"] and event["pid"] in alive]
        found = ranks if kill.kind == "rank" else [pid for pid, command in alive.items() if command.startswith("ray::") and ACTOR in command]
        if found:
            return sorted(found)[kill.victim % len(found)]
        time.sleep(POLL_SECONDS)
    return None


def _wait(process: subprocess.Popen[bytes], run_folder: RunFolder, deadline: float, *, killed: bool) -> None:
    try:
        status = process.wait(timeout=max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the run hangs, or is too slow: step {_step(run_folder):,} when its time was over; see {run_folder.path / 'job.log'}") from None
    if status and not killed:
        tail = (run_folder.path / "job.log").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"the job ended with {status}: {tail}")


def kill_tree(root: int) -> None:
    """A process and all that it started, each by its own number."""
    for pid in [*(pid for pid, _ in _descendants(root)), root]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _descendants(root: int) -> list[tuple[int, str]]:
    """(process, command line) of all that a process started, directly or not."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    found, frontier = [], {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found += [(pid, commands.get(pid, "")) for pid in frontier]
    return found
