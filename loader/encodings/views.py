"""List views: which views and which pool a list level gets, and the ops for them.

Layouts, from the plainest: one view a row into items end to end; repeats of the row before share a view (a fresh-row bitmap); windows
that slide overlap in one pool, appended at the end in row order or, for histories with the newest item first, in reverse row order;
rows that repeat anywhere share views through codes (strings above all).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from loader.encodings import bitpack
from loader.encodings.bits import Bitmap
from loader.encodings.builder import ChunkBuilder
from loader.encodings.cascade import choose_stream
from loader.encodings.options import EncodeOptions
from loader.encodings.overlap import fresh_rows, neighbour_overlaps
from loader.encodings.stream import Packed, op_of, place_codes
from loader.kernels import native
from loader.segment.layout import NO_REGION, VECTOR, OpKind, OutKind, Role, Scan, ValueType

Array = np.ndarray[Any, np.dtype[Any]]
SAMPLE_ROWS = 1024
MAX_CHANGES = 1 / 40  # of the rows, that start a view: a change costs about 32 bits
MIN_SLIDING_ITEMS = 3  # items a row: below, the starts cost what the pool saves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Views of the entries, and the items that make the pool.

    Attributes:
        lengths: int64 `[views]`.
        starts: int64 `[views]`, None when each view starts where the one before ends.
        fresh: bool `[entries]` where entries share the view of the entry before, else None.
        codes: uint32 `[entries]` where entries share views by number, else None.
        parts: Starts and lengths (int64) of the stretches of items that make the pool, in its order; None for all items.
        num_items: Items of the pool.
        text: For descriptions.
        reason: Why.
    """

    lengths: Array
    num_items: int
    starts: Array | None = None
    fresh: Array | None = None
    codes: Array | None = None
    parts: tuple[Array, Array] | None = None
    text: str = "lists"
    reason: str = "no repetition found"


def _view_bytes(layout: Layout) -> int:
    total = Packed(layout.lengths.astype(np.uint32)).num_bytes
    total += 0 if layout.starts is None else Packed(_zigzag(layout.starts)).num_bytes
    total += 0 if layout.fresh is None else layout.fresh.size // 8 + 4 * bitpack.num_vectors(layout.fresh.size)
    return total + (0 if layout.codes is None else Packed(layout.codes).num_bytes)


def layout_bytes(layout: Layout, item_bytes: float) -> float:
    """Bytes of a layout's views and of its pool, estimated."""
    return layout.num_items * item_bytes + _view_bytes(layout)


def _zigzag(starts: Array) -> Array:
    deltas = np.diff(starts, prepend=0)
    return ((deltas << 1) ^ (deltas >> 63)).astype(np.uint32)


def _repeats(offsets: Array, fresh: Array) -> Layout:
    rows = np.flatnonzero(fresh)
    lengths = np.diff(offsets)[rows]
    return Layout(
        lengths=lengths,
        num_items=int(lengths.sum()),
        fresh=fresh,
        parts=(offsets[rows], lengths),
        text="views",
        reason=f"{rows.size:,} of {fresh.size:,} rows differ from the row before",
    )


def _sliding(planes: Sequence[Array], offsets: Array, fresh: Array, *, newest_first: bool, max_slide_items: int) -> Layout:
    """Views that overlap in a pool; every view ends where the pool ended when it was added. Empty rows lie wherever the row before does."""
    rows = np.flatnonzero(fresh)
    order = rows[::-1] if newest_first else rows
    lengths = np.diff(offsets)[order]
    full = lengths > 0
    overlap = np.zeros(order.size, np.int64)
    overlap[full] = neighbour_overlaps(planes, offsets, order[full], max_slide_items)
    added = lengths - overlap
    # the last row with items up to each row, or none: rows without items (null rows between equal ones) interrupt no window
    starts = (np.cumsum(added) - lengths)[np.maximum.accumulate(np.where(full, np.arange(order.size), 0))]
    if not full[0]:
        starts[: int(np.argmax(full))] = 0
    parts = (offsets[order] + overlap, added)
    slides = int(np.count_nonzero(overlap))
    if newest_first:
        lengths, starts = lengths[::-1], starts[::-1]
    return Layout(
        lengths=lengths,
        starts=starts,
        fresh=None if fresh.all() else fresh,
        num_items=int(added.sum()),
        parts=parts,
        text="sliding views, newest first" if newest_first else "sliding views",
        reason=f"{slides:,} of {rows.size:,} distinct rows continue a neighbour",
    )


def distinct_rows(items: Array, offsets: Array, rows: Array) -> tuple[Array, Array]:
    """Equal lists by number, in the order of their first occurrence.

    Args:
        items: Integers.
        offsets: int64 `[lists + 1]`.
        rows: int64, which lists.

    Returns:
        The number of each of `rows` (uint32), and where in `rows` each number comes first (int64).
    """
    library = native.load()
    if library is not None:
        return library.distinct_rows(np.ascontiguousarray(items), offsets, np.ascontiguousarray(rows))
    data = pa.py_buffer(np.ascontiguousarray(items))
    lists = pa.LargeBinaryArray.from_buffers(pa.large_binary(), offsets.size - 1, [None, pa.py_buffer(offsets * items.dtype.itemsize), data])
    codes = lists.take(pa.array(rows)).dictionary_encode().indices.to_numpy().astype(np.uint32)
    # Arrow numbers values in the order of their first rows
    return codes, np.flatnonzero(np.diff(np.maximum.accumulate(codes.astype(np.int64)), prepend=-1))


def _shared(offsets: Array, items: Array, fresh: Array) -> Layout | None:
    """Views by code, for fixed-width items without nulls; None when rows are mostly distinct."""
    count = offsets.size - 1
    sample = np.arange(0, count, max(count // SAMPLE_ROWS, 1))[:SAMPLE_ROWS]
    if distinct_rows(items, offsets, sample)[1].size > 0.7 * sample.size:
        return None
    rows = np.flatnonzero(fresh)
    codes, first = distinct_rows(items, offsets, rows)
    first = rows[first]
    lengths = np.diff(offsets)[first]
    reason = f"{first.size:,} distinct of {count:,} rows"
    return Layout(
        lengths=lengths, num_items=int(lengths.sum()), codes=codes[np.cumsum(fresh) - 1], parts=(offsets[first], lengths), text="shared views", reason=reason
    )  # fmt: skip


def choose_layout(lengths: Array, planes: Sequence[Array] | None, *, item_bytes: float, options: EncodeOptions, slide: bool = True) -> Layout:
    """The layout whose pool and views take least.

    Args:
        lengths: int64 `[entries]`.
        planes: Arrays over all items that say when items are equal; None where they cannot be compared.
        item_bytes: Estimated encoded bytes of a pool item.
        options: What may be used.
        slide: Whether rows may be windows of a history: not worth looking for in strings.
    """
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    plain = Layout(lengths=lengths, num_items=int(offsets[-1]))
    if planes is None or not options.list_views or lengths.size < 2 or not plain.num_items:
        return plain
    best, best_cost = plain, layout_bytes(plain, item_bytes)
    candidates: list[Layout | None] = []
    fresh = fresh_rows(planes, offsets)
    repeats = plain if fresh.all() else _repeats(offsets, fresh)
    candidates.append(repeats)
    limit = (1 - options.min_pool_saving) * repeats.num_items
    for newest_first in (False, True) if slide else ():
        if _sliding_pays(planes, offsets, fresh, newest_first=newest_first, options=options):
            sliding = _sliding(planes, offsets, fresh, newest_first=newest_first, max_slide_items=options.max_slide_items)
            candidates.append(sliding if sliding.num_items < limit else None)
    if options.dictionary and len(planes) == 1:
        candidates.append(_shared(offsets, planes[0], fresh))
    for layout in candidates:
        if layout is not None:
            cost = layout_bytes(layout, item_bytes)
            if cost < 0.97 * best_cost:
                best, best_cost = layout, cost
    if best is plain:
        return plain
    saved = f"pool of {best.num_items:,} items instead of {plain.num_items:,}; {best.reason}"
    return dataclasses.replace(best, reason=saved)


def _sliding_pays(planes: Sequence[Array], offsets: Array, fresh: Array, *, newest_first: bool, options: EncodeOptions) -> bool:
    """Whether stretches of neighbouring rows slide enough to look at all rows."""
    rows = np.flatnonzero(fresh)
    middle = max(rows.size // 2 - SAMPLE_ROWS // 4, 0)
    rows = rows[np.unique(np.concatenate([np.arange(middle, min(middle + SAMPLE_ROWS // 2, rows.size)), np.arange(min(SAMPLE_ROWS // 4, rows.size))]))]
    rows = rows[np.diff(offsets)[rows] > 0]
    rows = rows[::-1] if newest_first else rows
    total = int(np.diff(offsets)[rows].sum())
    if total < MIN_SLIDING_ITEMS * rows.size or not rows.size:
        return False
    saved = int(neighbour_overlaps(planes, offsets, rows, options.max_slide_items).sum())
    return saved > 0.5 * options.min_pool_saving * total


def emit_views(builder: ChunkBuilder, layout: Layout, *, depth: int, count: int, options: EncodeOptions) -> str:
    """Write the VIEWS region of `count` entries; returns its description."""
    region = builder.region(Role.VIEWS, depth=depth, item_bytes=8, value_type=ValueType.UINT64, count=count)
    shared = layout.fresh is not None or layout.codes is not None
    num_views = layout.lengths.size
    views = builder.region(Role.SCRATCH, depth=depth, item_bytes=8, value_type=ValueType.UINT64, count=num_views) if shared else region
    text, level = _emit_ranges(builder, layout, views, options)
    codes = None if layout.codes is None else choose_stream(layout.codes, options)
    if layout.fresh is not None and num_views < MAX_CHANGES * count:
        # few views, many rows each: numbers that rise now and then take less than a bit a row
        codes = choose_stream((np.cumsum(layout.fresh) - 1).astype(np.uint32), options)
        codes = codes if codes.num_bytes < count // 8 else None
    if layout.fresh is not None and codes is None:
        bitmap = Bitmap(builder, layout.fresh)
        builder.op(
            OpKind.RANK, out=region, out_kind=OutKind.VIEW, count=count, level=level + 1, num_sources=0, bits=bitmap.bits, anchors=bitmap.anchors,
            dictionary=views, dict_count=num_views,
        )  # fmt: skip
        return f"{text}, rows=fresh[{num_views:,} of {count:,}]"
    if codes is not None:
        placed = place_codes(builder, codes)
        op_of(
            builder, placed, out=region, out_kind=OutKind.VIEW, count=count, level=max(level + 1, placed.level), dictionary=views, dict_count=num_views
        )  # fmt: skip
        return f"{text}, rows=codes[{num_views:,}]({codes.text})"
    return text


def _emit_ranges(builder: ChunkBuilder, layout: Layout, region: int, options: EncodeOptions) -> tuple[str, int]:
    """The op that turns lengths, and starts where windows slide, into views; its description and level."""
    num_views = layout.lengths.size
    values = layout.lengths.astype(np.uint32)
    if layout.starts is None:
        anchors = (np.cumsum(layout.lengths) - layout.lengths)[::VECTOR].astype(np.uint32)
        lengths = choose_stream(values, options, direct=True)
        placed = [lengths.as_source(builder, by_rank=False)]
        scan, text = Scan.EXCLUSIVE_SUM, f"lengths={lengths.text}"
    else:
        anchors = np.concatenate([np.zeros(1, np.int64), layout.starts[VECTOR - 1 :: VECTOR]])[: bitpack.num_vectors(num_views)].astype(np.uint32)
        steps, lengths = choose_stream(_zigzag(layout.starts), options), choose_stream(values, options)
        placed = [steps.as_source(builder), lengths.as_source(builder)]
        scan, text = Scan.ZIGZAG_SUM, f"starts={steps.text}, lengths={lengths.text}"
    numbers = [source.add(builder) for source in placed]
    level = max(source.level for source in placed)
    builder.op(
        OpKind.DIRECT, out=region, out_kind=OutKind.VIEW, count=num_views, level=level, source=numbers[0], num_sources=len(numbers), scan=scan,
        scan_anchors=builder.stream(anchors), dictionary=NO_REGION,
    )  # fmt: skip
    return text, level
