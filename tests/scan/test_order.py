"""Claims about the order of samples, as properties over random plans, shards, world sizes, batch sizes and remainders."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.scan import order as o

quick = settings(max_examples=50, deadline=None, derandomize=True, database=None)
block_lists = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 90)), max_size=14)
remainders = st.sampled_from(o.REMAINDERS)


@st.composite
def orders(draw, modes=o.MODES):
    return o.Order(
        seed=draw(st.integers(0, 2**63)),
        epoch=draw(st.integers(0, 5)),
        shards=draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12])),
        mode=draw(st.sampled_from(modes)),
        window_rows=draw(st.sampled_from([1, 2, 3, 5, 40, 1000])),
        run_rows=draw(st.sampled_from([1, 2, 3, 16])),
    )


def rows_of_window(layout, window):
    piece, ordinal = o.window_draw(layout, window)
    blocks = o.window_pieces(layout, window)[0]
    return list(zip(blocks[piece].tolist(), ordinal.tolist(), strict=True))


def rows_of_shard(layout, shard):
    low, high = o.shard_bounds(layout, shard)
    row, rows = 0, []
    while row < high - low:
        window = o.window_at(layout, shard, row)
        assert window.start == row < window.stop
        assert all(o.window_at(layout, shard, inside) == window for inside in range(row, window.stop))
        rows += rows_of_window(layout, window)
        row = window.stop
    return rows


def read(layout, position, batch, world, remainder):
    """Rows of every rank of every batch from a position on."""
    shards = [rows_of_shard(layout, shard) for shard in range(layout.order.shards)]
    out = []
    for index in range(o.num_batches(layout.num_rows, position, batch, remainder)):
        start = position + index * batch
        stop = min(start + batch, layout.num_rows)
        parts = [o.rank_slices(layout.order.shards, start, stop, rank, world) for rank in range(world)]
        out.append([[row for part in parts_of for row in shards[part.shard][part.start : part.stop : part.step]] for parts_of in parts])
    return out


def everything(sizes):
    return {(block, row) for block, rows in enumerate(sizes) for row in range(rows)}


@quick
@given(block_lists, orders(), st.integers(1, 6), remainders, st.sampled_from([1, 2, 3, 4, 5, 6, 12, 24]))
def test_every_row_comes_once_over_all_ranks_and_the_remainder_is_what_it_says(sizes, order, share, remainder, world):
    layout, batch = o.lay_out(sizes, order), share * world
    batches = read(layout, 0, batch, world, remainder)
    seen = [row for parts in batches for part in parts for row in part]
    assert len(seen) == len(set(seen)) and set(seen) <= everything(sizes)
    assert len(everything(sizes)) - len(seen) == (layout.num_rows % batch if remainder == "drop" else 0)
    for parts in batches:
        counts = [len(part) for part in parts]
        assert max(counts) - min(counts) <= 1
    assert all({len(part) for part in parts} == {share} for parts in (batches if remainder == "drop" else batches[:-1]))


@quick
@given(block_lists, orders(), remainders)
def test_global_batches_do_not_know_the_world_size(sizes, order, remainder):
    layout, batch = o.lay_out(sizes, order), 24
    want = [sorted(parts[0]) for parts in read(layout, 0, batch, 1, remainder)]
    for world in (2, 3, 4, 6, 8, 12, 24):
        assert [sorted(row for part in parts for row in part) for parts in read(layout, 0, batch, world, remainder)] == want


@quick
@given(block_lists, orders(), st.data())
def test_resume_anywhere_at_another_world_size_and_batch_size(sizes, order, data):
    layout = o.lay_out(sizes, order)
    position = data.draw(st.integers(0, layout.num_rows))
    before = set()
    for shard in range(order.shards):
        before |= set(rows_of_shard(layout, shard)[: o.rows_dealt(position, shard, order.shards)])
    assert len(before) == position
    world = data.draw(st.sampled_from([1, 2, 3, 4, 7]))
    after = [row for parts in read(layout, position, world * data.draw(st.integers(1, 9)), world, "pad") for part in parts for row in part]
    assert len(after) == len(set(after)) and set(after) == everything(sizes) - before


@quick
@given(st.lists(st.integers(0, 25), max_size=6), orders(), st.integers(1, 5), st.sampled_from([1, 2, 4]))
def test_resume_at_every_batch_gives_the_same_batches(sizes, order, share, world):
    layout, batch = o.lay_out(sizes, order), share * world
    whole = read(layout, 0, batch, world, "uneven")
    for index in range(len(whole)):
        assert read(layout, index * batch, batch, world, "uneven") == whole[index:]


@quick
@given(block_lists, orders())
def test_shards_are_equal_within_one_row_and_windows_tile_them(sizes, order):
    layout = o.lay_out(sizes, order)
    bounds = [o.shard_bounds(layout, shard) for shard in range(order.shards)]
    assert bounds[0][0] == 0 and bounds[-1][1] == layout.num_rows and all(a[1] == b[0] for a, b in zip(bounds, bounds[1:], strict=False))
    lengths = [high - low for low, high in bounds]
    assert lengths == [o.rows_dealt(layout.num_rows, shard, order.shards) for shard in range(order.shards)]
    laid = [(int(block), int(first + i)) for block, first, rows in zip(layout.blocks, layout.first, np.diff(layout.starts), strict=True) for i in range(rows)]
    for shard, (low, high) in enumerate(bounds):
        seen = rows_of_shard(layout, shard)
        assert sorted(seen) == sorted(laid[low:high])
        if not order.permutes_rows:
            assert seen == laid[low:high]


@quick
@given(block_lists, orders(), st.sampled_from([1, 2, 3, 4, 8]), st.data())
def test_a_rank_is_told_each_window_once_and_before_it_needs_it(sizes, order, world, data):
    layout = o.lay_out(sizes, order)
    position = data.draw(st.integers(0, layout.num_rows))
    for rank in range(world):
        windows = list(o.rank_windows(layout, position, rank, world))
        assert len({(window.shard, window.start) for window in windows}) == len(windows)
        needed = []
        for p in range(position, layout.num_rows):
            if p % world == rank:
                window = o.window_at(layout, p % order.shards, p // order.shards)
                if window not in needed:
                    needed.append(window)
        assert needed == windows


@quick
@given(block_lists, orders(modes=["windows"]))
def test_a_window_holds_its_slot_and_at_most_one_block_more(sizes, order):
    layout = o.lay_out(sizes, order)
    assert all(window.num_rows < order.window_rows + max(sizes) for window in o.rank_windows(layout, 0, 0, 1))


@quick
@given(block_lists, orders(modes=["windows", "full"]))
def test_runs_stay_together(sizes, order):
    layout, r = o.lay_out(sizes, order), order.run_rows
    for shard in range(order.shards):
        rows = rows_of_shard(layout, shard)
        runs = [(block, row // r) for block, row in rows]
        assert sum(a != b for a, b in zip(runs, runs[1:], strict=False)) + bool(runs) == len(set(runs))
        assert all(b[1] == a[1] + 1 for a, b, x, y in zip(rows, rows[1:], runs, runs[1:], strict=False) if x == y)


@pytest.mark.parametrize("sizes", [[], [0, 0], [1], [1, 1], [3], [200]])
def test_tiny_tables(sizes):
    for shards in (1, 8, 64):
        layout = o.lay_out(sizes, o.Order(shards=shards))
        assert o.num_batches(layout.num_rows, 0, 512, "drop") == 0
        for world in (1, 4, 8):
            rows = [row for parts in read(layout, 0, 512, world, "pad") for part in parts for row in part]
            assert sorted(rows) == sorted(everything(sizes))


@quick
@given(st.integers(0, 400), st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(n, seed):
    assert sorted(o.permutation(n, o.make_key(seed)).tolist()) == list(range(n))


def test_permutation_is_frozen_and_fair():
    assert o.permutation(8, o.make_key(17, 0)).tolist() == [5, 4, 3, 1, 6, 7, 0, 2]  # a saved state must mean the same for ever
    for n in (3, 4):
        seen = Counter(tuple(o.permutation(n, o.make_key(17, trial)).tolist()) for trial in range(200 * math.factorial(n)))
        chi2 = sum((count - 200) ** 2 / 200 for count in seen.values()) + 200 * (math.factorial(n) - len(seen))
        freedom = math.factorial(n) - 1
        assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


GOLDEN = [
    [(0, 0), (0, 1), (0, 4), (3, 0), (3, 1), (0, 2), (0, 3), (3, 2), (1, 0), (1, 1), (1, 2), (1, 3)],
    [(1, 8), (1, 4), (1, 5), (1, 6), (1, 7), (4, 0), (4, 1), (4, 4), (4, 5), (4, 2), (4, 3), (4, 6)],
]


def test_the_whole_order_is_frozen():
    layout = o.lay_out([5, 9, 0, 3, 7], o.Order(shards=2, window_rows=8, run_rows=2))
    assert [rows_of_shard(layout, shard) for shard in range(2)] == GOLDEN


def test_windows_epochs_and_shards_are_drawn_apart():
    drawn = set()
    for epoch in range(3):
        layout = o.lay_out([64] * 16, o.Order(shards=4, window_rows=64, epoch=epoch))
        drawn |= {tuple(o.window_draw(layout, window)[1].tolist()) for window in o.rank_windows(layout, 0, 0, 1)}
    assert len(drawn) >= 3 * 16


def test_wrong_orders_are_refused():
    with pytest.raises(ValueError, match="'random'.*none, blocks, windows, full"):
        o.Order(mode="random")
    with pytest.raises(ValueError, match="shards is 0"):
        o.Order(shards=0)
