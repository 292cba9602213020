"""Streams merged in event time: nothing lost, no label before its sample's time, and a watermark that keeps its word."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.ingest.merge import rounds
from loader.ingest.source import SourceBatch, merge_ranges

TIMES = st.lists(st.integers(0, 30), max_size=60)


def batches(times: list[int], size: int) -> Iterator[SourceBatch]:
    for begin in range(0, len(times), size):
        part = times[begin : begin + size]
        yield SourceBatch(records=pa.table({"t": part}), partition="p", start=begin, end=begin + len(part))


def read_times(records: pa.Table) -> np.ndarray:
    return records["t"].to_numpy()


@settings(deadline=None, max_examples=100)
@given(TIMES, TIMES, st.integers(1, 20), st.integers(1, 9))
def test_every_event_once_in_order_and_the_watermark_holds(first: list[int], second: list[int], round_rows: int, size: int) -> None:
    streams = [sorted(first), sorted(second)]
    seen: list[list[int]] = [[], []]
    ranges: list[list[SourceBatch]] = [[], []]
    watermark = -1
    for step in rounds([batches(times, size) for times in streams], [read_times, read_times], round_rows=round_rows):
        for stream, part in enumerate(step.parts):
            for batch in part:
                times = batch.records["t"].to_pylist()
                assert all(time > watermark for time in times), "an event at or before the watermark came after it"
                seen[stream] += times
                ranges[stream].append(batch)
        watermark = step.watermark
    assert seen == streams
    assert [merge_ranges(part) for part in ranges] == [{"p": (0, len(times))} if times else {} for times in streams]
    assert watermark == max([*streams[0], *streams[1]], default=-1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 20))
def test_late_events_are_kept(times: list[int], round_rows: int) -> None:
    steps = rounds([batches(times, 4)], [read_times], round_rows=round_rows)
    assert [time for step in steps for batch in step.parts[0] for time in batch.records["t"].to_pylist()] == times
