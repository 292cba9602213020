"""The exactly-once loop: rounds of events become commits that carry their source offsets. Owns the order of commits, stopping and progress.

A round commits stream by stream, samples before labels if they were given in that order; each commit holds its records and their offsets in
one transaction, and the round's last commit also moves the watermark. So a process that is killed anywhere starts again from what the table
says, and every record is in the table once. One loop owns a (pipeline, table); a second one meets a ConflictError.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from loader import failpoints
from loader.catalog.records import SourceOffsets
from loader.errors import ColumnNotFoundError, SchemaError, did_you_mean
from loader.ingest.merge import I64, Round, rounds
from loader.ingest.source import Source, SourceBatch, merge_ranges
from loader.table.table import Table
from loader.table.times import from_seconds, time_words

log = logging.getLogger(__name__)
ROUND_ROWS = 65_536


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """One event stream and what becomes of its records.

    Attributes:
        source: Where they come from.
        write: `append` makes rows of them, `patch` new values of rows that are there.
        time_column: The source's column with the event's time; needed as soon as streams are merged, and for the watermark.
        columns: {column of the table: column of the source}; default, every column of the source under its own name.
        on_conflict: For appends: `check` refuses a key that exists, `trust` does not look.
        order: For patches, the column that orders operands of `last` and `first`, by its name after `columns`.
        on_missing: For patches: `hold` keeps one whose row has not come yet, `drop` forgets it.
    """

    source: Source
    write: Literal["append", "patch"] = "append"
    time_column: str | None = None
    columns: Mapping[str, str] | None = None
    on_conflict: Literal["check", "trust"] = "check"
    order: str | None = None
    on_missing: Literal["hold", "drop"] = "hold"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the loop is, after a round.

    Attributes:
        rows: Records committed by this run, by source.
        commits: Made by this run.
        seconds: Since this run began.
        watermark: Of the table, in the unit of its time column; None if it was not moved.
    """

    rows: dict[str, int]
    commits: int
    seconds: float
    watermark: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestReport(Progress):
    """Progress at the end; `stopped` says that it was asked to stop before the sources ended."""

    stopped: bool


def run(
    table: Table,
    streams: Sequence[Stream],
    *,
    pipeline: str,
    round_rows: int = ROUND_ROWS,
    lateness_seconds: int = 0,
    after_round: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> IngestReport:
    """Commit everything that the sources hold and the table does not, then return.

    Args:
        table: Receives all streams.
        streams: In the order in which a round commits them: rows before the patches that meet them.
        pipeline: Name under which the offsets stand in the table.
        round_rows: About how many events of the busiest stream make a micro-batch.
        lateness_seconds: How far events may be out of order; the watermark stays behind by as much.
        after_round: Called after each round.
        stop: Once set, the loop ends after the commit in hand.

    Raises:
        ValueError: Two streams have one source name, or merged streams lack a time column.
        ConflictError: Somebody else commits under this pipeline, or a source no longer holds what was committed from it.
    """
    loop = _Loop(table, streams, pipeline, lateness_seconds)
    began = time.monotonic()
    for step in loop.rounds(round_rows):
        finished = loop.commit(step, stop)
        progress = loop.progress(time.monotonic() - began)
        if after_round:
            after_round(progress)
        if not finished or (stop is not None and stop.is_set()):
            return IngestReport(**vars(progress), stopped=True)
    return IngestReport(**vars(loop.progress(time.monotonic() - began)), stopped=False)


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts as usual. For the main thread only."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        log.warning("stopping after the commit in hand; press Ctrl-C again to stop at once")
        stop.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class _Loop:
    """State of one run: what it has committed so far."""

    def __init__(self, table: Table, streams: Sequence[Stream], pipeline: str, lateness_seconds: int) -> None:
        names = [stream.source.name for stream in streams]
        if len(set(names)) < len(names):
            raise ValueError(f"two streams have one source name ({', '.join(names)}), under which offsets are kept: rename one")
        if len(streams) > 1 and any(stream.time_column is None for stream in streams):
            raise ValueError("streams are merged in event time: give each a time_column")
        self._table, self._streams, self._pipeline = table, streams, pipeline
        self._rows = dict.fromkeys(names, 0)
        self._commits = 0
        self._watermark: int | None = None
        self._time_type = table.schema.column(table.time_column).type if table.time_column else None
        self._lateness = from_seconds(lateness_seconds, self._time_type) if self._time_type else 0

    def rounds(self, round_rows: int) -> Iterator[Round]:
        batches = []
        for stream in self._streams:
            offsets = self._table.offsets(self._pipeline, stream.source.name)
            batches.append(stream.source.read(offsets, max_rows=round_rows))
        return rounds(batches, [self._times(stream) for stream in self._streams], round_rows=round_rows)

    def commit(self, step: Round, stop: threading.Event | None) -> bool:
        """Commit the round; False if it was asked to stop in the middle."""
        parts = [(stream, part) for stream, part in zip(self._streams, step.parts, strict=True) if part]
        for index, (stream, part) in enumerate(parts):
            last = index == len(parts) - 1
            watermark = self._watermark_of(step) if last else None
            self._write(stream, part, watermark)
            if watermark is not None:
                self._watermark = watermark
            if not last and stop is not None and stop.is_set():
                return False
        return True

    def progress(self, seconds: float) -> Progress:
        return Progress(rows=dict(self._rows), commits=self._commits, seconds=seconds, watermark=self._watermark)

    def _watermark_of(self, step: Round) -> int | None:
        if self._time_type is None or not all(stream.time_column for stream in self._streams):
            return None
        complete = step.watermark
        if step.last:
            # A run before this one may have committed later rows and been killed before it moved the watermark.
            complete = max([complete, *(segment.time_max for segment in self._table.view().segments if segment.time_max is not None)])
        return complete - self._lateness

    def _times(self, stream: Stream) -> Callable[[pa.Table], I64]:
        name = stream.time_column
        if name is None:
            return lambda records: _no_times(records.num_rows)
        return lambda records: self._event_times(stream, name, records)

    def _event_times(self, stream: Stream, name: str, records: pa.Table) -> I64:
        where = f"{stream.source.name}: time column {name!r}"
        if name not in records.column_names:
            raise ColumnNotFoundError(f"{where} is not in the events: {did_you_mean(name, records.column_names)}")
        times = records[name] if self._time_type is None or records[name].type == self._time_type else _cast(records[name], self._time_type, where)
        if times.null_count:
            raise SchemaError(f"{where} holds {times.null_count} nulls: an event without a time has no place in the merge, leave it out")
        return time_words(times)

    def _write(self, stream: Stream, part: Sequence[SourceBatch], watermark: int | None) -> None:
        records = pa.concat_tables([self._records(stream, batch) for batch in part])
        elsewhere: dict[str, Any] = {"watermark": watermark, "offsets": SourceOffsets(self._pipeline, stream.source.name, merge_ranges(part))}
        if stream.write == "append":
            self._table.append(records, on_conflict=stream.on_conflict, **elsewhere)
        else:
            self._table.patch(records, order=stream.order, on_missing=stream.on_missing, **elsewhere)
        failpoints.hit("ingest.committed")
        self._commits += 1
        self._rows[stream.source.name] += sum(batch.num_rows for batch in part)

    def _records(self, stream: Stream, batch: SourceBatch) -> pa.Table:
        """Columns under the table's names and in its types, since files of one stream may differ in theirs."""
        named = stream.columns or {name: name for name in batch.records.column_names}
        arrays = {name: self._column(stream, batch, source) for name, source in named.items()}
        for name, array in arrays.items():
            wanted = self._table.schema.column(name).type if name in self._table.schema else array.type
            if array.type != wanted:
                arrays[name] = _cast(array, wanted, f"{stream.source.name}, {batch.partition}: column {name!r}")
        return pa.table(arrays)

    def _column(self, stream: Stream, batch: SourceBatch, name: str) -> pa.ChunkedArray:
        if name not in batch.records.column_names:
            raise ColumnNotFoundError(f"{stream.source.name}, {batch.partition} has no column {name!r}: {did_you_mean(name, batch.records.column_names)}")
        return batch.records[name]


def _cast(array: pa.ChunkedArray, wanted: pa.DataType, where: str) -> pa.ChunkedArray:
    try:
        return array.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SchemaError(f"{where} is {array.type} and the table wants {wanted}: {reason}: cast it in the source") from error


def _no_times(num_rows: int) -> I64:
    """A single stream without times: everything happens now, in the order of the source."""
    return np.zeros(num_rows, np.int64)
