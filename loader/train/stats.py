"""Who waits for whom: how the consumer's time divides between its own work and the stages it waited for.

The pipeline runs in a thread of its own. While the consumer is blocked on it, the clock of the pipeline says which stage it is in, so blocked time is
charged to stages exactly, without sampling.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from loader.scan.counts import FetchCounts, FetchMeter

STAGES = ("plan", "follow", "read", "checksum", "copy", "decode", "shuffle", "assembly", "images", "transform", "hand_over")
MAX_METERS = 16


class StageClock:
    """Seconds that a pipeline thread spent in each stage; read from another thread at any time.

    Args:
        ranges: (begin, end) of named ranges that a profiler shows: `nvtx_ranges`.
    """

    def __init__(self, ranges: tuple[Callable[[str], Any], Callable[[], Any]] | None = None) -> None:
        self._ranges = ranges
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._stage = "plan"
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the time inside to `name`; stages nest."""
        before = self._switch(name)
        if self._ranges is not None:
            self._ranges[0](f"headrace {name}")
        try:
            yield
        finally:
            if self._ranges is not None:
                self._ranges[1]()
            self._switch(before)

    def _switch(self, name: str) -> str:
        with self._lock:
            self._charge()
            before, self._stage = self._stage, name
            return before

    def _charge(self) -> None:
        """Add the time since the last call to the stage under way."""
        now = time.perf_counter()
        self._seconds[self._stage] += now - self._since
        self._since = now

    def seconds(self) -> dict[str, float]:
        """Totals up to now, the stage under way included."""
        with self._lock:
            self._charge()
            return dict(self._seconds)


def nvtx_ranges() -> tuple[Callable[[str], Any], Callable[[], Any]] | None:
    """What NVIDIA's profilers show as ranges on the thread; None where torch is built without CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or torch.version.cuda is None:
        return None
    return torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderStats:
    """What a loader did since it was made.

    Attributes:
        batches: Batches handed over to this rank's consumer.
        rows: Samples in them.
        seconds: From the first request for a batch to the last one handed over, over all epochs.
        blocked_seconds: Part of it in which the consumer waited, by the stage it waited for.
        pipeline_seconds: What the pipeline's thread did in all, by stage; `hand_over` is waiting for the consumer.
        blocks: Blocks fetched.
        encoded_bytes: Bytes of their chunks, as stored.
        peak_window_bytes: Largest decoded size of all windows held at once.
        behind_rows: With `follow`, rows that were committed and not handed over yet; see `loader.train.follow.Lag`.
        behind_seconds: With `follow`, since the oldest of them was committed.
        bad_records: Values that mean nothing, in batches handed over, by column: broken images that the policy "skip" left out.
        storage: What fetching in this process did: calls of the store, retries, caches. Ray's fetch actors count apart.
        batches_ahead: Batches that may wait for the consumer now; it grows while the consumer is kept waiting.
        blocks_ahead: Blocks that may be fetched ahead now, likewise.
        peak_queued_bytes: Largest size of all batches that waited at once, reckoned by the batch handed over.
    """

    batches: int = 0
    rows: int = 0
    seconds: float = 0.0
    blocked_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pipeline_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    blocks: int = 0
    encoded_bytes: int = 0
    peak_window_bytes: int = 0
    bad_records: Mapping[str, int] = dataclasses.field(default_factory=dict)
    storage: FetchCounts = dataclasses.field(default_factory=FetchCounts)
    batches_ahead: int = 0
    blocks_ahead: int = 0
    peak_queued_bytes: int = 0
    behind_rows: int | None = None
    behind_seconds: float | None = None

    @property
    def trainer_seconds(self) -> float:
        """The consumer's own time: what it did not wait."""
        return max(self.seconds - sum(self.blocked_seconds.values()), 0.0)

    @property
    def samples_per_second(self) -> float:
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def blocked_share(self) -> float:
        """Share of the consumer's time that it waited for the loader."""
        return sum(self.blocked_seconds.values()) / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, shares included."""
        values = dataclasses.asdict(self)
        shares = {stage: seconds / self.seconds if self.seconds else 0.0 for stage, seconds in self.blocked_seconds.items()}
        return {
            **values,
            "samples_per_second": self.samples_per_second,
            "blocked_share": self.blocked_share,
            "blocked_share_by_stage": shares,
            "trainer_share": self.trainer_seconds / self.seconds if self.seconds else 0.0,
        }


class StatsRecorder:
    """Adds up statistics; the pipeline's thread and the consumer each write their own fields."""

    def __init__(self) -> None:
        self.blocks = 0
        self.encoded_bytes = 0
        self.peak_window_bytes = 0
        self.peak_queued_bytes = 0
        self.waited: dict[str, float] = {}
        self._meters: list[FetchMeter] = []
        self._ended = FetchCounts()
        self._batches = 0
        self._rows = 0
        self._seconds = 0.0
        self._blocked: dict[str, float] = {}
        self._pipeline: dict[str, float] = {}
        self._bad: dict[str, int] = {}
        self._last: float | None = None

    def note_window_bytes(self, num_bytes: int) -> None:
        """All windows that are held take so much."""
        self.peak_window_bytes = max(self.peak_window_bytes, num_bytes)

    def note_queued_bytes(self, num_bytes: int) -> None:
        """All batches that wait take so much."""
        self.peak_queued_bytes = max(self.peak_queued_bytes, num_bytes)

    def count(self, meter: FetchMeter) -> None:
        """Take a fetcher's counts in."""
        if all(known is not meter for known in self._meters):
            if len(self._meters) == MAX_METERS:  # one that follows a table has a fetcher an increment
                self._ended += self._meters.pop(0).counts
            self._meters.append(meter)

    @property
    def storage(self) -> FetchCounts:
        """Counts of all fetchers that were taken in."""
        return sum((meter.counts for meter in self._meters), self._ended)

    def begin(self) -> None:
        """An iteration begins."""
        self._last = time.perf_counter()

    @contextlib.contextmanager
    def blocked(self, clock: StageClock) -> Iterator[None]:
        """The consumer waits inside; what the pipeline does meanwhile is what it waits for."""
        before = clock.seconds()
        try:
            yield
        finally:
            self.waited = {stage: seconds - before[stage] for stage, seconds in clock.seconds().items() if seconds > before[stage]}
            share = self.storage.checksum_share
            if share and "read" in self.waited:  # whoever waits for a block waits for what the fetching threads do
                self.waited |= {"read": self.waited["read"] * (1 - share), "checksum": self.waited["read"] * share}
            for stage, seconds in self.waited.items():
                self._blocked[stage] = self._blocked.get(stage, 0.0) + seconds

    def handed_over(self, rows: int, bad: Mapping[str, int]) -> float:
        """A batch reaches the consumer, with some bad records by column. Returns the seconds since the one before."""
        for column, count in bad.items():
            self._bad[column] = self._bad.get(column, 0) + count
        now = time.perf_counter()
        passed = now - (self._last if self._last is not None else now)
        self._seconds += passed
        self._last = now
        self._batches += 1
        self._rows += rows
        return passed

    def end(self, clock: StageClock) -> None:
        """An iteration ends."""
        for stage, seconds in clock.seconds().items():
            self._pipeline[stage] = self._pipeline.get(stage, 0.0) + seconds

    def snapshot(self, clock: StageClock | None) -> LoaderStats:
        pipeline = dict(self._pipeline)
        for stage, seconds in ({} if clock is None else clock.seconds()).items():
            pipeline[stage] = pipeline.get(stage, 0.0) + seconds
        return LoaderStats(
            batches=self._batches,
            rows=self._rows,
            seconds=self._seconds,
            blocked_seconds=dict(self._blocked),
            pipeline_seconds=pipeline,
            blocks=self.blocks,
            encoded_bytes=self.encoded_bytes,
            peak_window_bytes=self.peak_window_bytes,
            bad_records=dict(self._bad),
            storage=self.storage,
            peak_queued_bytes=self.peak_queued_bytes,
        )
