"""The order of samples: pure arithmetic from (blocks and their selected rows, Order) to rows. No I/O, no world size in any position.

position  p in [0, N): rows yielded so far by all ranks together; the whole state of an epoch
  deal    p -> shard p % C, shard row p // C
  shard   a contiguous range of the permuted blocks laid end to end; the first N % C shards are one row longer
  window  the whole pieces that start in one slot of a shard (a piece is the part of one block that lies in the shard); rows drawn in a keyed order
  batch   positions [p, p + G); rank i of W takes those with p % W == i, so G must be a multiple of W and nothing else

A row is (block, ordinal among the block's selected rows); deleted and filtered rows have no ordinal. Nothing here uses a library's random
generator: NumPy may change its streams between versions, a saved state may not.

Shapes: B = blocks with selected rows, N = selected rows, C = canonical shards, W = world size, G = rows of a global batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

ORDER_VERSION = 1
MODES = ("none", "blocks", "windows", "full")
REMAINDERS = ("drop", "pad", "uneven")

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """All that decides the order, apart from the blocks themselves. Batch size and world size are not in it.

    Attributes:
        seed: Any integer; taken modulo 2**64.
        epoch: Which pass over the data.
        shards: Canonical shards, C.
        mode: `none` keeps the table's order inside each shard, `blocks` permutes blocks, `windows` also the rows of each window, `full` the rows of each shard.
        window_rows: Rows of a window's slot. A piece belongs to the slot in which it starts, so a window holds up to a block more.
        run_rows: Neighbouring rows that stay together; they lie on a grid inside their block.
    """

    seed: int = 17
    epoch: int = 0
    shards: int = 8
    mode: str = "windows"
    window_rows: int = 262_144
    run_rows: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"shuffle is {self.mode!r}; it must be one of {', '.join(MODES)}")
        for name in ("shards", "window_rows", "run_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def permutes_rows(self) -> bool:
        return self.mode in ("windows", "full")

    @property
    def slot_rows(self) -> int:
        """Rows of a slot: without permuted rows every piece is a window of its own, which changes memory and not order."""
        return self.window_rows if self.permutes_rows else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Ranges of selected rows laid end to end in the order of an epoch.

    Attributes:
        order: What it was laid out by.
        blocks: int64 [B], index of each range's block in the plan's list.
        first: int64 [B], first ordinal of each range; 0 but for ranges that an earlier increment began.
        starts: int64 [B + 1], where each range starts; the last is N.
        shard_starts: int64 [C + 1], where each shard starts; None cuts them equal within one row, as positions are dealt. A source of a mix has its own.
    """

    order: Order
    blocks: Int64Array
    first: Int64Array
    starts: Int64Array
    shard_starts: Int64Array | None = None

    @property
    def num_rows(self) -> int:
        return int(self.starts[-1])

    def fingerprint(self) -> str:
        """A hash of which ranges lie where; equal on every host for the same plan and order."""
        arrays = (self.blocks, self.first, self.starts)
        return hashlib.blake2b(b"".join(array.astype("<i8").tobytes() for array in arrays), digest_size=16).hexdigest()

    def slices(self, position: int, stop: int, rank: int, world_size: int) -> list[ShardSlice]:
        """A rank's part of positions [position, stop), shard by shard."""
        return rank_slices(self.order.shards, position, stop, rank, world_size)

    def windows(self, position: int, rank: int, world_size: int, stop: int | None = None) -> Iterator[Window]:
        """The windows a rank needs for positions [position, stop), in the order in which it needs them."""
        return rank_windows(self, position, rank, world_size, stop)

    def pieces(self, window: Window) -> tuple[Int64Array, Int64Array, Int64Array]:
        """The pieces of a window: block of the plan, first ordinal, one past the last ordinal; int64 [pieces] each."""
        return window_pieces(self, window)

    def draw(self, window: Window) -> tuple[Int64Array, Int64Array]:
        """The rows of a window in the order of yielding: (piece, ordinal in the piece's block), int64 [rows] each."""
        return window_draw(self, window)

    def unit_offsets(self, window: Window) -> Int64Array | None:
        """int64 [units + 1], where each unit of a window begins among its rows, in the order of yielding; None where a unit is a row."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Rows [start, stop) of a shard, made of the laid-out ranges [first_range, last_range)."""

    shard: int
    start: int
    stop: int
    first_range: int
    last_range: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


def mix64(x: UInt64Array) -> UInt64Array:
    """One step of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def make_key(*parts: int) -> UInt64Array:
    """Fold integers into one 64-bit key, as a 1-element array (NumPy warns of overflow on scalars only)."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mix64(key ^ mix64(np.array([part % 2**64], np.uint64)))
    return key


def permutation(n: int, key: UInt64Array) -> Int64Array:
    """A keyed permutation of range(n): a sort of words whose high bits are a hash of the index and whose low bits are the index.

    Fair for every n, unlike a few Feistel rounds, and as fast for the sizes of a window.
    """
    bits = max(n - 1, 1).bit_length()
    if bits > 32:
        raise ValueError(f"{n} items are too many to permute at once: the hash would have fewer than 32 bits left")
    index = np.arange(n, dtype=np.uint64)
    words = (mix64(mix64(index) ^ key) >> np.uint64(bits) << np.uint64(bits)) | index
    words.sort()
    return (words & np.uint64(2**bits - 1)).astype(np.int64)


def lay_out(block_rows: npt.ArrayLike, order: Order, *, first: npt.ArrayLike | None = None) -> Layout:
    """Lay the blocks of a plan end to end.

    Args:
        block_rows: Selected rows of each block, in the plan's order: by (segment, block).
        order: Seed, epoch and mode.
        first: First ordinal of each block's range; default 0.
    """
    rows = np.asarray(block_rows, np.int64)
    begin = np.zeros(len(rows), np.int64) if first is None else np.asarray(first, np.int64)
    kept = np.flatnonzero(rows)  # an empty block takes no place in the permutation
    if order.mode != "none":
        kept = kept[permutation(len(kept), make_key(ORDER_VERSION, order.seed, order.epoch))]
    starts = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(rows[kept], out=starts[1:])
    return Layout(order=order, blocks=kept.astype(np.int64), first=begin[kept], starts=starts)


def cut(layout: Layout, num_rows: int) -> Layout:
    """The first rows of a layout; what is left of them lies in no shard."""
    starts = layout.starts.clip(None, num_rows)
    kept = np.flatnonzero(np.diff(starts))
    return dataclasses.replace(layout, blocks=layout.blocks[kept], first=layout.first[kept], starts=np.append(starts[kept], min(num_rows, layout.num_rows)))


def shard_bounds(layout: Layout, shard: int) -> tuple[int, int]:
    """Laid-out rows [low, high) of a shard; sizes are what the deal gives: ceil((N - shard) / C)."""
    if layout.shard_starts is not None:
        return int(layout.shard_starts[shard]), int(layout.shard_starts[shard + 1])
    each, extra = divmod(layout.num_rows, layout.order.shards)
    low = shard * each + min(shard, extra)
    return low, low + each + (shard < extra)


def window_at(layout: Layout, shard: int, row: int) -> Window:
    """The window that holds a shard row: a few binary searches over the starts of the ranges."""
    low, high = shard_bounds(layout, shard)
    if not 0 <= row < high - low:
        raise ValueError(f"row {row} is outside shard {shard}, which has {high - low} rows")
    order, starts = layout.order, layout.starts
    top = int(np.searchsorted(starts, low, "right")) - 1  # the shard's first piece
    if order.mode == "full":
        begin, end = top, int(np.searchsorted(starts, high))
    else:
        here = int(np.searchsorted(starts, low + row, "right")) - 1
        width = order.slot_rows
        phase = shard * width // order.shards  # shards start at spread phases, so that their refills do not coincide
        slot = (max(int(starts[here]) - low, 0) + phase) // width
        begin = top if slot == 0 else int(np.searchsorted(starts, low + slot * width - phase))
        end = min(int(np.searchsorted(starts, min(low + (slot + 1) * width - phase, high))), len(starts) - 1)
    return Window(shard=shard, start=max(int(starts[begin]) - low, 0), stop=min(int(starts[end]), high) - low, first_range=begin, last_range=end)


def window_pieces(layout: Layout, window: Window) -> tuple[Int64Array, Int64Array, Int64Array]:
    """The pieces of a window in laid-out order: block, first ordinal, one past the last ordinal; int64 [pieces] each."""
    low = shard_bounds(layout, window.shard)[0]
    a, b = window.first_range, window.last_range
    lay = layout.starts[a : b + 1].clip(low + window.start, low + window.stop)
    head = layout.first[a:b] + lay[:-1] - layout.starts[a:b]
    return layout.blocks[a:b], head, head + np.diff(lay)


def window_draw(layout: Layout, window: Window) -> tuple[Int64Array, Int64Array]:
    """The rows of a window in the order of yielding: (piece of the window, ordinal in the piece's block), int64 [rows] each."""
    order = layout.order
    _, head, tail = window_pieces(layout, window)
    if not order.permutes_rows:
        piece = np.repeat(np.arange(len(head)), tail - head)
        return piece, np.arange(window.num_rows) + (head - (np.cumsum(tail - head) - (tail - head)))[piece]
    r = order.run_rows
    runs = (tail - 1) // r - head // r + 1
    piece = np.repeat(np.arange(len(runs)), runs)
    grid = np.arange(len(piece)) - np.repeat(np.cumsum(runs) - runs - head // r, runs)
    begin = np.maximum(grid * r, head[piece])
    drawn = permutation(len(piece), make_key(ORDER_VERSION, order.seed, order.epoch, window.shard, window.start))
    if r == 1:
        return piece[drawn], begin[drawn]
    length = (np.minimum(grid * r + r, tail[piece]) - begin)[drawn]
    piece, begin = piece[drawn], begin[drawn]
    row = np.arange(window.num_rows) + np.repeat(begin - (np.cumsum(length) - length), length)
    return np.repeat(piece, length), row


def most_window_rows(num_rows: int, block_rows: int, order: Order) -> int:
    """Rows of a window at most, of a plan of so many rows whose largest block has `block_rows`."""
    shard_rows = -(-num_rows // order.shards)
    return shard_rows if order.mode == "full" else min(shard_rows, (order.window_rows if order.permutes_rows else 0) + block_rows)


def rank_shards(shards: int, rank: int, world_size: int) -> range:
    """The shards a rank reads. Where W divides C it owns C / W; else it is still exact, and each shard is read by W / gcd(C, W) ranks."""
    step = math.gcd(shards, world_size)
    return range(rank % step, shards, step)


def rows_dealt(position: int, shard: int, shards: int) -> int:
    """Rows of a shard among the first `position` positions."""
    return max(0, -((shard - position) // shards))


def num_batches(num_rows: int, position: int, batch_rows: int, remainder: str) -> int:
    """Global batches from a position on; the same number on every rank."""
    left = max(num_rows - position, 0)
    return left // batch_rows if remainder == "drop" else -(-left // batch_rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardSlice:
    """A rank's rows of one shard in one batch: shard rows start, start + step, … below stop."""

    shard: int
    start: int
    stop: int
    step: int

    @property
    def num_rows(self) -> int:
        return len(range(self.start, self.stop, self.step))


def rank_slices(shards: int, position: int, stop: int, rank: int, world_size: int) -> list[ShardSlice]:
    """A rank's part of positions [position, stop), shard by shard."""
    step = world_size // math.gcd(shards, world_size)
    slices = []
    for shard in rank_shards(shards, rank, world_size):
        first, last = rows_dealt(position, shard, shards), rows_dealt(stop, shard, shards)
        while first < last and (first * shards + shard) % world_size != rank:
            first += 1
        if first < last:
            slices.append(ShardSlice(shard=shard, start=first, stop=last, step=step))
    return slices


def rank_windows(layout: Layout, position: int, rank: int, world_size: int, stop: int | None = None) -> Iterator[Window]:
    """The windows a rank needs for positions [position, stop), in the order in which it needs them.

    The position of a window's first needed row decides, so that refills of the shards come spread as the order spreads them.
    """
    shards, stop = layout.order.shards, layout.num_rows if stop is None else stop
    heap: list[tuple[int, int, int, int, int]] = []  # position, shard, row, step, past the last row
    for part in rank_slices(shards, position, stop, rank, world_size):
        heapq.heappush(heap, (part.start * shards + part.shard, part.shard, part.start, part.step, part.stop))
    while heap:
        _, shard, row, step, last = heapq.heappop(heap)
        window = window_at(layout, shard, row)
        yield window
        after = row + -(-(window.stop - row) // step) * step  # this rank's first row past the window
        if after < last:
            heapq.heappush(heap, (after * shards + shard, shard, after, step, last))
