"""Backfilling columns: values for rows that are there, written beside their segments as column files; no segment is rewritten.

Rows are found by key, or by their place in a snapshot. A segment that holds nothing of a column yet gets a column file; where it has values or patches of it
already, the given values become patches, which keep the order of writing. Columns that the table does not have are added in the same commit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader import failpoints
from loader.catalog.read import load_segments_by_id
from loader.catalog.records import CommitPlan, NewColumnFile, NewOverlay, SegmentRef, SnapshotView, TableSpec
from loader.errors import ConflictError, KeyExistsError, SchemaError
from loader.schema import take
from loader.segment.column_files import encode_column_file
from loader.storage import Storage
from loader.table.context import TableContext
from loader.table.delete import head_view
from loader.table.evolve import add_column
from loader.table.files import Stage, place
from loader.table.keys import Hits
from loader.table.merge import NO_ORDER, Folded, fold_base
from loader.table.patch import PatchVectors, as_operands, conform_nullable
from loader.table.resolve import deleted_rows, scatter
from loader.table.rows import Data, as_table, describe_key, key_words
from loader.table.segments import column_ids_of, open_columns, open_segment
from loader.table.writes import Write

I64 = npt.NDArray[np.int64]


class Filling:
    """What one backfill fills, and how a segment's share of it is written.

    Args:
        context: The table.
        schema: Of the data.

    Attributes:
        spec: The table with the columns that it does not have yet.
        is_keyed: Rows are found by key, which the data has.
        names, ids: Of the columns to fill.
    """

    def __init__(self, context: TableContext, schema: pa.Schema) -> None:
        self._context = context
        keyed = [name for name in context.spec.primary_key if name in schema.names]
        if keyed and keyed != context.spec.primary_key:
            raise SchemaError(
                f"a backfill of table {context.spec.name!r} finds its rows by {context.spec.primary_key}, or by place without any of it: {keyed} is a part"
            )
        self.is_keyed = bool(keyed)
        self.names = [name for name in schema.names if name not in keyed]
        if not self.names:
            raise SchemaError(f"a backfill of table {context.spec.name!r} needs a column to fill beside the key")
        self.spec = _evolved(context.spec, schema, self.names)
        _refuse_fixed(self.spec, self.names)
        self.ids = tuple(self.spec.schema.column(name).id for name in self.names)

    def conform(self, table: pa.Table) -> pa.Table:
        """Rows in the table's types, the key first where there is one."""
        keyed = self.spec.primary_key if self.is_keyed else []
        return conform_nullable(table.select([*keyed, *self.names]), self.spec, self.names, keyed=self.is_keyed)

    def operands(self, columns: pa.Table) -> pa.Table:
        """The values of conformed rows."""
        return as_operands(self.spec, columns.select(self.names).combine_chunks())

    def has_values(self, ref: SegmentRef) -> bool:
        """Whether the segment holds anything of the columns: stored, beside it, or in patches."""
        stored = column_ids_of(open_columns(self._context.storage, ref))
        touched = {column_id for overlay in ref.overlays for column_id in overlay.column_ids}
        return any(column_id in stored or column_id in touched for column_id in self.ids)

    def write(self, ref: SegmentRef, rows: I64, operands: pa.Table, stage: Stage, inline: dict[str, bytes] | None) -> NewColumnFile:
        """A column file of one segment: the column's default, and at the given rows what its merge rule makes of that and the value."""
        arrays = []
        for column_id, values in zip(self.ids, operands.columns, strict=True):
            column = self.spec.columns((column_id,))[0]
            given = values.combine_chunks()
            kept = np.flatnonzero(given.is_valid().to_numpy(zero_copy_only=False))  # null leaves the default, as it leaves a value untouched
            folded = Folded(rows[kept].astype(np.uint32), take(given, kept), np.full(len(kept), NO_ORDER))
            folded = fold_base(self.spec.rule(column_id), folded, column.missing(len(kept)), None)
            arrays.append(scatter(column.missing(ref.num_rows), rows[kept], folded.values))
        table = pa.Table.from_arrays(arrays, schema=pa.schema([column.to_arrow() for column in self.spec.columns(self.ids)]))
        encoded = encode_column_file(open_segment(self._context.storage, ref), table, column_ids=self.ids)
        placed = place([encoded.data], stage, inline)
        (offset, num_bytes) = placed.sections[0]
        return NewColumnFile(segment_id=ref.segment_id, path=placed.path, offset=offset, num_bytes=num_bytes, column_ids=self.ids)


class Backfill(Write):
    """One backfill, from the caller's data to its snapshot."""

    is_keyed = False

    def __init__(self, context: TableContext, data: Data, *, snapshot_id: int | None, commit_id: str | None) -> None:
        table = as_table(data)
        super().__init__(context, offsets=None, commit_id=commit_id)
        self.snapshot_id = snapshot_id
        self.filling = Filling(context, table.schema)
        self.spec, self.names, self.ids = self.filling.spec, self.filling.names, self.filling.ids
        columns = self.filling.conform(table)
        self.operands = self.filling.operands(columns)
        self.row_keys = key_words(self.spec, columns) if self.filling.is_keyed else None
        if self.row_keys is not None:
            twice = self.row_keys.first_twice()
            if twice is not None:
                raise KeyExistsError(f"key {describe_key(self.spec, columns, twice[0])} stands twice in the data, in rows {twice[0]} and {twice[1]}")
        self.patches = PatchVectors(context.stage, self.operands, self.ids, None)

    def attempt(self) -> CommitPlan:
        context = self.context
        base, hits = self._find()
        failpoints.hit("backfill.resolved")
        with context.catalog.read() as connection:
            refs = load_segments_by_id(connection, context.spec.id, np.unique(hits.segment_ids[hits.found]).tolist())
        inline: dict[str, bytes] = {}
        files: list[NewColumnFile] = []
        patched = np.zeros(len(hits.rows), bool)
        for ref in refs:
            mine = np.flatnonzero(hits.segment_ids == ref.segment_id)
            if self.filling.has_values(ref):
                patched[mine] = True
            else:
                files.append(self.filling.write(ref, hits.rows[mine], take(self.operands, mine), context.stage, inline))
        overlays: list[NewOverlay] = self.patches.bring_to(Hits(np.where(patched, hits.segment_ids, -1), hits.rows)) if patched.any() else []
        failpoints.hit("backfill.staged")
        return CommitPlan(
            spec=context.spec,
            evolved=None if self.spec is context.spec else self.spec,
            kind="backfill",
            commit_id=self.commit_id,
            base=base,
            is_exact=self.row_keys is None,
            rows_buckets=() if self.row_keys is None else context.key_buckets(self.row_keys),
            column_files=files,
            overlays=overlays,
            inline=inline | (self.patches.inline if overlays else {}),
            read_segments=tuple(ref.segment_id for ref in refs),
            latest_overlay=max((overlay.overlay_id for ref in refs for overlay in ref.overlays), default=0),
            num_column_files=sum(len(ref.column_files) for ref in refs),
            summary={"rows_filled": int(hits.found.sum()), "keys_missing": int((~hits.found).sum()), "columns": self.names},
        )

    def _find(self) -> tuple[int, Hits]:
        """The snapshot that rows were found in, and where the row of each given one is."""
        if self.row_keys is not None:
            base = self.context.refresh()
            return base, self.context.directory.probe(self.row_keys)
        view = view_at(self.context, self.snapshot_id)
        segment_ids, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for ref in view.segments:
            alive = alive_rows(ref, self.context.storage)
            segment_ids.append(np.full(len(alive), ref.segment_id))
            rows.append(alive)
        hits = Hits(np.concatenate(segment_ids), np.concatenate(rows))
        if len(hits.rows) != self.operands.num_rows:
            raise wrong_number(view, self.operands.num_rows)
        return view.snapshot_id, hits


def view_at(context: TableContext, snapshot_id: int | None) -> SnapshotView:
    """The head, for rows that are given by their place in it.

    Raises:
        ConflictError: It is another snapshot than the one that the places are of.
    """
    view = head_view(context)
    if view.snapshot_id != snapshot_id:
        raise ConflictError(
            f"the rows are given by their place in snapshot {snapshot_id} of table {view.table!r}, and it stands at {view.snapshot_id}: "
            f"read the places again, or give the key {context.spec.primary_key}"
        )
    return view


def alive_rows(ref: SegmentRef, storage: Storage) -> I64:
    """Row numbers of a segment in the order in which it is read."""
    deleted = deleted_rows(ref, storage)
    return np.arange(ref.num_rows) if deleted is None else np.flatnonzero(~deleted)


def wrong_number(view: SnapshotView, num_rows: int) -> SchemaError:
    """Rows without a key are not as many as the snapshot has."""
    return SchemaError(f"{num_rows:,} rows without a key for snapshot {view.snapshot_id} of {view.num_rows:,}: give a value for each, or the key")


def _evolved(spec: TableSpec, schema: pa.Schema, names: list[str]) -> TableSpec:
    """The table with the columns that it does not have yet."""
    for field in [schema.field(name) for name in names if name not in spec.schema]:
        spec = add_column(field.with_nullable(True), default=None, merge=None)(spec)
    return spec


def _refuse_fixed(spec: TableSpec, names: list[str]) -> None:
    time_column = [] if spec.time_column is None else [spec.time_column.name]
    fixed = [name for name in names if name in {*spec.primary_key, *spec.bucket_by, *spec.cluster_by, *time_column}]
    if fixed:
        raise SchemaError(f"column {fixed[0]!r} decides where a row of table {spec.name!r} lies (key, bucket, cluster or time) and cannot be filled in")
