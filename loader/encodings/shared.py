"""Dictionaries that the blocks of a column share: hashed ids that occur in several blocks are stored once, in a chunk of their own.

Owns which columns are worth looking at, the dictionary and its chunk, and the codes of a block. Whether it pays is measured by encoding the blocks both ways;
the caller does that and keeps what is smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loader.encodings.builder import ChunkBuilder
from loader.encodings.cascade import choose_stream
from loader.encodings.chooser import encode_entries
from loader.encodings.dictionary import GATHER_NS, best_dictionary, distinct
from loader.encodings.leaf import LeafType
from loader.encodings.options import EncodeOptions
from loader.encodings.shred import Leaf, Node
from loader.encodings.split import Split
from loader.encodings.stream import Stream
from loader.encodings.target import OUT_KINDS, Target
from loader.segment.layout import SHARED_REGION, Role, ValueType

Array = np.ndarray[Any, np.dtype[Any]]
MAX_ENTRIES = 1 << 20  # every block that is read decodes all of them
MIN_BITS = 24  # of the range of values: codes for narrower ones take as much as the values
MAX_DISTINCT = 0.85  # of the sum over blocks: else too little is stored twice
MIN_SAVING = 0.97  # of a column's bytes, for its blocks to hang on a chunk that they share
MAX_SCANNED = 1 << 20  # values of a block that are looked at
MAX_SAMPLE = 1 << 13
_INTEGERS = (ValueType.INT32, ValueType.INT64, ValueType.UINT32, ValueType.UINT64)
_HASH = np.uint64(0x9E37_79B9_7F4A_7C15)


def can_share(leaf: LeafType) -> bool:
    """Whether columns of this type hold ids; of a map, its keys."""
    return leaf.value_type in _INTEGERS and not leaf.fixed_size


def present_values(node: Node) -> Array:
    """The leaf values of a column that are not null."""
    while not isinstance(node, Leaf):
        node = node.child
    return node.values if node.validity is None else node.values[node.validity]


def has_wide_range(values: Array) -> bool:
    """Whether codes for the values may take less than they do."""
    return bool(values.size) and (int(values.max()) - int(values.min())).bit_length() > MIN_BITS


class SharingEstimate:
    """Whether blocks have enough values in common, from a sample of their distinct values: those whose hashes are small, which are the same in every block."""

    def __init__(self) -> None:
        self._samples: list[Array] = []
        self._below = np.uint64(0)

    def add(self, values: Array) -> None:
        """Look at one more block."""
        if not values.size:
            return
        looked_at = np.ascontiguousarray(values[:: -(-values.size // MAX_SCANNED)])
        hashes = looked_at.astype(np.uint64) * _HASH
        if not self._samples:
            # the limit that the first block sets holds for all, so that the same values are in every sample
            self._below = np.uint64(min(MAX_SAMPLE / hashes.size, 1.0) * ((1 << 64) - 2048))
        self._samples.append(np.unique(hashes[hashes <= self._below]))

    @property
    def is_worth_trying(self) -> bool:
        """Whether values that stand in several blocks make up enough of all."""
        apart = sum(sample.size for sample in self._samples)
        return len(self._samples) > 1 and np.unique(np.concatenate(self._samples)).size < MAX_DISTINCT * apart


class PoolCollector:
    """Stands in for a dictionary while blocks are encoded for the first time: notes the values that each block stores."""

    def __init__(self, leaf: LeafType) -> None:
        self._dtype = leaf.dtype
        self.pools: list[Array] = []

    def candidate(self, values: Array, options: EncodeOptions) -> None:
        if values.dtype == self._dtype:
            self.pools.append(values)


class SharedDictionary:
    """The distinct values of several blocks.

    Attributes:
        data: Its chunk: region 0 holds the entries.
        features: Feature bits that decoding the chunk needs.
        text: As `headrace inspect` shows it.
    """

    def __init__(self, pools: Sequence[Array], leaf: LeafType, options: EncodeOptions) -> None:
        """
        Args:
            pools: What blocks store, in the leaf's dtype; at least one value.
            leaf: The column's physical type.
            options: How bytes and time compare.
        """
        self._dtype = leaf.dtype
        found = best_dictionary(np.concatenate(pools), options, lambda entries: encode_entries(entries, options))
        self._limits, self.count = found.limits, found.entries.size
        order = np.argsort(found.entries, kind="stable")
        self._sorted, self._numbers = found.entries[order], order.astype(np.uint32)
        builder = ChunkBuilder()
        region = builder.region(Role.VALUES, depth=0, item_bytes=self._dtype.itemsize, value_type=leaf.value_type, count=self.count)
        self.level = found.values.emit(Target(builder=builder, region=region, out_kind=OUT_KINDS[self._dtype.itemsize], count=self.count))
        self.data, self.features, self.text = builder.finish(0), builder.features, f"shared dictionary[{self.count:,}: {found.values.text}]"

    def candidate(self, values: Array, options: EncodeOptions) -> SharedCodes | None:
        """The values as codes of this dictionary; None where one of them is no entry."""
        if values.dtype != self._dtype:
            return None
        entries, codes, _ = distinct(values)
        at = np.minimum(np.searchsorted(self._sorted, entries), self.count - 1)
        if not np.array_equal(self._sorted[at], entries):
            return None
        numbers = self._numbers[at][codes]
        stream: Stream = Split(numbers, self._limits) if self._limits.size else choose_stream(numbers, options)
        return SharedCodes(self, stream)


class SharedCodes:
    """Values of a block by their numbers in a shared dictionary, whose bytes are counted elsewhere."""

    def __init__(self, dictionary: SharedDictionary, codes: Stream) -> None:
        self._dictionary, self._codes = dictionary, codes
        self.num_bytes = codes.num_bytes
        self.decode_ns = codes.decode_ns + GATHER_NS * codes.count

    @property
    def text(self) -> str:
        return f"{self._dictionary.text}({self._codes.text})"

    def emit(self, target: Target) -> int:
        return target.read(self._codes, dictionary=SHARED_REGION, dict_count=self._dictionary.count, level=self._dictionary.level + 1)
