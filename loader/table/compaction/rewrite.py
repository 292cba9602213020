"""Rewriting a task's segments as one sorted run: overlays folded, deleted rows dropped, rows in cluster order, piece by piece.

Only the cluster columns of all inputs are in memory at once; the rest is read, gathered and encoded in pieces. Every row keeps its commit sequence, and a
value that came from an ordered operand keeps its order, as hidden columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader import failpoints
from loader.catalog.records import NewSegment, TableSpec
from loader.schema import take
from loader.segment.column_files import JoinedReader
from loader.segment.key_index import KeyIndex
from loader.segment.layout import SEQUENCE_COLUMN_ID, VALUE_DTYPES, ValueType
from loader.table.compaction.pick import CompactionOptions, CompactionTask
from loader.table.context import TableContext
from loader.table.files import Stage, place
from loader.table.resolve import deleted_rows
from loader.table.rows import cluster_order, encode_rows, hidden_name, key_words
from loader.table.segments import one_type, read_by_id
from loader.table.stored import StoredRows, open_rows, order_columns, read_rows

I64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewritten:
    """What a rewrite wrote.

    Attributes:
        segments: In order; together they are one sorted run.
        indexes: Their key indexes.
        inline: Bytes for the catalog, where an output was small.
        starts: i64[len(segments) + 1], first row of each segment in the run.
        places: Input segment id -> i64[num_rows], the run's row that each input row became, −1 if it was deleted.
        latest_overlay: The highest overlay number that was folded.
        key_buckets: Buckets of all keys in the run.
        num_column_files: Column files of the inputs that were read.
    """

    segments: list[NewSegment]
    indexes: list[KeyIndex]
    inline: dict[str, bytes]
    starts: I64
    places: dict[int, I64]
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
    source, rows = _merged_order(context, inputs)
    places = {item.ref.segment_id: np.full(item.ref.num_rows, -1, np.int64) for item in inputs}
    for item, mine in zip(inputs, _by_input(source, len(inputs)), strict=True):
        places[item.ref.segment_id][rows[mine]] = mine
    cuts = _cuts(len(source), inputs, options)
    segments: list[NewSegment] = []
    indexes: list[KeyIndex] = []
    inline: dict[str, bytes] = {}
    buckets: set[int] = set()
    level = task.level
    for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        table, ids, sequences = _gather(context.spec, inputs, source[start:stop], rows[start:stop])
        keys = key_words(context.spec, table)
        encoded = encode_rows(context.spec, table, keys, ids, task.bucket, task.partition, threads=options.threads)
        placed = place([encoded.segment.data], stage, inline)
        failpoints.hit("compaction.staged")
        segments.append(encoded.new_segment(placed.path, *placed.sections[0], level=level, sequences=sequences))
        indexes.append(encoded.index)
        buckets.update(context.key_buckets(keys))
        progress(stop)
    return Rewritten(
        segments=segments,
        indexes=indexes,
        inline=inline,
        starts=cuts,
        places=places,
        latest_overlay=max((overlay.overlay_id for ref in task.segments for overlay in ref.overlays), default=0),
        key_buckets=tuple(sorted(buckets)),
        num_column_files=sum(len(ref.column_files) for ref in task.segments),
    )


def _merged_order(context: TableContext, inputs: list[StoredRows]) -> tuple[I64, I64]:
    """For each row of the run, which input it comes from and which row of it."""
    spec = context.spec
    source, rows, tables = [], [], []
    for at, item in enumerate(inputs):
        deleted = deleted_rows(item.ref, context.storage)
        alive = np.arange(item.ref.num_rows) if deleted is None else np.flatnonzero(~deleted)
        source.append(np.full(len(alive), at, np.int64))
        rows.append(alive)
        columns = spec.columns(spec.cluster_by_ids)
        read = read_by_id(item.reader, [column.id for column in columns])
        arrays = [one_type(read[column.id], column.type) if column.id in read else column.missing(item.ref.num_rows) for column in columns]
        tables.append(take(pa.Table.from_arrays(arrays, names=[column.name for column in columns]), alive) if arrays else None)
    sources, positions = np.concatenate(source), np.concatenate(rows)
    if not spec.cluster_by_ids:
        return sources, positions
    order = cluster_order(spec, pa.concat_tables([table for table in tables if table is not None]))
    return (sources, positions) if order is None else (sources[order], positions[order])


def _cuts(num_rows: int, inputs: list[StoredRows], options: CompactionOptions) -> I64:
    """Where the run is cut into segments of like size: within memory, and of about the target size."""
    if num_rows == 0:
        return np.zeros(1, np.int64)
    stored = max(1, sum(item.ref.num_rows for item in inputs))
    decoded_row = sum(_decoded_bytes(item) for item in inputs) / stored
    encoded_row = sum(item.ref.num_bytes for item in inputs) / stored
    # a piece is held about four times: as read, gathered, put in order, encoded
    most = min(options.memory_bytes / 4 / max(decoded_row, 1e-9), options.target_segment_bytes / max(encoded_row, 1e-9))
    pieces = -(-num_rows // max(1, int(most)))
    return np.linspace(0, num_rows, min(pieces, num_rows) + 1).astype(np.int64)


def _decoded_bytes(item: StoredRows) -> int:
    """About how large a segment is as Arrow, with what lies beside it."""
    total = 0
    for reader in item.reader.readers if isinstance(item.reader, JoinedReader) else [item.reader]:
        for column in reader.columns:
            item_bytes = VALUE_DTYPES[ValueType(int(column["value_type"]))].itemsize
            values = int(reader.stats(int(column["column_id"]))["num_values"].sum())
            total += values * item_bytes + reader.num_rows * (8 if column["depth"] else 0)
    return total


def _gather(spec: TableSpec, inputs: list[StoredRows], source: I64, rows: I64) -> tuple[pa.Table, list[int], tuple[int, int]]:
    """The rows of one piece, in order: table with hidden columns, its column ids, and the range of their commit sequences."""
    hidden = order_columns(spec, inputs)
    ids = [column.id for column in spec.schema]
    parts: list[dict[int, pa.Array]] = []
    back = np.empty(len(source), np.int64)
    at = 0
    for item, mine in zip(inputs, _by_input(source, len(inputs)), strict=True):
        if len(mine):
            back[mine] = at + np.arange(len(mine))
            at += len(mine)
            parts.append(read_rows(spec, item, hidden, rows[mine]))
    columns = {column_id: take(pa.concat_arrays([part[column_id] for part in parts]), back) for column_id in parts[0]}
    sequences = columns[SEQUENCE_COLUMN_ID].to_numpy(zero_copy_only=False)
    low, high = int(sequences.min()), int(sequences.max())
    kept = ids + ([SEQUENCE_COLUMN_ID] if low != high else []) + [column_id for column_id in hidden if columns[column_id].null_count < len(source)]
    fields = [column.to_arrow() for column in spec.schema] + [pa.field(hidden_name(column_id), pa.int64()) for column_id in kept[len(ids) :]]
    return pa.Table.from_arrays([columns[column_id] for column_id in kept], schema=pa.schema(fields, metadata=spec.schema.metadata)), kept, (low, high)


def _by_input(source: I64, num_inputs: int) -> list[I64]:
    """Positions in `source` of each input's rows, ascending."""
    order = np.argsort(source, kind="stable")
    return np.split(order, np.searchsorted(source[order], np.arange(1, num_inputs)))
