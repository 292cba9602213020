"""The native encoders give what the NumPy ones in loader/encodings give, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.encodings import bitpack, decimals, delta, dictionary, overlap, split
from loader.kernels import native
from loader.kernels.arrays import Array


@pytest.fixture(autouse=True)
def only_numpy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps loader.encodings from calling what it is compared with."""
    monkeypatch.setenv("HEADRACE_NATIVE", "0")
    yield


counts = st.sampled_from([1, 2, 31, 33, 1023, 1024, 1025, 2049, 5000, 9001])
kinds = st.sampled_from(["uniform", "zipf", "constant", "steps", "rare", "full"])


def stream(kind: str, count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return rng.integers(0, 1 << int(rng.integers(1, 33)), count, dtype=np.uint64).astype(np.uint32)
    if kind == "zipf":
        return np.minimum(rng.zipf(1.3, count), 1 << 31).astype(np.uint32)
    if kind == "constant":
        return np.full(count, rng.integers(0, 1 << 32), np.uint32)
    if kind == "steps":
        return np.cumsum(rng.integers(0, 5, count)).astype(np.uint32)
    if kind == "rare":
        return np.where(rng.random(count) < 0.01, rng.integers(0, 1 << 30, count), rng.integers(0, 4, count)).astype(np.uint32)
    return rng.choice(np.array([0, 1, (1 << 32) - 1, 1 << 31], np.uint32), count)


def both(library: native.NativeLibrary) -> Iterator[None]:
    for portable in (False, True):
        library.force_portable(portable)
        yield
    library.force_portable(False)


@given(kind=kinds, count=counts, seed=st.integers(0, 1 << 20))
def test_packing_with_and_without_exceptions(library: native.NativeLibrary, kind: str, count: int, seed: int) -> None:
    values = stream(kind, count, seed)
    for exceptions, plan in ((False, bitpack.plan(values)), (True, bitpack.plan_exceptions(values))):
        words, meta = bitpack.pack_reference(values, plan)
        for _ in both(library):
            bases, widths, num_words, num_exceptions = library.plan(values, exceptions=exceptions)
            np.testing.assert_array_equal(bases, plan.bases)
            np.testing.assert_array_equal(widths, plan.widths)
            np.testing.assert_array_equal(num_words, plan.words)
            np.testing.assert_array_equal(num_exceptions, 0 if plan.exceptions is None else plan.exceptions)
            got_words, got_meta = library.pack_planned(values, bases, widths, num_words, num_exceptions)
            np.testing.assert_array_equal(got_words, words)
            assert got_meta.tobytes() == meta.tobytes()


@given(kind=kinds, count=counts, seed=st.integers(0, 1 << 20))
def test_differences_and_class_splits(library: native.NativeLibrary, kind: str, count: int, seed: int) -> None:
    values = stream(kind, count, seed)
    for num_classes in (2, 3, 4):
        thresholds, bits = split.search(values, num_classes)
        found, found_bits = library.split_search(values, num_classes)
        np.testing.assert_array_equal(found, thresholds)
        assert found_bits == bits
        if not thresholds.size:
            continue
        first, second, anchors, streams = split.partition(values, thresholds)
        for _ in both(library):
            got_first, got_second, got_anchors, got_streams = library.partition(values, thresholds)
            np.testing.assert_array_equal(got_first, first)
            assert (second is None) == (got_second is None)
            np.testing.assert_array_equal(np.zeros(0) if got_second is None else got_second, np.zeros(0) if second is None else second)
            np.testing.assert_array_equal(got_anchors, anchors)
            for mine, theirs in zip(got_streams, streams, strict=True):
                np.testing.assert_array_equal(mine, theirs)
    steps, anchors = delta.differences(values)
    for _ in both(library):
        for zigzag, want in ((False, steps), (True, delta.zigzag(steps))):
            got, got_anchors = library.differences(values, zigzag=zigzag)
            np.testing.assert_array_equal(got, want)
            np.testing.assert_array_equal(got_anchors, anchors)


@given(kind=kinds, count=counts, seed=st.integers(0, 1 << 20), dtype=st.sampled_from(["<u2", "<i2", "<u4", "<i4", "<u8", "<i8"]), by_class=st.booleans())
def test_dictionaries(library: native.NativeLibrary, kind: str, count: int, seed: int, dtype: str, by_class: bool) -> None:
    values = stream(kind, count, seed).astype(dtype)
    values = values * 0x1234567 if values.dtype.itemsize == 8 else values
    want, got = dictionary.distinct(values), library.distinct(values)
    assert got is not None
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    ordered = dictionary.by_frequency(*want, split_codes=by_class)
    for mine, theirs in zip(library.by_frequency(*got, split_codes=by_class), (ordered.entries, ordered.codes, ordered.limits), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    if want[0].size > 1:
        assert library.distinct(values, want[0].size - 1) is None


@given(seed=st.integers(0, 1 << 20), dtype=st.sampled_from(["<f4", "<f8"]), scale=st.sampled_from([1, 10, 1000, 10**7]))
def test_decimals(library: native.NativeLibrary, seed: int, dtype: str, scale: int) -> None:
    rng = np.random.default_rng(seed)
    values = (np.round(rng.normal(0, 1000, 700) * scale) / scale).astype(dtype)
    special = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e300, 2.0**31, -(2.0**31), 2.0**31 - 1, 2.0**53, 0.1, 0.3, 1e-40]
    with np.errstate(over="ignore"):
        values[: len(special)] = np.array(special).astype(dtype)
    integers, exact = decimals.try_scale(values, scale)
    for _ in both(library):
        got_integers, got_exact = library.try_scale(values, scale)
        np.testing.assert_array_equal(got_integers, integers)
        np.testing.assert_array_equal(got_exact, exact)


@given(seed=st.integers(0, 1 << 20), rows=st.integers(1, 300), planes=st.sampled_from([1, 2]))
def test_repetition_in_lists(library: native.NativeLibrary, seed: int, rows: int, planes: int) -> None:
    rng = np.random.default_rng(seed)
    lists: list[list[int]] = [rng.integers(0, 3, int(rng.integers(0, 9))).tolist()]
    for _ in range(rows - 1):
        last = lists[-1]
        made = (
            last,
            last[int(rng.integers(0, 4)) :] + rng.integers(0, 3, int(rng.integers(0, 3))).tolist(),
            rng.integers(0, 3, int(rng.integers(0, 9))).tolist(),
        )
        lists.append(made[int(rng.integers(0, 3))])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
    items = np.array([item for row in lists for item in row], np.uint32)
    table = [items, (items % 2).astype(np.bool_)][:planes]
    np.testing.assert_array_equal(library.fresh_rows(table, offsets), overlap.fresh_rows(table, offsets))
    every = np.arange(rows, dtype=np.int64)
    for most in (0, 2, 8):
        np.testing.assert_array_equal(library.slide_overlaps(table, offsets, every, most), overlap.slide_overlaps(table, offsets, most))
    codes, first = library.distinct_rows(items, offsets, every)
    seen: dict[tuple[int, ...], int] = {}
    assert codes.tolist() == [seen.setdefault(tuple(row), len(seen)) for row in lists]
    np.testing.assert_array_equal(codes[first], np.arange(len(seen)))
    # some rows, in reverse
    chosen = np.ascontiguousarray(np.flatnonzero(rng.random(rows) < 0.7)[::-1].astype(np.int64))
    lengths = np.diff(offsets)[chosen]
    gathered = overlap.ranges(offsets[chosen], lengths)
    local = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    want = overlap.slide_overlaps([plane[gathered] for plane in table], local, 8)
    np.testing.assert_array_equal(library.slide_overlaps(table, offsets, chosen, 8), want)


def test_arguments_that_do_not_fit_are_refused(library: native.NativeLibrary) -> None:
    values = np.arange(10, dtype=np.uint32)
    with pytest.raises(ValueError, match="must have dtype <u4"):
        library.plan(values.astype(np.int64))
    with pytest.raises(ValueError, match="1 to 3 thresholds, got 0"):
        library.partition(values, np.zeros(0, np.uint32))
    with pytest.raises(ValueError, match=r"thresholds must ascend, got \[5, 3\]"):
        library.partition(values, np.array([5, 3], np.uint32))
    with pytest.raises(ValueError, match="integers of 2, 4 or 8 bytes"):
        library.distinct(values.astype(np.float32))
    with pytest.raises(ValueError, match="do not belong to 2 entries"):
        library.by_frequency(values[:2], values, np.ones(2, np.int64))
    with pytest.raises(ValueError, match="offsets end at 11"):
        library.fresh_rows([values], np.array([0, 11]))
    with pytest.raises(ValueError, match="not all among 1 rows"):
        library.slide_overlaps([values], np.array([0, 10]), np.array([0, 1]), 3)
