"""Rows that an earlier snapshot did not offer: by commit sequence, and by the watermark where only closed rows are read.

A row is offered at a snapshot if it was committed by then and, with `closed_before`, its attribution window was closed by then. Compaction keeps the commit
sequence of each row, so it makes nothing new; nor does a patch. Sequences are read only of segments that hold rows of both sides, block by block.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from loader.catalog.connection import Database
from loader.catalog.read import load_watermark
from loader.catalog.records import SegmentRef, SnapshotView
from loader.catalog.segments import HAS_TIMES, Segments
from loader.decode.result import FixedColumn
from loader.scan.condition import Condition
from loader.scan.fetch import BlockFetcher
from loader.scan.prune import Pruned
from loader.segment.layout import SEQUENCE_COLUMN_ID
from loader.table.reading import WATERMARK
from loader.table.segments import read_by_id
from loader.table.times import closed_limit

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Since:
    """What an earlier snapshot offered.

    Attributes:
        snapshot: Its number.
        last_time: With `closed_before`, the latest time whose window was closed then; None where every committed row was offered.
    """

    snapshot: int
    last_time: int | None

    @classmethod
    def of(cls, snapshot: int | None, view: SnapshotView, condition: Condition, closed_before: int | str | None, database: Database) -> Since | None:
        """Of a scan's `since`; None where it has none.

        Args:
            snapshot: The earlier one.
            view: The later one.
            condition: By which rows of the later one are selected.
            closed_before: As the scan says it.
            database: The catalog.
        """
        if snapshot is None:
            return None
        last_time = condition.last_time
        if closed_before == WATERMARK and condition.time is not None:
            with database.read() as connection:
                watermark = load_watermark(connection, view.spec, snapshot)
            assert watermark is not None  # the scan began at a snapshot that had one, and it never goes
            last_time = closed_limit(view.attribution, condition.time.type, watermark)
        return cls(snapshot=snapshot, last_time=last_time)

    def prune(self, pruned: Pruned) -> Pruned:
        """Without the segments that have nothing to offer; whole are those that offer all of what the condition selects."""
        segments = pruned.segments
        newer, all_new = segments.field("sequence_max") > self.snapshot, segments.field("sequence_min") > self.snapshot
        later, all_later = self._times(segments)
        kept = newer | later
        return dataclasses.replace(pruned, segments=segments.where(kept), whole=(pruned.whole & (all_new | all_later))[kept])

    def _times(self, segments: Segments) -> tuple[Mask, Mask]:
        """Which segments may hold rows whose window closed meanwhile, and which hold nothing else."""
        if self.last_time is None:
            none = np.zeros(len(segments), np.bool_)
            return none, none
        known = segments.field("known") & HAS_TIMES != 0
        return ~known | (segments.field("time_max") > self.last_time), known & (segments.field("time_min") > self.last_time)

    def offers(self, fetcher: BlockFetcher, ref: SegmentRef, rows: range, times: FixedColumn | None) -> Mask | None:
        """bool [rows], which rows of a segment were not offered; None where none was.

        Args:
            fetcher: Opens the segment.
            ref: The segment.
            rows: Of it.
            times: Their times, where `last_time` is set.
        """
        if ref.sequence_min > self.snapshot:
            return None
        new = np.zeros(len(rows), np.bool_)
        if ref.sequence_max > self.snapshot:
            read = read_by_id(fetcher.reader(ref.path, ref.offset, ref.num_bytes), [SEQUENCE_COLUMN_ID], rows=rows)
            new |= read[SEQUENCE_COLUMN_ID].to_numpy(zero_copy_only=False) > self.snapshot
        if self.last_time is not None and times is not None:
            closed = times.values > self.last_time
            new |= closed if times.validity is None else closed & (times.validity != 0)
        return new
