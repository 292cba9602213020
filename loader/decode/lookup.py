"""Entries of a column by number, without decoding the rest: each costs a bounded number of vectors, however large the block is.

Follows the ops of a decode program backwards from the entries that are asked for: a code is read before its dictionary entry, a view before its items. Bits
and copies are read one by one; packed values, ranks and running sums take their vector of 1,024. Equal bit for bit to decoding all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from loader.decode import cpu, reference
from loader.decode.arrow import take
from loader.decode.program import NO_OFFSET, Program
from loader.decode.result import DecodedBlock, DecodedColumn, FixedColumn, ListColumn
from loader.encodings.bitpack import num_vectors, unpack
from loader.encodings.bits import unpack_bits
from loader.encodings.leaf import LeafType
from loader.encodings.overlap import ranges
from loader.errors import CorruptSegmentError
from loader.segment.layout import PADDING_BYTES, PATCH_F32, PATCH_F64, VALUE_DTYPES, VECTOR, VECTOR_META, OpKind, OutKind, Role, Scan, SourceKind

Array = np.ndarray[Any, np.dtype[Any]]
_UNSIGNED: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
_WORDS = VECTOR // 32
LOOK_UP_ARENA_BYTES = 1 << 20  # a smaller chunk is decoded faster than it is looked up in
LOOK_UP_SHARE = 64  # and so is one of which more than this part of the rows is wanted
MAX_LEVELS = 9


def look_up(program: Program, slab: Array, leaves: Sequence[LeafType], chunks: Sequence[int], rows: Array) -> list[DecodedColumn]:
    """Rows of chunks by number. A chunk of which few rows are wanted and that is large is read in the few vectors that hold them, the others are decoded.

    Args:
        program: From `program.build` on this slab.
        slab: uint8 with PADDING_BYTES readable bytes past the last chunk.
        leaves: The physical type of each column's chunk.
        chunks: Which chunks.
        rows: int64, in any order.

    Returns:
        The columns of `chunks`, each with an entry a row.

    Raises:
        CorruptSegmentError: The chunks do not hold together; names the chunk by its position in the request.
    """
    lookup = Lookup(program, slab, leaves)
    picked = [lookup.can() and _is_large(program, chunk) and rows.size * LOOK_UP_SHARE <= int(program.num_rows[chunk]) for chunk in chunks]
    decoded = None
    if not all(picked):
        arena = np.empty(program.arena_bytes + PADDING_BYTES, np.uint8)
        cpu.execute(program, slab, arena)
        decoded = DecodedBlock(program, arena, leaves)
    found = []
    for chunk, few in zip(chunks, picked, strict=True):
        if rows.size and int(rows.max()) >= int(program.num_rows[chunk]):
            raise CorruptSegmentError(f"chunk {chunk} of the request has too few rows")
        found.append(lookup.column(chunk, rows) if few or decoded is None else take(decoded[chunk], rows))
    return found


def _is_large(program: Program, chunk: int) -> bool:
    mine = program.regions[program.regions["chunk"] == chunk]
    return int((mine["count"] * mine["item_bytes"]).sum()) > LOOK_UP_ARENA_BYTES


class Lookup:
    """Random access to the chunks of one program.

    Attributes:
        num_vectors: Vectors touched so far, repeats included.
    """

    def __init__(self, program: Program, slab: Array, leaves: Sequence[LeafType]) -> None:
        """
        Args:
            program: From `program.build` on this slab.
            slab: The encoded chunks.
            leaves: Physical type of each chunk's column.
        """
        self._program, self._slab, self._leaves = program, slab, leaves
        self._starts = program.regions["arena"]
        out = program.ops["out"].astype(np.int64)
        # where regions are empty, several start at one place: ops write the last of them
        self._writers = np.searchsorted(self._starts, out, side="right") - 1
        self.num_vectors = 0

    def can(self) -> bool:
        """Whether every op can be read in parts: compressed bytes cannot, and a value of a deep program may cost more than decoding all."""
        ops = self._program.ops
        return self._program.level_starts.size <= MAX_LEVELS + 1 and not ((ops["kind"] == OpKind.COPY) & (ops["flags"] != 0)).any()

    def column(self, chunk: int, rows: Array) -> DecodedColumn:
        """Rows of a chunk by number, int64 in any order, as a column of its own.

        Raises:
            CorruptSegmentError: What was read does not hold together.
        """
        leaf = self._leaves[chunk]
        column = self._column(chunk, leaf, 0, rows)
        if leaf.weights is None:
            return column
        assert isinstance(column, ListColumn)
        # what has no views of its own has those of the keys
        own = self._region(chunk, Role.WEIGHT_VIEWS, 0) is not None
        pools = self._entries(chunk, leaf, 1, 0), self._entries(chunk, leaf.weights, 1, Role.WEIGHT_VALUES)
        weights = self._list(chunk, leaf.weights, 0, rows, Role.WEIGHT_VALUES, views_of=Role.WEIGHT_VALUES if own else Role.VALUES)
        if not np.array_equal(weights.views, column.views) or (not own and pools[0] != pools[1]):
            raise CorruptSegmentError(f"chunk {chunk} of the request has maps with other numbers of keys than of weights")
        return dataclasses.replace(column, weights=dataclasses.replace(weights, views=column.views))

    def _column(self, chunk: int, leaf: LeafType, depth: int, entries: Array, group: int = 0) -> DecodedColumn:
        """The column from a depth on; `group` is what the roles of its regions are above those of the first list."""
        if depth == leaf.depth:
            return self._leaf(chunk, leaf, entries, group)
        return self._list(chunk, leaf, depth, entries, group, views_of=group)

    def _list(self, chunk: int, leaf: LeafType, depth: int, entries: Array, group: int, views_of: int) -> ListColumn:
        views = self._region(chunk, Role(Role.VIEWS + views_of), depth)
        if views is None:
            raise CorruptSegmentError(f"chunk {chunk} of the request has no views at depth {depth}")
        found = self._items(views, entries)
        starts, lengths = (found & np.uint64(0xFFFF_FFFF)).astype(np.int64), (found >> np.uint64(32)).astype(np.int64)
        pool = self._entries(chunk, leaf, depth + 1, group)
        if found.size and int((starts + lengths)[lengths > 0].max(initial=0)) > pool:
            raise CorruptSegmentError(f"chunk {chunk} of the request has a list that leaves its pool")
        validity = self._validity(chunk, depth, entries, group)
        child = self._column(chunk, leaf, depth + 1, ranges(starts, lengths), group)
        packed = (np.cumsum(lengths) - lengths).astype(np.uint64) | (lengths.astype(np.uint64) << np.uint64(32))
        return ListColumn(views=packed, validity=validity, child=child, base=child.base if isinstance(child, FixedColumn) else 0)

    def _leaf(self, chunk: int, leaf: LeafType, entries: Array, group: int) -> FixedColumn:
        validity = self._validity(chunk, leaf.depth, entries, group)
        number = self._region(chunk, Role(Role.VALUES + group), leaf.depth)
        if number is None:
            raise CorruptSegmentError(f"chunk {chunk} of the request has no values at depth {leaf.depth}")
        region, fixed = self._program.regions[number], leaf.fixed_size
        size = int(region["item_bytes"])
        narrow = size < leaf.dtype.itemsize
        if int(region["value_type"]) != leaf.value_type or size > leaf.dtype.itemsize or (narrow and leaf.dtype.kind not in "iu"):
            raise CorruptSegmentError(f"chunk {chunk} of the request holds values of another type than its column")
        at = (entries[:, None] * fixed + np.arange(fixed)).reshape(-1) if fixed else entries
        values = self._items(number, at)
        values = values if narrow else values.view(VALUE_DTYPES[leaf.value_type])
        items = self._validity(chunk, leaf.depth + 1, at, group) if fixed else None
        shape = (entries.size, fixed) if fixed else (entries.size,)
        items = None if items is None else items.reshape(shape)
        return FixedColumn(values=values.reshape(shape), validity=validity, item_validity=items, base=int(region["base"]) if narrow else 0)

    def _region(self, chunk: int, role: Role, depth: int) -> int | None:
        table = self._program.regions
        found = np.flatnonzero((table["chunk"] == chunk) & (table["role"] == role) & (table["depth"] == depth))
        return int(found[0]) if found.size else None

    def _entries(self, chunk: int, leaf: LeafType, depth: int, group: int) -> int:
        number = self._region(chunk, Role((Role.VIEWS if depth < leaf.depth else Role.VALUES) + group), depth)
        return 0 if number is None else int(self._program.regions["count"][number]) // (leaf.values_per_entry if depth == leaf.depth else 1)

    def _validity(self, chunk: int, depth: int, entries: Array, group: int) -> Array | None:
        number = self._region(chunk, Role(Role.VALIDITY + group), depth)
        return None if number is None else self._items(number, entries)

    def _items(self, region: int, at: Array) -> Array:
        """Items of a region by number, as unsigned integers of their size."""
        count, size = int(self._program.regions["count"][region]), int(self._program.regions["item_bytes"][region])
        if at.size and not (int(at.min()) >= 0 and int(at.max()) < count):
            raise CorruptSegmentError(f"chunk {int(self._program.regions['chunk'][region])} of the request has no item {int(at.max())} in a region of {count}")
        items = np.empty(at.size, _UNSIGNED[size])
        for number in np.flatnonzero(self._writers == region).tolist():
            op = self._program.ops[number]
            first = (int(op["out"]) - int(self._starts[region])) // size
            inside = np.flatnonzero((at >= first) & (at < first + int(op["count"])))
            if inside.size:
                items[inside] = self._run(op, at[inside] - first, _UNSIGNED[size])
        return items

    def _run(self, op: Any, at: Array, stored: np.dtype[Any]) -> Array:
        """Items of one op."""
        if op["kind"] == OpKind.COPY:
            data = int(self._program.sources["data"][int(op["first_source"])])
            count = int(op["count"]) * stored.itemsize
            return np.asarray(self._slab[data : data + count].view(stored)[at])
        values, present = self._input(op, at)
        if int(op["dict"]) != NO_OFFSET:
            items = self._dictionary(op, values)
        elif op["out_kind"] >= OutKind.F32_FROM_F16:
            items = reference.quantised(op, values)
        elif op["out_kind"] >= OutKind.F32_DECIMAL:
            items = reference.decimals(op, values if op["scan"] == Scan.NONE else self._scan(op, at)).view(stored)
        elif op["out_kind"] == OutKind.VIEW:
            lengths = values if op["scan"] == Scan.EXCLUSIVE_SUM else self._source(int(op["first_source"]) + 1, at)
            items = self._scan(op, at).astype(np.uint64) | (lengths.astype(np.uint64) << np.uint64(32))
        else:
            sums = values if op["scan"] == Scan.NONE else self._scan(op, at)
            items = (sums.astype(np.uint64) + np.uint64(int(op["base"]) % (1 << 64))).astype(stored)
        found = items.astype(stored, copy=False)
        if present is not None:
            spread = np.zeros(at.size, stored)
            spread[present] = found
            found = spread
        return self._patch(op, at, found) if op["num_patches"] else found

    def _dictionary(self, op: Any, codes: Array) -> Array:
        if codes.size and int(codes.max()) >= int(op["dict_count"]):
            raise CorruptSegmentError(f"code {int(codes.max())} has no entry in a dictionary of {int(op['dict_count'])}")
        region = int(np.searchsorted(self._starts, int(op["dict"]), side="right")) - 1
        return self._items(region, codes.astype(np.int64))

    def _input(self, op: Any, at: Array) -> tuple[Array, Array | None]:
        """x of the items, and for NULLS which of them have one."""
        kind = int(op["kind"])
        if kind == OpKind.DIRECT:
            return self._wide(op, at), None
        if kind == OpKind.SPLIT:
            return self._split(op, at), None
        ranks, bits = self._ranks(op, "bits0", at)
        if kind == OpKind.RANK:
            return (ranks + bits - 1).astype(np.uint32), None
        if kind == OpKind.RUNS:
            return self._wide(op, ranks + bits - 1), None
        present = np.flatnonzero(bits)
        return self._wide(op, ranks[present]), present

    def _wide(self, op: Any, at: Array) -> Array:
        first = int(op["first_source"])
        low = self._source(first, at)
        if op["num_sources"] == 2 and op["scan"] == Scan.NONE:
            return low.astype(np.uint64) + (self._source(first + 1, at).astype(np.uint64) << np.uint64(32))
        return low

    def _vectors(self, at: Array) -> tuple[Array, Array, Array]:
        """The vectors of some positions, each once; for each position which of them, and its place inside."""
        vectors, which = np.unique(at // VECTOR, return_inverse=True)
        self.num_vectors += int(vectors.size)
        return vectors, which.reshape(-1), at % VECTOR

    def _plane(self, op: Any, name: str, vectors: Array) -> Array:
        """Bits of whole vectors, uint8 `[vectors, 1024]`."""
        data = int(op[name])
        words = self._slab[data : data + num_vectors(int(op["count"])) * (VECTOR // 8)].view("<u4").reshape(-1, _WORDS)
        return unpack_bits(words[vectors].reshape(-1), vectors.size * VECTOR).view(np.uint8).reshape(-1, VECTOR)

    def _anchors(self, op: Any, name: str, vectors: Array, width: int = 1) -> Array:
        data, count = int(op[name]), num_vectors(int(op["count"])) * width
        return self._slab[data : data + 4 * count].view("<u4").reshape(-1, width)[vectors].astype(np.int64)

    def _ranks(self, op: Any, name: str, at: Array) -> tuple[Array, Array]:
        """Set bits before each position, and its own bit; int64."""
        vectors, which, place = self._vectors(at)
        bits = self._plane(op, name, vectors)
        before = np.cumsum(bits, axis=1, dtype=np.int64) - bits
        own = bits[which, place].astype(np.int64)
        return self._anchors(op, "anchors", vectors)[which, 0] + before[which, place], own

    def _split(self, op: Any, at: Array) -> Array:
        num_classes, first = int(op["num_sources"]), int(op["first_source"])
        vectors, which, place = self._vectors(at)
        classes = self._plane(op, "bits0", vectors)
        if num_classes > 2:
            classes = classes + 2 * self._plane(op, "bits1", vectors)
        anchors = self._anchors(op, "anchors", vectors, num_classes - 1)
        anchors = np.column_stack([vectors * VECTOR - anchors.sum(axis=1), anchors])
        mine = classes[which, place]
        if mine.size and int(mine.max()) >= num_classes:
            raise CorruptSegmentError("a class has another number of values than its planes say")
        values = np.empty(at.size, np.uint32)
        for number in range(num_classes):
            chosen = np.flatnonzero(mine == number)
            if chosen.size:
                same = classes == number
                before = np.cumsum(same, axis=1, dtype=np.int64) - same
                values[chosen] = self._source(first + number, anchors[which[chosen], number] + before[which[chosen], place[chosen]])
        return values

    def _scan(self, op: Any, at: Array) -> Array:
        """The running sum at some positions, uint32."""
        vectors, which, place = self._vectors(at)
        count = int(op["count"])
        whole = (vectors[:, None] * VECTOR + np.arange(VECTOR)).reshape(-1)
        steps = np.zeros(whole.size, np.uint32)
        inside = np.flatnonzero(whole < count)
        steps[inside] = self._source(int(op["first_source"]), whole[inside])
        rows = steps.reshape(-1, VECTOR)
        if op["scan"] == Scan.ZIGZAG_SUM:
            rows = (rows >> np.uint32(1)) ^ (np.uint32(0) - (rows & np.uint32(1)))
        sums = np.cumsum(rows, axis=1, dtype=np.uint32)
        if op["scan"] == Scan.EXCLUSIVE_SUM:
            sums -= rows
        sums += self._anchors(op, "scan_anchors", vectors).astype(np.uint32)
        return np.asarray(sums[which, place])

    def _source(self, number: int, at: Array) -> Array:
        """Values of a stream by position, uint32."""
        source = self._program.sources[number]
        kind, data, count = int(source["kind"]), int(source["data"]), int(source["count"])
        if at.size and not (int(at.min()) >= 0 and int(at.max()) < count):
            raise CorruptSegmentError("a stream has fewer values than are read of it")
        if kind == SourceKind.CONSTANT:
            return np.full(at.size, source["value"], np.uint32)
        if not at.size:
            return np.zeros(0, np.uint32)
        if kind == SourceKind.PLAIN:
            region = int(np.searchsorted(self._starts, data, side="right")) - 1
            return np.asarray(self._items(region, at + (data - int(self._starts[region])) // 4).view(np.uint32))
        if kind == SourceKind.BITS:
            return np.asarray((self._slab[data + at // 8] >> (at % 8).astype(np.uint8) & 1).astype(np.uint32))
        return self._packed(source, at)

    def _packed(self, source: Any, at: Array) -> Array:
        vectors, which, place = self._vectors(at)
        data, count, start = int(source["data"]), int(source["count"]), int(source["meta"])
        meta = self._slab[start : start + num_vectors(count) * VECTOR_META.itemsize].view(VECTOR_META)[vectors]
        words = self._slab[data : data + 4 * int(source["num_words"])].view("<u4")
        exceptions = int(source["kind"]) == SourceKind.PACKED_EXCEPTIONS
        if int(vectors[-1]) == num_vectors(count) - 1 and count % VECTOR:
            # the last vector is shorter, so it has fewer words than `unpack` of whole vectors expects: on its own
            short = which == vectors.size - 1
            values = np.empty(at.size, np.uint32)
            if not short.all():
                values[~short] = unpack(words, meta[:-1], (vectors.size - 1) * VECTOR, exceptions=exceptions).reshape(-1, VECTOR)[which[~short], place[~short]]
            values[short] = unpack(words, meta[-1:], count % VECTOR, exceptions=exceptions)[place[short]]
            return values
        return np.asarray(unpack(words, meta, vectors.size * VECTOR, exceptions=exceptions).reshape(-1, VECTOR)[which, place])

    def _patch(self, op: Any, at: Array, items: Array) -> Array:
        """Items that patches replace."""
        record = PATCH_F64 if op["out_kind"] == OutKind.F64_DECIMAL else PATCH_F32
        start = int(op["patches"])
        patches = self._slab[start : start + int(op["num_patches"]) * record.itemsize].view(record)
        place = np.minimum(np.searchsorted(patches["position"], at), patches.size - 1)
        hit = patches["position"][place] == at
        return np.asarray(np.where(hit, patches["bits"][place], items).astype(items.dtype))
