"""Random decode programs, built by hand from FORMAT.md: every op, source, scan and store, with tails, over one slab and arena."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from loader.decode.program import NO_OFFSET, PROGRAM_OP, PROGRAM_SOURCE, REGION_ITEM, Program
from loader.encodings import bitpack
from loader.encodings.bits import pack_bits, rank_anchors
from loader.encodings.split import class_anchors
from loader.segment.layout import OUT_ITEM_BYTES, PADDING_BYTES, PATCH_F32, PATCH_F64, VECTOR, OpKind, OutKind, Scan, SourceKind, round_up

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass
class Built:
    """A program and its buffers, padding included."""

    program: Program
    slab: Array

    def arena(self, fill: int = 0xA5) -> Array:
        return aligned(np.full(self.program.arena_bytes + PADDING_BYTES, fill, np.uint8))


def aligned(data: Array) -> Array:
    """A copy on 64 bytes."""
    room = np.zeros(data.size + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + data.size] = data
    return room[start : start + data.size]


class ProgramBuilder:
    """Appends streams to a slab and regions to an arena."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.parts: list[Array] = []
        self.slab_bytes = self.arena_bytes = 0
        self.ops: list[Array] = []
        self.sources: list[Array] = []

    def stream(self, values: Array) -> int:
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        start, padded = self.slab_bytes, round_up(raw.size, 8)
        self.parts.append(np.concatenate([raw, np.zeros(padded - raw.size, np.uint8)]))
        self.slab_bytes += padded
        return start

    def region(self, num_bytes: int) -> int:
        start = self.arena_bytes
        self.arena_bytes += round_up(num_bytes, 64)
        return start

    def source(self, kind: SourceKind, count: int, **fields: int) -> int:
        record = np.zeros(1, PROGRAM_SOURCE)
        record["kind"], record["count"] = int(kind), count
        for name, value in fields.items():
            record[name] = value
        self.sources.append(record)
        return len(self.sources) - 1

    def packed(self, values: Array) -> int:
        words, meta = bitpack.pack(values)
        return self.source(SourceKind.PACKED, values.size, data=self.stream(words), meta=self.stream(meta), num_words=words.size)

    def excepted(self, values: Array) -> int:
        """Packed with exceptions where that takes fewer words."""
        words, meta = bitpack.pack_reference(values, bitpack.plan_exceptions(values))
        return self.source(SourceKind.PACKED_EXCEPTIONS, values.size, data=self.stream(words), meta=self.stream(meta), num_words=words.size)

    def neighbours(self, *sources: int) -> int:
        """Copies of source records one after the other: the first one's number."""
        self.sources += [self.sources[number] for number in sources]
        return len(self.sources) - len(sources)

    def values_source(self, values: Array, *, direct: bool = False) -> int:
        """A source of these uint32 values, of a kind that can hold them; `direct` if nothing reads it by rank."""
        if direct and self.rng.random() < 0.3:
            return self.excepted(values)
        if values.size and (values == values[0]).all() and self.rng.random() < 0.5:
            return self.source(SourceKind.CONSTANT, values.size, value=int(values[0]))
        if (values < 2).all() and self.rng.random() < 0.5:
            return self.source(SourceKind.BITS, values.size, data=self.stream(pack_bits(values.astype(np.bool_))))
        if self.rng.random() < 0.2:
            region = self.region(values.size * 4)
            self.op(OpKind.COPY, OutKind.U32, values.size, out=region, first_source=self.source(SourceKind.PLAIN, values.size, data=self.stream(values)))
            return self.source(SourceKind.PLAIN, values.size, data=region)
        return self.packed(values)

    def numbers(self, count: int, width: int) -> Array:
        """uint32 values that need about `width` bits, with a base; vectors differ in width now and then."""
        values = self.rng.integers(0, 1 << width, count, dtype=np.uint64)
        if count > VECTOR:
            values[:VECTOR] >>= np.uint64(self.rng.integers(0, width + 1))
        base = 0 if width == 32 else int(self.rng.integers(0, (1 << 32) - (1 << width) + 1))
        return (values + np.uint64(base)).astype(np.uint32)

    def op(self, kind: OpKind, out_kind: OutKind, count: int, *, out: int | None = None, level: int = 0, num_sources: int = 1, **fields: int) -> int:
        record = np.zeros(1, PROGRAM_OP)
        for name in ("dict", "anchors", "scan_anchors", "bits0", "bits1", "patches"):
            record[name] = NO_OFFSET
        region = self.region(count * int(OUT_ITEM_BYTES[out_kind])) if out is None else out
        record["kind"], record["out_kind"], record["count"], record["out"] = int(kind), int(out_kind), count, region
        record["level"], record["num_sources"], record["chunk"] = level, num_sources, len(self.ops)
        for name, value in fields.items():
            record[name] = value
        self.ops.append(record)
        return region

    def dictionary(self, out_kind: OutKind, entries: int) -> int:
        """A region of random entries, written at level 0."""
        size = int(OUT_ITEM_BYTES[out_kind])
        data = self.rng.integers(0, 256, entries * size, dtype=np.uint8)
        source = self.source(SourceKind.PLAIN, entries, data=self.stream(data))
        return self.op(OpKind.COPY, OutKind.U64 if out_kind == OutKind.VIEW else out_kind, entries, first_source=source)

    def bitmap(self, count: int) -> tuple[Array, dict[str, int]]:
        mask = self.rng.random(count) < self.rng.choice([0.0, 0.05, 0.5, 0.97, 1.0])
        words = pack_bits(mask)
        return mask, {"bits0": self.stream(words), "anchors": self.stream(rank_anchors(words))}

    def finish(self) -> Built:
        ops = np.concatenate(self.ops) if self.ops else np.zeros(0, PROGRAM_OP)
        ops = ops[np.argsort(ops["level"], kind="stable")]
        sources = np.concatenate(self.sources) if self.sources else np.zeros(0, PROGRAM_SOURCE)
        starts = np.searchsorted(ops["level"], np.arange(int(ops["level"][-1]) + 2 if ops.size else 1)).astype(np.int64)
        program = Program(
            ops=ops, sources=sources, level_starts=starts, regions=np.zeros(0, REGION_ITEM), num_rows=np.zeros(0, np.int64), arena_bytes=self.arena_bytes,
            features=0,
        )  # fmt: skip
        return Built(program, aligned(np.concatenate([*self.parts, np.zeros(PADDING_BYTES, np.uint8)])))


STORES = (OutKind.U8, OutKind.U16, OutKind.U32, OutKind.U64)


def add_copy(b: ProgramBuilder, count: int) -> None:
    out_kind = OutKind(int(b.rng.integers(0, 5)))
    data = b.rng.integers(0, 256, count * int(OUT_ITEM_BYTES[out_kind]), dtype=np.uint8)
    b.op(OpKind.COPY, out_kind, count, first_source=b.source(SourceKind.PLAIN, count, data=b.stream(data)))


def _base(b: ProgramBuilder) -> int:
    return int(b.rng.integers(-(1 << 63), 1 << 63)) if b.rng.random() < 0.5 else 0


def add_direct(b: ProgramBuilder, count: int, width: int) -> None:
    out_kind, wide = STORES[b.rng.integers(0, 4)], b.rng.random() < 0.3
    low, high = b.numbers(count, width), b.numbers(count, int(b.rng.integers(0, 33)))
    first = b.neighbours(b.values_source(low, direct=True), b.values_source(high, direct=True))
    b.op(OpKind.DIRECT, out_kind, count, level=1, first_source=first, num_sources=1 + wide, base=_base(b))


def add_nulls(b: ProgramBuilder, count: int, width: int) -> None:
    mask, bits = b.bitmap(count)
    present = int(mask.sum())
    low, high = b.values_source(b.numbers(present, width)), b.values_source(b.numbers(present, 9))
    wide = b.rng.random() < 0.3
    b.op(OpKind.NULLS, STORES[b.rng.integers(0, 4)], count, level=1, first_source=b.neighbours(low, high), num_sources=1 + wide, base=_base(b), **bits)


def add_dictionary(b: ProgramBuilder, count: int) -> None:
    entries = int(b.rng.integers(1, 3000))
    out_kind = OutKind(int(b.rng.integers(0, 5)))
    at = b.dictionary(out_kind, entries)
    fields = {"dict": at, "dict_count": entries, "view_base": int(b.rng.integers(0, 1 << 32)) if out_kind == OutKind.VIEW else 0}
    kind = b.rng.choice([OpKind.DIRECT, OpKind.NULLS, OpKind.RANK, OpKind.SPLIT, OpKind.RUNS])
    codes = b.rng.integers(0, entries, count, dtype=np.uint32)
    if kind == OpKind.DIRECT:
        b.op(OpKind.DIRECT, out_kind, count, level=1, first_source=b.values_source(codes), **fields)
        return
    if kind in (OpKind.SPLIT, OpKind.RUNS):
        b.op(kind, out_kind, count, level=1, **(split(b, codes) if kind == OpKind.SPLIT else runs(b, codes)), **fields)
        return
    mask, bits = b.bitmap(count)
    present = int(mask.sum())
    if kind == OpKind.NULLS:
        codes = b.rng.integers(0, entries, present, dtype=np.uint32)
        b.op(OpKind.NULLS, out_kind, count, level=1, first_source=b.values_source(codes), **fields, **bits)
        return
    mask[0] = True
    words = pack_bits(mask)
    fields |= {"dict": b.dictionary(out_kind, int(mask.sum())), "dict_count": int(mask.sum())}
    b.op(OpKind.RANK, out_kind, count, level=1, num_sources=0, bits0=b.stream(words), anchors=b.stream(rank_anchors(words)), **fields)


def add_rank(b: ProgramBuilder, count: int) -> None:
    _, bits = b.bitmap(count)
    b.op(OpKind.RANK, STORES[b.rng.integers(0, 4)], count, num_sources=0, base=_base(b), **bits)


def add_scan(b: ProgramBuilder, count: int, width: int) -> None:
    scan = Scan(int(b.rng.integers(1, 4)))
    anchors = b.stream(b.rng.integers(0, 1 << 32, bitpack.num_vectors(count), dtype=np.uint32))
    view = b.rng.random() < 0.6
    steps, lengths = b.values_source(b.numbers(count, width), direct=True), b.values_source(b.numbers(count, 12), direct=True)
    two = view and scan != Scan.EXCLUSIVE_SUM
    base = 0 if view else _base(b)
    view_base = int(b.rng.integers(0, 1 << 32)) if view else 0
    out_kind = OutKind.VIEW if view else STORES[b.rng.integers(0, 4)]
    b.op(
        OpKind.DIRECT, out_kind, count, level=1, scan=int(scan), scan_anchors=anchors, first_source=b.neighbours(steps, lengths), num_sources=1 + two,
        base=base, view_base=view_base,
    )  # fmt: skip


def split(b: ProgramBuilder, values: Array) -> dict[str, int]:
    """Fields of a SPLIT op over these values: classes by threshold, or at random with one that may be empty."""
    num_classes = int(b.rng.integers(2, 5))
    if b.rng.random() < 0.5:
        thresholds = np.sort(b.rng.choice(values, num_classes - 1))
        classes = (values[:, None] >= thresholds).sum(axis=1).astype(np.uint8)
    else:
        classes = b.rng.choice(num_classes, values.size, p=b.rng.dirichlet(np.full(num_classes, 0.5))).astype(np.uint8)
    first = b.neighbours(*[b.values_source(values[classes == number]) if (classes == number).any() else b.source(SourceKind.CONSTANT, 0)
                           for number in range(num_classes)])  # fmt: skip
    fields = {"first_source": first, "num_sources": num_classes, "bits0": b.stream(pack_bits(classes & 1 != 0))}
    if num_classes > 2:
        fields["bits1"] = b.stream(pack_bits(classes >> 1 != 0))
    return {**fields, "anchors": b.stream(class_anchors(classes, num_classes))}


def runs(b: ProgramBuilder, values: Array, high: Array | None = None) -> dict[str, int]:
    """Fields of a RUNS op that repeats some of these values; with high halves it has two sources."""
    starts = b.rng.random(values.size) < b.rng.choice([0.0, 0.01, 0.3, 1.0])
    starts[0] = True
    words = pack_bits(starts)
    parts = [b.values_source(part[starts]) for part in (values, high) if part is not None]
    return {"first_source": b.neighbours(*parts), "num_sources": len(parts), "bits0": b.stream(words), "anchors": b.stream(rank_anchors(words))}


def add_split(b: ProgramBuilder, count: int, width: int) -> None:
    b.op(OpKind.SPLIT, STORES[b.rng.integers(0, 4)], count, level=1, base=_base(b), **split(b, b.numbers(count, width)))


def add_runs(b: ProgramBuilder, count: int, width: int) -> None:
    high = b.numbers(count, 20) if b.rng.random() < 0.3 else None
    b.op(OpKind.RUNS, STORES[b.rng.integers(0, 4)], count, level=1, base=_base(b), **runs(b, b.numbers(count, width), high))


def patches(b: ProgramBuilder, out_kind: OutKind, count: int) -> dict[str, int]:
    """Some random items that are stored by their bits."""
    at = np.flatnonzero(b.rng.random(count) < b.rng.choice([0.0, 0.002, 0.1]))
    if not at.size:
        return {}
    records = np.zeros(at.size, PATCH_F64 if out_kind == OutKind.F64_DECIMAL else PATCH_F32)
    records["position"], records["bits"] = at, b.rng.integers(0, 1 << 31, at.size)
    return {"patches": b.stream(records), "num_patches": at.size}


def add_decimals(b: ProgramBuilder, count: int, width: int) -> None:
    out_kind = OutKind.F32_DECIMAL if b.rng.random() < 0.5 else OutKind.F64_DECIMAL
    values, kind, wide = b.numbers(count, width), b.rng.choice([OpKind.DIRECT, OpKind.NULLS, OpKind.SPLIT, OpKind.RUNS]), b.rng.random() < 0.3
    fields = {"scale": int(b.rng.choice([1, 10, 100, 1000, 3, (1 << 32) - 1])), "base": int(b.rng.integers(-(1 << 31), 1 << 31))}
    fields |= patches(b, out_kind, count)
    if kind == OpKind.DIRECT and b.rng.random() < 0.5:
        anchors = b.stream(b.rng.integers(0, 1 << 32, bitpack.num_vectors(count), dtype=np.uint32))
        fields |= {"scan": int(Scan.ZIGZAG_SUM), "scan_anchors": anchors, "first_source": b.values_source(values, direct=True)}
    elif kind == OpKind.DIRECT:
        low, high = b.values_source(values, direct=True), b.values_source(b.numbers(count, 31), direct=True)
        fields |= {"first_source": b.neighbours(low, high), "num_sources": 1 + wide}
    elif kind == OpKind.NULLS:
        mask, bits = b.bitmap(count)
        low, high = b.values_source(values[mask]), b.values_source(b.numbers(int(mask.sum()), 31))
        fields |= {"first_source": b.neighbours(low, high), "num_sources": 1 + wide, **bits}
    else:
        fields |= split(b, values) if kind == OpKind.SPLIT else runs(b, values)
    b.op(kind, out_kind, count, level=1, **fields)


def random_program(seed: int, *, max_count: int = 4200, num_ops: int = 12) -> Built:
    """A program of `num_ops` random ops and what they need."""
    b = ProgramBuilder(seed)
    for _ in range(num_ops):
        count = min(int(b.rng.choice([1, 31, 32, 33, VECTOR - 1, VECTOR, VECTOR + 1, int(b.rng.integers(1, max_count + 1))])), max_count)
        width, choice = int(b.rng.integers(0, 33)), int(b.rng.integers(0, 9))
        if choice < 3:
            (add_copy, add_rank, add_dictionary)[choice](b, count)
        else:
            (add_direct, add_nulls, add_scan, add_split, add_runs, add_decimals)[choice - 3](b, count, width)
    return b.finish()
