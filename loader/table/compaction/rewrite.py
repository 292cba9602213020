"""Rewriting a task's segments as one sorted run, or as one of each bucket: overlays folded, deleted rows dropped, rows in cluster order, piece by piece.

Inputs may be larger than memory: `divide` says which of their rows make up a piece, and a piece is read, put in order and encoded at a time. Every row keeps
its commit sequence, and a value that came from an ordered operand keeps its order, as hidden columns.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader import failpoints
from loader.catalog.records import ALL_BUCKETS, NewSegment, TableSpec
from loader.schema import take
from loader.segment.column_files import JoinedReader
from loader.segment.key_index import KeyIndex
from loader.segment.layout import SEQUENCE_COLUMN_ID, VALUE_DTYPES, ValueType
from loader.table.compaction.division import divide
from loader.table.compaction.pick import CompactionOptions, CompactionTask
from loader.table.context import TableContext
from loader.table.files import Stage, place
from loader.table.rows import buckets_of, cluster_order, encode_sections, hidden_name, key_words
from loader.table.stored import StoredRows, open_rows, order_columns, read_rows

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]
INDEX_ROW_BYTES = 24  # of a key index in memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewritten:
    """What a rewrite wrote.

    Attributes:
        segments: In order; together they are one sorted run.
        indexes: Key indexes of the first of them, as many as memory has room for.
        inline: Bytes for the catalog, where an output was small.
        starts: i64[len(segments) + 1], first row of each segment in the run.
        places: Input segment id -> i32[num_rows], the run's row that each input row became, −1 if it was deleted.
        latest_overlay: The highest overlay number that was folded.
        key_buckets: Buckets of all keys in the run.
        num_column_files: Column files of the inputs that were read.
    """

    segments: list[NewSegment]
    indexes: list[KeyIndex]
    inline: dict[str, bytes]
    starts: I64
    places: dict[int, I32]
    latest_overlay: int
    key_buckets: tuple[int, ...]
    num_column_files: int


def rewrite(context: TableContext, task: CompactionTask, options: CompactionOptions, stage: Stage, progress: Callable[[int], None]) -> Rewritten:
    """Write the run of a task under a stage; nothing is committed.

    Args:
        context: The table.
        task: What to merge.
        options: Limits.
        stage: Where files go.
        progress: Called with the rows written so far.
    """
    inputs = [open_rows(context.spec, ref, context.storage) for ref in task.segments]
    division = divide(context.spec, inputs, _num_pieces(inputs, options), context.storage)
    places = {item.ref.segment_id: np.full(item.ref.num_rows, -1, np.int32) for item in inputs}
    hidden = order_columns(context.spec, inputs)
    segments: list[NewSegment] = []
    indexes: list[KeyIndex] = []
    inline: dict[str, bytes] = {}
    buckets: set[int] = set()
    starts = [0]
    for number in range(division.num_pieces):
        rows = division.piece(number)
        if not sum(map(len, rows)):
            continue
        table, ids, sequences, sections = _gather(context.spec, task, inputs, rows, hidden, places, starts[-1])
        keys = key_words(context.spec, table)
        encoded = encode_sections(context.spec, table, keys, ids, sections, threads=options.threads)
        placed = place([one.segment.data for one in encoded], stage, inline)
        failpoints.hit("compaction.staged")
        for one, section, (_, _, start, stop) in zip(encoded, placed.sections, sections, strict=True):
            segments.append(one.new_segment(placed.path, *section, level=task.level, sequences=sequences))
            starts.append(starts[-1] + stop - start)
            if starts[-1] * INDEX_ROW_BYTES <= options.memory_bytes / 8:
                indexes.append(one.index)
        buckets.update(context.key_buckets(keys))
        progress(starts[-1])
    return Rewritten(
        segments=segments,
        indexes=indexes,
        inline=inline,
        starts=np.array(starts, np.int64),
        places=places,
        latest_overlay=max((overlay.overlay_id for ref in task.segments for overlay in ref.overlays), default=0),
        key_buckets=tuple(sorted(buckets)),
        num_column_files=sum(len(ref.column_files) for ref in task.segments),
    )


def _num_pieces(inputs: list[StoredRows], options: CompactionOptions) -> int:
    """Segments that the run is cut into: each within memory, and of about the target size."""
    stored = max(1, sum(item.ref.num_rows for item in inputs))
    num_rows = sum(item.ref.live_rows for item in inputs)
    decoded_row = sum(_decoded_bytes(item) for item in inputs) / stored
    encoded_row = sum(item.ref.num_bytes for item in inputs) / stored
    # a piece is held about four times: as read, gathered, put in order, encoded
    most = min(options.memory_bytes / 4 / max(decoded_row, 1e-9), options.target_segment_bytes / max(encoded_row, 1e-9))
    return max(1, min(-(-num_rows // max(1, int(most))), num_rows))


def _decoded_bytes(item: StoredRows) -> int:
    """About how large a segment is as Arrow, with what lies beside it."""
    total = 0
    for reader in item.reader.readers if isinstance(item.reader, JoinedReader) else [item.reader]:
        for column in reader.columns:
            item_bytes = VALUE_DTYPES[ValueType(int(column["value_type"]))].itemsize
            values = int(reader.stats(int(column["column_id"]))["num_values"].sum())
            total += values * item_bytes + reader.num_rows * (8 if column["depth"] else 0)
    return total


def _gather(
    spec: TableSpec, task: CompactionTask, inputs: list[StoredRows], rows: list[U32], hidden: list[int], places: dict[int, I32], start: int
) -> tuple[pa.Table, list[int], tuple[int, int], list[tuple[int, int, int, int]]]:
    """The rows of one piece, in order: table with hidden columns, its column ids, the range of commit sequences, and sections as `encode_sections` takes
    them. Where rows went is noted in `places`."""
    parts = [read_rows(spec, item, hidden, mine.astype(np.int64)) for item, mine in zip(inputs, rows, strict=True) if len(mine)]
    columns = {column_id: pa.concat_arrays([part[column_id] for part in parts]) for column_id in parts[0]}
    del parts
    placing = [column for column in spec.schema if column.id in {*spec.cluster_by_ids, *spec.bucket_by_ids, *spec.primary_key_ids}]
    names = pa.Table.from_arrays([columns[column.id] for column in placing], names=[column.name for column in placing])
    buckets = buckets_of(spec, names, key_words(spec, names)) if task.bucket == ALL_BUCKETS else np.full(names.num_rows, task.bucket)
    order = cluster_order(spec, names, buckets)
    place_of = np.arange(start, start + sum(map(len, rows)), dtype=np.int32)
    if order is not None:
        buckets = buckets[order]
        columns = {column_id: take(column, order) for column_id, column in columns.items()}
        place_of[order] = place_of.copy()
    at = 0
    for item, mine in zip(inputs, rows, strict=True):
        places[item.ref.segment_id][mine] = place_of[at : at + len(mine)]
        at += len(mine)
    sequences = columns[SEQUENCE_COLUMN_ID].to_numpy(zero_copy_only=False)
    low, high = int(sequences.min()), int(sequences.max())
    ids = [column.id for column in spec.schema]
    kept = ids + ([SEQUENCE_COLUMN_ID] if low != high else []) + [column_id for column_id in hidden if columns[column_id].null_count < at]
    fields = [column.to_arrow() for column in spec.schema] + [pa.field(hidden_name(column_id), pa.int64()) for column_id in kept[len(ids) :]]
    table = pa.Table.from_arrays([columns[column_id] for column_id in kept], schema=pa.schema(fields, metadata=spec.schema.metadata))
    edges = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(buckets)]
    sections = [(int(buckets[first]), task.partition, first, last) for first, last in itertools.pairwise(edges)]
    return table, kept, (low, high), sections
