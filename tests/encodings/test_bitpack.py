"""Packed streams hold what FORMAT.md says, value by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.encodings import bitpack
from loader.encodings.bits import pack_bits, rank_anchors, unpack_bits
from loader.errors import CorruptSegmentError

Array = np.ndarray[Any, np.dtype[Any]]


def stream(count: int, seed: int) -> Array:
    """uint32 values with another width in each vector."""
    rng = np.random.default_rng(seed)
    widths = np.repeat(rng.integers(0, 33, bitpack.num_vectors(count)), 1024)[:count]
    values = rng.integers(0, 1 << 32, count, dtype=np.uint64) >> (32 - widths).astype(np.uint64)
    return (values + np.uint64(rng.integers(0, 1 << 32))).astype(np.uint32)


def value_of(words: Array, meta: Array, index: int) -> int:
    """One value, read as FORMAT.md describes it and in no other way."""
    record, place = meta[index // 1024], index % 1024
    row, lane, width = place // 32, place % 32, int(record["width"])
    if not width:
        return int(record["base"])
    word, shift = divmod(row * width, 32)
    at = int(record["word_offset"]) + word * 32 + lane
    bits = int(words[at]) >> shift
    if shift + width > 32:
        bits |= int(words[at + 32]) << (32 - shift)
    return (bits % (1 << width) + int(record["base"])) % (1 << 32)


@given(st.sampled_from([0, 1, 31, 32, 33, 1023, 1024, 1025, 5000]), st.integers(0, 1 << 32))
def test_every_value_is_where_the_format_says(count: int, seed: int) -> None:
    values = stream(count, seed)
    packing = bitpack.plan(values)
    words, meta = bitpack.pack_reference(values, packing)
    assert words.nbytes + meta.nbytes == packing.num_bytes
    assert np.array_equal(bitpack.unpack(words, meta, count), values)
    for index in range(0, count, 97):
        assert value_of(words, meta, index) == values[index]


@given(st.sampled_from([1, 1023, 1024, 3000]), st.integers(0, 1 << 32))
def test_pack_gives_the_same_bytes_as_the_reference(count: int, seed: int) -> None:
    values = stream(count, seed)
    words, meta = bitpack.pack(values)
    expected_words, expected_meta = bitpack.pack_reference(values, bitpack.plan(values))
    assert words.tobytes() == expected_words.tobytes()
    assert meta.tobytes() == expected_meta.tobytes()


@pytest.mark.parametrize(("field", "value"), [("width", 33), ("word_offset", 1 << 31), ("num_exceptions", 1)])
def test_records_that_do_not_fit_are_refused(field: str, value: int) -> None:
    words, meta = bitpack.pack(np.arange(3000, dtype=np.uint32))
    meta[1][field] = value
    with pytest.raises(CorruptSegmentError):
        bitpack.unpack(words, meta, 3000)


@given(st.sampled_from([0, 1, 31, 32, 1024, 2500]), st.floats(0, 1), st.integers(0, 1 << 32))
def test_bitmaps_and_their_ranks(count: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random(count) < share
    words = pack_bits(mask)
    assert np.array_equal(unpack_bits(words, count), mask)
    assert rank_anchors(words).tolist() == [int(mask[:start].sum()) for start in range(0, count, 1024)]
