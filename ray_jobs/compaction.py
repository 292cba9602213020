"""The actors that compact: what they are told, what each does, and the pool that gives buckets to them and outlives them.

Owns no policy: an actor calls `Table.compact` for one bucket at a time, whose lease makes sure that nobody else is at it.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import loader
from loader import CompactionOptions
from loader.errors import HeadraceError
from loader.extras import require
from loader.table.compaction.run import CompactionReport
from loader.table.maintenance import StoppedError

log = logging.getLogger("headrace.compact")
MAX_TRIES = 3  # of a bucket whose actor died
POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What every actor of a job is told: plain data.

    Attributes:
        location, catalog, table: As for `loader.connect` and `lake.table`.
        full: Rewrite everything that is not one sorted run.
        options: Limits and thresholds.
    """

    location: str
    catalog: str | None
    table: str
    full: bool
    options: CompactionOptions


class Worker:
    """The actor: one handle of the table, one bucket at a time. It answers while it works."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._lake = loader.connect(work.location, catalog=work.catalog, create=False)
        self._stop = threading.Event()
        self._rows = 0

    def compact(self, bucket: int) -> CompactionReport | None:
        """Work on a bucket until nothing is worth it there; None if it was told to stop."""

        def report(done: int, total: int) -> None:
            self._rows = done
            if self._stop.is_set():
                raise StoppedError

        try:
            if self._stop.is_set():
                return None
            table = self._lake.table(self._work.table)
            return table.compact(full=self._work.full, options=self._work.options, progress=report, buckets=[bucket])
        except StoppedError:
            return None
        finally:
            self._rows = 0

    def rows(self) -> int:
        """Rows rewritten of the bucket in hand."""
        return self._rows

    def stop(self) -> None:
        """Give up what is in hand; nothing of it is committed."""
        self._stop.set()


class Pool:
    """The actors of a job, and what each is at.

    Attributes:
        num_lost: Actors that died.
    """

    def __init__(self, work: Work, num_workers: int) -> None:
        self._ray = require("ray", extra="ray")
        self._work, self._num_workers = work, num_workers
        self._make = self._ray.remote(num_cpus=1, max_concurrency=2)(Worker).remote
        self._actors: list[Any] = []
        self.num_lost = 0

    def run(self, buckets: Sequence[int], stop: threading.Event, progress: Callable[[int], None]) -> Iterator[CompactionReport]:
        """Work on buckets, in this order, and yield what came of each.

        Raises:
            HeadraceError: What a worker could name.
        """
        waiting, running, tries = deque(buckets), dict[Any, tuple[int, int]](), Counter[int]()
        while not stop.is_set() and len(self._actors) < min(self._num_workers, len(buckets)):
            self._actors.append(self._make(self._work))
        told = False
        while waiting or running:
            if stop.is_set() and not told:
                told = True
                waiting.clear()
                for actor in self._actors:
                    actor.stop.remote()
            busy = {place for place, _ in running.values()}
            for place in set(range(len(self._actors))) - busy:
                if waiting:
                    bucket = waiting.popleft()
                    running[self._actors[place].compact.remote(bucket)] = (place, bucket)
            done, _ = self._ray.wait(list(running), timeout=POLL_SECONDS) if running else ([], [])
            for one in done:
                place, bucket = running.pop(one)
                try:
                    report = self._ray.get(one)
                except self._ray.exceptions.RayActorError as error:
                    self._replace(place, bucket, tries, error)
                    if not stop.is_set():
                        waiting.append(bucket)
                    continue
                except self._ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, HeadraceError) else error from None
                if report is not None:
                    yield report
            progress(self._rows(place for place, _ in running.values()))

    def _rows(self, places: Iterator[int]) -> int:
        """Rows that the actors have rewritten of what is in hand."""
        asked = [self._actors[place].rows.remote() for place in places]
        done, _ = self._ray.wait(asked, num_returns=len(asked), timeout=POLL_SECONDS) if asked else ([], [])
        rows = 0
        for one in done:
            try:
                rows += self._ray.get(one)
            except self._ray.exceptions.RayError:
                continue  # the loss is noticed where its work is waited for
        return rows

    def _replace(self, place: int, bucket: int, tries: Counter[int], error: Exception) -> None:
        """Another actor in the place of one that died."""
        tries[bucket] += 1
        self.num_lost += 1
        if tries[bucket] >= MAX_TRIES:
            raise HeadraceError(f"bucket {bucket} of {self._work.table!r}: {MAX_TRIES} actors died on it, give them more memory or less to hold: {error}")
        log.warning("the actor at work on bucket %d died; another takes over", bucket)
        self._actors[place] = self._make(self._work)
