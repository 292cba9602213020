"""Repetition in lists is found where it is, and only there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.encodings.chooser import EncodeOptions
from loader.encodings.chunk import encode_chunk
from loader.encodings.leaf import leaf_type
from loader.encodings.overlap import fresh_rows, slide_overlaps
from loader.encodings.shred import shred
from loader.encodings.views import Layout, choose_layout
from loader.segment.reader import SegmentReader
from loader.segment.writer import encode_segment

Array = np.ndarray[Any, np.dtype[Any]]
ROWS = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=30)


def flat(rows: list[list[int]]) -> tuple[Array, Array]:
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.array([item for row in rows for item in row], np.int64), np.concatenate([[0], np.cumsum(lengths)])


@given(ROWS)
def test_fresh_rows_are_those_that_differ(rows: list[list[int]]) -> None:
    values, offsets = flat(rows)
    assert fresh_rows([values], offsets).tolist() == [index == 0 or row != rows[index - 1] for index, row in enumerate(rows)]


@given(ROWS, st.integers(0, 4))
def test_overlaps_are_the_longest_ends_that_rows_continue(rows: list[list[int]], dropped: int) -> None:
    values, offsets = flat(rows)
    expected = [0]
    for before, row in zip(rows, rows[1:], strict=False):
        fits = [size for size in range(1, len(before) + 1) if len(before) - size <= dropped and size <= len(row) <= 2 * size]
        expected.append(max((size for size in fits if row[:size] == before[len(before) - size :]), default=0))
    assert slide_overlaps([values], offsets, dropped).tolist() == expected[: len(rows)]


def expand(layout: Layout, values: Array) -> list[list[int]]:
    """The rows a layout stands for."""
    parts = [(0, values.size)] if layout.parts is None else list(zip(*layout.parts, strict=True))
    pool = np.concatenate([values[start : start + size] for start, size in parts]) if parts else values[:0]
    assert pool.size == layout.num_items
    starts = np.cumsum(layout.lengths) - layout.lengths if layout.starts is None else layout.starts
    views = [pool[start : start + size].tolist() for start, size in zip(starts, layout.lengths, strict=True)]
    if layout.fresh is not None:
        return [views[number] for number in np.cumsum(layout.fresh) - 1]
    return views if layout.codes is None else [views[code] for code in layout.codes]


@given(ROWS, st.integers(1, 40))
def test_any_layout_stands_for_its_rows(rows: list[list[int]], copies: int) -> None:
    rows = rows * copies
    values, offsets = flat(rows)
    layout = choose_layout(np.diff(offsets), [values], item_bytes=8.0, options=EncodeOptions())
    assert expand(layout, values) == rows


@pytest.mark.parametrize(("newest_first", "text"), [(False, "sliding views"), (True, "sliding views, newest first")])
def test_histories_slide_at_either_end(newest_first: bool, text: str) -> None:
    rng = np.random.default_rng(0)
    events = rng.integers(0, 1 << 30, 4000)
    rows = [events[end : end + 50][:: -1 if newest_first else 1].tolist() for end in np.cumsum(rng.integers(0, 3, 1500))]
    values, offsets = flat(rows)
    layout = choose_layout(np.diff(offsets), [values], item_bytes=4.0, options=EncodeOptions())
    assert layout.text == text
    assert layout.num_items < 2 * 1500 + 50
    assert expand(layout, values) == rows


def test_rows_without_repetition_stay_plain() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 30, 5000)
    layout = choose_layout(np.full(1000, 5), [values], item_bytes=4.0, options=EncodeOptions())
    assert layout.text == "lists"
    assert layout.parts is None


def test_rows_that_repeat_anywhere_share_views() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 1 << 30, (20, 30))
    rows = [kinds[code].tolist() for code in rng.integers(0, 20, 2000)]
    values, offsets = flat(rows)
    layout = choose_layout(np.diff(offsets), [values], item_bytes=4.0, options=EncodeOptions())
    assert layout.text == "shared views"
    assert layout.num_items == 600
    assert expand(layout, values) == rows


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("null_share", [0.1, 0.5])
def test_null_rows_interrupt_no_window(newest_first: bool, null_share: float) -> None:
    rng = np.random.default_rng(9)
    events = rng.integers(0, 1 << 30, 5000)
    if newest_first:
        events = events[::-1]
    at = np.cumsum(rng.integers(0, 3, 2000))
    rows = [events[start : start + 40].tolist() for start in (at[::-1] if newest_first else at).tolist()]
    nulls = rng.random(2000) < null_share
    array = pa.array([None if null else row for row, null in zip(rows, nulls.tolist(), strict=True)], pa.list_(pa.int64()))
    leaf = leaf_type(array.type, "test")
    chunk = encode_chunk(shred(array, leaf), leaf, len(array), EncodeOptions())
    assert "sliding views" in chunk.decision.tree
    # the events once, starts, lengths and bitmaps; not forty of them a row
    assert chunk.data.size < 2.5 * 8 * at[-1] + 4000
    table = pa.table({"x": array})
    read = SegmentReader(encode_segment(table, column_ids=[1]).data).read()
    assert read.equals(table)


def test_a_list_that_only_nulls_interrupt_is_stored_once() -> None:
    row = list(range(1000, 1100))
    array = pa.array([row if index % 2 else None for index in range(3000)], pa.list_(pa.int64()))
    leaf = leaf_type(array.type, "test")
    assert encode_chunk(shred(array, leaf), leaf, len(array), EncodeOptions()).data.size < 3000


@pytest.mark.parametrize("make", [lambda number: [[number, 1], [], None, [number + 2] * 3], lambda number: [f"word {number}", None, "", "a"]])
def test_lists_of_lists_that_repeat_are_stored_once(make: Any) -> None:
    repeated = [None if number % 50 == 3 else make(number // 20) for number in range(2000)]
    items = [make(number) for number in range(400)]
    sliding = [sum(items[number // 5 : number // 5 + 8], []) for number in range(1500)]
    for rows, most in ((repeated, 9_000), (sliding, 25_000)):
        array = pa.array(rows)
        leaf = leaf_type(array.type, "test")
        chunk = encode_chunk(shred(array, leaf), leaf, len(array), EncodeOptions())
        assert "views(" in chunk.decision.tree
        assert chunk.data.size < most
        table = pa.table({"x": array})
        assert SegmentReader(encode_segment(table, column_ids=[1]).data).read().equals(table)


@pytest.mark.parametrize("rows_each", [9, 400])
def test_rows_that_share_a_view_for_long_cost_little(rows_each: int) -> None:
    rng = np.random.default_rng(1)
    lists = [rng.integers(0, 1 << 30, 5).tolist() for _ in range(-(-30_000 // rows_each))]
    rows = [None if number // rows_each % 7 == 3 else lists[number // rows_each] for number in range(30_000)]
    array = pa.array(rows, pa.list_(pa.int64()))
    leaf = leaf_type(array.type, "test")
    chunk = encode_chunk(shred(array, leaf), leaf, len(array), EncodeOptions())
    assert ("rows=codes" if rows_each == 400 else "rows=fresh") in chunk.decision.tree
    assert chunk.data.size < len(lists) * 21 + (2_000 if rows_each == 400 else 10_000)
    table = pa.table({"x": array})
    assert SegmentReader(encode_segment(table, column_ids=[1]).data).read().equals(table)
