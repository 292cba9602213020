"""Threads that native calls share: kept between calls, left behind by fork, and at work while their caller does something else."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys

import numpy as np
import pytest

from loader.errors import CorruptSegmentError
from loader.kernels import native
from loader.kernels.native_lists import ListPool, ListRows, ListTable

POOLS = (("u1", "<i8"), ("<u4", "<i8"), ("<u4", "<u4"), ("<u8", "<f8"), ("<u2", "<i4"), ("i1", "i1"))
NUM_LISTS = 6_000


def standing_together(seed: int) -> ListTable:
    """Columns whose lists stand in their pools one behind the other; that of every other column is broken by a list that is shown twice."""
    rng = np.random.default_rng(seed)
    columns = []
    for number, (pool_type, dtype) in enumerate(POOLS):
        lengths = rng.integers(0, 60 if number % 2 else 3, NUM_LISTS)
        starts = 5 + np.cumsum(lengths) - lengths
        pool = rng.integers(0, 100, int(starts[-1] + lengths[-1]) + number % 3).astype(pool_type)
        views = (starts | lengths << 32).astype(np.uint64)
        if number % 2:
            views[NUM_LISTS // 2] = views[NUM_LISTS // 3]
        base = int(rng.integers(-(1 << 40), 1 << 40)) if np.dtype(dtype).itemsize > pool.itemsize else 0
        columns.append(ListPool(pool=pool, base=base, views=views, dtype=np.dtype(dtype)))
    return ListTable(columns)


def expected(column: ListPool, first: int, stop: int) -> np.ndarray:
    """Lists end to end, by NumPy."""
    starts, lengths = (column.views & np.uint64(0xFFFF_FFFF)).astype(int), (column.views >> np.uint64(32)).astype(int)
    items = np.concatenate([column.pool[starts[row] : starts[row] + lengths[row]] for row in range(first, stop)])
    if column.dtype.itemsize == column.pool.itemsize:
        return items.view(column.dtype)
    return (items.astype(np.uint64) + np.uint64(column.base % (1 << 64))).astype(f"u{column.dtype.itemsize}").view(column.dtype)


def check(rows: ListRows, memory: np.ndarray) -> None:
    for number, column in enumerate(rows.table.columns):
        want = expected(column, rows.first, rows.first + rows.num_rows)
        assert rows.values(memory, number, number + 1).tobytes() == want.tobytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_lists_that_stand_together_equal_numpy(each_library: native.NativeLibrary, threads: int) -> None:
    table = standing_together(threads)
    for first, num_rows in ((0, NUM_LISTS), (1_023, 3_000), (17, 1), (NUM_LISTS, 0)):
        rows = each_library.measure_lists(table, first, num_rows)
        memory = np.empty(rows.num_bytes, np.uint8)
        each_library.lay_lists(rows, memory, threads)
        if num_rows:
            check(rows, memory)


def test_lists_that_stand_together_past_their_pool_are_named(each_library: native.NativeLibrary) -> None:
    lengths = np.full(40, 3, np.uint64)
    views = np.cumsum(lengths) - lengths | lengths << np.uint64(32)
    table = ListTable([ListPool(pool=np.zeros(40 * 3 - 1, np.uint32), base=0, views=views, dtype=np.dtype("<i8"))])
    rows = each_library.measure_lists(table, 0, 40)
    with pytest.raises(CorruptSegmentError, match="list column 0 of the request is corrupt: list 39 reaches outside"):
        each_library.lay_lists(rows, np.empty(rows.num_bytes, np.uint8))


def test_lists_are_whole_when_they_are_finished_or_dropped(library: native.NativeLibrary) -> None:
    table = standing_together(3)
    rows = library.measure_lists(table, 0, NUM_LISTS)
    memories = [np.zeros(rows.num_bytes, np.uint8) for _ in range(6)]
    started = [library.start_lists(rows, memory, 2) for memory in memories]
    for one in started[::2]:
        one.finish()
        one.finish()
    del one, started
    for memory in memories:
        check(rows, memory)


def test_many_callers_share_the_threads(library: native.NativeLibrary) -> None:
    tables = [standing_together(seed) for seed in range(4)]

    def work(number: int) -> None:
        table = tables[number % 4]
        rows = library.measure_lists(table, 0, NUM_LISTS)
        for threads in (1, 2, 5, 9):
            memory = np.zeros(rows.num_bytes, np.uint8)
            library.lay_lists(rows, memory, threads)
            check(rows, memory)

    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(16)))


FORKS = """
import os, sys
import numpy as np
from loader.errors import ForkedProcessError
from loader.kernels import native
sys.path.insert(0, {folder!r})
from test_threads import NUM_LISTS, check, standing_together

library = native.load()
rows = library.measure_lists(standing_together(1), 0, NUM_LISTS)
memory = np.zeros(rows.num_bytes, np.uint8)
library.lay_lists(rows, memory, 4)
started = library.start_lists(rows, np.zeros(rows.num_bytes, np.uint8), 4)
child = os.fork()
if child == 0:
    try:
        started.finish()
    except ForkedProcessError:
        del started
        again = np.zeros(rows.num_bytes, np.uint8)
        library.lay_lists(rows, again, 4)
        check(rows, again)
        os._exit(17)
    os._exit(1)
started.finish()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_starts_threads_of_its_own(library: native.NativeLibrary) -> None:
    script = FORKS.format(folder=os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "HEADRACE_NATIVE": str(library.path)}, timeout=60, check=False)
    assert done.returncode == 17
