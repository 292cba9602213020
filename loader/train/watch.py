"""Watches a loader while it runs: posts its statistics for `headrace top`, and warns when the trainer waits, with the cause and the cure."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from loader.train.board import Post
from loader.train.stats import LoaderStats

logger = logging.getLogger(__name__)

POST_SECONDS = 1.0
LOOK_SECONDS = 10.0  # a warning tells of so long at least, and not of the first batch, which has to wait
WAITS_SHARE = 0.05
REPEAT_SECONDS = 300.0

CURES = {
    "plan": "the plan is made before the first batch: pin a snapshot, or select less",
    "follow": "no new rows had come: the trainer is as fast as the table's writers; raise Follow(min_rows=…) to wait less often",
    "read": "storage is too slow for this: raise prefetch_bytes or threads, read fewer columns, move the lake closer, or fetch with Ray actors "
    "(stream=loader.distributed.RayBlockStream)",
    "checksum": "checksums take the time: raise threads",
    "copy": "copies to the GPU take the time: raise pinned_bytes and prefetch_bytes, or read fewer columns",
    "decode": "decoding takes the time: raise threads, decode on the GPU (device='cuda'), or in Ray actors (decode='actor')",
    "shuffle": "filling shuffle windows takes the time: raise threads, or lower window_rows so that a window fills sooner",
    "assembly": "laying batches out takes the time: raise threads, read fewer columns, or leave repeated lists unexpanded (unique=[…])",
    "images": "decoding images takes the time: raise threads, or decode them on the GPU with DALI",
    "transform": "transforms take the time: do less in them, or do them on the GPU (device='cuda')",
    "hand_over": "the batches were there: the trainer's own thread came late for them",
}


def advice(waited: Mapping[str, float], seconds: float) -> str | None:
    """The cause and the cure in a line, where more than 5% of a trainer's time went into waiting.

    Args:
        waited: Seconds by the stage that was waited for.
        seconds: Of the trainer in all.
    """
    total = sum(waited.values())
    if seconds <= 0 or total / seconds <= WAITS_SHARE:
        return None
    stage = max(waited, key=lambda name: waited[name])
    return f"the trainer waited {total / seconds:.0%} of the last {seconds:.0f} s, {waited[stage] / total:.0%} of it for {stage}: {CURES[stage]}"


class Watch:
    """Looks at a loader's statistics after each batch; most looks cost one reading of the clock.

    Args:
        title: What the loader reads, for people.
        number: Of the loader in this process.
        rank: Of the loader.
        world_size: Likewise.
        stats: Its statistics now.
        clock: In seconds.
    """

    def __init__(
        self, title: str, number: int, rank: int, world_size: int, stats: Callable[[], LoaderStats], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._labels: dict[str, str | int] = {"loader": title, "rank": rank, "world_size": world_size, "number": number}
        self._stats, self._clock = stats, clock
        self.number = number
        self._post = Post(str(number))
        self._next = clock()  # the first batch is posted at once
        self._before: LoaderStats | None = None
        self._warned_at: float | None = None

    def look(self) -> None:
        """A batch was handed over."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + POST_SECONDS
        stats = self._stats()
        self._post.write({**self._labels, **stats.to_dict()})
        if self._before is None:
            self._before = stats
        elif stats.seconds - self._before.seconds >= LOOK_SECONDS:
            self._warn(self._before, stats, now)
            self._before = stats

    def _warn(self, before: LoaderStats, stats: LoaderStats, now: float) -> None:
        waited = {stage: seconds - before.blocked_seconds.get(stage, 0.0) for stage, seconds in stats.blocked_seconds.items()}
        found = advice(waited, stats.seconds - before.seconds)
        if found is not None and (self._warned_at is None or now - self._warned_at >= REPEAT_SECONDS):
            self._warned_at = now
            logger.warning("%s, rank %d: %s", self._labels["loader"], self._labels["rank"], found)

    def end(self) -> None:
        """The iteration is over: nothing to show until the next one."""
        self._post.remove()
        self._before, self._next = None, self._clock()
