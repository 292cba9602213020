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
from loader.catalog.records import NewSegment, SegmentRef, TableSpec
from loader.schema import take
from loader.segment.key_index import KeyIndex
from loader.segment.layout import SEQUENCE_COLUMN_ID, VALUE_DTYPES, ValueType
from loader.segment.reader import SegmentReader
from loader.table.compaction.pick import CompactionOptions, CompactionTask
from loader.table.context import TableContext
from loader.table.files import Stage, place
from loader.table.merge import NO_ORDER, ORDER_BASE_ID, ORDERED_RULES, Folded
from loader.table.resolve import deleted_rows, fold_overlays, scatter
from loader.table.rows import cluster_order, encode_rows, hidden_name, key_words
from loader.table.segments import column_ids_of, one_type, open_segment, read_by_id

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
    """

    segments: list[NewSegment]
    indexes: list[KeyIndex]
    inline: dict[str, bytes]
    starts: I64
    places: dict[int, I64]
    latest_overlay: int
    key_buckets: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Input:
    ref: SegmentRef
    reader: SegmentReader
    folded: dict[int, Folded]


def rewrite(context: TableContext, task: CompactionTask, options: CompactionOptions, stage: Stage, progress: Callable[[int], None]) -> Rewritten:
    """Write the run of a task under a stage; nothing is committed.

    Args:
        context: The table.
        task: What to merge.
        options: Limits.
        stage: Where files go.
        progress: Called with the rows written so far.
    """
    inputs = [_open(context, ref) for ref in task.segments]
    source, rows = _merged_order(context, inputs)
    places = {item.ref.segment_id: np.full(item.ref.num_rows, -1, np.int64) for item in inputs}
    for item, mine in zip(inputs, _by_input(source, len(inputs)), strict=True):
        places[item.ref.segment_id][rows[mine]] = mine
    cuts = _cuts(len(source), inputs, options)
    segments: list[NewSegment] = []
    indexes: list[KeyIndex] = []
    inline: dict[str, bytes] = {}
    buckets: set[int] = set()
    level = 1 + max(ref.level for ref in task.segments)
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
    )


def _open(context: TableContext, ref: SegmentRef) -> _Input:
    reader = open_segment(context.storage, ref)
    ids = [column.id for column in context.spec.schema]
    folded = fold_overlays(context.spec, ref, ids, context.storage, reader, keep_orders=True) if ref.overlays else {}
    return _Input(ref=ref, reader=reader, folded=folded)


def _merged_order(context: TableContext, inputs: list[_Input]) -> tuple[I64, I64]:
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
        arrays = [one_type(read[column.id], column.type) if column.id in read else pa.nulls(item.ref.num_rows, column.type) for column in columns]
        tables.append(take(pa.Table.from_arrays(arrays, names=[column.name for column in columns]), alive) if arrays else None)
    sources, positions = np.concatenate(source), np.concatenate(rows)
    if not spec.cluster_by_ids:
        return sources, positions
    order = cluster_order(spec, pa.concat_tables([table for table in tables if table is not None]))
    return (sources, positions) if order is None else (sources[order], positions[order])


def _cuts(num_rows: int, inputs: list[_Input], options: CompactionOptions) -> I64:
    """Where the run is cut into segments of like size: within memory, and of about the target size."""
    if num_rows == 0:
        return np.zeros(1, np.int64)
    stored = max(1, sum(item.ref.num_rows for item in inputs))
    decoded_row = sum(_decoded_bytes(item.reader) for item in inputs) / stored
    encoded_row = sum(item.ref.num_bytes for item in inputs) / stored
    # a piece is held about four times: as read, gathered, put in order, encoded
    most = min(options.memory_bytes / 4 / max(decoded_row, 1e-9), options.target_segment_bytes / max(encoded_row, 1e-9))
    pieces = -(-num_rows // max(1, int(most)))
    return np.linspace(0, num_rows, min(pieces, num_rows) + 1).astype(np.int64)


def _decoded_bytes(reader: SegmentReader) -> int:
    """About how large a segment is as Arrow."""
    total = 0
    for column in reader.columns:
        item = VALUE_DTYPES[ValueType(int(column["value_type"]))].itemsize
        values = int(reader.stats(int(column["column_id"]))["num_values"].sum())
        total += values * item + reader.num_rows * (8 if column["depth"] else 0)
    return total


def _gather(spec: TableSpec, inputs: list[_Input], source: I64, rows: I64) -> tuple[pa.Table, list[int], tuple[int, int]]:
    """The rows of one piece, in order: table with hidden columns, its column ids, and the range of their commit sequences."""
    hidden = _order_columns(spec, inputs)
    ids = [column.id for column in spec.schema]
    parts: list[dict[int, pa.Array]] = []
    back = np.empty(len(source), np.int64)
    at = 0
    for item, mine in zip(inputs, _by_input(source, len(inputs)), strict=True):
        if len(mine):
            back[mine] = at + np.arange(len(mine))
            at += len(mine)
            parts.append(_read_part(spec, item, hidden, rows[mine]))
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


def _order_columns(spec: TableSpec, inputs: list[_Input]) -> list[int]:
    """Hidden order columns that some input has, or that its operands bring."""
    found = []
    for column in spec.schema:
        if spec.rule(column.id) not in ORDERED_RULES:
            continue
        hidden = ORDER_BASE_ID + column.id
        for item in inputs:
            orders = item.folded[column.id].orders if column.id in item.folded else None
            if hidden in column_ids_of(item.reader) or (orders is not None and (orders != NO_ORDER).any()):
                found.append(hidden)
                break
    return found


def _read_part(spec: TableSpec, item: _Input, hidden: list[int], rows: I64) -> dict[int, pa.Array]:
    """Some rows of one input, all columns, patches applied."""
    columns = {column.id: column for column in spec.schema}
    whole = len(rows) == item.ref.num_rows and bool((np.diff(rows) == 1).all())
    read = read_by_id(item.reader, [*columns, SEQUENCE_COLUMN_ID, *hidden], rows=None if whole else rows)
    part = {}
    for column_id, column in columns.items():
        array = one_type(read[column_id], column.type) if column_id in read else pa.nulls(len(rows), column.type)
        at, patched = _patched(item, column_id, rows)
        part[column_id] = scatter(array, at, take(item.folded[column_id].values, patched)) if len(at) else array
    for column_id in hidden:
        array = read.get(column_id, pa.nulls(len(rows), pa.int64()))
        at, patched = _patched(item, column_id - ORDER_BASE_ID, rows)
        if len(at):
            orders = item.folded[column_id - ORDER_BASE_ID].orders
            assert orders is not None
            array = scatter(array, at, pa.array(orders[patched], mask=orders[patched] == NO_ORDER))
        part[column_id] = array
    part[SEQUENCE_COLUMN_ID] = read.get(SEQUENCE_COLUMN_ID, pa.array(np.full(len(rows), item.ref.sequence_min)))
    return part


def _patched(item: _Input, column_id: int, rows: I64) -> tuple[I64, I64]:
    """Positions in `rows` that are patched, and the position of each one's patch."""
    if column_id not in item.folded:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    patched = item.folded[column_id].rows.astype(np.int64)
    where = np.searchsorted(patched, rows)
    inside = np.flatnonzero(where < len(patched))
    hit = inside[patched[where[inside]] == rows[inside]]
    return hit, where[hit]
