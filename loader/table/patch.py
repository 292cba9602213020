"""Patching columns of rows by key: resolve each key to (segment, row), write operands by position, hold what has no row yet.

A retry never rewrites a file: operands of a segment that is still live stay as they are; only those of segments that died, and labels whose row came
meanwhile, are written again, in another section.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader import failpoints
from loader.catalog.records import CommitPlan, NewOverlay, NewPending, SourceOffsets, TableSpec
from loader.errors import ColumnNotFoundError, SchemaError
from loader.schema import conform, take
from loader.segment.key_index import bucket_of
from loader.table.context import TableContext
from loader.table.files import Stage, place
from loader.table.horizon import refuse_old
from loader.table.keys import Hits, Resolution
from loader.table.merge import count_operands
from loader.table.pending import pack_keys
from loader.table.rows import Data, as_table, describe_key, key_words
from loader.table.segments import encode_overlay, encode_overlays
from loader.table.times import is_time_type, time_words
from loader.table.writes import Write

ON_MISSING = ("hold", "drop")


class PatchVectors:
    """Operands of one commit by position, an overlay a segment; what is written and still right is left alone by a retry.

    Args:
        stage: Where files go.
        operands: By column.
        column_ids: Of the columns.
        orders: i64, the order of each operand, or None.
    """

    def __init__(self, stage: Stage, operands: pa.Table, column_ids: tuple[int, ...], orders: npt.NDArray[np.int64] | None) -> None:
        self._stage, self._operands, self._column_ids, self._orders = stage, operands, column_ids, orders
        self._written: dict[int, tuple[NewOverlay, npt.NDArray[np.int64]]] = {}  # segment id -> its overlay and the operands in it
        self._inline: dict[str, bytes] = {}

    def bring_to(self, hits: Hits) -> list[NewOverlay]:
        """The overlays that patch the rows where each operand's key is; operands that were not found are left out."""
        order = _by_place(hits)
        segment_ids, starts = np.unique(hits.segment_ids[order], return_index=True)
        parts = dict(zip(segment_ids.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
        self._written = {segment_id: kept for segment_id, kept in self._written.items() if segment_id in parts and np.array_equal(kept[1], parts[segment_id])}
        new = [segment_id for segment_id in parts if segment_id not in self._written]
        if new:
            placed = place(self._encode([parts[at] for at in new], hits), self._stage, self._inline)
            for segment_id, (offset, num_bytes) in zip(new, placed.sections, strict=True):
                part = parts[segment_id]
                overlay = NewOverlay(
                    segment_id=segment_id, path=placed.path, offset=offset, num_bytes=num_bytes, num_rows=len(part), column_ids=self._column_ids
                )
                self._written[segment_id] = (overlay, part)
        return [overlay for overlay, _ in self._written.values()]

    def _encode(self, parts: list[npt.NDArray[np.int64]], hits: Hits) -> list[memoryview]:
        every, bounds = np.concatenate(parts), [0, *itertools.accumulate(map(len, parts))]
        orders = None if self._orders is None else self._orders[every]
        return encode_overlays(take(self._operands, every), self._column_ids, hits.rows[every], orders, bounds)

    @property
    def inline(self) -> dict[str, bytes]:
        """What of them lies in the catalog."""
        used = {overlay.path for overlay, _ in self._written.values()}
        return {path: data for path, data in self._inline.items() if path in used}


def _by_place(hits: Hits) -> npt.NDArray[np.int64]:
    """Positions of what was found by (segment, row); stable, so that several operands of one row stay in the order they came."""
    found = np.flatnonzero(hits.segment_ids >= 0)
    segment_ids, rows = hits.segment_ids[found], hits.rows[found]
    row_bits, place_bits = int(rows.max(initial=0)).bit_length(), len(found).bit_length()
    if int(segment_ids.max(initial=0)).bit_length() + row_bits + place_bits > 63:
        return found[np.lexsort((rows, segment_ids))]
    # as one number each, position included: to sort those takes a fifth of an argsort's time
    places = ((segment_ids << row_bits | rows) << place_bits) | np.arange(len(found))
    places.sort()
    order: npt.NDArray[np.int64] = found[places & ((1 << place_bits) - 1)]
    return order


class Patch(Write):
    """One patch, from the caller's data to its snapshot."""

    def __init__(
        self,
        context: TableContext,
        data: Data,
        *,
        columns: list[str] | None,
        order: str | None,
        on_missing: str,
        watermark: int | None,
        offsets: SourceOffsets | None,
        commit_id: str | None,
        files: Stage | None = None,
    ) -> None:
        check_on_missing(on_missing)
        super().__init__(context, offsets=offsets, commit_id=commit_id, files=files)
        self.on_missing, self.watermark = on_missing, watermark
        spec, table = context.spec, as_table(data)
        names = patched_columns(spec, table, columns, order)
        self.orders = None if order is None else order_values(table, order)
        table = table.select([*spec.primary_key, *names])
        keyed = conform_nullable(table, spec, names)
        self.keys = key_words(spec, keyed)
        self.key_columns = keyed.select(spec.primary_key)
        self.num_bytes = keyed.nbytes
        self.column_ids = tuple(spec.schema.column(name).id for name in names)
        self.operands = as_operands(spec, keyed.select(names).combine_chunks())
        self.buckets = context.key_buckets(self.keys)
        self.resolution = Resolution(self.keys)
        self.vectors = PatchVectors(self.files, self.operands, self.column_ids, self.orders)
        self.payload: tuple[str, int, int] | None = None
        self.payload_rows = np.zeros(0, np.int64)
        self.inline: dict[str, bytes] = {}

    def attempt(self) -> CommitPlan:
        context = self.context
        base = context.refresh()
        hits = self.resolution.bring_to(context.directory)
        refuse_old(context, hits, base, lambda row: describe_key(context.spec, self.key_columns, row))
        failpoints.hit("patch.resolved")
        missing = np.flatnonzero(~hits.found)
        overlays = self.vectors.bring_to(hits)
        held = self._hold(missing) if len(missing) and self.on_missing == "hold" else []
        failpoints.hit("patch.staged")
        used = {pending.path for pending in held}
        return CommitPlan(
            spec=context.spec,
            kind="patch",
            commit_id=self.commit_id,
            base=base,
            rows_buckets=self.buckets,
            pending_changed=tuple(pending.bucket for pending in held),
            overlays=overlays,
            pending=held,
            inline=self.vectors.inline | {path: data for path, data in self.inline.items() if path in used},
            offsets=self.offsets,
            watermark=self.watermark,
            summary={
                "rows_patched": int(hits.found.sum()),
                "labels_held": len(missing) if self.on_missing == "hold" else 0,
                "labels_dropped": 0 if self.on_missing == "hold" else len(missing),
            },
        )

    def _hold(self, missing: npt.NDArray[np.int64]) -> list[NewPending]:
        """Entries for labels without a row; their operands are written once, whatever part of them is held in the end."""
        if self.payload is None or not np.isin(missing, self.payload_rows).all():
            self.payload_rows = missing
            orders = None if self.orders is None else self.orders[missing]
            placed = place([encode_overlay(take(self.operands, missing), self.column_ids, None, orders)], self.files, self.inline)
            self.payload = (placed.path, *placed.sections[0])
        path, offset, num_bytes = self.payload
        buckets = bucket_of(self.keys.take(missing), self.context.spec.buckets)
        held = []
        for bucket in np.unique(buckets).tolist():
            mine = missing[buckets == bucket]
            keys = pack_keys(self.keys.take(mine), np.searchsorted(self.payload_rows, mine))
            held.append(NewPending(bucket=bucket, path=path, offset=offset, num_bytes=num_bytes, num_held=len(mine), keys=keys, column_ids=self.column_ids))
        return held


def check_on_missing(on_missing: str) -> None:
    """Raise ValueError for a word that means nothing."""
    if on_missing not in ON_MISSING:
        raise ValueError(f"on_missing is 'hold' (keep the label until its row comes) or 'drop', not {on_missing!r}")


def patched_columns(spec: TableSpec, table: pa.Table, columns: list[str] | None, order: str | None) -> list[str]:
    """The columns a patch sets: those named, or all in the data but the key and the order.

    Raises:
        SchemaError: The key is not there, nothing is left to set, or a column decides where a row lies.
        ColumnNotFoundError: A named column is not in the data, or not in the table.
    """
    absent = [name for name in spec.primary_key if name not in table.column_names]
    if absent:
        raise SchemaError(f"a patch of table {spec.name!r} finds its rows by {spec.primary_key}: the data lacks {absent}")
    if columns is None:
        columns = [name for name in table.column_names if name not in spec.primary_key and name != order]
    for name in columns:
        spec.schema.column(name)
        if name not in table.column_names:
            raise ColumnNotFoundError(f"the data has no column {name!r} to patch: it has {table.column_names}")
    time_column = [] if spec.time_column is None else [spec.time_column.name]
    fixed = [name for name in columns if name in {*spec.primary_key, *spec.bucket_by, *spec.cluster_by, *time_column}]
    if fixed:
        raise SchemaError(f"column {fixed[0]!r} decides where a row of table {spec.name!r} lies (key, bucket, cluster or time) and cannot be patched")
    if not columns:
        raise SchemaError(f"a patch of table {spec.name!r} needs a column to set beside the key {spec.primary_key}: the data has {table.column_names}")
    return list(columns)


def order_values(table: pa.Table, order: str) -> npt.NDArray[np.int64]:
    """The order column as int64.

    Raises:
        ColumnNotFoundError: The data does not have it.
        SchemaError: It is no integer, date or timestamp, or holds nulls.
    """
    if order not in table.column_names:
        raise ColumnNotFoundError(f"the data has no order column {order!r}: it has {table.column_names}")
    column = table[order]
    if not is_time_type(column.type) or column.null_count:
        raise SchemaError(
            f"order column {order!r} is {column.type} with {column.null_count} nulls: it must be a signed integer, an unsigned one of at most 32 bits, "
            "a date or a timestamp, without nulls (cast it)"
        )
    return time_words(column)


def conform_nullable(table: pa.Table, spec: TableSpec, names: list[str], *, keyed: bool = True) -> pa.Table:
    """The key (if `keyed`) and the named columns in the schema's types; a null stands for untouched and is let in everywhere."""
    loose = dataclasses.replace(
        spec.schema, columns=tuple(dataclasses.replace(column, nullable=True) if column.name in names else column for column in spec.schema)
    )
    return conform(table, loose, names=[*(spec.primary_key if keyed else []), *names])


def as_operands(spec: TableSpec, table: pa.Table) -> pa.Table:
    """Values as operands of each column's merge rule."""
    for at, name in enumerate(table.column_names):
        if spec.rule(spec.schema.column(name).id) == "count":
            table = table.set_column(at, name, count_operands(table.column(at).combine_chunks()))
    return table
