"""Claims about the memory of batches: it is used again, and never while anybody can still see it."""

from __future__ import annotations

import gc
import threading

import numpy as np
import torch

from loader.batch.buffers import SMALL_BYTES, BufferPool, size_class

BIG = 2 * SMALL_BYTES


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_its_array_is_gone():
    pool = BufferPool()
    first = pool.empty((2, BIG // 8), np.float32)
    assert first.shape == (2, BIG // 8) and first.dtype == np.float32 and first.flags.writeable
    where = address(first)
    assert address(pool.empty(BIG, np.uint8)) != where
    del first
    gc.collect()
    assert address(pool.empty(BIG // 8, np.int64)) == where and pool.idle_bytes == size_class(BIG)


def test_a_view_or_a_tensor_keeps_the_memory():
    pool = BufferPool()
    for keep in (lambda array: array[1:3], lambda array: torch.from_numpy(array)[5:], lambda array: torch.from_numpy(array).view(torch.int32)):
        array = pool.empty(BIG // 8, np.int64)
        array[:] = 7
        kept = keep(array)
        del array
        gc.collect()
        other = pool.empty(BIG // 8, np.int64)
        other[:] = 9
        assert not (kept == 9).any()


def test_idle_memory_stays_below_the_limit():
    pool = BufferPool(max_bytes=3 * size_class(BIG))
    arrays = [pool.empty(BIG, np.uint8) for _ in range(10)]
    arrays.clear()
    gc.collect()
    assert pool.idle_bytes == 3 * size_class(BIG)


def test_small_arrays_are_the_allocators():
    pool = BufferPool()
    array = pool.empty(10, np.int64)
    assert array.base is None
    del array
    assert pool.idle_bytes == 0


def test_sizes_waste_at_most_a_quarter():
    for num_bytes in (SMALL_BYTES, SMALL_BYTES + 1, 1_000_003, 52_428_801, 2**31 + 5):
        assert num_bytes <= size_class(num_bytes) <= num_bytes * 1.25 and size_class(size_class(num_bytes)) == size_class(num_bytes)


def test_threads_never_share_a_buffer():
    pool, wrong = BufferPool(), []

    def work(number):
        for _ in range(200):
            array = pool.empty(SMALL_BYTES, np.uint8)
            array[:] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
