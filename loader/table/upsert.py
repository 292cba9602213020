"""Upserting rows: a key that exists is an operand patch of the given columns, a new one is inserted, and a row whose place changes is moved.

Every given value is an operand of its column's merge rule, on the row that is there or on an empty one, and is younger than labels that waited for the row. So
an upsert commutes with labels and with other upserts of the same key, reads nothing of rows that stay where they are, and a key may come several times. Only a
change of bucket, cluster or time reads the row, folds it, and puts it in its new place with the order and the commit sequence that it had.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader import failpoints
from loader.catalog.commit import Stale
from loader.catalog.read import load_segments_by_id
from loader.catalog.records import CommitPlan, NewOverlay, SegmentRef, SourceOffsets, TableSpec
from loader.errors import SchemaError
from loader.schema import conform, take
from loader.segment.key_index import bucket_of
from loader.segment.layout import SEQUENCE_COLUMN_ID
from loader.table import pending
from loader.table.births import Births
from loader.table.context import TableContext
from loader.table.delete import DeletionVectors, rows_by_segment
from loader.table.files import Stage
from loader.table.keys import Hits, Resolution
from loader.table.merge import NO_ORDER, ORDER_BASE_ID, ORDERED_RULES, Operands, fold, fold_base
from loader.table.patch import PatchVectors, as_operands, conform_nullable, order_values
from loader.table.resolve import scatter
from loader.table.rows import Data, as_table, hidden_name, key_words, lay_out
from loader.table.segments import one_type, open_segment, read_by_id
from loader.table.stored import StoredRows, open_rows, order_columns, read_rows
from loader.table.writes import Write

I64 = npt.NDArray[np.int64]


class Upsert(Write):
    """One upsert, from the caller's data to its snapshot. A *group* is a key of the data with all the rows that give it."""

    def __init__(
        self,
        context: TableContext,
        data: Data,
        *,
        order: str | None,
        watermark: int | None,
        offsets: SourceOffsets | None,
        commit_id: str | None,
        files: Stage | None = None,
    ) -> None:
        spec, table = context.spec, as_table(data)
        super().__init__(context, offsets=offsets, commit_id=commit_id, files=files)
        self.spec, self.watermark, self.num_bytes = spec, watermark, table.nbytes
        self.orders = None if order is None else order_values(table, order)
        names = given_columns(spec, table, order)
        keyed = conform_nullable(table.select([*spec.primary_key, *names]), spec, names)
        self.keys = key_words(spec, keyed)
        self.key_columns = keyed.select(spec.primary_key).combine_chunks()
        self.fixed = [name for name in names if name in _fixed(spec)]
        self.given = keyed.select(self.fixed).combine_chunks()
        self.operands = as_operands(spec, keyed.select([name for name in names if name not in self.fixed]).combine_chunks())
        self._group()
        self.buckets = context.key_buckets(self.unique)
        self.patches = PatchVectors(self.files, self.operands, tuple(spec.schema.column(name).id for name in self.operands.column_names), self.orders)
        self.vectors = DeletionVectors(self.files)
        self._apart = files  # new rows of a large input are files whatever their size
        self.inserts: Births | None = None
        self.inserted = np.zeros(0, np.int64)  # groups, in the order of the inserts' rows
        self.bare = np.zeros(0, np.int64)  # of these, the groups that labels wait for
        self.resolution = Resolution(self.unique)

    def _group(self) -> None:
        """`group` of each row, and of each group its first row and its key."""
        order = self.keys.order()
        sorted_keys = self.keys.take(order)
        begins = np.ones(len(order), bool)
        if len(order):
            begins[1:] = sorted_keys.low[1:] != sorted_keys.low[:-1]
            if sorted_keys.high is not None:
                begins[1:] |= sorted_keys.high[1:] != sorted_keys.high[:-1]
        self.group = np.empty(len(order), np.int64)
        self.group[order] = np.cumsum(begins) - 1
        self.first = order[begins]
        self.unique = self.keys.take(self.first)

    def remember(self) -> None:
        if self.inserts is not None:
            self.inserts.remember()

    def attempt(self) -> CommitPlan | Stale:
        context = self.context
        base = context.refresh()
        hits = self.resolution.bring_to(context.directory)
        failpoints.hit("upsert.resolved")
        missing = np.flatnonzero(~hits.found)
        inserts = self._insert(missing)
        moved = self._moved(hits)
        segment_ids = np.unique(hits.segment_ids[moved]).tolist()
        with context.catalog.read() as connection:
            read = load_segments_by_id(connection, self.spec.id, segment_ids)
        if len(read) < len(segment_ids):
            return Stale("inputs")  # a compaction has replaced them since the keys were found
        moves = self._move(moved, hits, read)
        patched = hits.found.copy()
        patched[moved] = False
        of_rows = Hits(np.where(patched, hits.segment_ids, -1)[self.group], hits.rows[self.group])
        overlays = self.patches.bring_to(of_rows) if self.operands.num_columns else []
        gone = np.isin(np.arange(len(self.unique)), moved)
        vectors = self.vectors.bring_to(rows_by_segment(Hits(np.where(gone, hits.segment_ids, -1), hits.rows)))
        failpoints.hit("upsert.staged")
        births = [born for born in (inserts, moves) if born is not None]
        return CommitPlan(
            spec=self.spec,
            kind="upsert",
            commit_id=self.commit_id,
            base=base,
            rows_buckets=self.buckets,
            rows_changed=context.key_buckets(self.unique.take(np.concatenate([missing, moved]))),
            pending_buckets=context.key_buckets(self.unique.take(missing)),
            pending_changed=() if inserts is None else inserts.met_buckets,
            segments=[segment for born in births for segment in born.segments],
            overlays=[*_born_overlays(births), *overlays, *vectors],
            met={} if inserts is None else inserts.met,
            inline=self.patches.inline | self.vectors.inline | {path: data for born in births for path, data in born.inline.items()},
            read_segments=tuple(segment_ids),
            latest_overlay=max((overlay.overlay_id for ref in read for overlay in ref.overlays), default=0),
            num_column_files=sum(len(ref.column_files) for ref in read),
            offsets=self.offsets,
            watermark=self.watermark,
            summary={"rows_inserted": len(missing), "rows_patched": int(patched.sum()), "rows_moved": len(moved)},
        )

    def _insert(self, missing: I64) -> Births | None:
        """The new rows. Those that were encoded before and have come another way since are deleted at birth; others that went make it begin afresh."""
        keys, context = self.unique.take(missing), self.context
        buckets = context.key_buckets(keys)
        awaited = missing[pending.awaited(context.waiting(buckets), keys, bucket_of(keys, self.spec.buckets))]
        if not (np.isin(missing, self.inserted).all() and np.isin(awaited, self.bare).all()):
            self.bare = awaited
            table, hidden = self._folded(missing, None)
            self.inserts = self._born(table, hidden, missing)
            self.inserts.write()
            self._give(self.inserts)
        if self.inserts is None:
            return None
        self.inserts.delete_at_birth(np.flatnonzero(~np.isin(self.inserted, missing)))
        self.inserts.meet(buckets)
        return self.inserts

    def _give(self, inserts: Births) -> None:
        """To new rows that labels wait for, what this commit gives of columns in which age decides: as operands, for the labels are older."""
        names = [name for name in self.operands.column_names if self._is_ordered(name)]
        if not names or not len(self.bare):
            return
        place = np.full(len(self.unique), -1)
        place[self.inserted] = np.arange(len(self.inserted))
        mine = np.flatnonzero(np.isin(self.group, self.bare))
        mine = mine[np.argsort(place[self.group[mine]], kind="stable")]
        column_ids = tuple(self.spec.schema.column(name).id for name in names)
        orders = None if self.orders is None else self.orders[mine]
        inserts.give(take(self.operands.select(names), mine), column_ids, place[self.group[mine]], orders)

    def _is_ordered(self, name: str) -> bool:
        return self.spec.rule(self.spec.schema.column(name).id) in ORDERED_RULES

    def _born(self, table: pa.Table, hidden: list[int], groups: I64) -> Births:
        """Births of these rows, and which group each became."""
        at = table.append_column(_GROUP, pa.array(groups))
        prepared = lay_out(self.spec, at, self.unique.take(groups))
        self.inserted = prepared.table[_GROUP].to_numpy()
        prepared = dataclasses.replace(prepared, table=prepared.table.drop_columns([_GROUP]))
        ids = [column.id for column in self.spec.schema] + hidden
        return Births(self.context, prepared, column_ids=ids, level=1 if hidden else 0, stage=self._apart)

    def _moved(self, hits: Hits) -> I64:
        """Found groups whose given bucket, cluster or time differs from the stored one."""
        found = np.flatnonzero(hits.found)
        if not self.fixed or not len(found):
            return np.zeros(0, np.int64)
        given = self._last_fixed(found)
        moved = np.zeros(len(found), bool)
        for segment_id, mine in _by_segment(hits.segment_ids[found]):
            ref = self.context.directory.ref(segment_id)
            ids = [self.spec.schema.column(name).id for name in self.fixed]
            rows = hits.rows[found[mine]]
            read = read_by_id(open_segment(self.context.storage, ref), ids, rows=rows)
            for name, column_id in zip(self.fixed, ids, strict=True):
                column = self.spec.schema.column(name)
                stored = one_type(read[column_id], column.type) if column_id in read else column.missing(len(rows))
                moved[mine] |= _differs(take(given[name].combine_chunks(), mine), stored)
        return found[moved]

    def _last_fixed(self, groups: I64) -> pa.Table:
        """The last given bucket, cluster and time values of each group; null where none was given."""
        arrays = [self._fold_column(groups, self.given[name].combine_chunks(), "last", None, None)[0] for name in self.fixed]
        return pa.Table.from_arrays(arrays, names=self.fixed)

    def _move(self, moved: I64, hits: Hits, refs: list[SegmentRef]) -> Births | None:
        """Rows that change their place, read from these segments and folded with what is given."""
        if not len(moved):
            return None
        inputs, order = self._stored(moved, hits, refs)
        hidden = order_columns(self.spec, [item for item, _ in inputs])
        parts = [read_rows(self.spec, item, hidden, rows) for item, rows in inputs]
        back = np.argsort(order, kind="stable")
        base = {column_id: take(pa.concat_arrays([part[column_id] for part in parts]), back) for column_id in parts[0]}
        table, own = self._folded(moved, base)
        sequences = base[SEQUENCE_COLUMN_ID].to_numpy(zero_copy_only=False)
        table = table.append_column(hidden_name(SEQUENCE_COLUMN_ID), pa.array(sequences))
        prepared = lay_out(self.spec, table, self.unique.take(moved))
        ids = [*(column.id for column in self.spec.schema), *own, SEQUENCE_COLUMN_ID]
        births = Births(self.context, prepared, column_ids=ids, level=1, sequences=(int(sequences.min()), int(sequences.max())), stage=self._apart)
        births.write()
        return births

    def _stored(self, moved: I64, hits: Hits, refs: list[SegmentRef]) -> tuple[list[tuple[StoredRows, I64]], I64]:
        """The stored rows of moved groups by segment, and the place in `moved` of each."""
        ids = hits.segment_ids[moved]
        inputs, order = [], []
        for ref in refs:
            mine = np.flatnonzero(ids == ref.segment_id)
            by_row = mine[np.argsort(hits.rows[moved[mine]])]
            inputs.append((open_rows(self.spec, ref, self.context.storage), hits.rows[moved[by_row]]))
            order.append(by_row)
        return inputs, np.concatenate(order)

    def _folded(self, groups: I64, base: dict[int, pa.Array] | None) -> tuple[pa.Table, list[int]]:
        """Whole rows of groups: everything given folded, on stored rows (by column id, hidden ones included) or on none.

        Returns:
            The rows, hidden order columns after the schema's, and the ids of the hidden ones.
        """
        spec, arrays, hidden = self.spec, [], {}
        fixed = self._last_fixed(groups)
        bare = pa.array(np.isin(groups, self.bare)) if base is None and len(self.bare) else None
        for column in spec.schema:
            own = pa.nulls(len(groups), column.type) if base is None else base[column.id]
            if column.name in spec.primary_key:
                arrays.append(take(self.key_columns[column.name].combine_chunks(), self.first[groups]))
            elif column.name in self.fixed:
                given = fixed[column.name].combine_chunks()
                arrays.append(pa.compute.if_else(given.is_valid(), given, own) if given.null_count else given)
            else:
                own_orders = None if base is None else base.get(ORDER_BASE_ID + column.id)
                if column.name in self.operands.column_names:
                    operands = self.operands[column.name].combine_chunks()
                    own, own_orders = self._fold_column(groups, operands, spec.rule(column.id), own, own_orders)
                if base is None and column.default is not None and own.null_count:
                    empty = np.flatnonzero(own.is_null().to_numpy(zero_copy_only=False))
                    own = scatter(own, empty, column.missing(len(empty)))
                if bare is not None and own_orders is not None:
                    own_orders = pa.compute.if_else(bare, pa.scalar(None, pa.int64()), own_orders)
                arrays.append(own)
                if own_orders is not None and own_orders.null_count < len(own_orders):
                    hidden[ORDER_BASE_ID + column.id] = own_orders
        names = [column.name for column in spec.schema]
        rows = conform(pa.Table.from_arrays(arrays, names=names), spec.schema)
        if bare is not None:
            rows = self._lay_bare(rows, groups)
        for column_id, orders in hidden.items():
            rows = rows.append_column(hidden_name(column_id), orders)
        return rows, list(hidden)

    def _lay_bare(self, rows: pa.Table, groups: I64) -> pa.Table:
        """Rows without what they are given of `first` columns as operands: as their own value it would be older than every label (`last` ignores it)."""
        for at, column in enumerate(self.spec.schema):
            if column.name in self.operands.column_names and self.spec.rule(column.id) == "first":
                given = self.group[self.operands[column.name].combine_chunks().is_valid().to_numpy(zero_copy_only=False)]
                gone = np.flatnonzero(np.isin(groups, np.intersect1d(given, self.bare)))
                rows = rows.set_column(at, rows.field(at), scatter(rows.column(at).combine_chunks(), gone, pa.nulls(len(gone), column.type)))
        return rows

    def _fold_column(self, groups: I64, operands: pa.Array, rule: str, base: pa.Array | None, base_orders: pa.Array | None) -> tuple[pa.Array, pa.Array | None]:
        """One column of groups: its operands folded on the base; and the order of each value, for the rules that have one."""
        mine = np.flatnonzero(np.isin(self.group, groups) & operands.is_valid().to_numpy(zero_copy_only=False))
        own = pa.nulls(len(groups), operands.type) if base is None else base
        if not len(mine):
            return own, base_orders
        rows = np.searchsorted(groups, self.group[mine]).astype(np.uint32)
        orders = np.full(len(mine), NO_ORDER) if self.orders is None else self.orders[mine]
        folded = fold(rule, Operands(rows, orders, np.zeros(len(mine), np.int64), take(operands, mine)))
        if base is not None:
            folded = fold_base(rule, folded, take(base, folded.rows), None if base_orders is None else take(base_orders, folded.rows))
        out = None
        if rule in ORDERED_RULES and folded.orders is not None:
            before = pa.nulls(len(groups), pa.int64()) if base_orders is None else base_orders
            out = scatter(before, folded.rows, pa.array(folded.orders, mask=folded.orders == NO_ORDER))
        return scatter(own, folded.rows, folded.values), out


_GROUP = "__group"


def given_columns(spec: TableSpec, table: pa.Table, order: str | None) -> list[str]:
    """The given columns beside the key, those that place a row among them.

    Raises:
        SchemaError: The key, the bucket or the time is not there.
    """
    time_column = [] if spec.time_column is None else [spec.time_column.name]
    absent = [name for name in dict.fromkeys([*spec.primary_key, *spec.bucket_by, *time_column]) if name not in table.column_names]
    if absent:
        raise SchemaError(f"an upsert into table {spec.name!r} may insert rows and needs what says where they lie (key, bucket, time): the data lacks {absent}")
    known = {column.name for column in spec.schema}
    return [name for name in table.column_names if name not in spec.primary_key and (name != order or name in known)]


def _fixed(spec: TableSpec) -> set[str]:
    """Columns that say where a row lies; a patch cannot change them."""
    return {*spec.bucket_by, *spec.cluster_by, *([] if spec.time_column is None else [spec.time_column.name])} - set(spec.primary_key)


def _by_segment(segment_ids: I64) -> list[tuple[int, I64]]:
    """(segment, positions) of each segment."""
    return [(segment_id, np.flatnonzero(segment_ids == segment_id)) for segment_id in np.unique(segment_ids).tolist()]


def _differs(given: pa.Array, stored: pa.Array) -> npt.NDArray[np.bool_]:
    """Where a value was given that is not the stored one."""
    same = pa.compute.equal(given, stored).fill_null(False)
    differs: npt.NDArray[np.bool_] = pa.compute.and_(given.is_valid(), pa.compute.invert(same)).to_numpy(zero_copy_only=False)
    return differs


def _born_overlays(births: list[Births]) -> list[NewOverlay]:
    """The overlays of all births, counted within the segments of all of them."""
    found, before = [], 0
    for born in births:
        found += [dataclasses.replace(overlay, new_segment=before + (overlay.new_segment or 0)) for overlay in born.overlays]
        before += len(born.segments)
    return found
