"""Values that the catalog gives and takes: table definitions, snapshots, segments and what belongs to them. No SQL, no I/O."""

from __future__ import annotations

import dataclasses
import datetime
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from loader.schema import Column, Schema

INLINE_PREFIX = "inline/"  # a path that lies in the catalog itself
DELETES = "deletes"  # an overlay of rows that a snapshot has lost
ERASED = "erased"  # an overlay of rows that were blanked in place, at every snapshot that shows their segment; they keep their number
ALL_BUCKETS = -1  # the bucket of a small segment that holds rows of any; compaction sorts them into theirs
OVERLAY_KINDS = ("patch", DELETES, ERASED)  # another kind was written by a newer Headrace


@dataclasses.dataclass(frozen=True)
class Attribution:
    """When a missing label may be read as its default.

    Attributes:
        column: The label's column.
        window_seconds: How long after a row's time its label may still come.
        default: What a null label reads as once `time + window <= watermark`. Until then it reads as null.
    """

    column: str
    window_seconds: int
    default: Any = 0


@dataclasses.dataclass(frozen=True)
class SourceOffsets:
    """What a commit consumed from a source, committed in the same transaction as the data.

    Attributes:
        pipeline: The reader's name; each pipeline has offsets of its own.
        source: The topic, folder or stream.
        ranges: {partition: (start, end)}: the commit holds the records from start up to, not including, end.
        epoch: Number of this owner of the pipeline; one with a lower number than committed before is refused.
    """

    pipeline: str
    source: str
    ranges: Mapping[Any, tuple[int, int]]
    epoch: int = 0

    def __post_init__(self) -> None:
        # plain integers: SQLite would store NumPy's as bytes
        object.__setattr__(self, "ranges", {partition: (operator.index(start), operator.index(end)) for partition, (start, end) in self.ranges.items()})
        object.__setattr__(self, "epoch", operator.index(self.epoch))
        for partition, (start, end) in self.ranges.items():
            if not 0 <= start <= end < 1 << 63:
                raise ValueError(f"offsets of {self.source} partition {partition}: ({start}, {end}) is not a range of records")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A table's definition, by the schema it has now. Columns are held by id; the properties give names."""

    id: int
    name: str
    schema: Schema
    schema_id: int
    primary_key_ids: tuple[int, ...]
    bucket_by_ids: tuple[int, ...]
    buckets: int
    cluster_by_ids: tuple[int, ...]
    time_column_id: int | None
    partition_by: str | None
    merge_by_id: Mapping[int, str]
    attribution: Attribution | None
    durability: str
    lookup_column_ids: tuple[int, ...] = ()  # of these, rows are kept side by side for look-ups
    resolve_horizon_seconds: int | None = None  # labels of rows older than this below the watermark are refused

    def columns(self, ids: tuple[int, ...]) -> tuple[Column, ...]:
        by_id = {column.id: column for column in self.schema}
        return tuple(by_id[column_id] for column_id in ids)

    def names(self, ids: tuple[int, ...]) -> list[str]:
        return [column.name for column in self.columns(ids)]

    @property
    def primary_key(self) -> list[str]:
        return self.names(self.primary_key_ids)

    @property
    def bucket_by(self) -> list[str]:
        return self.names(self.bucket_by_ids)

    @property
    def cluster_by(self) -> list[str]:
        return self.names(self.cluster_by_ids)

    @property
    def time_column(self) -> Column | None:
        return None if self.time_column_id is None else self.columns((self.time_column_id,))[0]

    @property
    def merge(self) -> dict[str, str]:
        """Merge rule by column name, for the columns that have one of their own."""
        return {column.name: self.merge_by_id[column.id] for column in self.schema if column.id in self.merge_by_id}

    def rule(self, column_id: int) -> str:
        return self.merge_by_id.get(column_id, "last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One committed state of a table.

    Attributes:
        table: Name of the table.
        id: Dense number, from 1; the order of snapshots is the order of commits.
        kind: append, patch, compact…
        commit_id: The writer's name for this commit; the same one twice is one commit.
        created_at: Wall clock of the commit, UTC.
        watermark: In the unit of the time column; None before the first was given.
        num_rows: Live rows after this commit.
        summary: Counts of what the commit did: rows appended, patched, held, met…
    """

    table: str
    id: int
    kind: str
    commit_id: str
    created_at: datetime.datetime
    watermark: int | None
    num_rows: int
    summary: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlayRef:
    """Patches of one segment, or rows deleted from it, as a section of a stored object."""

    overlay_id: int
    kind: str
    path: str
    offset: int
    num_bytes: int
    sequence: int
    num_rows: int
    num_deleted: int
    column_ids: tuple[int, ...]
    level: int = 0  # 1: folded from several


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnFileRef:
    """Columns of one segment, aligned by position, that lie elsewhere."""

    file_id: int
    path: str
    offset: int
    num_bytes: int
    column_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentRef:
    """A live segment of a snapshot: where it is and what is known of it without opening it.

    Attributes:
        segment_id: Unique in the catalog, growing with the order of commits.
        path: Of the stored object; `inline/…` lies in the catalog.
        offset, num_bytes: The section of it.
        num_rows: Rows stored; live_rows of them are not deleted at this snapshot.
        sequence_min, sequence_max: Commit sequence of its rows.
        key_min, key_max: Range of the key index's low words, as order-keeping signed numbers.
        time_min, time_max: Of the time column, in its unit.
        added_in: The snapshot that brought it; the segments of one bucket and partition that one compaction wrote are one sorted run.
    """

    segment_id: int
    path: str
    offset: int
    num_bytes: int
    bucket: int
    partition: int
    level: int
    num_rows: int
    live_rows: int
    block_rows: tuple[int, ...]
    sequence_min: int
    sequence_max: int
    key_min: int | None
    key_max: int | None
    time_min: int | None
    time_max: int | None
    added_in: int
    overlays: tuple[OverlayRef, ...]
    column_files: tuple[ColumnFileRef, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SnapshotView:
    """All that a reader needs of one snapshot: plain data, segments by segment_id.

    From the catalog `segments` is a `loader.catalog.segments.Segments`, which has arrays over all of them; `Segments.of` makes one of any.
    """

    spec: TableSpec
    snapshot_id: int
    watermark: int | None
    segments: Sequence[SegmentRef]

    @property
    def table(self) -> str:
        return self.spec.name

    @property
    def schema(self) -> Schema:
        return self.spec.schema

    @property
    def attribution(self) -> Attribution | None:
        return self.spec.attribution

    @property
    def time_column(self) -> str | None:
        column = self.spec.time_column
        return None if column is None else column.name

    @property
    def num_rows(self) -> int:
        field = getattr(self.segments, "field", None)  # arrays, where they come from the catalog
        return sum(segment.live_rows for segment in self.segments) if field is None else int(field("live_rows").sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pin:
    """A snapshot that somebody holds, so that nothing it needs is deleted."""

    id: int
    table: str
    snapshot_id: int
    owner: str
    expires_at: datetime.datetime | None


@dataclasses.dataclass(kw_only=True)
class NewSegment:
    """A segment to commit. Made by the thousand in small commits, and three times as fast where it is not frozen: nobody changes one."""

    uuid: str
    path: str
    offset: int
    num_bytes: int
    bucket: int
    partition: int
    level: int
    num_rows: int
    num_deleted: int = 0
    block_rows: bytes
    key_min: int | None
    key_max: int | None
    time_min: int | None
    time_max: int | None
    sequence_min: int | None = None  # None: the commit's own
    sequence_max: int | None = None
    stats: bytes | None = None  # records of loader.catalog.column_stats; None: nothing is known


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewOverlay:
    """An overlay to commit. `segment_id` is a committed segment; `new_segment` the position of one of this commit."""

    segment_id: int | None = None
    new_segment: int | None = None
    kind: str = "patch"
    path: str
    offset: int
    num_bytes: int
    num_rows: int
    num_deleted: int = 0
    column_ids: tuple[int, ...]
    sequence: int | None = None  # None: the commit's own
    level: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewColumnFile:
    """Columns of a committed segment, aligned by position, to commit."""

    segment_id: int
    path: str
    offset: int
    num_bytes: int
    column_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewPending:
    """Labels of one key bucket whose row has not come."""

    bucket: int
    path: str
    offset: int
    num_bytes: int
    num_held: int
    keys: bytes
    column_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PendingRef:
    """Committed pending labels of one commit and key bucket."""

    pending_id: int
    bucket: int
    sequence: int
    path: str
    offset: int
    num_bytes: int
    num_held: int
    keys: bytes
    met: bytes | None
    column_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BucketLease:
    """Buckets (of rows) that one compactor has to itself, by the name it took them with."""

    owner: str
    buckets: tuple[int, ...]


@dataclasses.dataclass(kw_only=True)
class CommitPlan:
    """All that one commit writes, and what must still hold when it does.

    Attributes:
        base: The snapshot that keys were resolved at.
        is_exact: Nothing at all may have been committed since `base`.
        rows_buckets: Key buckets whose rows must not have changed since `base`.
        rows_changed: Key buckets in which this commit adds, moves or removes rows.
        pending_buckets: Key buckets whose pending labels must not have changed since `base`.
        pending_changed: Key buckets whose pending labels this commit changes.
        inline: Bytes that go into the catalog, by path.
        staged: The prefix of files that the commit names, whose lease must hold.
        accounted: (prefix, n): the files numbered below n are named by commits or in garbage, once this one is made.
        met: Pending id -> u32 positions of its keys that are met by this commit.
        removed_segments: Inputs of a compaction; all must be live.
        read_segments: Segments whose rows were read; all must be live, and without overlays that came later.
        latest_overlay: The highest overlay id of `removed_segments` or `read_segments` that was folded or carried over.
        num_column_files: How many column files `removed_segments` or `read_segments` had when they were read.
        num_overlays: How many live overlays `removed_segments` have, those that are carried over included; None where nothing hangs on it.
        removed_overlays: Overlays that others of this commit, or column files, stand for; all must be live. Their segments stay.
        folded_segments: Segments of these: nothing of them may have been erased since `latest_overlay`.
        removed_column_files: Column files that others of this commit stand for; all must be live.
        lease: Buckets that the writer must still have to itself.
        evolved: The table as it is to be, where the commit changes its schema.
        garbage: Paths written for this commit that it does not use after all.
        written: Set by the commit once its rows are inserted; it stays false where an earlier commit answered.
    """

    spec: TableSpec
    kind: str
    commit_id: str
    base: int
    is_exact: bool = False
    rows_buckets: tuple[int, ...] = ()
    rows_changed: tuple[int, ...] = ()
    pending_buckets: tuple[int, ...] = ()
    pending_changed: tuple[int, ...] = ()
    segments: list[NewSegment] = dataclasses.field(default_factory=list)
    overlays: list[NewOverlay] = dataclasses.field(default_factory=list)
    column_files: list[NewColumnFile] = dataclasses.field(default_factory=list)
    pending: list[NewPending] = dataclasses.field(default_factory=list)
    met: dict[int, bytes] = dataclasses.field(default_factory=dict)
    inline: dict[str, bytes] = dataclasses.field(default_factory=dict)
    staged: str | None = None
    accounted: tuple[str, int] | None = None
    removed_segments: tuple[int, ...] = ()
    read_segments: tuple[int, ...] = ()
    latest_overlay: int = 0
    num_column_files: int = 0
    num_overlays: int | None = None
    removed_overlays: tuple[int, ...] = ()
    folded_segments: tuple[int, ...] = ()
    removed_column_files: tuple[int, ...] = ()
    lease: BucketLease | None = None
    evolved: TableSpec | None = None
    garbage: list[str] = dataclasses.field(default_factory=list)
    offsets: SourceOffsets | None = None
    watermark: int | None = None
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    written: bool = False

    @property
    def is_inline(self) -> bool:
        """Whether it refers to no files."""
        return all(part.path.startswith(INLINE_PREFIX) for parts in (self.segments, self.overlays, self.pending, self.column_files) for part in parts)

    def paths(self) -> set[str]:
        """Every path that the commit refers to."""
        return {part.path for parts in (self.segments, self.overlays, self.pending, self.column_files) for part in parts}
