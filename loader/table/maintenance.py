"""Looking after a table for as long as it is asked: rounds of compaction, and after each what it made superfluous is forgotten and deleted.

Owns the loop and its totals; compaction, expiry and the deletion of garbage are elsewhere. Several maintainers of one table, on one host or many, share the
work: each bucket is leased to one of them at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from loader.table.compaction.pick import CompactionOptions
from loader.table.compaction.run import CompactionReport

if TYPE_CHECKING:
    from loader.lake import Lake
    from loader.table.table import Table

logger = logging.getLogger(__name__)


class StoppedError(Exception):
    """Maintenance was asked to end, in the middle of a task; what was not committed has no effect."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaintenanceOptions:
    """What maintenance does.

    Attributes:
        compaction: Limits and thresholds.
        full: Rewrite everything that is not one clean, sorted run.
        expire_older_than: Age from which snapshots are expired after a round; None keeps all.
        keep_snapshots: So many of the newest stay, whatever their age.
        grace_seconds: How long the bytes of what expired stay; None is the default.
        collect_garbage: Delete bytes whose grace period is over after a round.
    """

    compaction: CompactionOptions = dataclasses.field(default_factory=CompactionOptions)
    full: bool = False
    expire_older_than: datetime.timedelta | None = None
    keep_snapshots: int = 1
    grace_seconds: float | None = None
    collect_garbage: bool = False


@dataclasses.dataclass(kw_only=True)
class MaintenanceTotals:
    """What maintenance did so far; see `CompactionReport` for the counts of compaction."""

    rounds: int = 0
    num_tasks: int = 0
    num_abandoned: int = 0
    num_busy: int = 0
    segments_before: int = 0
    segments_after: int = 0
    overlays_folded: int = 0
    rows_written: int = 0
    bytes_written: int = 0
    snapshots_expired: int = 0
    files_deleted: int = 0
    seconds: float = 0.0
    stopped: bool = False

    def add(self, report: CompactionReport) -> None:
        """Count a compaction."""
        for name in ("num_tasks", "num_abandoned", "num_busy", "segments_before", "segments_after", "overlays_folded", "rows_written"):
            setattr(self, name, getattr(self, name) + getattr(report, name))
        self.bytes_written += report.bytes_after + report.bytes_folded

    def __str__(self) -> str:
        return (
            f"{self.segments_before:,} segments became {self.segments_after:,}, {self.overlays_folded:,} overlays folded, {self.rows_written:,} rows and "
            f"{self.bytes_written:,} bytes written, {self.snapshots_expired:,} snapshots expired, {self.files_deleted:,} files deleted, in {self.seconds:.1f} s"
            + (f"; {self.num_abandoned} tasks given up to others" if self.num_abandoned else "")
            + (f"; {self.num_busy} times a bucket was left to another" if self.num_busy else "")
        )


def maintain(
    lake: Lake,
    name: str,
    options: MaintenanceOptions,
    *,
    interval_seconds: float | None,
    stop: threading.Event,
    progress: Callable[[int, int], None] | None = None,
    after_round: Callable[[MaintenanceTotals], None] | None = None,
) -> MaintenanceTotals:
    """Maintain a table in this process.

    Args:
        lake: The lake.
        name: The table.
        options: What to do.
        interval_seconds: Pause between rounds; None is one round.
        stop: Ends it when set: at once where rows are being rewritten, which is then done again another time.
        progress: Called with (rows rewritten, rows known to need it) of a round.
        after_round: Called with what was done so far.
    """

    def report(done: int, total: int) -> None:
        if stop.is_set():
            raise StoppedError
        if progress is not None:
            progress(done, total)

    totals, started = MaintenanceTotals(), time.monotonic()
    while not stop.is_set():
        table = lake.table(name)
        with contextlib.suppress(StoppedError):
            totals.add(table.compact(full=options.full, options=options.compaction, progress=report))
            clean_up(lake, table, options, totals)
            totals.rounds += 1
        totals.seconds = time.monotonic() - started
        if after_round is not None:
            after_round(totals)
        if interval_seconds is None:
            break
        stop.wait(interval_seconds)
    totals.stopped = stop.is_set()
    return totals


def clean_up(lake: Lake, table: Table, options: MaintenanceOptions, totals: MaintenanceTotals) -> None:
    """Expire and delete, as far as the options say so."""
    if options.expire_older_than is not None:
        expired = table.expire(older_than=options.expire_older_than, keep=options.keep_snapshots, grace_seconds=options.grace_seconds)
        totals.snapshots_expired += len(expired.snapshots)
    if options.collect_garbage:
        totals.files_deleted += lake.collect_garbage().deleted_paths


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and the first Ctrl-C set; a second Ctrl-C interrupts as usual. For the main thread only."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        logger.info("stopping: what is committed stays, and the next run goes on with the rest")
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
