"""A decoded block: columns as NumPy views over one arena, made when they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from loader.decode import cpu
from loader.decode.program import Program, build
from loader.encodings.leaf import LeafType
from loader.errors import CorruptSegmentError
from loader.segment.layout import PADDING_BYTES, Role

Array = np.ndarray[Any, np.dtype[Any]]
_UNSIGNED: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
_BYTE, _VIEW = _UNSIGNED[1], _UNSIGNED[8]
_MAX_DEPTHS = 16
_REGION_FIELDS = ["chunk", "role", "depth", "count", "item_bytes", "value_type", "base", "arena"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedColumn:
    """Leaf values.

    Attributes:
        values: `[entries]`, or `[entries, fixed_size]` for fixed-size lists. In the leaf's dtype (bool as uint8), or narrower unsigned
            items in a pool with a `base`: value = base + item, modulo 2^64.
        validity: uint8 `[entries]`, 1 where present; None when nothing is null. A null has value 0.
        item_validity: uint8 `[entries, fixed_size]` for fixed-size lists with null items.
        base: See `values`.
    """

    values: Array
    validity: Array | None = None
    item_validity: Array | None = None
    base: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListColumn:
    """Views of entries into a pool. Nothing says that views lie inside the pool: `loader.decode.arrow` and the gather kernels check.

    Attributes:
        views: uint64 `[entries]`, start in the low 32 bits, length in the high.
        validity: uint8 `[entries]`, None when nothing is null.
        child: The pool.
        base: Of the child's values where the child is a narrowed leaf, else 0.
        weights: For a map, the list of its values: views of the same lengths, the same array where both lists repeat alike.
    """

    views: Array
    validity: Array | None
    child: FixedColumn | ListColumn
    base: int = 0
    weights: ListColumn | None = None


DecodedColumn = FixedColumn | ListColumn


def num_entries(column: DecodedColumn) -> int:
    """Entries of a column or pool."""
    return len(column.values if isinstance(column, FixedColumn) else column.views)


class _Roles(NamedTuple):
    """The roles of the regions of a list, or of a column without lists."""

    values: Role
    validity: Role
    views: Role


_OF_FIRST = _Roles(Role.VALUES, Role.VALIDITY, Role.VIEWS)
_OF_WEIGHTS = _Roles(Role.WEIGHT_VALUES, Role.WEIGHT_VALIDITY, Role.WEIGHT_VIEWS)


class DecodedBlock(Sequence[DecodedColumn]):
    """The columns of decoded chunks; `block.columns[i]` belongs to chunk i. Chunks past the columns are dictionaries that some of them share.

    Attributes:
        arena: uint8; all columns are views of it.
        program: What was run.
    """

    def __init__(self, program: Program, arena: Array, leaves: Sequence[LeafType]) -> None:
        self.program, self.arena, self._leaves = program, arena, leaves
        regions = program.regions
        shown = (regions["role"] != Role.SCRATCH) & (regions["chunk"] < len(leaves))
        if (regions["depth"][shown] >= _MAX_DEPTHS).any():
            raise CorruptSegmentError(f"a chunk has lists deeper than {_MAX_DEPTHS}")
        # (chunk, role, depth) → (count, item_bytes, value_type, base, arena); scratch stays out
        self._regions = {tuple(row[:3]): row[3:] for row in regions[_REGION_FIELDS][shown].tolist()}

    @property
    def columns(self) -> DecodedBlock:
        return self

    def __len__(self) -> int:
        return len(self._leaves)

    def __getitem__(self, index: int) -> DecodedColumn:  # type: ignore[override]
        if not 0 <= index < len(self._leaves):
            raise IndexError(index)
        leaf, num_rows = self._leaves[index], int(self.program.num_rows[index])
        column = self._column(index, leaf, 0, num_rows)
        if leaf.weights is None:
            return column
        assert isinstance(column, ListColumn)
        return dataclasses.replace(column, weights=self._weights(index, leaf.weights, column, num_rows))

    def __iter__(self) -> Iterator[DecodedColumn]:
        return (self[index] for index in range(len(self)))

    def _region(self, chunk: int, role: Role, depth: int, count: int | None, dtype: np.dtype[Any] | None = None) -> Array | None:
        region = self._regions.get((chunk, role, depth))
        if region is None:
            return None
        found, size, _, _, start = region
        if count is not None and found != count:
            raise CorruptSegmentError(f"chunk {chunk} of the request has {found:,} {role.name.lower()} at depth {depth} for {count:,} entries")
        if dtype is not None and dtype.itemsize != size:
            raise CorruptSegmentError(f"chunk {chunk} of the request has {role.name.lower()} of {size} bytes at depth {depth}, not {dtype.itemsize}")
        return np.frombuffer(self.arena, _UNSIGNED[size] if dtype is None else dtype, found, start)

    def _weights(self, chunk: int, leaf: LeafType, keys: ListColumn, num_rows: int) -> ListColumn:
        """The second list of a map. Views of its own have the lengths of the keys' views, and without them its pool has as many entries as theirs."""
        views = self._region(chunk, Role.WEIGHT_VIEWS, 0, num_rows, _VIEW)
        child = self._column(chunk, leaf, 1, None, _OF_WEIGHTS)
        if num_entries(child) != num_entries(keys.child) if views is None else ((views ^ keys.views) >> np.uint64(32)).any():
            raise CorruptSegmentError(f"chunk {chunk} of the request has maps with other numbers of keys than of weights")
        views = keys.views if views is None else views
        return ListColumn(views=views, validity=None, child=child, base=child.base if isinstance(child, FixedColumn) else 0)

    def _column(self, chunk: int, leaf: LeafType, depth: int, count: int | None, roles: _Roles = _OF_FIRST) -> DecodedColumn:
        """The column from a depth on; its regions have these roles."""
        if depth == leaf.depth:
            return self._leaf(chunk, leaf, count, roles)
        views = self._region(chunk, roles.views, depth, count, _VIEW)
        if views is None:
            raise CorruptSegmentError(f"chunk {chunk} of the request has no views at depth {depth}")
        validity = self._region(chunk, roles.validity, depth, views.size, _BYTE)
        child = self._column(chunk, leaf, depth + 1, None, roles)
        return ListColumn(views=views, validity=validity, child=child, base=child.base if isinstance(child, FixedColumn) else 0)

    def _leaf(self, chunk: int, leaf: LeafType, count: int | None, roles: _Roles = _OF_FIRST) -> FixedColumn:
        region = self._regions.get((chunk, roles.values, leaf.depth))
        if region is None:
            raise CorruptSegmentError(f"chunk {chunk} of the request has no values at depth {leaf.depth}")
        _, size, stated, base, _ = region
        dtype = leaf.dtype
        narrow = size < dtype.itemsize
        if stated != leaf.value_type or size > dtype.itemsize or (narrow and dtype.kind not in "iu"):
            raise CorruptSegmentError(f"chunk {chunk} of the request holds values of type {stated} and {size} bytes, not {leaf.value_type.name.lower()}")
        wanted = None if count is None else count * leaf.values_per_entry
        values = self._region(chunk, roles.values, leaf.depth, wanted, _UNSIGNED[size] if narrow else dtype)
        assert values is not None
        if leaf.fixed_size and values.size % leaf.fixed_size:
            raise CorruptSegmentError(f"chunk {chunk} of the request holds {values.size:,} values, no multiple of {leaf.fixed_size}")
        entries = values.size // leaf.values_per_entry
        validity = self._region(chunk, roles.validity, leaf.depth, entries, _BYTE)
        base = base if narrow else 0
        if not leaf.fixed_size:
            return FixedColumn(values=values, validity=validity, base=base)
        items = self._region(chunk, roles.validity, leaf.depth + 1, values.size, _BYTE)
        shape = (entries, leaf.fixed_size)
        return FixedColumn(values=values.reshape(shape), validity=validity, item_validity=None if items is None else items.reshape(shape), base=base)


def decode_block(
    slab: Array,
    chunk_offsets: Array,
    chunk_bytes: Array,
    columns: Sequence[LeafType],
    threads: int = 1,
    arena: Array | None = None,
    shared: Array | None = None,
) -> DecodedBlock:
    """Build the program of some chunks and run it.

    Args:
        slab: uint8 with PADDING_BYTES readable bytes past the last chunk.
        chunk_offsets: int64 `[chunks]` into the slab: of the columns, then of the dictionaries that they share.
        chunk_bytes: int64 `[chunks]`.
        columns: The physical type of each column.
        threads: Threads of the native executor.
        arena: uint8 to reuse, with PADDING_BYTES to spare; a new one if it is None or too small.
        shared: As `program.build` takes it.

    Raises:
        CorruptSegmentError: The chunks do not hold together.
    """
    program = build(slab, chunk_offsets, chunk_bytes, shared=shared)
    needed = program.arena_bytes + PADDING_BYTES
    if arena is None or arena.size < needed:
        arena = np.empty(needed, np.uint8)
    cpu.execute(program, slab, arena, threads)
    return DecodedBlock(program, arena, columns)
