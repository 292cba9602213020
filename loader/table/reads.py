"""What users read of a table: the reading half of the handle. Owns no algorithm; each method hands over to the module that does."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from loader.catalog.manifest import Within
from loader.catalog.records import SegmentRef, Snapshot, SnapshotView, TableSpec
from loader.table import reading
from loader.table.batches import BATCH_ROWS, read_batches
from loader.table.context import TableContext
from loader.table.diff import Diff, diff
from loader.table.export import ExportOptions, ExportReport
from loader.table.lookup import KeyValues

if TYPE_CHECKING:
    from loader.lake import Lake
    from loader.scan import Scan
    from loader.scan.follow import Follow
    from loader.scan.predicate import Predicate
    from loader.scan.sampling import Sample
    from loader.table.table import Table

Moment = int | str | datetime.date | datetime.datetime
SnapshotLike = int | str | Snapshot | None


class TableReads:
    """Reads of a `Table`, which is what to use."""

    lake: Lake
    name: str
    _context: TableContext

    @property
    def spec(self) -> TableSpec:
        """The definition: keys, buckets, order, merge rules."""
        return self._context.spec

    def view(self, snapshot: SnapshotLike = None) -> SnapshotView:
        """What makes up a snapshot: plain data, for planners."""
        return self._context.views.at(self.spec, snapshot)

    def part_view(self, snapshot: SnapshotLike, needed: Callable[[TableSpec], Within | None]) -> SnapshotView:
        """A snapshot, or what of it a plan needs, once its schema is known; whole where it is at hand."""
        return self._context.views.at(self.spec, snapshot, needed)

    def to_arrow(
        self, columns: Sequence[str] | None = None, where: str | None = None, snapshot: SnapshotLike = None, closed_before: Moment | None = None
    ) -> pa.Table:
        """Read rows of a snapshot.

        Args:
            columns: Names, in the order wanted; default all.
            where: A SQL boolean expression.
            snapshot: A number, a tag or a Snapshot; default the newest.
            closed_before: Only rows whose attribution window is closed at this time, or at the "watermark".

        Raises:
            ColumnNotFoundError: A column is not in the schema.
            SnapshotNotFoundError: No such snapshot or tag.
        """
        view = self.view(snapshot)
        return reading.read_view(view, self.lake.storage, columns=columns, where=where, closed_before=closed_before, prune=self._prune)

    def to_batches(
        self,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        snapshot: SnapshotLike = None,
        closed_before: Moment | None = None,
        *,
        batch_rows: int = BATCH_ROWS,
    ) -> pa.RecordBatchReader:
        """Read rows of a snapshot as a stream, in bounded memory; arguments and errors as for `to_arrow`."""
        view = self.view(snapshot)
        predicate = None if where is None else reading.predicate_of(view, where)
        closed = None if closed_before is None else reading.closed_time(view, closed_before)
        segments = self._prune(view, predicate, closed)
        return read_batches(view, self.lake.storage, segments, columns=columns, predicate=predicate, last_time=closed, batch_rows=batch_rows)

    def _prune(self, view: SnapshotView, predicate: Predicate | None, last_time: int | None) -> Sequence[SegmentRef]:
        from loader.scan.condition import selected  # a sibling that imports this package

        return selected(view, self.lake.database, predicate, last_time)

    def diff(self, a: SnapshotLike, b: SnapshotLike = None, columns: Sequence[str] | None = None) -> Diff:
        """Rows that are in `b` and not in `a`, the other way round, and those that differ, by primary key.

        Args:
            a: A number, a tag or a Snapshot.
            b: Likewise; default the newest.
            columns: Which columns to compare and return beside the key; default all of `b`, which `a` must have too.

        Raises:
            SchemaError: A snapshot lacks a column.
            SnapshotNotFoundError: No such snapshot or tag.
        """
        return diff(self.view(a), self.view(b), self.lake.storage, columns)

    def lookup(self, keys: KeyValues, columns: Sequence[str] | None = None, *, snapshot: SnapshotLike = None) -> pa.Table:
        """Rows by primary key; what was looked up before stays open, so that a warm look-up takes a fraction of a millisecond.

        Args:
            keys: Values of a key of one column, tuples for several, or a pyarrow Table or RecordBatch with the key's columns. Repeats are allowed.
            columns: Names, in the order wanted; default all.
            snapshot: A number, a tag or a Snapshot; default the newest, followed from call to call.

        Returns:
            One row for each key, in their order; all null where the table has no such key.

        Raises:
            SchemaError: Keys do not fit the primary key.
            ColumnNotFoundError: A column is not in the schema.
        """
        return self._context.look_ups.at(snapshot).take(keys, columns)

    def scan(
        self,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        snapshot: int | str | None = None,
        closed_before: int | str | datetime.datetime | None = None,
        sample: Sample | Sequence[Any] | None = None,
        group_by: Sequence[str] = (),
        follow: bool | Follow = False,
    ) -> Scan:
        """What to read for training; see `loader.DataLoader`.

        Args:
            columns: Names, in the order batches have them; default all.
            where: A SQL expression of the rows.
            snapshot: A number or a tag; default the newest when it is planned.
            closed_before: Only rows whose attribution window closed by then; or "watermark".
            sample: Which share of the rows: (where, rate) rules, `[("label = 1", 1.0), (None, 0.1)]`, or a `loader.Sample`. Batches have a column of weights.
            group_by: Columns of a request or session: rows that agree in them stay in one batch, on one rank, next to each other (`batch.group_offsets`).
            follow: After the snapshot's rows, those that later snapshots add, as they come: True, or a `loader.Follow` that says how.
        """
        from loader.scan import Scan

        chosen: dict[str, Any] = {"sample": sample, "group_by": group_by, "follow": follow}
        return Scan.of(cast("Table", self), columns=columns, where=where, snapshot=snapshot, closed_before=closed_before, **chosen)

    def to_duckdb(self, connection: Any = None, name: str | None = None, snapshot: SnapshotLike = None) -> Any:
        """The table as a relation of DuckDB, which reads the columns and segments that a query needs and nothing else.

        Args:
            connection: Of DuckDB; default a new one in memory.
            name: Under which the connection knows it; default the table's own.
            snapshot: A number, a tag or a Snapshot; default the newest, which the relation then stays at.

        Raises:
            MissingDependencyError: duckdb is not installed.
        """
        from loader.query import register  # it imports this package

        return register(cast("Table", self), connection, name or self.name, snapshot)

    def export(
        self,
        location: str | os.PathLike[str],
        columns: Sequence[str] | None = None,
        where: str | None = None,
        snapshot: SnapshotLike = None,
        closed_before: Moment | None = None,
        *,
        options: ExportOptions | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ExportReport:
        """Write rows of a snapshot as Parquet files; a second run with the same arguments goes on where one was stopped.

        Args:
            location: A folder, or the url of an object store.
            columns, where, closed_before: As for `to_arrow`.
            snapshot: A number, a tag or a Snapshot; default the newest, or that of the export that is continued. It is pinned meanwhile.
            options: Sizes and compression.
            progress: Called with (rows looked at, rows there are) after each file.

        Raises:
            AlreadyExistsError: Another export lies at the location.
            StorageError: A file does not hold the rows that were read.
        """
        from loader.table.exporting import run_export

        return run_export(cast("Table", self), location, columns, where, snapshot, closed_before, options or ExportOptions(), progress)

    def bytes_by_column(self, snapshot: SnapshotLike = None) -> dict[str, int]:
        """Stored bytes of each column in the live segments."""
        return reading.bytes_by_column(self.view(snapshot), self.lake.storage)
