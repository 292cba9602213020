"""The processes of a soak: writers, compactors, readers, one that erases and one that expires. Each keeps a log of what it was told, which survives its death.

A line of a log: `i N` writer's turn N begins, `a N S` it was acknowledged as snapshot S, `r N` it was refused because a key existed (N.K is write K of a turn
of several at once), `x N ID` the eraser's turn N was the erasure ID, `h S HASH` a reader saw these contents at snapshot S, `d WHAT N` something was done N
times, `p TEXT` a problem.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import faulthandler
import json
import logging
import os
import random
import signal
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import loader
from loader.errors import CatalogBusyError, ConflictError, KeyExistsError, NotFoundError, SnapshotNotFoundError, StorageError, UnknownOutcomeError
from scripts.soak_table_model import ERASABLE, TTL_LIMIT, digest, erased_keys, operation, write
from tests.faults import FaultyStorage, Rates, break_catalog

TABLE = "soak"
INLINE_BYTES = 1500  # of a commit packed in the catalog; larger ones make files
LEASE_SECONDS = 20
ROW_GROUP_ROWS = 40  # of a segment that gets one
KEEP_SECONDS = 4.0  # before a snapshot expires
GRACE_SECONDS = 10.0
GROUP = 3  # writes of a process at once, which share commits
STREAMED_BYTES = 4000  # `memory_bytes` of a process that puts even small inputs in parts
PATIENCE = 60  # tries of one write under faults
PASSING = (StorageError, UnknownOutcomeError, CatalogBusyError, ConflictError, NotFoundError)  # a file that is gone: a write outlasted the grace period


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a process is told.

    Attributes:
        name: Its role and number, such as w3; its log has that name.
        life: How often a process of this name was started before.
        location, catalog: The lake.
        folder: Of the logs.
        seed: Of everything random.
        until: Wall clock at which to stop.
        faults: Whether storage and catalog fail.
        plant: A bug to switch on, so that the soak can be seen to find it.
    """

    name: str
    life: int
    location: str
    catalog: str | None
    folder: Path
    seed: int
    until: float
    faults: bool
    plant: str | None


def main(work: Work) -> None:
    """Do the work of a role until its time is over."""
    log = Log(work.folder / work.name)
    stacks = os.open(work.folder / f"{work.name}.stack", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    logging.disable(logging.WARNING)
    arm(work.plant)
    try:
        opened = Opened(work)
        role = {"w": writer, "c": compactor, "r": reader, "e": expirer, "x": eraser}[work.name[0]]
        role(work, opened, log)
        opened.report(log)
    except Exception:  # noqa: BLE001 - whatever it is, it is a finding
        log.problem(traceback.format_exc(limit=-12))


class Log:
    """Lines that are there whole once `add` returns, also if the process is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def add(self, *words: Any) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    def problem(self, text: str) -> None:
        self.add("p", json.dumps(text))

    @staticmethod
    def read(path: Path) -> list[list[str]]:
        """Whole lines, as words."""
        return [line.rstrip("\n").split(" ", 2) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


class Opened:
    """The lake as this process has it open, with faults."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.rng = random.Random(f"{work.seed} {work.name} {work.life}")
        options = {"memory_bytes": STREAMED_BYTES} if work.name[0] == "w" and self.rng.random() < 0.2 else {}
        self.lake = self._retried(lambda: loader.connect(work.location, catalog=work.catalog, create=False, **options))
        self.counts = []
        if work.faults:
            rates = Rates()
            files = FaultyStorage(self.lake.storage.files, self.rng, rates)
            self.lake.storage.files = files
            self.counts = [files.counts, break_catalog(self.lake.database, self.rng, rates)]
        self.reopen()

    def reopen(self) -> None:
        """Take the table by its present schema."""
        self.table = self._retried(lambda: self.lake.table(TABLE))

    def _retried(self, call: Any) -> Any:
        for _ in range(PATIENCE):
            try:
                return call()
            except PASSING as error:
                last = error
                time.sleep(0.05)
        raise last

    def report(self, log: Log) -> None:
        """Note the faults that came since the last time; as often as it can be killed."""
        for counts in self.counts:
            for what, count in counts.items():
                log.add("d", f"fault:{what.replace(' ', '-')}", count)
            counts.clear()


def writer(work: Work, opened: Opened, log: Log) -> None:
    """One write after the other; one whose answer did not come is repeated under its name until there is an answer."""
    turns = [words for words in Log.read(log.path) if words[0] in "iar"]
    turn = 0 if not turns else int(turns[-1][1].partition(".")[0]) + (turns[-1][0] != "i")
    with ThreadPoolExecutor(GROUP) as pool:
        while time.time() < work.until:
            opened.report(log)
            log.add("i", turn)
            at_once = [str(turn)] if opened.rng.random() < 0.7 else [f"{turn}.{number}" for number in range(GROUP)]
            for answer in pool.map(lambda name: _write(opened, f"{work.seed}-{work.name}-{name}", name, log), at_once):
                log.add(*answer)
            if opened.rng.random() < 0.03:  # the same write again is the same commit
                log.add(*_write(opened, f"{work.seed}-{work.name}-{at_once[0]}", at_once[0], log))
            turn += 1


def _write(opened: Opened, commit_id: str, turn: str, log: Log) -> tuple[Any, ...]:
    reasons: list[str] = []
    for tries in range(PATIENCE):
        try:
            return "a", turn, write(opened.table, commit_id).id
        except KeyExistsError:
            return "r", turn, tries
        except ConflictError as error:
            opened.reopen()
            log.add("d", "conflict", 1)
            reasons.append(str(error))
        except PASSING as error:
            log.add("d", "retry", 1)
            reasons.append(f"{error} ({error.__cause__})")
    raise RuntimeError(f"write {commit_id} ({operation(commit_id).kind}) did not end in {PATIENCE} tries: {collections.Counter(reasons)}")


def compactor(work: Work, opened: Opened, log: Log) -> None:
    """Merges again and again, so that other writers' rows move under them."""
    options = loader.CompactionOptions(min_segments=3, max_overlays=3, threads=1)
    while time.time() < work.until:
        try:
            report = opened.table.compact(full=opened.rng.random() < 0.05, options=options)
            log.add("d", "compacted", report.num_tasks)
            log.add("d", "abandoned", report.num_abandoned)
        except ConflictError:
            opened.reopen()
        except PASSING:
            log.add("d", "retry", 1)
        opened.report(log)
        time.sleep(0.05 * opened.rng.random())


def reader(work: Work, opened: Opened, log: Log) -> None:
    """Pins a snapshot and reads it several times: whatever goes on, it stays as it was, and what every reader can check holds."""
    while time.time() < work.until:
        try:
            _read(work, opened, log)
        except SnapshotNotFoundError:
            opened.reopen()
        except PASSING:
            log.add("d", "retry", 1)


def _read(work: Work, opened: Opened, log: Log) -> None:
    lake = opened.lake
    opened.reopen()
    pin = lake.pin(TABLE, None, work.name, 60)
    try:
        view = opened.table.view(pin.snapshot_id)
        seen = None
        for _ in range(3):
            read = opened.table.to_arrow(snapshot=pin.snapshot_id).to_pylist()
            opened.report(log)
            log.add("d", "reads", 1)
            keys = [row["key"] for row in read]
            if len(set(keys)) != len(keys):
                log.problem(f"snapshot {pin.snapshot_id}: {len(keys) - len(set(keys))} keys stand twice")
            if not view.num_rows - len(ERASABLE) <= len(keys) <= view.num_rows:  # erased rows keep their places, which are counted
                log.problem(f"snapshot {pin.snapshot_id}: {len(keys)} rows read, the catalog counts {view.num_rows}")
            wrong = [row["key"] for row in read if row["user"] != row["key"] % 7 or row["name"] not in (None, f"row {row['key']}")]
            if wrong:
                log.problem(f"snapshot {pin.snapshot_id}: rows that nobody wrote so: {wrong[:5]}")
            now = lasting(read)
            if seen is not None and now != seen:
                log.problem(f"snapshot {pin.snapshot_id} changed while it was pinned")
            seen = now
            keys = [key for key in keys if key not in ERASABLE]
            chosen = opened.rng.sample(keys, min(5, len(keys))) + [-1]
            found = opened.table.lookup(chosen, snapshot=pin.snapshot_id).to_pylist()
            by_key = {row["key"]: row for row in read}
            if found[:-1] != [by_key[key] for key in chosen[:-1]] or found[-1]["user"] is not None:
                log.problem(f"snapshot {pin.snapshot_id}: a look-up of {chosen} differs from a read")
        log.add("h", pin.snapshot_id, seen)
    finally:
        try:
            lake.unpin(pin)
        except StorageError:
            pass  # it expires


def lasting(rows: Iterable[dict[str, Any]]) -> str:
    """The digest of the rows that no erasure takes."""
    return digest(row for row in rows if row["key"] not in ERASABLE)


def eraser(work: Work, opened: Opened, log: Log) -> None:
    """Erases a few keys again and again; what was not answered is repeated, whatever happened to it."""
    turns = [words for words in Log.read(log.path) if words[0] in "ix"]
    turn = 0 if not turns else int(turns[-1][1]) + (turns[-1][0] != "i")
    while time.time() < work.until:
        log.add("i", turn)
        due = datetime.timedelta(seconds=opened.rng.choice([0, 3]))
        done = None
        while done is None and time.time() < work.until:
            opened.report(log)
            try:
                done = opened.table.erase(erased_keys(work.seed, work.name, turn), due=due)
            except ConflictError:
                opened.reopen()
            except PASSING:
                log.add("d", "retry", 1)
        if done is not None:
            log.add("x", turn, done.erasure_id)
            log.add("d", "erased", 1)
            turn += 1
        time.sleep(2.0 * opened.rng.random())


def expirer(work: Work, opened: Opened, log: Log) -> None:
    """Forgets old snapshots and deletes what only they showed, and what the killed have left."""
    while time.time() < work.until:
        try:
            limit = TTL_LIMIT if opened.rng.random() < 0.3 else None
            report = opened.table.expire(older_than=datetime.timedelta(seconds=KEEP_SECONDS), keep=5, grace_seconds=GRACE_SECONDS, ttl=limit)
            log.add("d", "dropped-by-age", report.rows_dropped)
            log.add("d", "expired", len(report.snapshots))
            collected = opened.lake.collect_garbage()
            log.add("d", "collected", collected.deleted_paths)
            log.add("d", "stages", collected.expired_stages)
        except ConflictError:
            opened.reopen()
        except PASSING:
            log.add("d", "retry", 1)
        opened.report(log)
        time.sleep(0.3)


def arm(plant: str | None) -> None:
    """Make files small, leases short, and switch on a bug."""
    import loader.catalog.admin
    import loader.catalog.commit
    import loader.table.commits
    import loader.table.context
    import loader.table.files
    import loader.table.row_groups

    loader.table.row_groups.MIN_ROWS = ROW_GROUP_ROWS
    loader.table.files.INLINE_BYTES = INLINE_BYTES
    for module in (loader.catalog.admin, loader.catalog.commit, loader.table.files):
        module.STAGED_LEASE_SECONDS = LEASE_SECONDS
    if plant is not None:
        one, group = loader.table.context.commit, loader.table.commits.commit_group
        spoil = {"no-check": unchecked, "no-pending": blind, "no-carry": uncarried}[plant]
        loader.table.context.commit = lambda catalog, plan: one(catalog, spoil(plan))
        loader.table.commits.commit_group = lambda catalog, plans: group(catalog, [spoil(plan) for plan in plans])


def unchecked(plan: Any) -> Any:
    """A commit that does not ask whether its keys are still where it found them."""
    plan.rows_buckets = plan.pending_buckets = ()
    return plan


def blind(plan: Any) -> Any:
    """A commit that does not ask whether labels for its new rows came meanwhile."""
    plan.pending_buckets = ()
    return plan


def uncarried(plan: Any) -> Any:
    """A compaction that forgets what its inputs gained meanwhile."""
    if plan.kind == "compact":
        plan.overlays, plan.latest_overlay = [], 1 << 60
    return plan
