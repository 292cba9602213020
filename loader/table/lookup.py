"""Point look-ups: rows of a snapshot by key, in microseconds where what they touch is warm.

Owns the caches; finding keys is `keys`', rows by number `segment.rows`'. Every handle of a table in this process shares one of these. It keeps a key directory
of its own, so that a look-up never waits for a write; a segment whose patches, deletes or columns changed is opened anew, the others stay open.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.connection import Database
from loader.catalog.inline import LakeStorage
from loader.catalog.read import (
    load_changed_segments,
    load_deletes,
    load_erased,
    load_floor,
    load_head,
    load_segment_changes,
    load_segments_by_id,
    load_spec_at,
    load_watermark,
    resolve_snapshot,
)
from loader.catalog.records import Snapshot, SnapshotView, TableSpec
from loader.decode.rows import RowFields, RowPart
from loader.errors import ConflictError, SchemaError
from loader.schema import Column, conform, take
from loader.segment.key_index import Keys, keys_of
from loader.segment.rows import RowCache
from loader.table.keys import KEY_MEMORY_BYTES, Hits, KeyDirectory
from loader.table.opened_segment import OpenedSegment
from loader.table.reading import fill_default
from loader.table.resolve import scatter
from loader.table.row_reads import GroupPages, GroupPart, take_rows
from loader.table.rows import key_words
from loader.table.segments import one_type, read_by_id

I64 = npt.NDArray[np.int64]
KeyValues = Any  # pa.Table, pa.RecordBatch, or a sequence: of values for a key of one column, of tuples for several
MAX_OPEN_SEGMENTS = 1024
MAX_WANTED = 64  # different choices of columns that are remembered
_MAX_TRIES = 8
LOOKUP_CACHE_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What a look-up reads, worked out once for all of the same columns.

    Attributes:
        names: The columns to return.
        columns: Those and, where a label needs it, the time.
        ids: Of `columns`.
        schema: Of `columns`, all nullable.
        fields: The same, for look-ups in chunks.
    """

    names: list[str]
    columns: list[Column]
    ids: tuple[int, ...]
    schema: pa.Schema
    fields: RowFields


class SortedHits(NamedTuple):
    """What was found, segment by segment and row by row.

    Attributes:
        segment_ids: The segments, rising.
        starts: Where the rows of each begin, and behind them their number.
        rows: i64, of each segment rising.
        places: u32, which key each is of.
    """

    segment_ids: list[int]
    starts: list[int]
    rows: I64
    places: npt.NDArray[np.uint32]

    @staticmethod
    def of(hits: Hits) -> SortedHits:
        segment_ids, rows = hits.segment_ids, hits.rows
        if len(rows) == 1:
            segment_id = int(segment_ids[0])
            return SortedHits([segment_id], [0, 1], rows, np.zeros(1, np.uint32)) if segment_id >= 0 else SortedHits([], [0], rows[:0], np.zeros(0, np.uint32))
        order = np.lexsort((rows, segment_ids)) if int(segment_ids.max(initial=0)) >> 31 else np.argsort(segment_ids << 32 | rows)
        order = order[int(np.count_nonzero(segment_ids < 0)) :]
        of_each, rows = segment_ids[order], rows[order]
        cuts = (np.flatnonzero(of_each[1:] != of_each[:-1]) + 1).tolist()
        starts = [0, *cuts] if len(order) else []
        return SortedHits(of_each[starts].tolist(), [*starts, len(order)], rows, order.astype(np.uint32))


class LookUp:
    """Rows by key, at the head or as of a snapshot; safe to share between threads.

    Args:
        spec: The table; a look-up that follows the head follows its schema too.
        catalog: Its catalog.
        storage: Its files.
        cache_bytes: Of encoded chunks that stay open.
        snapshot_id: Look there for good; None follows the head.
    """

    def __init__(
        self, spec: TableSpec, catalog: Database, storage: LakeStorage, *, cache_bytes: int = LOOKUP_CACHE_BYTES, snapshot_id: int | None = None
    ) -> None:
        self.spec, self.snapshot_id = spec, snapshot_id
        self._catalog, self._storage = catalog, storage
        self._cache_bytes = cache_bytes
        self._cache, self._pages = RowCache(cache_bytes, decode_after=1), GroupPages()
        self._lock = threading.Lock()
        self._key_bytes = KEY_MEMORY_BYTES if snapshot_id is None else KEY_MEMORY_BYTES // 8
        self._directory = KeyDirectory(storage, self._key_bytes)
        self._watermark: int | None = None
        self._integer_key: tuple[tuple[int, ...], pa.DataType | None] | None = None  # columns of the key, and the type where it is one integer
        self._state: object = None  # of the catalog, when it was followed last
        self._erased = 0  # of the one snapshot: the erasure that it was read after
        self._open: OrderedDict[int, OpenedSegment] = OrderedDict()
        self._asked: dict[tuple[str, ...] | None, _Wanted] = {}
        self._outdated: set[int] = set()  # of those, segments that gained overlays or column files since

    def take(self, keys: KeyValues, columns: Sequence[str] | None) -> pa.Table:
        """See `Table.lookup`."""
        with self._lock:  # the caches are small things; decoding releases the interpreter's lock, not this one
            for _ in range(_MAX_TRIES):
                self._refresh()
                wanted = self._wanted(columns)
                hits = self._directory.probe(self._words(keys))
                sorted_hits = SortedHits.of(hits)
                opened = self._opened(sorted_hits.segment_ids)
                if opened is not None:
                    break
            else:
                raise ConflictError(f"table {self.spec.name!r} was compacted and expired {_MAX_TRIES} times under this look-up: try again")
            table = self._rows(len(hits.rows), sorted_hits, opened, wanted)
            spec, view = self.spec, None
            if spec.attribution is not None:
                view = SnapshotView(spec=spec, snapshot_id=self._directory.synced, watermark=self._watermark, segments=())
        table = table if view is None else fill_default(view, table)
        table = table if len(sorted_hits.rows) == table.num_rows else _mask(table, ~hits.found)
        return table if len(wanted.names) == table.num_columns else table.select(wanted.names)

    def _words(self, keys: KeyValues) -> Keys:
        """The key words of what is looked for; an integer array that is as its column is needs no more checks."""
        if isinstance(keys, pa.Array) and not keys.null_count:
            key = self.spec.primary_key_ids
            if self._integer_key is None or self._integer_key[0] != key:
                kinds = [self.spec.schema.column(name).type for name in self.spec.primary_key]
                self._integer_key = key, kinds[0] if len(kinds) == 1 and pa.types.is_integer(kinds[0]) else None
            if keys.type == self._integer_key[1]:
                return keys_of([keys])
        return key_words(self.spec, key_table(self.spec, keys))

    def _wanted(self, columns: Sequence[str] | None) -> _Wanted:
        key = None if columns is None else tuple(columns)
        found = self._asked.get(key)
        if found is None:
            wanted = self.spec.schema.select(columns)
            if len({column.id for column in wanted}) < len(wanted):
                raise ValueError(f"columns names each column once, not {columns!r}")
            read = self._with_time(wanted)
            schema = pa.schema([column.to_arrow().with_nullable(True) for column in read])
            names, ids = [column.name for column in wanted], tuple(column.id for column in read)
            found = _Wanted(names=names, columns=read, ids=ids, schema=schema, fields=RowFields(schema))
            if len(self._asked) >= MAX_WANTED:
                self._asked.clear()
            self._asked[key] = found
        return found

    def _refresh(self) -> None:
        """Follow the catalog to the head, or to the one snapshot."""
        state = self._catalog.state()
        if state is not None and state == self._state:
            return
        self._follow()
        self._state = state  # as it was before it was followed

    def _follow(self) -> None:
        directory = self._directory
        with self._catalog.read() as connection:
            head = load_head(connection, self.spec) if self.snapshot_id is None else resolve_snapshot(connection, self.spec, self.snapshot_id)
            erased = 0 if self.snapshot_id is None else load_erased(connection, self.spec.id)
            if head == directory.synced and erased == self._erased:
                return
            if directory.synced < load_floor(connection, self.spec) or erased != self._erased:
                directory = KeyDirectory(self._storage, self._key_bytes)  # what died since may be forgotten, and what was erased lies elsewhere
                self._close_all()
            added, removed = load_segment_changes(connection, self.spec.id, directory.synced, head)
            deletes = load_deletes(connection, self.spec.id, directory.synced, head)
            changed = load_changed_segments(connection, self.spec.id, directory.synced, head)
            watermark = load_watermark(connection, self.spec, head)
            spec = load_spec_at(connection, self.spec, head)
        self._directory = KeyDirectory(self._storage, self._key_bytes)  # begun anew if this is interrupted half way
        directory.apply(head, added, removed, deletes)
        for segment_id in removed:
            self._open.pop(segment_id, None)
        self._outdated = (self._outdated | set(changed)) - set(removed)
        if spec.schema_id != self.spec.schema_id:
            self._open.clear()
            self._asked.clear()
        self._erased, self._cache.num_rows = erased, directory.num_rows
        self.spec, self._watermark, self._directory = spec, watermark, directory  # the directory last: it says what the others are of

    def _close_all(self) -> None:
        """Forget every row that is held in memory."""
        for item in self._open.values():
            item.close()
        self._open.clear()
        self._pages.clear()

    def _opened(self, ids: Sequence[int]) -> list[OpenedSegment] | None:
        """Segments, open; None if one has been forgotten since, which another refresh finds out."""
        missing = [segment_id for segment_id in ids if segment_id not in self._open or segment_id in self._outdated]
        if missing:
            with self._catalog.read() as connection:
                refs = load_segments_by_id(connection, self.spec.id, missing, self._directory.synced)
            if len(refs) < len(missing):
                self._state = None
                return None
            for ref in refs:
                self._open[ref.segment_id] = OpenedSegment(self.spec, ref, self._storage, self._cache, self._open.get(ref.segment_id))
                self._outdated.discard(ref.segment_id)
        for segment_id in ids:
            self._open.move_to_end(segment_id)
        found = [self._open[segment_id] for segment_id in ids]
        while len(self._open) > max(MAX_OPEN_SEGMENTS, len(ids)):
            self._open.popitem(last=False)[1].close()
        return found

    def _with_time(self, wanted: Sequence[Column]) -> list[Column]:
        """The wanted columns, and the time column where the label needs it."""
        attribution, time = self.spec.attribution, self.spec.time_column
        names = {column.name for column in wanted}
        if attribution is None or time is None or attribution.column not in names or time.name in names:
            return list(wanted)
        return [*wanted, time]

    def _rows(self, num_rows: int, hits: SortedHits, opened: Sequence[OpenedSegment], wanted: _Wanted) -> pa.Table:
        columns, schema = wanted.columns, wanted.schema
        parts: list[RowPart] = []
        slow, patched = [], []
        groups: dict[bytes, list[tuple[OpenedSegment, GroupPart]]] = {}
        for item, start, stop in zip(opened, hits.starts, hits.starts[1:], strict=False):
            rows, places = hits.rows[start:stop], hits.places[start:stop]
            group = None if item.group_file is None else item.group(columns, self._pages)
            if group is not None:
                groups.setdefault(group.layout_key, []).append((item, GroupPart(group=group, numbers=rows, places=places.astype(np.int64))))
            elif item.rows is None or (chosen := item.chosen(wanted.ids)) is None:
                slow.append((item, places.astype(np.int64), rows))
                continue
            else:
                parts += item.rows.parts(rows, chosen, places, ascending=True)
            if item.ref.overlays:
                patched.append((item, places.astype(np.int64), rows))
        if parts:
            table = pa.Table.from_batches([wanted.fields.take(parts, num_rows)])
        elif not groups:
            table = pa.Table.from_arrays([pa.nulls(num_rows, column.type) for column in columns], schema=schema)
        for number, found in enumerate(groups.values()):
            table = self._from_groups(table if parts or number else None, found, columns, schema, num_rows)
        for item, to, rows in slow:
            table = _slowly(table, item, columns, to, rows)
        return _patched(table, patched + [one for one in slow if one[0].ref.overlays], columns)

    def _from_groups(
        self, table: pa.Table | None, found: list[tuple[OpenedSegment, GroupPart]], columns: Sequence[Column], schema: pa.Schema, num_rows: int
    ) -> pa.Table:
        """With the rows of groups of one layout; a table of them alone without `table`."""
        arrays = take_rows(self._pages, [part for _, part in found], columns, num_rows)
        room = self._cache_bytes - self._cache.num_bytes
        self._pages.keep([((item.group_file.path, item.group_file.offset), part.group) for item, part in found if item.group_file is not None], room)
        self._cache.max_bytes = max(self._cache_bytes - self._pages.num_bytes, 0)
        if table is not None:
            places = np.concatenate([part.places for _, part in found])
            arrays = [scatter(_whole(before), places, take(array, places)) for before, array in zip(table.columns, arrays, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    found = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)


def key_table(spec: TableSpec, keys: KeyValues, verb: str = "a look-up in") -> pa.Table:
    """Keys in any form as a table of the key's columns.

    Args:
        spec: The table.
        keys: Values, tuples, or data with the key's columns.
        verb: What is done with them, for errors.

    Raises:
        SchemaError: A column of the key is missing, or a value does not fit.
    """
    names = spec.primary_key
    if isinstance(keys, pa.RecordBatch):
        keys = pa.Table.from_batches([keys])
    if isinstance(keys, pa.Table):
        absent = [name for name in names if name not in keys.column_names]
        if absent:
            raise SchemaError(f"{verb} table {spec.name!r} finds its rows by {names}: the data lacks {absent}")
        return conform(keys.select(names), spec.schema, names=names)
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise SchemaError(f"keys of table {spec.name!r} are {keys!r}: give a list of values (of tuples for several columns), an array, or a pyarrow Table")
    try:
        columns: list[Any] = [keys] if len(names) == 1 else list(zip(*keys, strict=True)) or [()] * len(names)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"a key of table {spec.name!r} is {names}: give tuples of {len(names)} values ({error})") from error
    if len(columns) != len(names):
        raise SchemaError(f"a key of table {spec.name!r} is {names}, not {len(columns)} values")
    try:
        arrays = [_array(values, spec.schema.column(name).type) for name, values in zip(names, columns, strict=True)]
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError) as error:
        raise SchemaError(f"keys of table {spec.name!r} do not fit {names}: {error}") from error
    return conform(pa.table(dict(zip(names, arrays, strict=True))), spec.schema, names=names)


def _array(values: Any, kind: pa.DataType) -> Any:
    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)


def _patched(table: pa.Table, parts: Sequence[tuple[OpenedSegment, I64, I64]], columns: Sequence[Column]) -> pa.Table:
    """With the patches of segments, at the places of their rows: a scatter a column, however many segments there are."""
    if not parts:
        return table
    found: dict[int, list[tuple[I64, pa.Array]]] = {}
    for item, places, rows in parts:
        for column_id, folded in item.folded(columns).items():
            at = np.searchsorted(folded.rows, rows)
            hit = np.flatnonzero(folded.rows[np.minimum(at, len(folded.rows) - 1)] == rows)
            if len(hit):
                found.setdefault(column_id, []).append((places[hit], take(folded.values, at[hit])))
    for index, column in enumerate(columns):
        if column.id in found:
            places = np.concatenate([places for places, _ in found[column.id]])
            values = pa.concat_arrays([_whole(values) for _, values in found[column.id]])
            table = table.set_column(index, table.schema.field(index), scatter(_whole(table.column(index)), places, values))
    return table


def _slowly(table: pa.Table, item: OpenedSegment, columns: Sequence[Column], places: I64, rows: I64) -> pa.Table:
    """With the rows of a segment whose columns lie beside it, came later, or are stored in older types."""
    read = read_by_id(item.reader, [column.id for column in columns], rows=rows)
    arrays = []
    for index, column in enumerate(columns):
        values = one_type(read[column.id], column.type) if column.id in read else column.missing(len(rows))
        arrays.append(scatter(_whole(table.column(index)), places, values))
    return pa.Table.from_arrays(arrays, schema=table.schema)


def _mask(table: pa.Table, absent: npt.NDArray[np.bool_]) -> pa.Table:
    """With nulls in the rows of keys that are not there, whatever a default made of them."""
    mask = pa.array(absent)
    arrays = [column if column.null_count == len(absent) else pa.compute.if_else(mask, pa.scalar(None, column.type), column) for column in table.columns]
    return pa.Table.from_arrays(arrays, schema=table.schema)


@dataclasses.dataclass(kw_only=True)
class LookUps:
    """The look-ups of one table: at the head, which has half of the cache, and at the few snapshots asked for last, which share the rest."""

    spec: TableSpec
    catalog: Database
    storage: LakeStorage
    cache_bytes: int = LOOKUP_CACHE_BYTES
    keep: int = 4

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._by_snapshot: OrderedDict[int | None, LookUp] = OrderedDict()

    def at(self, snapshot: int | str | Snapshot | None) -> LookUp:
        """For a snapshot, or the head."""
        number, spec = None, self.spec
        if snapshot is not None:
            with self.catalog.read() as connection:
                number = resolve_snapshot(connection, spec, snapshot)
                spec = load_spec_at(connection, spec, number)
        with self._lock:
            if number not in self._by_snapshot:
                cache_bytes = self.cache_bytes // (2 if number is None else 2 * self.keep)
                self._by_snapshot[number] = LookUp(spec, self.catalog, self.storage, cache_bytes=cache_bytes, snapshot_id=number)
            self._by_snapshot.move_to_end(number)
            while len(self._by_snapshot) > self.keep + 1:
                del self._by_snapshot[next(key for key in self._by_snapshot if key is not None)]
            return self._by_snapshot[number]

    def forget(self) -> None:
        """Begin anew: nothing that was read stays in memory."""
        with self._lock:
            self._by_snapshot.clear()
