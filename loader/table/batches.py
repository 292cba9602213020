"""A snapshot as a stream of Arrow batches: pruned, a few blocks of rows at a time, several in flight. Memory is bounded whatever the table's size.

Owns the reading order (segment by segment, rows as they lie) and what is held at once; `reading` says how stored rows are shown.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.records import SegmentRef, SnapshotView
from loader.schema import Column, keep
from loader.storage import Storage
from loader.table.reading import columns_to_read, fill_default
from loader.table.resolve import fold, scatter
from loader.table.segments import one_type, open_columns, read_by_id
from loader.table.times import time_words

if TYPE_CHECKING:
    from loader.scan.predicate import Predicate

BATCH_ROWS = 65_536
THREADS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows [start, stop) of a segment."""

    ref: SegmentRef
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


def pieces_of(refs: Sequence[SegmentRef], batch_rows: int = BATCH_ROWS) -> Iterator[Piece]:
    """Segments cut between blocks into pieces of at most so many rows, or of one block."""
    for ref in refs:
        start = stop = 0
        for rows in ref.block_rows:
            if stop > start and stop + rows - start > batch_rows:
                yield Piece(ref=ref, start=start, stop=stop)
                start = stop
            stop += rows
        if stop > start:
            yield Piece(ref=ref, start=start, stop=stop)


class BatchSource:
    """What reads pieces of one snapshot.

    Args:
        view: The snapshot.
        storage: The lake's.
        columns: Names in the order wanted.
        predicate: Only rows that it selects.
        last_time: Only rows whose time is at most this.
    """

    def __init__(self, view: SnapshotView, storage: Storage, columns: Sequence[str] | None, predicate: Predicate | None, last_time: int | None) -> None:
        self._view, self._storage, self._predicate, self._last_time = view, storage, predicate, last_time
        self._wanted, self._read = columns_to_read(view, columns, predicate, last_time)
        self.schema = pa.schema([column.to_arrow() for column in self._wanted], metadata=view.schema.metadata)
        self._opened = functools.lru_cache(maxsize=2 * THREADS)(self._open)

    def _open(self, segment_id: int, ref: SegmentRef) -> _OpenSegment:
        return _OpenSegment(self._view, ref, self._read, self._storage)

    def read(self, piece: Piece) -> pa.Table:
        """The selected live rows of a piece."""
        table = self._opened(piece.ref.segment_id, piece.ref).read(piece.start, piece.stop)
        if self._last_time is not None and self._view.spec.time_column is not None:
            table = keep(table, time_words(table[self._view.spec.time_column.name]) <= self._last_time)
        if self._predicate is not None:
            table = keep(table, self._predicate.mask(table))
        return table.select([column.name for column in self._wanted])

    def stream(self, pieces: Iterator[Piece], *, threads: int = THREADS) -> Iterator[pa.Table]:
        """Tables of pieces in their order, a few read ahead."""
        waiting: collections.deque[Future[pa.Table]] = collections.deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="headrace-read") as pool:
            try:
                for piece in pieces:
                    waiting.append(pool.submit(self.read, piece))
                    if len(waiting) > threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


class _OpenSegment:
    """One segment with what its overlays change."""

    def __init__(self, view: SnapshotView, ref: SegmentRef, columns: Sequence[Column], storage: Storage) -> None:
        self._view, self._columns = view, columns
        self._reader = open_columns(storage, ref)
        self._resolved = fold(view, ref, [column.id for column in columns], storage)
        self._schema = pa.schema([column.to_arrow() for column in columns], metadata=view.schema.metadata)

    def read(self, start: int, stop: int) -> pa.Table:
        stored = read_by_id(self._reader, [column.id for column in self._columns], rows=range(start, stop))
        arrays = []
        for column in self._columns:
            array = one_type(stored[column.id], column.type) if column.id in stored else column.missing(stop - start)
            patch = self._resolved.patches.get(column.id)
            if patch is not None:
                first, last = np.searchsorted(patch.rows, [start, stop]).tolist()
                array = scatter(array, patch.rows[first:last].astype(np.int64) - start, patch.values.slice(first, last - first))
            arrays.append(array)
        table = fill_default(self._view, pa.Table.from_arrays(arrays, schema=self._schema))
        deleted: npt.NDArray[np.bool_] | None = self._resolved.deleted
        return table if deleted is None else keep(table, ~deleted[start:stop])


def read_batches(
    view: SnapshotView,
    storage: Storage,
    segments: Sequence[SegmentRef],
    *,
    columns: Sequence[str] | None = None,
    predicate: Predicate | None = None,
    last_time: int | None = None,
    batch_rows: int = BATCH_ROWS,
    finish: Callable[[pa.Table], pa.Table] | None = None,
) -> pa.RecordBatchReader:
    """The rows of some segments as a reader; nothing is read before the first batch is asked for.

    Args:
        view: The snapshot.
        storage: The lake's.
        segments: Those of it that are left after pruning.
        columns: Names in the order wanted; default all.
        predicate: Only rows that it selects.
        last_time: Only rows whose time is at most this.
        batch_rows: At most so many rows a batch, or one block.
        finish: Changes each table before it is handed out; told by an empty one what schema comes of it.
    """
    source = BatchSource(view, storage, columns, predicate, last_time)
    schema = source.schema if finish is None else finish(source.schema.empty_table()).schema

    def batches() -> Iterator[pa.RecordBatch]:
        for table in source.stream(pieces_of(segments, batch_rows)):
            if table.num_rows:
                yield from (table if finish is None else finish(table)).combine_chunks().to_batches(max_chunksize=batch_rows)

    return pa.RecordBatchReader.from_batches(schema, batches())
