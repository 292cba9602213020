"""A decoded block: columns as NumPy views over one arena, made when they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from loader.decode import cpu
from loader.decode.program import Program, build
from loader.encodings.leaf import LeafType
from loader.errors import CorruptSegmentError
from loader.segment.layout import PADDING_BYTES, VALUE_DTYPES, Role

Array = np.ndarray[Any, np.dtype[Any]]
_UNSIGNED: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
_MAX_DEPTHS = 16


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
    """

    views: Array
    validity: Array | None
    child: FixedColumn | ListColumn
    base: int = 0


DecodedColumn = FixedColumn | ListColumn


class DecodedBlock(Sequence[DecodedColumn]):
    """The columns of decoded chunks; `block.columns[i]` belongs to chunk i. Chunks past the columns are dictionaries that some of them share.

    Attributes:
        arena: uint8; all columns are views of it.
        program: What was run.
    """

    def __init__(self, program: Program, arena: Array, leaves: Sequence[LeafType]) -> None:
        self.program, self.arena, self._leaves = program, arena, leaves
        regions = program.regions
        # [chunk, role, depth] → region; scratch stays out
        self._index = np.full((len(leaves), len(Role), _MAX_DEPTHS), -1, np.int64)
        shown = np.flatnonzero((regions["role"] != Role.SCRATCH) & (regions["chunk"] < len(leaves)))
        chosen = regions[shown]
        if (chosen["depth"] >= _MAX_DEPTHS).any():
            raise CorruptSegmentError(f"a chunk has lists deeper than {_MAX_DEPTHS}")
        self._index[chosen["chunk"], chosen["role"], chosen["depth"]] = shown

    @property
    def columns(self) -> DecodedBlock:
        return self

    def __len__(self) -> int:
        return len(self._leaves)

    def __getitem__(self, index: int) -> DecodedColumn:  # type: ignore[override]
        if not 0 <= index < len(self._leaves):
            raise IndexError(index)
        return self._column(index, 0, int(self.program.num_rows[index]))

    def __iter__(self) -> Iterator[DecodedColumn]:
        return (self[index] for index in range(len(self)))

    def _region(self, chunk: int, role: Role, depth: int, count: int | None, dtype: np.dtype[Any] | None = None) -> Array | None:
        number = int(self._index[chunk, role, depth])
        if number < 0:
            return None
        region = self.program.regions[number]
        found, size, start = int(region["count"]), int(region["item_bytes"]), int(region["arena"])
        if count is not None and found != count:
            raise CorruptSegmentError(f"chunk {chunk} of the request has {found:,} {role.name.lower()} at depth {depth} for {count:,} entries")
        if dtype is not None and dtype.itemsize != size:
            raise CorruptSegmentError(f"chunk {chunk} of the request has {role.name.lower()} of {size} bytes at depth {depth}, not {dtype.itemsize}")
        return self.arena[start : start + found * size].view(_UNSIGNED[size] if dtype is None else dtype)

    def _column(self, chunk: int, depth: int, count: int | None) -> DecodedColumn:
        leaf = self._leaves[chunk]
        if depth == leaf.depth:
            return self._leaf(chunk, leaf, count)
        views = self._region(chunk, Role.VIEWS, depth, count, np.dtype("<u8"))
        if views is None:
            raise CorruptSegmentError(f"chunk {chunk} of the request has no views at depth {depth}")
        validity = self._region(chunk, Role.VALIDITY, depth, views.size, np.dtype("u1"))
        child = self._column(chunk, depth + 1, None)
        return ListColumn(views=views, validity=validity, child=child, base=child.base if isinstance(child, FixedColumn) else 0)

    def _leaf(self, chunk: int, leaf: LeafType, count: int | None) -> FixedColumn:
        number = int(self._index[chunk, Role.VALUES, leaf.depth])
        if number < 0:
            raise CorruptSegmentError(f"chunk {chunk} of the request has no values at depth {leaf.depth}")
        region = self.program.regions[number]
        size, stated = int(region["item_bytes"]), int(region["value_type"])
        narrow = size < leaf.dtype.itemsize
        if stated != leaf.value_type or size > leaf.dtype.itemsize or (narrow and leaf.dtype.kind not in "iu"):
            raise CorruptSegmentError(f"chunk {chunk} of the request holds values of type {stated} and {size} bytes, not {leaf.value_type.name.lower()}")
        wanted = None if count is None else count * leaf.values_per_entry
        values = self._region(chunk, Role.VALUES, leaf.depth, wanted, _UNSIGNED[size] if narrow else VALUE_DTYPES[leaf.value_type])
        assert values is not None
        if leaf.fixed_size and values.size % leaf.fixed_size:
            raise CorruptSegmentError(f"chunk {chunk} of the request holds {values.size:,} values, no multiple of {leaf.fixed_size}")
        entries = values.size // leaf.values_per_entry
        validity = self._region(chunk, Role.VALIDITY, leaf.depth, entries, np.dtype("u1"))
        base = int(region["base"]) if narrow else 0
        if not leaf.fixed_size:
            return FixedColumn(values=values, validity=validity, base=base)
        items = self._region(chunk, Role.VALIDITY, leaf.depth + 1, values.size, np.dtype("u1"))
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
