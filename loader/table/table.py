"""The table handle: what users call. Owns no algorithm; each method hands over to the module that does."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from loader.catalog import admin
from loader.catalog.read import load_offsets, load_snapshots, resolve_snapshot
from loader.catalog.records import Attribution, Snapshot, SourceOffsets
from loader.errors import TableNotFoundError
from loader.schema import Schema
from loader.table import changes
from loader.table import evolve as evolution
from loader.table.append import Append
from loader.table.compaction.pick import CompactionOptions
from loader.table.compaction.run import CompactionReport, Progress, compact
from loader.table.context import TableContext
from loader.table.describe import describe
from loader.table.erasure.proof import ErasureProof
from loader.table.erasure.run import DEFAULT_DUE, erase
from loader.table.expire import ExpiryReport, expire
from loader.table.lookup import KeyValues
from loader.table.overwrite import overwrite
from loader.table.reads import Moment, SnapshotLike, TableReads
from loader.table.row_groups import RowGroupReport, build_row_groups
from loader.table.rows import Data
from loader.table.streamed import append
from loader.table.streamed_backfill import backfill
from loader.table.times import time_value
from loader.table.ttl import Retention, save_retention

if TYPE_CHECKING:
    from loader.lake import Lake


class Table(TableReads):
    """A table of a lake. Safe to share between threads; writes of one process go one at a time. Picklable by the lake's location.

    Attributes:
        lake: Where it lies.
        name: Its name.
    """

    def __init__(self, lake: Lake, context: TableContext) -> None:
        self.lake = lake
        self._context = context
        self.name = context.spec.name

    def __reduce__(self) -> tuple[Callable[[Lake, str], Table], tuple[Lake, str]]:
        return _reopen, (self.lake, self.name)

    def __repr__(self) -> str:
        return f"Table({self.name!r} in {self.lake.location!r})"

    @property
    def schema(self) -> Schema:
        return self.spec.schema

    @property
    def primary_key(self) -> list[str]:
        return self.spec.primary_key

    @property
    def bucket_by(self) -> list[str]:
        return self.spec.bucket_by

    @property
    def buckets(self) -> int:
        return self.spec.buckets

    @property
    def cluster_by(self) -> list[str]:
        return self.spec.cluster_by

    @property
    def time_column(self) -> str | None:
        return None if self.spec.time_column is None else self.spec.time_column.name

    @property
    def partition_by(self) -> str | None:
        return self.spec.partition_by

    @property
    def merge(self) -> dict[str, str]:
        return self.spec.merge

    @property
    def attribution(self) -> Attribution | None:
        return self.spec.attribution

    @property
    def durability(self) -> str:
        return self.spec.durability

    def append(
        self,
        data: Data,
        on_conflict: str = "check",
        *,
        watermark: Moment | None = None,
        offsets: SourceOffsets | None = None,
        commit_id: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Snapshot:
        """Add rows with new keys; labels that were waiting for them are applied.

        An input that is large beside the lake's `memory_bytes` is read, encoded and stored part by part, and becomes one snapshot all the same.

        Args:
            data: A pyarrow Table, RecordBatch or RecordBatchReader, or the path of a Parquet file.
            on_conflict: "check" refuses keys that exist; "trust" skips that probe, for a caller who knows that they are new.
            watermark: Up to where the data is complete, in the time column's unit or as a time; it never goes back.
            offsets: What was consumed from a source, committed with the rows. Offsets that were committed before drop the data.
            commit_id: A name for this commit; the same one again returns the first one's snapshot.
            progress: Told how many rows are stored, after each part of a large input.

        Returns:
            The snapshot that holds the rows; they are durable.

        Raises:
            KeyExistsError: A key is in the table, or stands twice in the data. Nothing was written.
            SchemaError: The data does not fit the schema.
            ConflictError: The offsets neither continue nor repeat what is committed.
            CatalogBusyError: Another process is writing for longer than the time-out.
            StorageFullError: No space left. Nothing was committed.
        """
        moment = self._moment(watermark)
        return append(self._writable(), data, on_conflict=on_conflict, watermark=moment, offsets=offsets, commit_id=commit_id, progress=progress).run()

    def append_async(
        self,
        data: Data,
        on_conflict: str = "check",
        *,
        watermark: Moment | None = None,
        offsets: SourceOffsets | None = None,
        commit_id: str | None = None,
    ) -> Future[Snapshot]:
        """`append` in the background: many small appends share a transaction and a sync, each with a snapshot of its own, in the order given.

        Waits only where too many are on their way. `lake.close()` commits what is left.

        Returns:
            Its result is the snapshot, once the rows are durable, or what `append` raises.
        """
        write = Append(self._writable(), data, on_conflict=on_conflict, watermark=self._moment(watermark), offsets=offsets, commit_id=commit_id)
        return self._context.commits.submit(write)

    def patch(
        self,
        data: Data,
        columns: Sequence[str] | None = None,
        *,
        order: str | None = None,
        on_missing: str = "hold",
        watermark: Moment | None = None,
        offsets: SourceOffsets | None = None,
        commit_id: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Snapshot:
        """Change columns of rows found by key, each by the column's merge rule.

        Args:
            data: The primary key and the operands, by column. A null operand leaves its column untouched. A key may come several times.
            columns: Which columns to change; default all but the key and `order`.
            order: A column of `data` (integer, date or timestamp) that orders operands of the rules `last` and `first`, whatever order they
                arrive in. Operands without an order count as older than those with one, and among themselves go by commit.
            on_missing: "hold" keeps a label whose row has not come until it is appended; "drop" drops it.
            watermark, offsets, commit_id, progress: As for `append`; a large input is resolved in ranges of its keys.

        Raises:
            SchemaError: The key is missing, or a column decides where rows lie and so cannot change.
            ColumnNotFoundError: A column is not in the table or the data.
            HorizonError: A row is older than the table's `resolve_horizon_seconds`.
        """
        return changes.patch(
            self._writable(),
            data,
            columns=None if columns is None else list(columns),
            order=order,
            on_missing=on_missing,
            watermark=self._moment(watermark),
            offsets=offsets,
            commit_id=commit_id,
            progress=progress,
        )

    def upsert(
        self,
        data: Data,
        *,
        order: str | None = None,
        watermark: Moment | None = None,
        offsets: SourceOffsets | None = None,
        commit_id: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Snapshot:
        """Insert rows, or change those whose key is there, each column by its merge rule.

        Args:
            data: The primary key, what says where a row lies (`bucket_by`, the time column), and any other columns: operands of their merge rules, on the
                row that is there or on an empty one. A null leaves its column untouched. A key may come several times.
            order: A column of `data` (integer, date or timestamp) that orders operands of the rules `last` and `first`, as for `patch`; it may be a
                column of the table too.
            watermark, offsets, commit_id, progress: As for `append`; a large input is resolved in ranges of its keys.

        Raises:
            SchemaError: A column that is needed is missing, does not fit, or a new row would have a null where none may be.
            ColumnNotFoundError: The table has no column of this name.
        """
        moment = self._moment(watermark)
        return changes.upsert(self._writable(), data, order=order, watermark=moment, offsets=offsets, commit_id=commit_id, progress=progress)

    def delete(
        self,
        keys_or_where: Data | KeyValues,
        *,
        offsets: SourceOffsets | None = None,
        commit_id: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Snapshot:
        """Delete rows. Earlier snapshots keep them until they expire; `erase` is what removes them for good.

        Args:
            keys_or_where: A SQL boolean expression in text; or the primary keys of rows, in any form that `lookup` takes, or as data with the key's columns
                (others are not looked at). Keys that the table does not have are passed over.
            offsets, commit_id: As for `append`.
            progress: Told how many keys are found and stored, after each part of a large input.

        Raises:
            SchemaError: A column of the key is missing or holds nulls.
            ColumnNotFoundError: The expression names a column that is not there.
        """
        return changes.delete(self._writable(), keys_or_where, offsets=offsets, commit_id=commit_id, progress=progress)

    def overwrite(
        self,
        data: Data,
        where: str,
        *,
        watermark: Moment | None = None,
        offsets: SourceOffsets | None = None,
        commit_id: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Snapshot:
        """Delete the rows that an expression selects and append others, in one commit: readers see the old or the new.

        Args:
            data: The new rows. They need not be selected by `where`.
            where: A SQL boolean expression: the rows that go.
            watermark, offsets, commit_id, progress: As for `append`.

        Raises:
            KeyExistsError: A key of the data is in a row that stays. Nothing was written.
            SchemaError, ColumnNotFoundError: As for `append` and `delete`.
        """
        moment = self._moment(watermark)
        return overwrite(self._writable(), data, where, watermark=moment, offsets=offsets, commit_id=commit_id, progress=progress).run()

    def backfill(self, data: Data, *, snapshot: SnapshotLike = None, commit_id: str | None = None, progress: Callable[[int], None] | None = None) -> Snapshot:
        """Fill columns of rows that are there, each by the column's merge rule, without rewriting a segment.

        Args:
            data: The primary key and the columns; or the columns alone, one row for each row of `snapshot`, in the order in which `to_arrow` reads it.
                Columns that the table does not have are added. A null leaves a row's value, or the column's default. Keys that the table does not
                have are counted and passed over.
            snapshot: For data without a key: the snapshot whose rows it follows, which must still be the newest.
            commit_id, progress: As for `append`; a large input is put in the order of the table's rows, on disk where it has a key.

        Raises:
            SchemaError: A type does not fit, a column says where rows lie, or the number of rows is another.
            ConflictError: For data without a key: the table has changed since the snapshot.
        """
        context, at = self._writable(), None
        if snapshot is not None:
            with self.lake.database.read() as connection:
                at = resolve_snapshot(connection, self.spec, snapshot)
        done = backfill(context, data, snapshot_id=at, commit_id=commit_id, progress=progress).run()
        self._renew()
        return done

    def add_column(self, field: pa.Field, *, default: Any = None, merge: str | None = None, commit_id: str | None = None) -> Snapshot:
        """Add a column at the end; nothing is rewritten.

        Args:
            field: Name, type and whether nulls are allowed.
            default: What rows read as that were written without it, those that are there and those still to come.
            merge: Its rule for patches and upserts; default last.
            commit_id: As for `append`.

        Raises:
            AlreadyExistsError: There is a column of this name.
            SchemaError: The type, the default or the rule does not fit.
        """
        return self._evolve(evolution.add_column(field, default=default, merge=merge), commit_id)

    def drop_column(self, name: str, *, commit_id: str | None = None) -> Snapshot:
        """Drop a column; earlier snapshots keep it. Keys, order, time and the attributed label cannot be dropped."""
        return self._evolve(evolution.drop_column(name), commit_id)

    def rename_column(self, old: str, new: str, *, commit_id: str | None = None) -> Snapshot:
        """Give a column another name; earlier snapshots are read by the old one."""
        return self._evolve(evolution.rename_column(old, new), commit_id)

    def widen_column(self, name: str, kind: pa.DataType, *, commit_id: str | None = None) -> Snapshot:
        """Give a column a type that holds every value of the present one: a longer integer or float, large strings, lists of such."""
        return self._evolve(evolution.widen_column(name, kind), commit_id)

    def reorder_columns(self, names: Sequence[str], *, commit_id: str | None = None) -> Snapshot:
        """Put the named columns first, in this order."""
        return self._evolve(evolution.reorder_columns(names), commit_id)

    def _evolve(self, change: evolution.Change, commit_id: str | None) -> Snapshot:
        with self._writing():
            snapshot = evolution.evolve(self._context, change, commit_id=commit_id)
        self._renew()
        return snapshot

    def compact(
        self, *, full: bool = False, options: CompactionOptions | None = None, progress: Progress | None = None, buckets: Collection[int] | None = None
    ) -> CompactionReport:
        """Merge small segments, re-clustered, and fold overlays; earlier snapshots stay readable. Stop it at will: the next one goes on.

        Args:
            full: Rewrite every group of segments that is not one clean, sorted run, not only those worth it by size.
            options: Limits of memory and sizes.
            progress: Called with (rows rewritten, rows known to need it) after each piece; what it raises ends the compaction in good order.
            buckets: Work on these only. Buckets where another compaction is at work are left to it, and counted in the report.
        """
        self.lake.check_process()
        self._renew()  # the schema may have changed since this handle was opened
        return compact(self._context, full=full, options=options or CompactionOptions(), progress=progress, buckets=buckets)

    def expire(
        self,
        *,
        older_than: datetime.timedelta | datetime.datetime | None = None,
        keep: int | None = None,
        grace_seconds: float | None = None,
        ttl: datetime.timedelta | datetime.datetime | None = None,
    ) -> ExpiryReport:
        """Drop rows that are too old, and forget old snapshots and what only they showed. Snapshots with a tag, and those of running jobs, stay whole.

        What is left out is as `set_retention` says. Bytes are deleted by `lake.collect_garbage` once the grace period is over.

        Args:
            older_than: Age, or the moment, before which snapshots go; default a week.
            keep: How many of the newest stay, whatever their age; default one.
            grace_seconds: How long bytes stay after this, so that readers that have just begun end in peace; default an hour.
            ttl: Age, or the moment, before which rows go, by the time column; default all stay.
        """
        self.lake.check_process()
        return expire(self._context, older_than=older_than, keep=keep, grace_seconds=grace_seconds, ttl=ttl)

    def set_retention(self, retention: Retention) -> None:
        """Keep settings with the table that `expire` applies from now on."""
        save_retention(self._context, retention)

    def erase(
        self,
        keys: KeyValues | None = None,
        *,
        where: str | None = None,
        due: datetime.timedelta | datetime.datetime = DEFAULT_DUE,
        signing_key: bytes | None = None,
        progress: Progress | None = None,
    ) -> ErasureProof:
        """Remove rows for good: from the head, and from every file that is live or kept for an older snapshot, tag or pin.

        An erased row keeps its place in older snapshots as a blank row that reads leave out, so that a job which trains on one keeps its order and position:
        it is masked in the job's batches. Rows that come later under the same key are new rows, labels that come later wait as others do. Killed anywhere, the
        same call goes on.

        Args:
            keys: Primary keys, in any form that `lookup` takes.
            where: In place of keys: all rows that this expression selects in any snapshot that is kept.
            due: When the old bytes are deleted; before, readers that have begun end in peace. Call again after it for a complete proof.
            signing_key: At least 16 bytes, for the proof's signature and key hashes.
            progress: Called with (done, total), of segments searched and of objects rewritten.

        Raises:
            SchemaError: Keys do not fit the primary key.
            ConflictError: The table changed under it again and again; call again.
        """
        self.lake.check_process()
        return erase(self._context, keys, where=where, due=due, signing_key=signing_key, progress=progress)

    def build_lookup(self, columns: Sequence[str] | None = None, *, progress: Progress | None = None) -> RowGroupReport:
        """Keep these columns of large segments a second time, rows side by side, so that look-ups on cold data read a page a row, not one a column.

        Segments that have their rows already are passed over; compaction keeps them up. Stopping it loses nothing that is done.

        Args:
            columns: The look-up columns from now on, in place of those the table has; an empty list ends it. Default: those of `create_table`.
            progress: Called with rows done and rows to do.

        Raises:
            ColumnNotFoundError, SchemaError: A column is not there, or of a type that rows do not hold (fixed-width values, strings, binary, lists of numbers).
        """
        return build_row_groups(self._context, columns, progress)

    def history(self) -> list[Snapshot]:
        """All snapshots that are kept, oldest first."""
        with self.lake.database.read() as connection:
            return load_snapshots(connection, self.spec)

    def tag(self, name: str, snapshot: SnapshotLike = None) -> int:
        """Give a snapshot (default the newest) a name that keeps it; returns its number.

        Raises:
            AlreadyExistsError: The tag stands at another snapshot.
        """
        if not name or name.isdigit():
            raise ValueError(f"{name!r} is not a name for a tag: use letters, so that it is not taken for a number")
        with self.lake.database.write(self.spec.id) as connection:
            snapshot_id = resolve_snapshot(connection, self.spec, snapshot)
            admin.set_tag(connection, self.spec, name, snapshot_id)
        return snapshot_id

    def tags(self) -> dict[str, int]:
        """Tag names and the snapshots they stand at."""
        with self.lake.database.read() as connection:
            return admin.load_tags(connection, self.spec)

    def offsets(self, pipeline: str, source: str) -> dict[str, int]:
        """{partition: next offset} that a pipeline has committed from a source; partitions as text."""
        with self.lake.database.read() as connection:
            return {partition: following for partition, (following, _, _) in load_offsets(connection, self.spec.id, pipeline, source).items()}

    def describe(self) -> dict[str, Any]:
        """The definition and the present state, as JSON values."""
        return describe(self._context)

    def _writable(self) -> TableContext:
        self.lake.check_process()
        return self._context

    def _renew(self) -> None:
        """Take the table's present definition.

        Raises:
            TableNotFoundError: It was dropped; one that has its name since is another.
        """
        context = self.lake.context(self.name)
        if context.spec.id != self.spec.id:
            raise TableNotFoundError(f"table {self.name!r} was dropped, and another has its name: open it with lake.table({self.name!r})")
        self._context = context

    def _writing(self) -> Any:
        self.lake.check_process()
        return self._context.lock

    def _moment(self, watermark: Moment | None) -> int | None:
        if watermark is None:
            return None
        column = self.spec.time_column
        if column is None:
            raise ValueError(f"a watermark needs a time column, and table {self.name!r} has none: create it with time_column=…")
        return time_value(watermark, column.type)


def _reopen(lake: Lake, name: str) -> Table:
    return lake.table(name)
