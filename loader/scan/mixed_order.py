"""The order of a mix: pure arithmetic from positions to rows of several sources, by integer weights. No I/O, no world size in any position.

period   q = sum of the weights: as many slots, evenly spread, of which source j has w_j
epoch    M whole periods, M = min over j of N_j div w_j: the last before a source would repeat a row; M q positions, exactly M w_j rows of source j
deal     position p -> shard p % C, row p // C of the shard, as in a plain order: so batches, ranks and resuming are those of `scan.order`
shard    its rows go round the period, shards from spread phases: every rank's share of every batch has the proportions, not only the global batch.
         Rows past the last period that all shards can hold (under C q) take the slots of the period in the order of positions
lane     shard s of source j, number j C + s: the rows of source j that shard s deals out, an own contiguous range of the source's laid-out rows

So where W divides C each shard of each source is read by one rank, as without a mix, and a rank holds one window a lane. A source's windows are shorter in
proportion to its weight: they last equally long, and all windows together take the memory of one scan's (and at most a block more a lane).
The alternative, dealing each source's part of a batch to ranks by itself, gives ranks batches of unequal size wherever W does not divide that part.

Shapes: C = canonical shards, W = world size, q = slots of a period, k = sources, N_j = rows of source j.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import heapq
import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from loader.scan import order as ordering
from loader.scan.order import Int64Array, Layout, Order, ShardSlice, Window

MIX_VERSION = 1
MAX_PERIOD = 1024


def check_weights(weights: Sequence[int]) -> tuple[int, ...]:
    """Weights without their common factor.

    Raises:
        ValueError: One is no positive whole number, or their sum is too long a period.
    """
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | np.integer) or weight < 1:
            raise ValueError(f"weight {weight!r} of a mix is not a whole number of at least 1: give rows of each source in a period, such as 4 and 1")
    factor = math.gcd(*(int(weight) for weight in weights))
    reduced = tuple(int(weight) // factor for weight in weights)
    if sum(reduced) > MAX_PERIOD:
        raise ValueError(f"weights {', '.join(map(str, weights))} make a period of {sum(reduced):,} rows, over {MAX_PERIOD:,}: round them to smaller numbers")
    return reduced


def period_slots(weights: Sequence[int]) -> Int64Array:
    """int64 [q], the source of each slot of a period: the i-th slot of a source is due at (i + 1/2) / weight."""
    due = np.concatenate([(np.arange(weight) + 0.5) / weight for weight in weights])
    return np.repeat(np.arange(len(weights)), weights)[np.argsort(due, kind="stable")]


def mixed_rows(weights: Sequence[int], source_rows: Sequence[int]) -> int:
    """Rows of an epoch: whole periods, until the first source would repeat a row."""
    return sum(weights) * min(rows // weight for rows, weight in zip(source_rows, weights, strict=True))


def source_order(order: Order, weights: Sequence[int], source: int) -> Order:
    """The order of one source of a mix: a seed of its own, and windows of its share."""
    seed = order.seed if source == 0 else int(ordering.make_key(MIX_VERSION, order.seed, source)[0])
    return dataclasses.replace(order, seed=seed, window_rows=max(order.window_rows * weights[source] // sum(weights), 1))


def lay_out_mix(source_blocks: Sequence[npt.ArrayLike], weights: Sequence[int], order: Order) -> MixedLayout:
    """Lay the sources of a mix out.

    Args:
        source_blocks: Of each source, the selected rows of its blocks, by (segment, block).
        weights: Without a common factor.
        order: Of the mix; `window_rows` is shared by the sources.
    """
    layouts = [ordering.lay_out(blocks, source_order(order, weights, source)) for source, blocks in enumerate(source_blocks)]
    periods = min(layout.num_rows // weight for layout, weight in zip(layouts, weights, strict=True))
    whole, left = divmod(periods, order.shards)
    tail = np.arange(left * sum(weights))
    slots = period_slots(weights)[tail % sum(weights)]
    sources = []
    for source, (layout, weight) in enumerate(zip(layouts, weights, strict=True)):
        sizes = whole * weight + np.bincount(tail[slots == source] % order.shards, minlength=order.shards)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        sources.append(dataclasses.replace(ordering.cut(layout, periods * weight), shard_starts=starts))
    block_starts = np.cumsum([0, *(len(np.asarray(blocks)) for blocks in source_blocks)])
    return MixedLayout(order=order, weights=tuple(weights), sources=tuple(sources), block_starts=block_starts, num_periods=periods)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MixedLayout:
    """Several layouts, mixed. Does for a mix what `Layout` does for one scan; the `shard` of its slices and windows is a lane.

    Attributes:
        order: Of the mix.
        weights: Of the sources, w_j.
        sources: Their layouts, cut to the rows of this epoch.
        block_starts: int64 [k + 1], where the blocks of each source begin in the list of all.
        num_periods: M.
    """

    order: Order
    weights: tuple[int, ...]
    sources: tuple[Layout, ...]
    block_starts: Int64Array
    num_periods: int

    @property
    def num_rows(self) -> int:
        return self.num_periods * sum(self.weights)

    def fingerprint(self) -> str:
        """A hash of which ranges of which source lie where."""
        parts = [MIX_VERSION, self.num_periods, *self.weights, *(source.fingerprint() for source in self.sources)]
        return hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=16).hexdigest()

    def source_of(self, window: Window) -> tuple[int, Window]:
        """The source of a window, and the window as the source's own layout knows it."""
        source, shard = divmod(window.shard, self.order.shards)
        return source, dataclasses.replace(window, shard=shard)

    def pieces(self, window: Window) -> tuple[Int64Array, Int64Array, Int64Array]:
        """As `Layout.pieces`; blocks by the list of all sources' blocks."""
        source, own = self.source_of(window)
        blocks, head, tail = ordering.window_pieces(self.sources[source], own)
        return blocks + self.block_starts[source], head, tail

    def draw(self, window: Window) -> tuple[Int64Array, Int64Array]:
        """As `Layout.draw`."""
        source, own = self.source_of(window)
        return ordering.window_draw(self.sources[source], own)

    def unit_offsets(self, window: Window) -> None:
        """A unit is a row."""
        return None

    def slices(self, position: int, stop: int, rank: int, world_size: int) -> list[ShardSlice]:
        """A rank's part of positions [position, stop), shard by shard, source by source."""
        found = []
        for part in ordering.rank_slices(self.order.shards, position, stop, rank, world_size):
            shard = self._shard(part.shard)
            if part.step == 1:
                ends = zip(shard.counts(part.start).tolist(), shard.counts(part.stop).tolist(), strict=True)
                spans = [(source, first, last, 1) for source, (first, last) in enumerate(ends) if first < last]
            else:
                spans = shard.progressions(part)
            lanes = self.order.shards
            found += [ShardSlice(shard=source * lanes + part.shard, start=first, stop=last, step=step) for source, first, last, step in spans]
        return found

    def windows(self, position: int, rank: int, world_size: int, stop: int | None = None) -> Iterator[Window]:
        """The windows a rank needs for positions [position, stop), in the order in which it needs them."""
        shards = self.order.shards
        heap: list[tuple[int, int, int, int]] = []  # position of the row, lane, row, past the last row of the lane
        needed: dict[int, _Needed] = {}

        def push(lane: int, row: int, last: int) -> None:
            source, shard = divmod(lane, shards)
            row = needed[lane].at_or_after(row)
            if row < last:
                heapq.heappush(heap, (self._shard(shard).row_of(source, row) * shards + shard, lane, row, last))

        for part in ordering.rank_slices(shards, position, self.num_rows if stop is None else stop, rank, world_size):
            shard = self._shard(part.shard)
            ends = zip(shard.counts(part.start).tolist(), shard.counts(part.stop).tolist(), strict=True)
            for source, (first, last) in enumerate(ends):
                lane = source * shards + part.shard
                needed[lane] = shard.needed(source, part.start % part.step, part.step)
                push(lane, first, last)
        while heap:
            _, lane, row, last = heapq.heappop(heap)
            source, number = divmod(lane, shards)
            window = dataclasses.replace(ordering.window_at(self.sources[source], number, row), shard=lane)
            yield window
            push(lane, window.stop, last)

    def _shard(self, shard: int) -> _Shard:
        if shard not in self._shards:
            whole, left = divmod(self.num_periods, self.order.shards)
            period, q = period_slots(self.weights), sum(self.weights)
            phase = shard * q // self.order.shards
            tail = period[np.arange(shard, left * q, self.order.shards) % q]
            self._shards[shard] = _Shard(slots=np.roll(period, -phase), num_sources=len(self.weights), whole=whole, tail=tail)
        return self._shards[shard]

    @functools.cached_property
    def _shards(self) -> dict[int, _Shard]:
        return {}


class _Shard:
    """The slots of one shard: a rotated period, over and over, then a tail shorter than a period.

    Args:
        slots: int64 [q], the period.
        num_sources: k.
        whole: How often it comes.
        tail: int64, the slots after that.
    """

    def __init__(self, *, slots: Int64Array, num_sources: int, whole: int, tail: Int64Array) -> None:
        self._period, self._main = len(slots), len(slots) * whole
        self._slots, self._tail = slots, tail
        self._before, self._tail_before = _counts_before(slots, num_sources), _counts_before(tail, num_sources)
        self._weights, self._whole = self._before[-1], whole
        self._places = [np.flatnonzero(slots == source) for source in range(num_sources)]
        self._tail_places = [np.flatnonzero(tail == source) for source in range(num_sources)]

    def counts(self, row: int) -> Int64Array:
        """int64 [k], rows of each source among the first `row` rows of the shard."""
        if row > self._main:
            return np.asarray(self._whole * self._weights + self._tail_before[row - self._main])
        whole, part = divmod(row, self._period)
        return np.asarray(whole * self._weights + self._before[part])

    def row_of(self, source: int, number: int) -> int:
        """The row of the shard that holds a source's row of this number."""
        weight = int(self._weights[source])
        if number >= self._whole * weight:
            return self._main + int(self._tail_places[source][number - self._whole * weight])
        whole, part = divmod(number, weight)
        return whole * self._period + int(self._places[source][part])

    def progressions(self, part: ShardSlice) -> list[tuple[int, int, int, int]]:
        """Every so many-th rows of the shard as rows of sources: (source, first, past the last, step). Rows a period of the pattern apart go together."""
        cycle = self._period // math.gcd(self._period, part.step)
        found = []
        main = range(part.start, min(part.stop, self._main), part.step)
        for row in main[:cycle]:
            source, number = int(self._slots[row % self._period]), 0
            count, number = len(range(row, main.stop, part.step * cycle)), int(self.counts(row)[source])
            step = int(self._weights[source]) * part.step * cycle // self._period
            found.append((source, number, number + (count - 1) * step + 1, step))
        for row in range(part.start + len(main) * part.step, part.stop, part.step):
            source = int(self._tail[row - self._main])
            number = int(self.counts(row)[source])
            found.append((source, number, number + 1, 1))
        return found

    def needed(self, source: int, remainder: int, step: int) -> _Needed:
        """Which of a source's rows lie in rows of the shard that are `remainder` modulo `step`."""
        if step == 1:
            return _Needed(residues=np.zeros(1, np.int64), modulus=1, end=int(self.counts(self._main)[source]), tail=self._tail_numbers(source, 0, 1))
        cycle = step * self._period // math.gcd(self._period, step)  # after so many rows the pattern and the step begin together again
        rows = np.arange(remainder, cycle, step)
        rows = rows[self._slots[rows % self._period] == source]
        residues = rows // self._period * self._weights[source] + self._before[rows % self._period, source]
        modulus = cycle // self._period * int(self._weights[source])
        return _Needed(residues=residues, modulus=modulus, end=int(self._whole * self._weights[source]), tail=self._tail_numbers(source, remainder, step))

    def _tail_numbers(self, source: int, remainder: int, step: int) -> Int64Array:
        places = self._tail_places[source]
        mine = (self._main + places) % step == remainder
        return np.asarray(int(self._whole * self._weights[source]) + np.flatnonzero(mine))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Needed:
    """Rows of a lane that one rank needs: those with some residues below `end`, then some numbers. Past them, a number that no lane has."""

    residues: Int64Array
    modulus: int
    end: int
    tail: Int64Array

    def at_or_after(self, row: int) -> int:
        if row < self.end and len(self.residues):
            whole, part = divmod(row, self.modulus)
            at = int(np.searchsorted(self.residues, part))
            found = whole * self.modulus + int(self.residues[at]) if at < len(self.residues) else (whole + 1) * self.modulus + int(self.residues[0])
            if found < self.end:
                return found
        at = int(np.searchsorted(self.tail, row))
        return int(self.tail[at]) if at < len(self.tail) else 2**63 - 1


def _counts_before(slots: Int64Array, num_sources: int) -> Int64Array:
    """int64 [slots + 1, k], how many slots each source has before each place."""
    counts = np.zeros((len(slots) + 1, num_sources), np.int64)
    counts[np.arange(len(slots)) + 1, slots] = 1
    return np.cumsum(counts, axis=0)


AnyLayout: TypeAlias = Layout | MixedLayout
