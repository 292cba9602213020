"""The key index finds every key, no other, whatever the key's type."""

from __future__ import annotations

import datetime
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.errors import CorruptSegmentError, SchemaError, UnsupportedVersionError
from loader.segment.key_index import HEADER, KeyIndex, Keys, bucket_of, build, build_all, keys_of, search, signed

COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
    "int64": (pa.int64(), st.integers(-(1 << 63), (1 << 63) - 1)),
    "uint64": (pa.uint64(), st.integers(0, (1 << 64) - 1)),
    "int8": (pa.int8(), st.integers(-128, 127)),
    "string": (pa.string(), st.text(max_size=20)),
    "binary": (pa.large_binary(), st.binary(max_size=20)),
    "date": (pa.date32(), st.dates(datetime.date(1900, 1, 1))),
    "timestamp": (pa.timestamp("us"), st.datetimes()),
    "bool": (pa.bool_(), st.booleans()),
}


def test_what_lies_under_a_null_does_not_move_it_to_another_bucket() -> None:
    offsets = pa.py_buffer(np.array([0, 3, 6, 8], np.int32).tobytes())
    dirty = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"abcdefgh"), pa.py_buffer(bytes([0b101])), 1)
    clean = pa.array(["abc", None, "gh"])
    assert dirty.equals(clean)
    assert keys_of([dirty], hashed=True).low.tolist() == keys_of([clean], hashed=True).low.tolist()


@given(data=st.data(), kinds=st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=3))
def test_finds_each_key_at_its_row_and_nothing_else(data: st.DataObject, kinds: list[str]) -> None:
    rows = data.draw(st.lists(st.tuples(*(COLUMNS[kind][1] for kind in kinds)), unique=True, max_size=60))
    keys = keys_of([pa.array([row[at] for row in rows], COLUMNS[kind][0]) for at, kind in enumerate(kinds)])
    half = len(rows) // 2
    index = KeyIndex.open(build(keys.slice(0, half)))
    assert index.probe(keys).tolist() == [*range(half), *[-1] * (len(rows) - half)]
    assert keys.first_twice() is None


def test_integer_keys_keep_their_order() -> None:
    values = [-(1 << 63), -5, 0, 3, (1 << 63) - 1]
    words = keys_of([pa.array(values)]).low.tolist()
    assert words == sorted(words)
    assert [signed(word) for word in words] == values


def test_equal_values_have_equal_words_however_they_are_stored() -> None:
    text = ["", "a", "exactly8", "nine chars", "é" * 20]
    plain = keys_of([pa.array(text)])
    padded = pa.array(["xx", *text, "yy"])
    for other in (pa.array(text, pa.large_string()), padded.slice(1, 5), pa.chunked_array([text[:2], text[2:]])):
        again = keys_of([other])
        assert (again.low == plain.low).all() and (again.high == plain.high).all()


def test_column_boundaries_and_lengths_count() -> None:
    left = keys_of([pa.array(["ab", "a", ""]), pa.array(["c", "bc", "abc"])])
    assert len(set(left.low.tolist())) == 3
    assert len(set(keys_of([pa.array([b"a", b"a\0", b"a\0\0"])]).low.tolist())) == 3


def test_same_low_word_and_dead_entries_are_told_apart() -> None:
    run = Keys(np.array([5, 5, 5, 9], np.uint64), np.array([1, 2, 2, 3], np.uint64))
    wanted = Keys(np.array([5, 5, 9, 9], np.uint64), np.array([2, 3, 3, 4], np.uint64))
    assert search(run, wanted).tolist() == [1, -1, 3, -1]
    assert search(run, wanted, np.array([True, False, True, False])).tolist() == [2, -1, -1, -1]


def test_the_filter_drops_nearly_all_strangers() -> None:
    rng = np.random.default_rng(3)
    words = rng.choice(1 << 62, 40_000, replace=False)
    index = KeyIndex.open(build(keys_of([pa.array(words[:20_000])])))
    strangers = keys_of([pa.array(words[20_000:])])
    assert index.may_contain(strangers).mean() < 0.02
    assert index.may_contain(keys_of([pa.array(words[:20_000])])).all()


def test_buckets_are_even() -> None:
    counts = np.bincount(bucket_of(keys_of([pa.array(np.arange(80_000))]), 8), minlength=8)
    assert counts.min() > 9_500


def test_twice_the_same_key_is_found() -> None:
    assert keys_of([pa.array([4, 9, 7, 9])]).first_twice() == (1, 3)


def test_refuses_what_it_cannot_read() -> None:
    section = bytearray(build(keys_of([pa.array([1, 2, 3])])))
    with pytest.raises(CorruptSegmentError, match="header alone"):
        KeyIndex.open(bytes(section[:10]))
    with pytest.raises(CorruptSegmentError, match="does not hold"):
        KeyIndex.open(bytes(section[:100]))
    newer = bytearray(section)
    newer[0] = 2
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        KeyIndex.open(bytes(newer))
    wrong = bytearray(section)
    wrong[HEADER.itemsize + 64] = 200
    with pytest.raises(CorruptSegmentError, match="row 200"):
        KeyIndex.open(bytes(wrong))
    with pytest.raises(SchemaError, match="at most 4096"):
        keys_of([pa.array(["x" * 5000])])


@given(count=st.integers(0, 300), hashed=st.booleans(), cuts=st.lists(st.integers(0, 300), max_size=4), seed=st.integers(0, 1 << 20))
def test_sections_built_together_are_those_built_alone(count: int, hashed: bool, cuts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = rng.integers(0, 40 if hashed else 1 << 40, count, dtype=np.uint64), rng.integers(0, 9, count, dtype=np.uint64)
    keys = Keys(low, high if hashed else None)
    bounds = sorted({0, count, *(cut for cut in cuts if cut < count)})
    built = build_all(keys, bounds)
    assert len(built) == len(bounds) - 1
    for section, (start, stop) in zip(built, itertools.pairwise(bounds), strict=True):
        own = keys.slice(start, stop)
        assert bytes(section) == build(own)
        assert (KeyIndex.open(section).probe(own) >= 0).all()
