"""Claims about the order of a mix, as properties against a plain model that walks every position."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.scan import mixed_order as mixing
from loader.scan import order as o

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
WORLDS = (1, 2, 3, 4, 5, 6, 8)


@st.composite
def mixes(draw, modes=o.MODES, shards=(1, 2, 3, 4, 8)):
    num_sources = draw(st.integers(1, 4))
    weights = mixing.check_weights([draw(st.integers(1, 5)) for _ in range(num_sources)])
    blocks = [draw(st.lists(st.integers(0, 40), min_size=1, max_size=8)) for _ in range(num_sources)]
    order = o.Order(
        seed=draw(st.integers(0, 2**63)),
        epoch=draw(st.integers(0, 3)),
        shards=draw(st.sampled_from(shards)),
        mode=draw(st.sampled_from(modes)),
        window_rows=draw(st.sampled_from([1, 7, 40, 1000])),
        run_rows=draw(st.sampled_from([1, 3])),
    )
    return blocks, weights, order


def walk(blocks, weights, order):
    """The (source, block, ordinal) of every position, by counting: the reference model."""
    rows = [sum(sizes) for sizes in blocks]
    period, shards = mixing.period_slots(weights).tolist(), order.shards
    periods = min(n // w for n, w in zip(rows, weights, strict=True))
    whole, total = periods // shards * len(period), periods * len(period)
    slots = []
    for p in range(total):
        shard, row = p % shards, p // shards
        slots.append(period[(row + shard * len(period) // shards) % len(period)] if row < whole else period[(p - whole * shards) % len(period)])
    rows_of = []
    for source, sizes in enumerate(blocks):
        layout = o.lay_out(sizes, mixing.source_order(order, weights, source))
        bounds = np.cumsum([0] + [sum(slots[p] == source for p in range(s, total, shards)) for s in range(shards)])
        layout = mixing.dataclasses.replace(o.cut(layout, int(bounds[-1])), shard_starts=bounds)
        lanes = []
        for shard in range(shards):
            lane, row = [], 0
            while row < bounds[shard + 1] - bounds[shard]:
                window = o.window_at(layout, shard, row)
                piece, ordinal = o.window_draw(layout, window)
                names = o.window_pieces(layout, window)[0]
                lane += [(source, int(names[a]), int(b)) for a, b in zip(piece, ordinal, strict=True)]
                row = window.stop
            lanes.append(iter(lane))
        rows_of.append(lanes)
    return [next(rows_of[slots[p]][p % shards]) for p in range(total)]


def read(layout, start, stop, rank, world):
    """What a rank gets for some positions, through slices and the windows that it is told of beforehand."""
    windows, found = list(layout.windows(start, rank, world, stop)), []
    held = {}
    for window in windows:
        held.setdefault(window.shard, []).append(window)
    used = set()
    for part in layout.slices(start, stop, rank, world):
        for row in range(part.start, part.stop, part.step):
            (window,) = [w for w in held[part.shard] if w.start <= row < w.stop]
            used.add((window.shard, window.start))
            piece, ordinal = layout.draw(window)
            block = int(layout.pieces(window)[0][piece[row - window.start]])
            source = int(np.searchsorted(layout.block_starts, block, "right")) - 1
            found.append((source, block - int(layout.block_starts[source]), int(ordinal[row - window.start])))
    assert used == {(w.shard, w.start) for w in windows} and len(used) == len(windows), "told of a window twice, or of one that it does not need"
    return found


@quick
@given(mixes(), st.sampled_from(WORLDS), st.data())
def test_a_rank_gets_what_walking_every_position_gives_it_at_any_world_size(mix, world, data):
    layout, want = mixing.lay_out_mix(*mix), walk(*mix)
    assert layout.num_rows == len(want) == mixing.mixed_rows(mix[1], [sum(sizes) for sizes in mix[0]])
    start = data.draw(st.integers(0, len(want)))
    stop = data.draw(st.integers(start, len(want)))
    for rank in range(world):
        assert sorted(read(layout, start, stop, rank, world)) == sorted(want[p] for p in range(start, stop) if p % world == rank)


@quick
@given(mixes())
def test_an_epoch_has_exact_proportions_no_row_twice_and_ends_at_the_last_whole_period(mix):
    blocks, weights, _ = mix
    want = walk(*mix)
    assert len(set(want)) == len(want)
    counts = Counter(source for source, _, _ in want)
    periods = len(want) // sum(weights)
    assert [counts[source] for source in range(len(weights))] == [periods * weight for weight in weights]
    assert any(sum(sizes) < (periods + 1) * weight for sizes, weight in zip(blocks, weights, strict=True)), "another period would repeat no row"


@quick
@given(mixes(shards=(2, 4, 8)), st.integers(1, 6))
def test_every_batch_of_every_rank_is_near_its_proportions(mix, periods):
    blocks, weights, order = mix
    layout, world = mixing.lay_out_mix(*mix), order.shards // 2
    batch = sum(weights) * periods * order.shards
    for start in range(0, layout.num_rows - batch + 1, batch):
        for rank in range(world):
            rows = Counter(part.shard // order.shards for part in layout.slices(start, start + batch, rank, world) for _ in range(part.num_rows))
            for source, weight in enumerate(weights):
                due = batch // world * weight / sum(weights)
                assert abs(rows[source] - due) <= 2 * 2 * max(weights)  # two shards a rank, which begin and end inside a period


@quick
@given(mixes(shards=(4, 8)), st.sampled_from([1, 2, 4]))
def test_each_shard_of_each_source_is_read_by_one_rank_where_the_world_divides_the_shards(mix, world):
    layout = mixing.lay_out_mix(*mix)
    readers = {}
    for rank in range(world):
        for window in layout.windows(0, rank, world):
            readers.setdefault(window.shard, set()).add(rank)
    assert all(len(ranks) == 1 for ranks in readers.values())


@quick
@given(mixes(modes=["windows"]))
def test_windows_of_all_sources_together_are_bounded_as_those_of_one_scan(mix):
    blocks, weights, order = mix
    layout = mixing.lay_out_mix(*mix)
    largest = [0] * len(weights)
    for window in layout.windows(0, 0, 1):
        source = window.shard // order.shards
        largest[source] = max(largest[source], window.num_rows)
    assert sum(largest) <= order.window_rows + len(weights) + sum(max(sizes, default=0) for sizes in blocks)


def test_slots_are_evenly_spread():
    for weights in [(4, 1), (70, 20, 9, 1), (1, 1, 1), (3, 2)]:
        slots = np.tile(mixing.period_slots(weights), 3)
        for source, weight in enumerate(weights):
            due = np.arange(1, len(slots) + 1) * weight / sum(weights)
            assert np.abs(np.cumsum(slots == source) - due).max() < len(weights)


def test_the_order_of_a_mix_is_what_it_always_was():
    layout = mixing.lay_out_mix([[30, 20, 25, 40], [9, 8, 7]], (4, 1), o.Order(seed=17, epoch=1, shards=4, window_rows=16))
    assert layout.fingerprint() == "d155f0087436a085162ff9d443a24e1a"
    assert read(layout, 0, 5, 0, 1) == [(0, 0, 11), (0, 0, 13), (0, 2, 13), (1, 2, 5), (0, 1, 18)]


@pytest.mark.parametrize("weights", [[0, 1], [1.5, 1], [True, 1], [-1], [1000, 999]])
def test_weights_that_make_no_period_are_refused(weights):
    with pytest.raises(ValueError, match="whole number of at least 1|make a period of"):
        mixing.check_weights(weights)


def test_weights_lose_their_common_factor():
    assert mixing.check_weights([40, 10]) == (4, 1) and mixing.check_weights([7]) == (1,) and math.gcd(4, 1) == 1
