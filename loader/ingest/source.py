"""What a source of events is: an ordered, replayable stream of Arrow records with an offset for every one. Owns no implementation.

The contract that exactly-once rests on: reading again from the same offsets gives the same records. Where a source was read up to is
committed with the data, by the table, and handed back to `read` on the next start; a source keeps no position of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import pyarrow as pa

Ranges = dict[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceBatch:
    """Consecutive records of one partition.

    Attributes:
        records: The records, in the order of their offsets.
        partition: File, topic partition or shard.
        start, end: Offsets of the first record and of the one after the last. A source whose offsets have gaps gives `end - start` above
            the number of records; such a batch is never split.
    """

    records: pa.Table
    partition: str
    start: int
    end: int

    @property
    def num_rows(self) -> int:
        return int(self.records.num_rows)

    @property
    def dense(self) -> bool:
        """Whether every offset holds one record, so that the batch may be split."""
        return self.end - self.start == self.num_rows

    def split(self, rows: int) -> tuple[SourceBatch, SourceBatch]:
        """The first `rows` records and the rest."""
        head = SourceBatch(records=self.records.slice(0, rows), partition=self.partition, start=self.start, end=self.start + rows)
        tail = SourceBatch(records=self.records.slice(rows), partition=self.partition, start=self.start + rows, end=self.end)
        return head, tail


class Source(Protocol):
    """An ordered stream of events that can be read again from any offsets."""

    @property
    def name(self) -> str:
        """Under this name its offsets are committed."""
        ...

    def read(self, offsets: Mapping[str, int], *, max_rows: int) -> Iterator[SourceBatch]:
        """Yield the records after `offsets`.

        Args:
            offsets: {partition: next offset}; a partition that is not named starts at its first record.
            max_rows: Most records of a batch.
        """
        ...


def merge_ranges(batches: Sequence[SourceBatch]) -> Ranges:
    """{partition: (start, end)} of consecutive batches.

    Raises:
        ValueError: Two batches of a partition do not follow each other.
    """
    ranges: Ranges = {}
    for batch in batches:
        start, end = ranges.get(batch.partition, (batch.start, batch.start))
        if end != batch.start:
            raise ValueError(f"partition {batch.partition!r}: a batch starts at offset {batch.start}, and the one before it ended at {end}")
        ranges[batch.partition] = (start, batch.end)
    return ranges
