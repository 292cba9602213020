"""The decode program: chunk headers of one slab as one relocated, verified op table.

Owns the records that executors run and every check on them that needs no stream. The native library builds the same program in one pass, and leaves what it
does not accept to the NumPy below, which is vectorised over the chunks of the request: 1,500 columns cost as many NumPy calls as one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from loader.errors import CorruptSegmentError
from loader.kernels import native
from loader.segment.layout import (
    ALIGNMENT,
    CHUNK_HEADER,
    CHUNK_USES_SHARED,
    COPY_IS_ZSTD,
    MAX_BLOCK_ROWS,
    MAX_CLASSES,
    NO_REGION,
    OP,
    OUT_ITEM_BYTES,
    PADDING_BYTES,
    PATCH_F32,
    PATCH_F64,
    REGION,
    SHARED_REGION,
    SOURCE,
    VECTOR,
    VECTOR_META,
    Feature,
    OpKind,
    OutKind,
    Role,
    Scan,
    SourceKind,
    ValueType,
)

Array = np.ndarray[Any, np.dtype[Any]]

PROGRAM_OP = np.dtype(
    [
        ("kind", "u1"),
        ("out_kind", "u1"),
        ("scan", "u1"),
        ("num_sources", "u1"),
        ("level", "u1"),
        ("flags", "u1"),
        ("reserved", "<u2"),
        ("count", "<u4"),
        ("first_source", "<u4"),
        ("dict_count", "<u4"),
        ("num_patches", "<u4"),
        ("scale", "<u4"),
        ("chunk", "<u4"),  # which chunk of the program, for error reports
        ("out", "<u8"),  # arena offset of item 0
        ("dict", "<u8"),  # arena offset of the dictionary, NO_OFFSET if none
        ("anchors", "<u8"),  # slab offsets from here on, NO_OFFSET if none
        ("scan_anchors", "<u8"),
        ("bits0", "<u8"),
        ("bits1", "<u8"),
        ("patches", "<u8"),
        ("base", "<i8"),
        ("view_base", "<u4"),  # added to the start of every view: pools of several blocks laid end to end
        ("reserved1", "<u4"),
    ]
)
PROGRAM_SOURCE = np.dtype([("data", "<u8"), ("meta", "<u8"), ("kind", "<u4"), ("value", "<u4"), ("count", "<u4"), ("num_words", "<u4")])
NO_OFFSET = 0xFFFF_FFFF_FFFF_FFFF

REGION_ITEM = np.dtype(
    [
        ("chunk", "<u4"),
        ("role", "u1"),
        ("depth", "u1"),
        ("item_bytes", "u1"),
        ("value_type", "u1"),
        ("count", "<i8"),
        ("base", "<i8"),
        ("arena", "<i8"),  # offset of item 0
    ]
)
MAX_ARENA_BYTES = 8 << 30
_OUT_BYTES = OUT_ITEM_BYTES.astype(np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What to decode, in dependency order; plain arrays that any executor can run.

    Attributes:
        ops: PROGRAM_OP records, sorted by level.
        sources: PROGRAM_SOURCE records.
        level_starts: int64 `[levels + 1]`: ops of level k are `ops[level_starts[k]:level_starts[k + 1]]`.
        regions: REGION_ITEM records in the order of chunks.
        num_rows: int64 `[chunks]`.
        arena_bytes: Bytes an executor writes into; an arena has PADDING_BYTES more.
        features: Feature bits that an executor must know to run the ops.
    """

    ops: Array
    sources: Array
    level_starts: Array
    regions: Array
    num_rows: Array
    arena_bytes: int
    features: int = 0


def build(slab: Array, chunk_offsets: Array, chunk_bytes: Array, *, shared: Array | None = None, max_arena_bytes: int = MAX_ARENA_BYTES) -> Program:
    """Read the headers of all chunks at once, verify every count, level and offset in them, and relocate them.

    What stays for the executor to check is what streams hold: packed vectors' widths and offsets, ranks, dictionary codes.

    Args:
        slab: uint8; the chunks, each on 8 bytes, and PADDING_BYTES of padding after the last.
        chunk_offsets: int64 `[chunks]` into the slab.
        chunk_bytes: int64 `[chunks]`.
        shared: int64, for the chunks of columns, which come first, the position in the request of the chunk that holds the dictionary shared with other blocks,
            -1 where there is none; None for none at all. A shared chunk is decoded once, whatever number of chunks look it up.
        max_arena_bytes: Refuse to decode to more than this.

    Raises:
        CorruptSegmentError: Something does not hold; names the chunk by its position in `chunk_offsets`.
    """
    offsets, sizes = np.ascontiguousarray(chunk_offsets, np.int64), np.ascontiguousarray(chunk_bytes, np.int64)
    if shared is not None:
        shared = np.concatenate([np.asarray(shared, np.int64), np.full(offsets.size - len(shared), -1, np.int64)])
    library = native.load()
    if library is not None:
        records = (REGION_ITEM, PROGRAM_OP, PROGRAM_SOURCE)
        found = library.build_program(slab, slab.size - PADDING_BYTES, offsets, sizes, shared, max_arena_bytes, records)
        if found is not None:
            return Program(**found)
    return build_reference(slab, offsets, sizes, shared=shared, max_arena_bytes=max_arena_bytes)


def build_reference(slab: Array, offsets: Array, sizes: Array, *, shared: Array | None = None, max_arena_bytes: int = MAX_ARENA_BYTES) -> Program:
    """`build` in NumPy: the truth about what is refused, and the one that says why."""
    shared = np.full(offsets.size, -1, np.int64) if shared is None else shared
    tables = _Tables(slab, offsets, sizes, shared)
    regions, region_bytes = _place_regions(tables, max_arena_bytes)
    ops = _relocate_ops(tables, regions, region_bytes)
    sources = _relocate_sources(tables, regions, region_bytes)
    _check_tiling(tables, region_bytes)
    order = np.argsort(tables.ops["level"], kind="stable")
    levels = tables.ops["level"][order]
    level_starts = np.searchsorted(levels, np.arange(int(levels[-1]) + 2 if levels.size else 1)).astype(np.int64)
    arena_bytes = int(tables.arena_starts[-1])
    return Program(
        ops=ops[order],
        sources=sources,
        level_starts=level_starts,
        regions=regions,
        num_rows=tables.headers["num_rows"].astype(np.int64),
        arena_bytes=arena_bytes,
        features=needed_features(ops, sources),
    )


def needed_features(ops: Array, sources: Array) -> int:
    """The features that the ops of a program use, of those an executor may lack."""
    used = Feature(0)
    marks = (
        (Feature.CLASS_SPLIT, ops["kind"] == OpKind.SPLIT),
        (Feature.RUN_ENDS, ops["kind"] == OpKind.RUNS),
        (Feature.DECIMAL_FLOATS, (ops["out_kind"] == OutKind.F32_DECIMAL) | (ops["out_kind"] == OutKind.F64_DECIMAL)),
        (Feature.QUANTISED, ops["out_kind"] >= OutKind.F32_FROM_F16),
        (Feature.COMPRESSED_BYTES, (ops["kind"] == OpKind.COPY) & (ops["flags"] != 0)),
        (Feature.EXCEPTIONS, sources["kind"] == SourceKind.PACKED_EXCEPTIONS),
        (Feature.DELTA, (ops["scan"] != Scan.NONE) & (ops["out_kind"] != OutKind.VIEW)),
    )
    for feature, uses in marks:
        if uses.any():
            used |= feature
    return int(used)


def _refuse(bad: Array, chunk: Array, what: str) -> None:
    if bad.any():
        raise CorruptSegmentError(f"chunk {int(chunk[int(np.argmax(bad))])} of the request is corrupt: {what}")


def _starts(counts: Array) -> Array:
    starts = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


class _Tables:
    """Headers, regions, ops and sources of all chunks, end to end; `*_chunk` says whose each is, `*_starts` where each chunk's begin."""

    def __init__(self, slab: Array, offsets: Array, sizes: Array, shared: Array) -> None:
        chunks = np.arange(offsets.size)
        _refuse(
            (offsets < 0) | (offsets % 8 != 0) | (sizes < CHUNK_HEADER.itemsize) | (offsets > slab.size - PADDING_BYTES - sizes),
            chunks,
            "it does not lie inside the slab on 8 bytes",
        )
        self.offsets, self.sizes = offsets, sizes
        self.headers = _records(slab, offsets, CHUNK_HEADER)
        header = self.headers
        counts = [header[name].astype(np.int64) for name in ("num_regions", "num_ops", "num_sources")]
        _refuse(header["num_bytes"] != sizes, chunks, "its header states another length")
        _refuse(header["flags"] > CHUNK_USES_SHARED, chunks, "its header has unknown flags")
        _refuse(header["num_rows"] > MAX_BLOCK_ROWS, chunks, f"it states more than {MAX_BLOCK_ROWS:,} rows")
        tables = [CHUNK_HEADER, REGION, OP, SOURCE]
        starts = [np.full(offsets.size, CHUNK_HEADER.itemsize, np.int64)]
        for record, count in zip(tables[1:], counts, strict=True):
            starts.append(starts[-1] + count * record.itemsize)
        _refuse(starts[-1] > sizes, chunks, "its tables pass its end")
        self.region_starts, self.op_starts, self.source_starts = (_starts(count) for count in counts)
        self.region_chunk, self.op_chunk, self.source_chunk = (np.repeat(chunks, count) for count in counts)
        self.regions = self._table(slab, REGION, starts[0], self.region_starts, self.region_chunk)
        self.ops = self._table(slab, OP, starts[1], self.op_starts, self.op_chunk)
        self.sources = self._table(slab, SOURCE, starts[2], self.source_starts, self.source_chunk)
        self.arena_starts = np.zeros(1, np.int64)
        self.shared_regions = self._shared_regions(shared)

    def _shared_regions(self, shared: Array) -> Array:
        """The region that SHARED_REGION means in each chunk, -1 where a chunk may not use it."""
        uses = np.flatnonzero(self.headers["flags"] & CHUNK_USES_SHARED)
        found = np.full(shared.size, -1, np.int64)
        if uses.size:
            holder = shared[uses]
            _refuse((holder < 0) | (holder >= shared.size), uses, "it uses a shared dictionary, and the segment has none for it")
            stated = self.headers[holder]
            _refuse((stated["flags"] != 0) | (stated["num_rows"] != 0) | (stated["num_regions"] == 0), uses, "its shared dictionary is in a chunk of rows")
            found[uses] = self.region_starts[holder]
            region = self.regions[found[uses]]
            _refuse((region["role"] != Role.VALUES) | (region["depth"] != 0), uses, "its shared dictionary holds no values")
        return found

    def _table(self, slab: Array, record: np.dtype[Any], first: Array, starts: Array, chunk: Array) -> Array:
        index = np.arange(chunk.size) - starts[chunk]
        return _records(slab, self.offsets[chunk] + first[chunk] + index * record.itemsize, record)

    def check_stream(self, chunk: Array, start: Array, num_bytes: Array, used: Array, what: str) -> None:
        """Refuse streams in use that leave their chunk or are not on 4 bytes."""
        end = start + num_bytes
        _refuse(used & ((start < CHUNK_HEADER.itemsize) | (start % 4 != 0) | (end > self.sizes[chunk])), chunk, f"{what} lie outside of it")


def _records(slab: Array, at: Array, record: np.dtype[Any]) -> Array:
    if not at.size:
        return np.zeros(0, record)
    return slab[at[:, None] + np.arange(record.itemsize)].view(record).reshape(-1)


def _place_regions(tables: _Tables, max_arena_bytes: int) -> tuple[Array, Array]:
    """Arena offsets of all regions, and their bytes."""
    table, chunk = tables.regions, tables.region_chunk
    items = table["item_bytes"].astype(np.int64)
    _refuse(~np.isin(items, (1, 2, 4, 8)), chunk, "a region's items are not 1, 2, 4 or 8 bytes")
    _refuse(table["role"] > Role.WEIGHT_VIEWS, chunk, "a region has an unknown role")
    _refuse(table["value_type"] > ValueType.BFLOAT16, chunk, "a region has an unknown value type")
    _refuse(table["count"] > max_arena_bytes, chunk, f"a region would take more than {max_arena_bytes:,} bytes")
    num_bytes = table["count"].astype(np.int64) * items
    padded = -(-num_bytes // ALIGNMENT) * ALIGNMENT
    ends = np.cumsum(padded)
    total = int(ends[-1]) if ends.size else 0
    # a sum that wraps is below one of its parts
    if total > max_arena_bytes or (padded.size and (total < int(padded.max()) or (np.diff(ends) < 0).any())):
        raise CorruptSegmentError(f"the chunks would decode to {total:,} bytes, over the limit of {max_arena_bytes:,}: raise the limit if the segment is good")
    sums = _starts(padded)
    tables.arena_starts = sums[tables.region_starts]
    _refuse(
        tables.headers["arena_bytes"] != np.diff(tables.arena_starts).astype(np.uint64),
        np.arange(tables.offsets.size),
        "its regions do not add up to its arena",
    )
    regions = np.zeros(table.size, REGION_ITEM)
    for name in ("role", "depth", "item_bytes", "value_type", "base"):
        regions[name] = table[name]
    regions["chunk"], regions["count"], regions["arena"] = chunk, table["count"], sums[:-1]
    return regions, num_bytes


def _check_ops(tables: _Tables) -> None:
    """Kinds, levels and numbers of sources: what does not need the regions."""
    table, chunk = tables.ops, tables.op_chunk
    kind, scan, out_kind = table["kind"], table["scan"], table["out_kind"]
    header = tables.headers
    has_dictionary = table["dict_region"] != NO_REGION
    decimal = (out_kind == OutKind.F32_DECIMAL) | (out_kind == OutKind.F64_DECIMAL)
    quantised = out_kind >= OutKind.F32_FROM_F16
    _refuse((kind > OpKind.RUNS) | (out_kind > OutKind.F32_SCALED_I8) | (scan > Scan.EXCLUSIVE_SUM), chunk, "an op has a kind this version does not know")
    zstd = (kind == OpKind.COPY) & (table["flags"] == COPY_IS_ZSTD)
    _refuse((table["flags"] != 0) & ~zstd, chunk, "an op has flags this version does not know")
    _refuse(zstd & (table["level"] != 0), chunk, "compressed bytes are above level 0")
    _refuse(quantised & (has_dictionary | (kind == OpKind.COPY) | (scan != Scan.NONE)), chunk, "an op quantises what may not be quantised")
    step = np.ascontiguousarray(table["scale"]).view(np.float32)
    _refuse((out_kind == OutKind.F32_SCALED_I8) & ~np.isfinite(step), chunk, "an op's scale is not finite")
    _refuse(decimal & (has_dictionary | (kind == OpKind.COPY) | (table["scale"] == 0)), chunk, "an op divides what may not be divided")
    _refuse((table["num_patches"] > 0) & (~decimal | (table["num_patches"] > table["count"])), chunk, "an op has patches where it may have none")
    _refuse(table["level"] >= header["num_levels"][chunk], chunk, "an op's level is above its chunk's")
    ranged_views = (out_kind == OutKind.VIEW) & ((scan == Scan.SUM) | (scan == Scan.ZIGZAG_SUM))
    wanted = np.where(kind == OpKind.RANK, 0, np.where(ranged_views, 2, 1))
    split = (kind == OpKind.SPLIT) & (table["num_sources"] >= 2) & (table["num_sources"] <= MAX_CLASSES)
    halves = (
        (wanted == 1)
        & (table["num_sources"] == 2)
        & (kind != OpKind.COPY)
        & (scan == Scan.NONE)
        & ~has_dictionary
        & (out_kind != OutKind.F32_DECIMAL)
        & ~quantised
    )
    _refuse(np.where(kind == OpKind.SPLIT, ~split, (table["num_sources"] != wanted) & ~halves), chunk, "an op has too few or too many sources")
    _refuse(table["first_source"].astype(np.int64) + table["num_sources"] > header["num_sources"][chunk], chunk, "an op's sources do not exist")
    _refuse((scan != Scan.NONE) & ((kind != OpKind.DIRECT) | has_dictionary), chunk, "an op scans what may not be scanned")
    _refuse((out_kind == OutKind.VIEW) & (kind != OpKind.COPY) & ~has_dictionary & (scan == Scan.NONE), chunk, "an op makes views of nothing")
    _refuse(has_dictionary & (kind == OpKind.COPY), chunk, "a copy has a dictionary")
    common = table["dict_region"] == SHARED_REGION
    own = has_dictionary & ~common
    _refuse(common & ((tables.shared_regions[chunk] < 0) | (out_kind == OutKind.VIEW)), chunk, "an op looks up a shared dictionary where it may not")
    no_region = (table["out_region"] >= header["num_regions"][chunk]) | (own & (table["dict_region"] >= header["num_regions"][chunk]))
    _refuse(no_region, chunk, "an op's region does not exist")


def _op_regions(tables: _Tables, regions: Array, region_bytes: Array) -> tuple[Array, Array]:
    """The region that each op writes, and its dictionary or -1; sizes and levels checked."""
    table, chunk = tables.ops, tables.op_chunk
    size = _OUT_BYTES[table["out_kind"]]
    first = tables.region_starts[chunk]
    out = first + table["out_region"]
    _refuse(regions["item_bytes"][out] != size, chunk, "an op writes items of another size than its region's")
    _refuse(table["out_offset"].astype(np.int64) + table["count"].astype(np.int64) * size > region_bytes[out], chunk, "an op writes past its region")
    _refuse(table["out_offset"] % size != 0, chunk, "an op writes between items")
    dictionary = np.where(table["dict_region"] != NO_REGION, first + table["dict_region"], -1)
    dictionary = np.where(table["dict_region"] == SHARED_REGION, tables.shared_regions[chunk], dictionary)
    with_one = np.flatnonzero(dictionary >= 0)
    if with_one.size:
        entries, chunk, size = dictionary[with_one], chunk[with_one], size[with_one]
        _refuse(table["dict_count"][with_one].astype(np.int64) * size > region_bytes[entries], chunk, "a dictionary is larger than its region")
        _refuse(regions["item_bytes"][entries] != size, chunk, "a dictionary has items of another size")
        _refuse(_written_at(tables)[entries] >= table["level"][with_one], chunk, "an op reads a dictionary before it is written")
    return out, dictionary


def _relocate_ops(tables: _Tables, regions: Array, region_bytes: Array) -> Array:
    _check_ops(tables)
    out_region, dict_region = _op_regions(tables, regions, region_bytes)
    table, chunk = tables.ops, tables.op_chunk
    count = table["count"].astype(np.int64)
    vectors = -(-count // VECTOR)
    uses_bits = (table["kind"] >= OpKind.NULLS) & (count > 0)
    split = (table["kind"] == OpKind.SPLIT) & (count > 0)
    scans = (table["scan"] != Scan.NONE) & (count > 0)
    anchor_bytes = np.where(split, 4 * (table["num_sources"].astype(np.int64) - 1), 4)
    patched = table["num_patches"] > 0
    patch_bytes = table["num_patches"].astype(np.int64) * np.where(table["out_kind"] == OutKind.F64_DECIMAL, PATCH_F64.itemsize, PATCH_F32.itemsize)
    _refuse(patched & (table["out_kind"] == OutKind.F64_DECIMAL) & (table["patches"] % 8 != 0), chunk, "an op's patches are not on 8 bytes")
    streams = (
        ("bits0", uses_bits, vectors * (VECTOR // 8), "an op's bits"),
        ("bits1", split & (table["num_sources"] > 2), vectors * (VECTOR // 8), "an op's second bits"),
        ("anchors", uses_bits, vectors * anchor_bytes, "rank anchors"),
        ("scan_anchors", scans, vectors * 4, "scan anchors"),
        ("patches", patched, patch_bytes, "an op's patches"),
    )
    ops = np.zeros(table.size, PROGRAM_OP)
    for name in ("kind", "out_kind", "scan", "num_sources", "level", "flags", "count", "dict_count", "scale", "base", "num_patches"):
        ops[name] = table[name]
    for name, used, num_bytes, what in streams:
        data = table[name].astype(np.int64)
        tables.check_stream(chunk, data, num_bytes, used, what)
        ops[name] = np.where(used, (tables.offsets[chunk] + data).astype(np.uint64), np.uint64(NO_OFFSET))
    ops["first_source"] = tables.source_starts[chunk] + table["first_source"]
    ops["chunk"] = chunk
    ops["out"] = regions["arena"][out_region] + table["out_offset"]
    ops["dict"] = np.uint64(NO_OFFSET)
    with_dictionary = np.flatnonzero(dict_region >= 0)
    ops["dict"][with_dictionary] = regions["arena"][dict_region[with_dictionary]]
    return ops


def _written_at(tables: _Tables) -> Array:
    """The last level that writes each region."""
    level = np.zeros(tables.regions.size, np.int64)
    np.maximum.at(level, tables.region_starts[tables.op_chunk] + tables.ops["out_region"], tables.ops["level"])
    return level


def _relocate_sources(tables: _Tables, regions: Array, region_bytes: Array) -> Array:
    table, chunk = tables.sources, tables.source_chunk
    kind = table["kind"]
    count = table["count"].astype(np.int64)
    vectors = -(-count // VECTOR)
    _refuse(kind > SourceKind.PACKED_EXCEPTIONS, chunk, "a source has a kind this version does not know")
    copied, copy_bytes, level = _source_users(tables, count)
    data, meta = table["data"].astype(np.int64), table["meta"].astype(np.int64)
    used = count > 0
    packed, bits = used & ((kind == SourceKind.PACKED) | (kind == SourceKind.PACKED_EXCEPTIONS)), used & (kind == SourceKind.BITS)
    tables.check_stream(chunk, meta, vectors * VECTOR_META.itemsize, packed, "a packed stream's records")
    tables.check_stream(chunk, data, table["num_words"].astype(np.int64) * 4, packed & (table["num_words"] > 0), "a packed stream's words")
    tables.check_stream(chunk, data, vectors * (VECTOR // 8), bits, "a bit stream's words")
    tables.check_stream(chunk, data, copy_bytes, used & copied, "plain items")
    plain = used & (kind == SourceKind.PLAIN) & ~copied
    _refuse(copied & (kind != SourceKind.PLAIN), chunk, "a copy has another source than plain items")
    _refuse(plain & (table["region"] >= tables.headers["num_regions"].astype(np.int64)[chunk]), chunk, "a source's region does not exist")
    region = np.where(plain, tables.region_starts[chunk] + np.where(plain, table["region"], 0), 0)
    sources = np.zeros(table.size, PROGRAM_SOURCE)
    start = tables.offsets[chunk]
    sources["data"] = np.where(packed | bits | (used & copied), start + data, 0)
    if plain.any():
        _refuse(plain & (count * 4 > region_bytes[region]), chunk, "a source is longer than its region")
        _refuse(plain & (_written_at(tables)[region] >= level), chunk, "a source is read before it is written")
        sources["data"] = np.where(plain, regions["arena"][region], sources["data"])
    sources["meta"] = np.where(packed, start + meta, 0)
    sources["kind"], sources["value"], sources["count"], sources["num_words"] = kind, table["value"], table["count"], table["num_words"]
    return sources


def _source_users(tables: _Tables, source_count: Array) -> tuple[Array, Array, Array]:
    """For each source: whether a COPY uses it, the bytes it copies, and the lowest level that reads it. Counts are checked on the way."""
    table, chunk = tables.ops, tables.op_chunk
    copied = np.zeros(source_count.size, np.bool_)
    other = np.zeros(source_count.size, np.bool_)
    copy_bytes = np.zeros(source_count.size, np.int64)
    level = np.full(source_count.size, 256, np.int64)
    count = table["count"].astype(np.int64)
    classes = np.zeros(table.size, np.int64)
    for part in range(MAX_CLASSES):
        used = np.flatnonzero(table["num_sources"] > part)
        if not used.size:
            break
        source = tables.source_starts[chunk[used]] + table["first_source"][used] + part
        kind, stored = table["kind"][used], tables.sources["kind"][source]
        split = kind == OpKind.SPLIT
        by_rank = split | (kind == OpKind.NULLS) | (kind == OpKind.RUNS)
        _refuse(
            (source_count[source] != count[used]) & ~by_rank | (source_count[source] > count[used]),
            chunk[used],
            "a source has another number of values than its op",
        )
        classes[used] += np.where(split, source_count[source], 0)
        _refuse((split | (kind == OpKind.RUNS)) & (stored == SourceKind.BITS), chunk[used], "classes or runs come from bits")
        alone = (kind == OpKind.DIRECT) & (table["num_sources"][used] == 1) & (table["dict_region"][used] == NO_REGION)
        _refuse((stored == SourceKind.PACKED_EXCEPTIONS) & ~alone, chunk[used], "a source with exceptions is read by rank or with another")
        is_copy = kind == OpKind.COPY
        copied[source[is_copy]] = True
        other[source[~is_copy]] = True
        frame_bytes = np.where(table["flags"][used] != 0, tables.sources["num_words"][source].astype(np.int64), (count * _OUT_BYTES[table["out_kind"]])[used])
        # a source that several ops copy must hold what each of them reads
        np.maximum.at(copy_bytes, source[is_copy], frame_bytes[is_copy])
        np.minimum.at(level, source, table["level"][used].astype(np.int64))
    _refuse(copied & other, tables.source_chunk, "a copy shares its source")
    _refuse((table["kind"] == OpKind.SPLIT) & (classes != count), chunk, "the classes of an op do not add up to its values")
    return copied, copy_bytes, level


def _check_tiling(tables: _Tables, region_bytes: Array) -> None:
    """Every region is written once, from its first byte to its last: no gap, no overlap, no race."""
    table = tables.ops
    region = tables.region_starts[tables.op_chunk] + table["out_region"]
    start = table["out_offset"].astype(np.int64)
    end = start + table["count"].astype(np.int64) * _OUT_BYTES[table["out_kind"]]
    order = np.lexsort((end, start, region))
    region, start, end = region[order], start[order], end[order]
    first = np.ones(region.size, np.bool_)
    first[1:] = region[1:] != region[:-1]
    before = np.where(first, 0, np.roll(end, 1)) if end.size else end
    _refuse(start != before, tables.op_chunk[order], "ops overlap or leave a gap in a region")
    written = np.zeros(region_bytes.size, np.int64)
    np.maximum.at(written, region, end)
    _refuse(written != region_bytes, tables.region_chunk, "a region is not written to its end")
