"""What changed between two snapshots: rows added, removed and changed, by key. Only segments that are not the same in both are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loader.catalog.records import SnapshotView
from loader.errors import SchemaError
from loader.schema import Column, take
from loader.segment.key_index import search
from loader.storage import Storage
from loader.table.evolve import is_wider
from loader.table.reading import read_segment, state_of
from loader.table.rows import key_words

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diff:
    """The difference of two snapshots, in whole rows.

    Attributes:
        added: Rows whose key only the second has.
        removed: Rows whose key only the first has.
        before, after: Rows whose key both have with other values: as they were, and as they are, row for row.
    """

    added: pa.Table
    removed: pa.Table
    before: pa.Table
    after: pa.Table


def diff(first: SnapshotView, second: SnapshotView, storage: Storage, columns: Sequence[str] | None) -> Diff:
    """See `Table.diff`."""
    names = [column.name for column in second.schema.select(columns)]
    names = [*second.spec.primary_key, *(name for name in names if name not in second.spec.primary_key)]
    shared = _states(first) & _states(second)
    # labels whose window closed in between read as their default in segments that did not change
    label = second.attribution.column if second.attribution is not None else None
    if label in names and first.watermark != second.watermark:
        shared = set()
    # a name may have gone to another column, which the same segments read otherwise
    if [column.id for column in _columns(first, names)] != [column.id for column in _columns(second, names)]:
        shared = set()
    before, after = (_rows(view, names, shared, storage) for view in (first, second))
    old, new = key_words(second.spec, before), key_words(second.spec, after)
    order = old.order()
    found = search(old.take(order), new)
    at = np.flatnonzero(found >= 0)
    was = order[found[at]]
    gone = np.ones(before.num_rows, bool)
    gone[was] = False
    was_rows, is_rows = take(before, was), take(after, at)
    same = np.ones(len(at), bool)
    for name in names:
        same &= equal_rows(was_rows[name].combine_chunks(), is_rows[name].combine_chunks())
    return Diff(
        added=take(after, np.flatnonzero(found < 0)),
        removed=take(before, np.flatnonzero(gone)),
        before=take(was_rows, np.flatnonzero(~same)),
        after=take(is_rows, np.flatnonzero(~same)),
    )


def _states(view: SnapshotView) -> set[tuple[int, ...]]:
    """Each segment with all that changes what its rows show."""
    return {state_of(ref) for ref in view.segments}


def _rows(view: SnapshotView, names: Sequence[str], shared: set[tuple[int, ...]], storage: Storage) -> pa.Table:
    """The rows of segments that are not the same in both, the key's columns and others by these names."""
    wanted = _columns(view, names)
    read: list[Column] = [*wanted, *([time] if (time := view.spec.time_column) is not None and time.name not in names else [])]
    schema = pa.schema([column.to_arrow() for column in read], metadata=view.schema.metadata)
    tables = [read_segment(view, ref, read, storage) for ref in view.segments if state_of(ref) not in shared]
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    return table.select([column.name for column in wanted]).combine_chunks().rename_columns(list(names))


def _columns(view: SnapshotView, names: Sequence[str]) -> list[Column]:
    """The key's columns, whatever they were called at that snapshot, and the others by name."""
    key, others = view.spec.columns(view.spec.primary_key_ids), names[len(view.spec.primary_key_ids) :]
    absent = [name for name in others if name not in view.schema]
    if absent:
        raise SchemaError(f"snapshot {view.snapshot_id} of table {view.table!r} has no column {absent[0]!r}: give columns=[…] that both snapshots have")
    return [*key, *view.schema.select(others)]


def equal_rows(one: pa.Array, other: pa.Array) -> Mask:
    """Where two arrays of one length hold the same: null equals null, NaN equals NaN, lists are compared item by item."""
    if is_wider(other.type, one.type):
        other = other.cast(one.type)
    elif not one.type.equals(other.type):
        one = one.cast(other.type)
    valid, also = (array.is_valid().to_numpy(zero_copy_only=False) for array in (one, other))
    same: Mask = valid == also
    both = np.flatnonzero(valid & also)
    if not len(both):
        return same
    left, right = take(one, both), take(other, both)
    kind = one.type
    if pa.types.is_map(kind):
        pairs = pa.list_(pa.struct([pa.field("key", kind.key_type), pa.field("value", kind.item_type)]))
        same[both] = _equal_lists(left.cast(pairs), right.cast(pairs))
    elif pa.types.is_struct(kind):
        fields = [equal_rows(left.field(at), right.field(at)) for at in range(kind.num_fields)]
        same[both] = np.logical_and.reduce(fields)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        same[both] = _equal_lists(left, right)
    else:
        if pa.types.is_float16(kind):  # Arrow does not compare halves
            left, right = left.cast(pa.float32()), right.cast(pa.float32())
        equal = pc.equal(left, right)
        if pa.types.is_floating(kind):
            equal = pc.or_(equal, pc.and_(pc.is_nan(left), pc.is_nan(right)))
        same[both] = equal.to_numpy(zero_copy_only=False)
    return same


def _equal_lists(left: pa.Array, right: pa.Array) -> Mask:
    """Of lists without nulls among them."""
    lengths = pc.list_value_length(left).to_numpy(zero_copy_only=False)
    same: Mask = lengths == pc.list_value_length(right).to_numpy(zero_copy_only=False)
    alike = np.flatnonzero(same & (lengths > 0))
    if len(alike):
        items = equal_rows(pc.list_flatten(take(left, alike)), pc.list_flatten(take(right, alike)))
        starts = np.cumsum(lengths[alike]) - lengths[alike]
        same[alike] = np.logical_and.reduceat(items, starts.astype(np.int64))
    return same
