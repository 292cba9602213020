"""Running a soak: processes are started, killed and watched; then every commit is replayed and everything is compared."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from scripts.soak_table_workers import LEASE_SECONDS, Log, Work, main
from tests.table import processes

STUCK_SECONDS = 150.0  # without a line in its log, a process is stuck
STOP_SECONDS = 150.0  # a process may take so long to end its last piece of work
POLL_SECONDS = 0.05
PRELOADED = ("loader.lake", "loader.catalog.sqlite", "loader.catalog.postgres", "loader.scan.predicate", "psycopg", "obstore", "pyarrow.compute")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to run; see `scripts/soak_table --help`."""

    location: str
    catalog: str | None
    folder: Path
    seconds: float
    seed: int
    kills: int
    writers: int
    compactors: int
    readers: int
    faults: bool
    plant: str | None


class Herd:
    """The processes of a soak."""

    def __init__(self, settings: Settings, until: float) -> None:
        self.settings, self.until = settings, until
        roles = {"w": settings.writers, "c": settings.compactors, "r": settings.readers, "e": 1, "x": 1}
        self.lives = {f"{role}{number}": 0 for role, count in roles.items() for number in range(count)}
        self.running: dict[str, int] = {}
        self.since: dict[str, float] = {}  # when its life began
        self.problems: list[str] = []
        self.kills = 0

    def start(self, name: str) -> None:
        settings = self.settings
        work = Work(
            name=name,
            life=self.lives[name],
            location=settings.location,
            catalog=settings.catalog,
            folder=settings.folder,
            seed=settings.seed,
            until=self.until,
            faults=settings.faults,
            plant=settings.plant,
        )
        self.lives[name] += 1
        self.since[name] = time.time()
        self.running[name] = processes.start(lambda: main(work))

    def kill(self, name: str) -> None:
        """SIGKILL, and a new life."""
        os.kill(self.running[name], signal.SIGKILL)
        processes.wait(self.running.pop(name))
        self.kills += 1
        self.start(name)

    def reap(self) -> None:
        """Take note of processes that ended by themselves."""
        for name, child in list(self.running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                del self.running[name]
                code = os.waitstatus_to_exitcode(status)
                if code:
                    self.problems.append(f"{name} ended with {code}")

    def watch(self) -> None:
        """A process whose log stands still is stuck: its stacks are written, it is killed, and that is a problem."""
        for name, child in list(self.running.items()):
            path = self.settings.folder / name
            seen = max(self.since[name], path.stat().st_mtime if path.exists() else 0.0)
            if time.time() - seen > STUCK_SECONDS:
                self._give_up(name, child, f"{name} was stuck for {STUCK_SECONDS:.0f} s")

    def _give_up(self, name: str, child: int, problem: str) -> None:
        os.kill(child, signal.SIGUSR1)
        time.sleep(0.5)  # for the stacks to be written
        stacks = (self.settings.folder / f"{name}.stack").read_text()[-3000:]
        os.kill(child, signal.SIGKILL)
        processes.wait(child)
        del self.running[name]
        self.problems.append(f"{problem}: {stacks}")

    def stop(self) -> None:
        """Wait for everybody's last piece of work."""
        deadline = time.monotonic() + STOP_SECONDS
        while self.running and time.monotonic() < deadline:
            self.reap()
            time.sleep(POLL_SECONDS)
        for name, child in list(self.running.items()):
            self._give_up(name, child, f"{name} did not end within {STOP_SECONDS:.0f} s")


def run(settings: Settings, messages: Console) -> dict[str, Any]:
    """One soak; returns what was seen, with `problems`."""
    settings.folder.mkdir(parents=True)
    for name in PRELOADED:
        importlib.import_module(name)
    create(settings)
    started = time.time()
    herd = Herd(settings, started + settings.seconds)
    rng = random.Random(settings.seed)
    for name in herd.lives:
        herd.start(name)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[kills]} kills"), TimeRemainingColumn()
    with Progress(*columns, console=messages, transient=True, auto_refresh=False) as progress:  # no thread: this process forks
        task = progress.add_task("soak", total=settings.seconds, kills=0)
        while (now := time.time()) < herd.until:
            herd.reap()
            herd.watch()
            due = settings.kills * min(1.0, (now - started) / (0.95 * settings.seconds))
            if herd.kills < due and herd.running:
                herd.kill(rng.choice(sorted(herd.running)))
            progress.update(task, completed=now - started, kills=herd.kills, refresh=True)
            time.sleep(POLL_SECONDS)
    herd.stop()
    seconds = time.time() - started
    messages.print("replaying every commit")
    report = settings.folder / "verified.json"
    code = processes.wait(processes.start(lambda: _verify_into(settings, report)))  # in a child: this process opened no lake, so that it may fork
    checked = json.loads(report.read_text()) if code == 0 else {"problems": [f"the check itself ended with {code}"]}
    return summary(settings, herd, seconds, checked)


def create(settings: Settings) -> None:
    """An empty table, made in a child, so that this process opens nothing."""

    def work() -> None:
        import loader
        from scripts.soak_table_model import MERGE, SCHEMA
        from scripts.soak_table_workers import TABLE

        with loader.connect(settings.location, catalog=settings.catalog) as lake:
            lake.create_table(
                TABLE,
                SCHEMA,
                primary_key=["key"],
                bucket_by=["user"],
                buckets=2,
                cluster_by=["user", "ts"],
                time_column="ts",
                partition_by="day",
                merge=MERGE,
                lookup_columns=["total", "name"],
            )

    if processes.wait(processes.start(work)):
        raise RuntimeError("the lake could not be made")


def _verify_into(settings: Settings, report: Path) -> None:
    from scripts.soak_table_verify import verify

    report.write_text(json.dumps(verify(settings.location, settings.catalog, settings.folder, settings.seed, 3 * LEASE_SECONDS)))


def summary(settings: Settings, herd: Herd, seconds: float, checked: dict[str, Any]) -> dict[str, Any]:
    """Figures of a run, its environment, and all problems."""
    counts, faults, told = Counter[str](), Counter[str](), []
    for name in herd.lives:
        for words in Log.read(settings.folder / name):
            if words[0] == "d":
                (faults if words[1].startswith("fault:") else counts)[words[1].removeprefix("fault:")] += int(words[2])
            elif words[0] == "p":
                told.append(f"{name}: {json.loads(' '.join(words[1:]))}")
    git = ["git", "rev-parse", "--short", "HEAD"]
    problems = herd.problems + told + checked.pop("problems")
    return {
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        "commit": subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "processes": len(herd.lives),
        "kills": herd.kills,
        "commits_per_second": round(checked.get("snapshots", 0) / seconds, 1),
        **checked,
        **dict(sorted(counts.items())),
        "mean_lives": round(statistics.mean(herd.lives.values()), 1),
        "faults": dict(faults),
        "planted": settings.plant or "nothing",
        "num_problems": len(problems),
        "problems": problems,
    }
