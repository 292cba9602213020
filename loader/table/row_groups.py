"""Row groups: chosen columns of large segments once more, rows side by side in a column file, so that look-ups on cold data read a page a row.

Owns which segments have one, and building it; the bytes are `segment.lookup_rows`', reading is `row_reads`'. A group holds values as the segment and its
column files had them: patches are read beside it, deleted rows are never looked up, and a column that was filled in later is read from its own file. So a group
may be missing, late or out of date at any time, and maintenance may drop it.
"""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence

import pyarrow as pa

from loader import failpoints
from loader.catalog.admin import set_property
from loader.catalog.commit import Stale
from loader.catalog.read import LOOKUP_COLUMNS, load_head, load_segments_by_id, load_view
from loader.catalog.records import CommitPlan, NewColumnFile, SegmentRef, TableSpec
from loader.schema import Column
from loader.segment.column_files import JoinedReader, encode_column_file
from loader.segment.footer import add_section
from loader.segment.layout import LOOKUP_ROWS_COLUMN_ID, Section
from loader.segment.lookup_rows import RowLayout, encode_rows
from loader.segment.reader import SegmentReader
from loader.table.context import TableContext
from loader.table.definition import held_columns
from loader.table.files import Stage
from loader.table.segments import LOOKUP_ROWS_IDS, column_ids_of, group_of, later_columns, one_type, open_columns, open_segment, read_by_id

logger = logging.getLogger(__name__)
MIN_ROWS = 4096  # a smaller segment's columns are a few pages anyhow
COMMIT_BYTES = 256 << 20  # groups are committed when so much of them is staged
PIECE_ROWS = 65_536
Progress = Callable[[int, int], None]  # rows done, rows that need it


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowGroupReport:
    """What a build did.

    Attributes:
        snapshots: Numbers of its commits.
        num_segments: Segments that got a group.
        num_rows: Rows in them.
        num_bytes: Of the groups.
    """

    snapshots: tuple[int, ...]
    num_segments: int
    num_rows: int
    num_bytes: int


def build_row_groups(
    context: TableContext, columns: Sequence[str] | None = None, progress: Progress | None = None, *, buckets: Collection[int] | None = None
) -> RowGroupReport:
    """Give every large segment a group of the table's look-up columns. Can be stopped and begun again: what is committed stays.

    Args:
        context: The table.
        columns: Make these the look-up columns first; none ends it for what is written from now on.
        progress: Called with rows done and rows to do.
        buckets: Only segments of these; default all.
    """
    if columns is not None:
        ids = held_columns(context.spec.schema, columns)
        with context.catalog.write() as connection:
            set_property(connection, context.spec, LOOKUP_COLUMNS, list(ids))
        context.spec = dataclasses.replace(context.spec, lookup_column_ids=ids)
    spec, stage = context.spec, context.new_stage()
    done: list[tuple[int, list[_Built]]] = []
    try:
        with context.catalog.read() as connection:
            view = load_view(connection, spec, load_head(connection, spec))
        todo = [ref for ref in view.segments if (buckets is None or ref.bucket in buckets) and needs_group(view.spec, ref)]
        total, seen = sum(ref.num_rows for ref in todo), 0
        for batch in _batches(context, view.spec, todo, stage):
            done += _commit(context, batch, stage)
            seen += sum(built.ref.num_rows for built in batch)
            if progress is not None:
                progress(seen, total)
    finally:
        stage.close()
    built = [one for _, batch in done for one in batch]
    return RowGroupReport(
        snapshots=tuple(snapshot for snapshot, _ in done),
        num_segments=len(built),
        num_rows=sum(one.ref.num_rows for one in built),
        num_bytes=sum(one.file.num_bytes for one in built),
    )


def needs_group(spec: TableSpec, ref: SegmentRef) -> bool:
    """Whether a segment is large and has no group, or one that other columns came after."""
    at = group_of(ref)
    return bool(spec.lookup_column_ids) and ref.num_rows >= MIN_ROWS and (at is None or bool(later_columns(ref, at) & set(spec.lookup_column_ids)))


@dataclasses.dataclass(frozen=True)
class _Built:
    ref: SegmentRef
    file: NewColumnFile


def _batches(context: TableContext, spec: TableSpec, todo: Sequence[SegmentRef], stage: Stage) -> Iterator[list[_Built]]:
    """Groups, staged; as many as are committed together."""
    batch: list[_Built] = []
    for ref in todo:
        data = encode_group(context, spec, ref)
        if data is None:
            continue
        path = stage.put(data)  # always a file: the catalog is no place to read a page of
        batch.append(_Built(ref, NewColumnFile(segment_id=ref.segment_id, path=path, offset=0, num_bytes=len(data), column_ids=LOOKUP_ROWS_IDS)))
        if sum(built.file.num_bytes for built in batch) >= COMMIT_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _commit(context: TableContext, batch: list[_Built], stage: Stage) -> list[tuple[int, list[_Built]]]:
    commit_id = uuid.uuid4().hex
    live: list[_Built] = []

    def attempt() -> CommitPlan | Stale:
        with context.catalog.read() as connection:
            head = load_head(connection, context.spec)
            refs = {ref.segment_id: ref for ref in load_segments_by_id(connection, context.spec.id, [built.ref.segment_id for built in batch])}
        live[:] = [built for built in batch if _place(refs.get(built.ref.segment_id)) == _place(built.ref)]
        if not live:
            return Stale("inputs", abandoned=True)
        return CommitPlan(
            spec=context.spec,
            kind="lookup",
            commit_id=commit_id,
            base=head,
            column_files=[built.file for built in live],
            read_segments=tuple(built.ref.segment_id for built in live),
            latest_overlay=max((overlay.overlay_id for built in live for overlay in refs[built.ref.segment_id].overlays), default=0),
            num_column_files=sum(len(refs[built.ref.segment_id].column_files) for built in live),
            removed_column_files=tuple(file.file_id for built in live for file in built.ref.column_files if file.column_ids == LOOKUP_ROWS_IDS),
            summary={"row_groups": len(live)},
        )

    failpoints.hit("lookup.staged")
    snapshot = context.commit(attempt, stage)
    return [] if snapshot is None else [(snapshot.id, list(live))]


def _place(ref: SegmentRef | None) -> tuple[object, ...] | None:
    """What a group was read from: files of the segment that were rewritten since make it worthless, whatever patches came do not."""
    return None if ref is None else (ref.path, ref.offset, ref.column_files)


def encode_group(context: TableContext, spec: TableSpec, ref: SegmentRef) -> bytearray | None:
    """A segment's row group as a column file; None where the segment has none of the columns in the table's type.

    Args:
        context: The table.
        spec: Its definition, for the types of columns.
        ref: The segment.
    """
    reader, base = open_columns(context.storage, ref), open_segment(context.storage, ref)
    stored = column_ids_of(reader)
    columns = [column for column in spec.columns(spec.lookup_column_ids) if column.id in stored]
    while columns:
        try:
            section = encode_rows(_layout(columns), _pieces(reader, columns, ref.num_rows))
        except _NotHeldError as error:  # of one column: the others are kept
            columns = [column for column in columns if column.id != error.column_id]
            continue
        flag = pa.table({"__lookup_rows": pa.nulls(ref.num_rows, pa.uint8()).fill_null(0)})
        return add_section(encode_column_file(base, flag, column_ids=[LOOKUP_ROWS_COLUMN_ID]).data, Section.LOOKUP_ROWS, section)
    return None


class _NotHeldError(Exception):
    """A column holds what rows cannot."""

    def __init__(self, column_id: int) -> None:
        super().__init__(column_id)
        self.column_id = column_id


def _layout(columns: Sequence[Column]) -> RowLayout:
    schema = pa.schema([pa.field(column.name, column.type) for column in columns])
    return RowLayout.of(schema, [column.id for column in columns])


def _pieces(reader: SegmentReader | JoinedReader, columns: Sequence[Column], num_rows: int) -> Iterator[list[pa.Array]]:
    for start in range(0, num_rows, PIECE_ROWS):
        read = read_by_id(reader, [column.id for column in columns], rows=range(start, min(start + PIECE_ROWS, num_rows)))
        arrays = [one_type(read[column.id], column.type) for column in columns]
        for column, array in zip(columns, arrays, strict=True):
            if pa.types.is_nested(column.type) and array.flatten().null_count:
                raise _NotHeldError(column.id)
        yield arrays
