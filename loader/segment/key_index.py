"""The key index: sorted keys with their rows and a Bloom filter. Owns key words, hashes, the section's bytes and the probe; reads no storage.

A key is one u64 word (a primary key of one integer column) or two (a 128-bit hash of the key's values). FORMAT.md states the layout, the hash and the filter
with worked examples.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.errors import CorruptSegmentError, SchemaError, UnsupportedVersionError
from loader.kernels import native
from loader.segment.layout import ALIGNMENT, round_up

U64 = npt.NDArray[np.uint64]
KEY_INDEX_VERSION = 1
HEADER = np.dtype(
    [
        ("version", "<u4"),
        ("key_bytes", "<u4"),
        ("num_keys", "<u8"),
        ("bloom_blocks", "<u8"),
        ("min_key", "<u8"),
        ("max_key", "<u8"),
        ("reserved", "V24"),
    ]
)
BLOOM_BITS_PER_KEY = 12
MAX_KEY_BYTES = 4096  # of one string or binary value
SALT = np.array([0x47B6137B, 0x44974D91, 0x8824AD5B, 0xA2B7289D, 0x705495C7, 0x2DF1424B, 0x9EFC4947, 0x5C6BFB31], np.uint32)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_SIGN = np.uint64(1 << 63)
_LOW_SEED, _HIGH_SEED = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_LOW_ODD, _HIGH_ODD = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_BUCKET_SEED = np.uint64(0x165667B19E3779F9)
_NULL_WORD = np.uint64(0x27D4EB2F165667C5)


@dataclasses.dataclass(frozen=True)
class Keys:
    """Key words of n rows.

    Attributes:
        low: u64[n].
        high: u64[n] for 16-byte keys, else None.
    """

    low: U64
    high: U64 | None

    def __len__(self) -> int:
        return len(self.low)

    @property
    def key_bytes(self) -> int:
        return 8 if self.high is None else 16

    def take(self, rows: npt.NDArray[np.integer]) -> Keys:
        return Keys(self.low[rows], None if self.high is None else self.high[rows])

    def slice(self, start: int, stop: int) -> Keys:
        return Keys(self.low[start:stop], None if self.high is None else self.high[start:stop])

    def order(self) -> npt.NDArray[np.int64]:
        """Positions that sort the keys; equal keys keep their order."""
        return np.argsort(self.low, kind="stable") if self.high is None else np.lexsort((self.high, self.low))

    def first_twice(self, parts: npt.NDArray[np.int64] | None = None) -> tuple[int, int] | None:
        """Positions of two rows with one key, or None. With the part of each row (rising): of two in one part."""
        order = self.order()
        same = self.low[order[1:]] == self.low[order[:-1]]
        if self.high is not None:
            same &= self.high[order[1:]] == self.high[order[:-1]]
        if parts is not None:
            same &= parts[order[1:]] == parts[order[:-1]]
        at = np.flatnonzero(same)
        return None if len(at) == 0 else (int(order[at[0]]), int(order[at[0] + 1]))

    @staticmethod
    def concat(parts: Sequence[Keys]) -> Keys:
        highs = [part.high for part in parts if part.high is not None]
        return Keys(np.concatenate([part.low for part in parts]), np.concatenate(highs) if highs else None)


def mix(x: U64) -> U64:
    """A bijection of 64-bit words that spreads every bit."""
    x = x ^ (x >> _HALF)
    x = x * _MIX
    x ^= x >> _HALF
    x *= _MIX
    x ^= x >> _HALF
    return x


def bucket_of(keys: Keys, buckets: int) -> npt.NDArray[np.int64]:
    """The bucket of each key, i64[n] in 0 … buckets − 1."""
    return (((mix(keys.low + _BUCKET_SEED) >> _HALF) * np.uint64(buckets)) >> _HALF).astype(np.int64)


def spread(keys: Keys) -> U64:
    """A word for each key, the same for equal keys, evenly spread; in the order of the buckets, and keys that share their low word are apart too."""
    low = mix(keys.low + _BUCKET_SEED)
    return low if keys.high is None else (low >> _HALF << _HALF) | (mix(keys.high + _BUCKET_SEED) >> _HALF)


def signed(word: int) -> int:
    """A key word as the signed number of the same order, for SQL's integers."""
    return word - (1 << 63)


def is_key_type(kind: pa.DataType) -> bool:
    """Whether a column of this type can be in a key."""
    types = pa.types
    return bool(types.is_integer(kind) or types.is_boolean(kind) or types.is_date(kind) or types.is_timestamp(kind) or _is_bytes(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind))


def keys_of(columns: Sequence[pa.ChunkedArray | pa.Array], *, hashed: bool = False) -> Keys:
    """The key words of rows.

    Args:
        columns: The key's columns, in order, of types that `is_key_type` accepts.
        hashed: Hash even a single integer column (used for the bucket of columns that are no key).

    Raises:
        SchemaError: A string is longer than MAX_KEY_BYTES.
    """
    arrays: list[pa.Array] = [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns]
    if not hashed and len(arrays) == 1 and pa.types.is_integer(arrays[0].type):
        words = _integer_words(arrays[0])
        return Keys(words if pa.types.is_uint64(arrays[0].type) else words ^ _SIGN, None)
    num_rows = len(arrays[0])
    low, high = np.full(num_rows, _LOW_SEED), np.full(num_rows, _HIGH_SEED)
    for array in arrays:
        valid = None if array.null_count == 0 else array.is_valid().to_numpy(zero_copy_only=False)
        if _is_bytes(array.type):
            low, high = _fold_bytes(low, high, array)
        else:
            words = _integer_words(array)
            low, high = _fold(low, high, words if valid is None else np.where(valid, words, _NULL_WORD))
        if valid is not None:
            low, high = (np.where(valid, lane, mix(lane + _NULL_WORD)) for lane in (low, high))
    return Keys(low, high)


def _integer_words(array: pa.Array) -> U64:
    kind = array.type
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif pa.types.is_date32(kind):
        array = array.view(pa.int32())
    elif pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        array = array.view(pa.int64())
    values = (array.fill_null(0) if array.null_count else array).to_numpy(zero_copy_only=False)
    words: U64 = (values if values.dtype.itemsize == 8 else values.astype(np.int64)).view(np.uint64)
    return words


def _fold(low: U64, high: U64, words: U64) -> tuple[U64, U64]:
    return mix(low * _LOW_ODD + mix(words + _LOW_SEED)), mix(high * _HIGH_ODD + mix(words + _HIGH_SEED))


def _fold_bytes(low: U64, high: U64, array: pa.Array) -> tuple[U64, U64]:
    """Fold strings in: a pass for each eight bytes, over the rows that are long enough."""
    array = array.cast(pa.large_binary())
    array = array.fill_null(b"") if array.null_count else array  # whatever bytes lie under a null
    offsets = np.frombuffer(array.buffers()[1], np.int64, count=len(array) + 1, offset=array.offset * 8) if len(array) else np.zeros(1, np.int64)
    lengths = np.diff(offsets)
    if len(lengths) and int(lengths.max()) > MAX_KEY_BYTES:
        raise SchemaError(f"a key value has {int(lengths.max())} bytes: at most {MAX_KEY_BYTES} are allowed in a key")
    data = array.buffers()[2]
    padded = np.zeros(int(offsets[-1] - offsets[0]) + 8, np.uint8)
    if data is not None and len(padded) > 8:
        padded[:-8] = np.frombuffer(data, np.uint8, count=len(padded) - 8, offset=int(offsets[0]))
    starts = offsets[:-1] - offsets[0]
    low, high = _fold(low, high, lengths.view(np.uint64))
    rows = np.flatnonzero(lengths)
    done = 0
    while len(rows):
        at = starts[rows] + done
        bytes_left = np.minimum(lengths[rows] - done, 8)
        words = padded[at[:, None] + np.arange(8)].view("<u8").ravel()
        keep = np.where(bytes_left == 8, np.uint64(0xFFFFFFFFFFFFFFFF), (np.uint64(1) << (bytes_left.astype(np.uint64) * np.uint64(8))) - np.uint64(1))
        low[rows], high[rows] = _fold(low[rows], high[rows], words & keep)
        done += 8
        rows = rows[lengths[rows] > done]
    return low, high


def build(keys: Keys) -> bytes:
    """The section of rows 0 … n − 1, whose keys are given in the order of rows."""
    order = keys.order()
    low = keys.low[order]
    blocks = int(bloom_blocks(np.array(len(keys))))
    header = np.zeros(1, HEADER)
    header["version"], header["key_bytes"], header["num_keys"], header["bloom_blocks"] = KEY_INDEX_VERSION, keys.key_bytes, len(keys), blocks
    if len(keys):
        header["min_key"], header["max_key"] = low[0], low[-1]
    parts = [header.tobytes(), low.astype("<u8").tobytes()]
    if keys.high is not None:
        parts.append(keys.high[order].astype("<u8").tobytes())
    parts += [order.astype("<u4").tobytes(), build_bloom(low, blocks).tobytes()]
    return b"".join(part.ljust(round_up(len(part)), b"\0") for part in parts)


def read_header(start: bytes | memoryview, num_bytes: int) -> npt.NDArray[np.void]:
    """The checked header of a section, one HEADER record.

    Args:
        start: Its first bytes, or all.
        num_bytes: Of the section.

    Raises:
        UnsupportedVersionError: A newer key index.
        CorruptSegmentError: The section is shorter than its header says.
    """
    if num_bytes < HEADER.itemsize:
        raise CorruptSegmentError(f"key index has {num_bytes} bytes, its header alone {HEADER.itemsize}")
    header = np.frombuffer(start, HEADER, count=1)
    if header["version"][0] > KEY_INDEX_VERSION:
        raise UnsupportedVersionError(f"key index has version {header['version'][0]}, this Headrace reads up to {KEY_INDEX_VERSION}: upgrade headrace")
    count, blocks, key_bytes = int(header["num_keys"][0]), int(header["bloom_blocks"][0]), int(header["key_bytes"][0])
    if key_bytes not in (8, 16) or count >= 1 << 32 or blocks == 0 or HEADER.itemsize + sum(map(round_up, array_sizes(header))) > num_bytes:
        raise CorruptSegmentError(f"key index of {num_bytes} bytes does not hold {count} keys of {key_bytes} bytes and {blocks} filter blocks")
    return header


def array_sizes(header: npt.NDArray[np.void]) -> list[int]:
    """Bytes of low words, high words if there are any, rows and filter, which follow the header in this order, each on ALIGNMENT."""
    count, blocks = int(header["num_keys"][0]), int(header["bloom_blocks"][0])
    return [8 * count, *([8 * count] if header["key_bytes"][0] == 16 else []), 4 * count, 32 * blocks]


def build_all(keys: Keys, bounds: Sequence[int]) -> list[bytes | memoryview]:
    """The sections of several segments.

    Args:
        keys: Of the rows of all of them.
        bounds: The first row of each segment, and behind them the number of rows.
    """
    library = native.load()
    if library is None:
        return [build(keys.slice(start, stop)) for start, stop in itertools.pairwise(bounds)]
    edges = np.array(bounds, np.int64)
    counts = edges[1:] - edges[:-1]
    blocks = bloom_blocks(counts)
    arrays: list[npt.NDArray[np.int64]] = [8 * counts] * (1 if keys.high is None else 2) + [4 * counts, 32 * blocks]
    sizes = HEADER.itemsize + np.sum([-(-size // ALIGNMENT) * ALIGNMENT for size in arrays], axis=0)
    offsets = np.cumsum(sizes) - sizes
    built = library.build_key_indexes(keys.low, keys.high, np.array(bounds, np.uint64), blocks, offsets, int(sizes.sum())).data.toreadonly()
    return [built[start : start + size] for start, size in zip(offsets.tolist(), sizes.tolist(), strict=True)]


def bloom_blocks(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.maximum(-(-counts * BLOOM_BITS_PER_KEY // 256), 1)


def build_bloom(low: U64, blocks: int) -> npt.NDArray[np.uint32]:
    block, bits = bloom_bits(low, blocks)
    flags = np.zeros((blocks, 8, 32), bool)
    for word in range(8):
        flags[block, word, bits[word]] = True
    return np.packbits(flags.reshape(-1), bitorder="little").view("<u4")


def bloom_bits(low: U64, blocks: int) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.uint32]]]:
    """The block of each key, and its bit in each of the block's eight words."""
    hashes = mix(low)
    block = (((hashes >> _HALF) * np.uint64(blocks)) >> _HALF).astype(np.int64)
    x = hashes.astype(np.uint32)
    return block, [(x * salt) >> np.uint32(27) for salt in SALT]


def in_bloom(bloom: npt.NDArray[np.uint32], low: U64) -> npt.NDArray[np.bool_]:
    """Which low words pass a filter (u32[8 · blocks]), bool[n]."""
    block, bits = bloom_bits(low, len(bloom) // 8)
    found = np.ones(len(low), bool)
    for word in range(8):
        found &= ((bloom[block * 8 + word] >> bits[word]) & np.uint32(1)).astype(bool)
    return found


class KeyIndex:
    """An opened key index section; its arrays are views of the section's bytes.

    Attributes:
        keys: Sorted by low word, then high.
        rows: u32[n], the row of each key.
        bloom: u32[8 · blocks], the filter.
    """

    def __init__(self, keys: Keys, rows: npt.NDArray[np.uint32], bloom: npt.NDArray[np.uint32]) -> None:
        self.keys = keys
        self.rows = rows
        self.bloom = bloom

    @classmethod
    def open(cls, section: bytes | memoryview) -> KeyIndex:
        """Check the header and bounds and view the arrays.

        Raises:
            UnsupportedVersionError: A newer key index.
            CorruptSegmentError: The section is shorter than its header says, or rows are out of range.
        """
        header = read_header(section, len(section))
        count = int(header["num_keys"][0])
        index = cls.view(section, count, int(header["key_bytes"][0]), int(header["bloom_blocks"][0]))
        if count and int(index.rows.max()) >= count:
            raise CorruptSegmentError(f"key index of {count} keys points to row {int(index.rows.max())}")
        return index

    @classmethod
    def view(cls, section: bytes | memoryview, count: int, key_bytes: int, blocks: int) -> KeyIndex:
        """The arrays of a section that is known to hold together."""
        at = HEADER.itemsize
        low = np.frombuffer(section, "<u8", count=count, offset=at)
        at += round_up(8 * count)
        high = None
        if key_bytes == 16:
            high = np.frombuffer(section, "<u8", count=count, offset=at)
            at += round_up(8 * count)
        rows = np.frombuffer(section, "<u4", count=count, offset=at)
        return cls(Keys(low, high), rows, np.frombuffer(section, "<u4", count=8 * blocks, offset=at + round_up(4 * count)))

    def __len__(self) -> int:
        return len(self.rows)

    def may_contain(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which keys pass the range and the Bloom filter: no false negatives, about 0.5% false positives."""
        if len(self) == 0:
            return np.zeros(len(keys), bool)
        passed: npt.NDArray[np.bool_] = (keys.low >= self.keys.low[0]) & (keys.low <= self.keys.low[-1])
        at = np.flatnonzero(passed)
        passed[at] = in_bloom(self.bloom, keys.low[at])
        return passed

    def probe(self, keys: Keys) -> npt.NDArray[np.int64]:
        """The row of each key, i64[n]; −1 where the segment has no such key."""
        found = np.full(len(keys), -1, np.int64)
        candidates = np.flatnonzero(self.may_contain(keys))
        at = search(self.keys, keys.take(candidates))
        hit = at >= 0
        found[candidates[hit]] = self.rows[at[hit]]
        return found


def search(run: Keys, keys: Keys, accept: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int64]:
    """Find keys in a sorted run.

    Args:
        run: Keys sorted by low word; equal ones may repeat.
        keys: What to find, in any order.
        accept: bool[len(run)]: entries that count; default all.

    Returns:
        The position of an accepted entry of each key, i64[len(keys)], or −1.
    """
    found = np.full(len(keys), -1, np.int64)
    if len(run) == 0 or len(keys) == 0:
        return found
    order = np.argsort(keys.low)  # sorted needles walk the run once
    at = np.searchsorted(run.low, keys.low[order]).astype(np.int64)
    while len(order):
        inside = at < len(run)
        order, at = order[inside], at[inside]
        same = run.low[at] == keys.low[order]
        order, at = order[same], at[same]
        hit = np.ones(len(order), bool) if run.high is None or keys.high is None else run.high[at] == keys.high[order]
        if accept is not None:
            hit &= accept[at]
        found[order[hit]] = at[hit]
        order, at = order[~hit], at[~hit] + 1
    return found
