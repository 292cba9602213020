"""Key runs and paged key indexes find what a dict finds; the native kernels and the NumPy reference give the same arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.errors import CorruptSegmentError
from loader.kernels import native
from loader.segment import key_run
from loader.segment.key_index import Keys, build, build_bloom, keys_of
from loader.segment.key_pages import KeyPages
from loader.segment.key_run import Alive, KeyRun
from loader.segment.layout import Section
from loader.segment.reader import SegmentReader
from loader.segment.writer import encode_segment

I64 = np.ndarray[Any, np.dtype[np.int64]]
LOW_WORDS = st.one_of(st.integers(0, 3), st.integers((1 << 64) - 3, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.just(1 << 63))


@st.composite
def runs(draw: st.DrawFn, wide: bool) -> tuple[KeyRun, Alive]:
    """A run of a few segments, keys repeated among them, some segments and rows dead."""
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    words = draw(st.lists(LOW_WORDS, min_size=1, max_size=8))
    parts = []
    for ordinal, size in enumerate(sizes):
        low = np.array(draw(st.lists(st.sampled_from(words), min_size=size, max_size=size)), np.uint64)
        high = np.array(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)), np.uint64) if wide else None
        keys = Keys(low, high)
        order = keys.order()
        run = KeyRun(keys.take(order), order.astype(np.uint32), np.array([0, size], np.uint64), np.array([10 * ordinal]))
        parts.append(Alive(run, np.ones(1, bool), [None]))
    merged = key_run.merge(parts)
    accept = np.array(draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))), bool)
    dead = [np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool) if draw(st.booleans()) else None for size in sizes]
    return merged, Alive(merged, accept, dead)


@settings(max_examples=150)
@given(data=st.data(), wide=st.booleans())
def test_finds_an_entry_of_a_live_row_and_nothing_else(data: st.DataObject, wide: bool) -> None:
    run, alive = data.draw(runs(wide))
    low = np.array(data.draw(st.lists(LOW_WORDS, max_size=20)), np.uint64)
    wanted = Keys(np.concatenate([low, run.keys.low]), np.concatenate([np.zeros(len(low), np.uint64), run.keys.high]) if run.keys.high is not None else None)
    pairs = list(zip(run.keys.low.tolist(), run.keys.low.tolist() if run.keys.high is None else run.keys.high.tolist(), strict=True))
    own = np.flatnonzero(alive.entries()).tolist()
    segments, rows = run.rows(np.arange(len(run)))
    where: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for entry in own:
        where.setdefault(pairs[entry], set()).add((int(run.segments[segments[entry]]), int(rows[entry])))
    asked = list(zip(wanted.low.tolist(), wanted.low.tolist() if wanted.high is None else wanted.high.tolist(), strict=True))
    for library in (native.load(), None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "load", lambda library=library: library)
            found, at = np.full(len(wanted), -1), np.full(len(wanted), -1)
            key_run.probe(alive, wanted, found, at)
            for key, segment, row in zip(asked, found.tolist(), at.tolist(), strict=True):
                assert (segment, row) in where[key] if key in where else (segment, row) == (-1, -1)
            again, rows_again = found.copy(), at.copy()
            key_run.probe(Alive(run, np.zeros(len(run.segments), bool), alive.dead), wanted, again, rows_again)
            assert np.array_equal(again, found) and np.array_equal(rows_again, at), "what is found already stays"


@settings(max_examples=100)
@given(data=st.data(), wide=st.booleans(), count=st.integers(1, 5))
def test_merged_runs_hold_the_live_entries_alone_in_order(data: st.DataObject, wide: bool, count: int) -> None:
    parts = [data.draw(runs(wide))[1] for _ in range(count)]
    merged = key_run.merge(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "load", lambda: None)
        expected = key_run.merge(parts)
        assert np.array_equal(merged.bloom, expected.bloom)
    assert np.array_equal(merged.keys.low, expected.keys.low) and np.array_equal(merged.places, expected.places)
    assert (merged.keys.high is None) == (expected.keys.high is None)
    assert merged.keys.high is None or np.array_equal(merged.keys.high, expected.keys.high)
    assert np.array_equal(merged.bases, expected.bases) and np.array_equal(merged.segments, expected.segments)
    assert len(merged) == sum(int(part.entries().sum()) for part in parts)
    segments, rows = merged.rows(np.arange(len(merged)))
    entries = sorted(zip(merged.keys.low.tolist(), merged.segments[segments].tolist(), rows.tolist(), strict=True))
    live = []
    for part in parts:
        kept = np.flatnonzero(part.entries())
        found, at = part.run.rows(kept)
        live += list(zip(part.run.keys.low[kept].tolist(), part.run.segments[found].tolist(), at.tolist(), strict=True))
    assert entries == sorted(live)


def test_a_key_costs_what_the_design_says() -> None:
    run = KeyRun.of(0, indexed(keys_of([pa.array(np.arange(100_000))])).load())
    assert run.num_bytes / len(run) == pytest.approx(13.5, abs=0.1)


def test_many_runs_of_many_keys_are_merged_like_two() -> None:
    rng = np.random.default_rng(5)
    words = rng.permutation(400_000).astype(np.int64)
    parts = [KeyRun.of(at, indexed(keys_of([pa.array(words[at::7])])).load()) for at in range(7)]
    merged = key_run.merge([Alive(run, np.ones(1, bool), [None]) for run in parts])
    found, rows = np.full(len(words), -1), np.full(len(words), -1)
    key_run.probe(Alive(merged, np.ones(7, bool), [None] * 7), keys_of([pa.array(words)]), found, rows)
    assert np.array_equal(found, np.arange(len(words)) % 7) and np.array_equal(rows, np.arange(len(words)) // 7)
    assert np.array_equal(merged.bloom, build_bloom(merged.keys.low, len(merged.bloom) // 8))


class Counting:
    """A segment in memory that counts the bytes read of it."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.num_bytes, self.read = memoryview(data), len(data), 0

    def read_ranges(self, ranges: Any) -> list[memoryview]:
        self.read += sum(size for _, size in ranges)
        return [self.data[start : start + size] for start, size in ranges]


def segment_of(keys: Keys) -> bytearray:
    return bytearray(encode_segment(pa.table({"x": pa.nulls(len(keys), pa.int8())}), column_ids=[1], key_index=build(keys)).data)


def indexed(keys: Keys, source: Any = None) -> KeyPages:
    pages = SegmentReader(segment_of(keys) if source is None else source).pages(Section.KEY_INDEX)
    assert pages is not None
    return KeyPages(pages, "segment 1")


@settings(max_examples=30, deadline=None)
@given(data=st.data(), shape=st.sampled_from(["even", "clustered", "equal halves", "strings", "one"]), seed=st.integers(0, 1 << 20))
def test_pages_find_what_the_whole_index_finds(data: st.DataObject, shape: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 1 if shape == "one" else data.draw(st.integers(0, 4000))
    if shape == "strings":
        keys = keys_of([pa.array([f"k{n}" for n in rng.permutation(count)], pa.string())])
    elif shape == "equal halves":
        keys = Keys(rng.integers(0, 3, count, dtype=np.uint64), rng.permutation(count).astype(np.uint64))
    elif shape == "clustered":
        keys = Keys(np.unique((np.float64(2) ** rng.uniform(0, 63.9, count)).astype(np.uint64)), None)
    else:
        keys = Keys(rng.permutation(count).astype(np.uint64) * np.uint64(1 << 50), None)
    strangers = Keys(keys.low + np.uint64(1), keys.high)
    rows = rng.permutation(len(keys))[:50]
    pages, whole = indexed(keys), indexed(keys).load()
    for wanted in (keys.take(rows), strangers.take(rows), Keys(np.array([0, (1 << 64) - 1], np.uint64), None if keys.high is None else np.zeros(2, np.uint64))):
        assert pages.probe(wanted).tolist() == whole.probe(wanted).tolist()
    accept = rng.random(len(keys)) < 0.5
    assert pages.probe(keys, accept).tolist() == np.where(accept, whole.probe(keys), -1).tolist()


def test_a_key_is_found_in_a_few_pages_of_many() -> None:
    keys = keys_of([pa.array(np.random.default_rng(2).integers(0, 1 << 40, 200_000))])
    source = Counting(segment_of(keys))
    pages = indexed(keys, source)
    opened = source.read
    assert pages.probe(keys.slice(7, 8)).tolist() == [7]
    bloom = 200_000 * 1.5
    assert source.read - opened < bloom + 20 * 4096 < 0.15 * source.num_bytes
    assert pages.loaded_bytes < bloom + 20 * 4096


def test_a_damaged_page_is_named_and_not_believed() -> None:
    keys = keys_of([pa.array(np.arange(5000))])
    data = segment_of(keys)
    at = bytes(data).index(keys.low[2000:2010].astype("<u8").tobytes())
    data[at] ^= 1
    with pytest.raises(CorruptSegmentError, match="section KEY_INDEX"):
        indexed(keys, data).probe(keys)


@pytest.mark.parametrize("wide", [False, True])
def test_many_keys_in_a_run_larger_than_caches(wide: bool) -> None:
    random = np.random.default_rng(5)
    low = random.integers(0, 1 << 64, (1 << 20) + 5, dtype=np.uint64, endpoint=False)
    low[:3], low[3:5_000] = (0, (1 << 64) - 1, 1 << 63), random.integers(1 << 40, (1 << 40) + 3_000, 4_997)  # the ends, and keys that lie close, some twice
    high = random.integers(0, 4, len(low)).astype(np.uint64) if wide else None
    keys = Keys(low, high)
    order = keys.order()
    run = KeyRun(keys.take(order), order.astype(np.uint32), np.array([0, 400_000, len(low)], np.uint64), np.array([7, 9]))
    chosen = np.append(np.arange(6_000), random.choice(len(low), 9_000, replace=False))
    wanted = Keys.concat([keys.take(chosen), Keys(random.integers(0, 1 << 64, 2_000, dtype=np.uint64), None if high is None else np.zeros(2_000, np.uint64))])
    alive = Alive(run, np.array([True, False]), [None, None])
    found, rows = np.full(len(wanted), -1), np.full(len(wanted), -1)
    found[::5] = 3  # found before: passed over
    key_run.probe(alive, wanted, found, rows)
    words = {(int(a), 0 if high is None else int(high[at])) for at, a in enumerate(low[:400_000].tolist())}
    for at, word in enumerate(wanted.low.tolist()):
        there = (word, 0 if wanted.high is None else int(wanted.high[at])) in words
        assert found[at] == (3 if at % 5 == 0 else 7 if there else -1)
        if found[at] == 7:
            assert low[rows[at]] == word
            assert high is None or wanted.high is None or high[rows[at]] == wanted.high[at]
