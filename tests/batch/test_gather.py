"""Claims about gathers: NumPy and native agree bit for bit, and views that leave their pool are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.batch import gather
from loader.errors import CorruptSegmentError
from loader.kernels import native

quick = settings(max_examples=50, deadline=None, derandomize=True, database=None)
needs_native = pytest.mark.skipif(native.load() is None, reason="no compiled library")
DTYPES = [np.uint8, np.int16, np.uint32, np.int32, np.float32, np.int64, np.float64]


def pack(starts, lengths):
    return np.array(starts, np.uint64) | np.array(lengths, np.uint64) << np.uint64(32)


@needs_native
@quick
@given(st.sampled_from(DTYPES), st.integers(1, 200), st.integers(0, 300), st.integers(0, 2**32))
def test_native_rows_equal_numpy(dtype, size, count, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, size * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    rows = rng.integers(0, size, count).astype(np.uint32)
    out = np.empty(count, dtype)
    gather.gather_fixed(values, rows, out)
    assert out.tobytes() == values[rows].tobytes()


@needs_native
@quick
@given(
    st.sampled_from([(1, 1), (2, 2), (4, 4), (8, 8), (4, 8), (2, 8), (1, 4)]),
    st.integers(1, 300),
    st.integers(0, 100),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**32),
)
def test_native_lists_equal_numpy(items, size, count, base, seed):
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 256, size * items[0], np.uint8).view(f"<u{items[0]}")
    starts = rng.integers(0, size, count)
    views = pack(starts, rng.integers(0, size - starts + 1))
    offsets = gather.list_offsets(views)
    found, want = np.empty(int(offsets[-1]), f"<i{items[1]}"), np.empty(int(offsets[-1]), f"<i{items[1]}")
    gather.gather_lists(pool, base, views, found)
    gather.gather_lists_reference(pool, base if items[0] < items[1] else 0, views, want)
    assert found.tobytes() == want.tobytes()


def test_lists_are_laid_end_to_end_with_repeats_and_a_base():
    views = pack([1, 0, 1], [2, 0, 2])
    assert gather.list_offsets(views).tolist() == [0, 2, 2, 4]
    out = np.empty(4, np.int64)
    gather.gather_lists_reference(np.array([5, 6, 7], np.uint32), -6, views, out)
    assert out.tolist() == [0, 1, 0, 1]


def test_a_view_that_leaves_its_pool_is_refused():
    for function in (gather.gather_lists_reference, gather.gather_lists):
        with pytest.raises(CorruptSegmentError, match="pool of 3"):
            function(np.arange(3), 0, pack([2], [2]), np.empty(2, np.int64))


def test_views_that_ask_for_much_memory_are_compared_with_their_pool_first():
    views = pack([0] * 100, [1 << 23] * 100)
    with pytest.raises(CorruptSegmentError, match="past its pool of 441"):
        gather.check_views(views, 441, 8 * 100 << 23)
    gather.check_views(views, 1 << 23, 8 * 100 << 23)
    with pytest.raises(CorruptSegmentError, match="read fewer rows"):
        gather.check_views(views, 1 << 23, gather.MAX_LIST_BYTES + 1)
    gather.check_views(views, 441, 1 << 20)  # copying will tell
