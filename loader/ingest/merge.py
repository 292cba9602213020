"""Merges event streams in event time into rounds: what to commit next from each stream, and the watermark after it. No I/O of its own.

A round takes from every stream the events up to one moment, so that samples and labels interleave as they happened and a replay of a year
gives the same table as the year did. Streams are expected to be in order; an event that is late counts as if it came with the one before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.ingest.source import SourceBatch

I64 = npt.NDArray[np.int64]
ReadTimes = Callable[[pa.Table], I64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """The next step of the merge.

    Attributes:
        parts: For each stream the batches to commit now; often none.
        watermark: Every event of this time or earlier has been given by the end of this round.
        last: No event is left in any stream.
    """

    parts: tuple[tuple[SourceBatch, ...], ...]
    watermark: int
    last: bool


class _Buffer:
    """Batches of one stream that wait, with the time at which each event takes its turn."""

    def __init__(self, batches: Iterator[SourceBatch], read_times: ReadTimes) -> None:
        self._batches, self._read_times = batches, read_times
        self._waiting: list[tuple[SourceBatch, I64]] = []
        self._latest = np.iinfo(np.int64).min
        self.exhausted = False

    @property
    def num_rows(self) -> int:
        return sum(batch.num_rows for batch, _ in self._waiting)

    def fill(self, num_rows: int) -> None:
        """Read until `num_rows` wait, or the source ends for now."""
        while not self.exhausted and self.num_rows < num_rows:
            batch = next(self._batches, None)
            if batch is None:
                self.exhausted = True
            elif batch.num_rows:
                times = np.maximum.accumulate(np.maximum(self._read_times(batch.records), self._latest))
                self._latest = times[-1]
                self._waiting.append((batch, times))

    def time_of_row(self, row: int) -> int:
        """When the event at this place takes its turn; of the last one where fewer wait."""
        for _, times in self._waiting:
            if row < len(times):
                return int(times[row])
            row -= len(times)
        return int(self._waiting[-1][1][-1])

    def take(self, until: int) -> tuple[SourceBatch, ...]:
        """Remove and return the events up to and at `until`."""
        taken: list[SourceBatch] = []
        while self._waiting and self._waiting[0][1][0] <= until:
            batch, times = self._waiting.pop(0)
            rows = int(np.searchsorted(times, until, side="right"))
            if rows < batch.num_rows and batch.dense:
                batch, rest = batch.split(rows)
                self._waiting.insert(0, (rest, times[rows:]))
            taken.append(batch)
        return tuple(taken)


def rounds(streams: Sequence[Iterator[SourceBatch]], read_times: Sequence[ReadTimes], *, round_rows: int) -> Iterator[Round]:
    """Merge streams of (batches, event times).

    Args:
        streams: One iterator of batches each.
        read_times: For each stream, the event times of its records as int64, all in one unit.
        round_rows: About how many events of the busiest stream make a round. No more than twice as many wait in memory for each stream, unless
            more happened at one moment.
    """
    buffers = [_Buffer(batches, times) for batches, times in zip(streams, read_times, strict=True)]
    while True:
        for buffer in buffers:
            buffer.fill(round_rows)
        waiting = [buffer for buffer in buffers if buffer.num_rows]
        if not waiting:
            return
        until = min(buffer.time_of_row(round_rows - 1) for buffer in waiting)
        parts = tuple(buffer.take(until) for buffer in buffers)
        for buffer in buffers:
            buffer.fill(1)
        last = not any(buffer.num_rows for buffer in buffers)
        # More events of this very moment may follow, so the moment before it is the last that is complete.
        yield Round(parts=parts, watermark=until if last else until - 1, last=last)
