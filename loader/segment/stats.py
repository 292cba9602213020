"""Minimum, maximum and counts of a column in a block, as bit patterns for the footer and as Python numbers for planning."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from loader.encodings.leaf import LeafType, is_bytes, is_list, is_map, storage_type
from loader.encodings.shred import Leaf, Node
from loader.segment.layout import STATS, STATS_HAS_RANGE, ValueType

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnStats:
    """Of a column in some rows.

    Attributes:
        min: Smallest leaf value that is neither null nor NaN, in the physical type (a timestamp is its integer); None without one.
        max: Largest.
        null_count: Null rows.
        num_values: Leaf values; for strings bytes.
    """

    min: int | float | None
    max: int | float | None
    null_count: int
    num_values: int


def has_range(kind: pa.DataType) -> bool:
    """Whether min and max of the leaf mean something: they do not for bytes."""
    kind = storage_type(kind)
    while is_list(kind) or is_map(kind) or pa.types.is_fixed_size_list(kind):
        kind = storage_type(kind.key_type if is_map(kind) else kind.value_type)
    return not is_bytes(kind) and not pa.types.is_fixed_size_binary(kind) and not pa.types.is_null(kind)


def widen(value: Any, value_type: ValueType) -> int:
    """The bit pattern of a value widened to int64, uint64 or float64; zero has one."""
    wide = np.float64(value) + 0.0 if value_type >= ValueType.FLOAT16 else np.uint64(value) if value_type in _UNSIGNED else np.int64(value)
    return int(wide.view(np.uint64))


_UNSIGNED = (ValueType.BOOL, ValueType.UINT8, ValueType.UINT16, ValueType.UINT32, ValueType.UINT64)


def narrow(pattern: int, value_type: ValueType) -> int | float:
    """The number that `widen` made a pattern of."""
    bits = np.uint64(pattern)
    if value_type >= ValueType.FLOAT16:
        return float(bits.view(np.float64))
    return int(bits) if value_type in _UNSIGNED else int(bits.view(np.int64))


def measure(node: Node, leaf: LeafType, *, ranged: bool) -> Array:
    """One STATS record of a block's column; of a map, that of its keys.

    Args:
        node: The column, shredded.
        leaf: Its physical type.
        ranged: From `has_range`.
    """
    record = np.zeros((), STATS)
    record["null_count"] = 0 if node.validity is None else np.count_nonzero(~node.validity)
    deepest = node
    while not isinstance(deepest, Leaf):
        deepest = deepest.child
    values = deepest.values
    mask = deepest.item_validity
    if deepest.validity is not None:
        entries = np.repeat(deepest.validity, leaf.fixed_size) if leaf.fixed_size else deepest.validity
        mask = entries if mask is None else entries & mask
    record["num_values"] = values.size if mask is None else np.count_nonzero(mask)
    if ranged and leaf.value_type != ValueType.BFLOAT16:
        present = values if mask is None else values[mask]
        present = present[~np.isnan(present)] if present.dtype.kind == "f" else present
        if present.size:
            record["min"], record["max"] = widen(present.min(), leaf.value_type), widen(present.max(), leaf.value_type)
            record["flags"] = STATS_HAS_RANGE
    return record


def merge(records: Iterable[Array], value_type: ValueType) -> ColumnStats:
    """The statistics of several blocks together."""
    rows = np.array(list(records), STATS).reshape(-1)
    ranged = rows[(rows["flags"] & STATS_HAS_RANGE) != 0]
    low = [narrow(int(value), value_type) for value in ranged["min"]]
    high = [narrow(int(value), value_type) for value in ranged["max"]]
    return ColumnStats(
        min=min(low, default=None), max=max(high, default=None), null_count=int(rows["null_count"].sum()), num_values=int(rows["num_values"].sum())
    )


class SegmentStats(Mapping[int, ColumnStats]):
    """The statistics of a segment's columns by id, merged over its blocks when asked for: a wide table asks for few."""

    def __init__(self, column_ids: Array, records: Array, value_types: Sequence[ValueType]) -> None:
        """
        Args:
            column_ids: In the order of the records.
            records: Records with the fields of STATS `[columns, blocks]`.
            value_types: Of the columns' leaves.
        """
        self._column_ids, self._records, self._value_types = column_ids, records, value_types

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        return {column_id: place for place, column_id in enumerate(self._column_ids.tolist())}

    def __getitem__(self, column_id: int) -> ColumnStats:
        place = self._places[column_id]
        rows = np.zeros(self._records.shape[1], STATS)
        for name in STATS.names or ():
            rows[name] = self._records[place][name]
        return merge(rows, self._value_types[place])

    @property
    def records(self) -> Array:
        """Records with the fields of STATS `[columns, blocks]`."""
        return self._records

    def places(self, column_ids: Sequence[int]) -> list[int]:
        """Where columns lie in `records`."""
        return [self._places[column_id] for column_id in column_ids]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
