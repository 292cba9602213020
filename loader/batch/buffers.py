"""Memory of batches, used again once nobody holds it. Fresh memory costs more in page faults than the copy that fills it.

An array from a pool keeps its memory for as long as the array, a view of it or a tensor over it is alive; only then does the memory go back. So a batch
still owns its buffers, and nothing is ever recycled under a tensor that somebody holds.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

SMALL_BYTES = 256 * 1024  # smaller arrays come from the allocator, which does not fault for them
POOL_BYTES = 256 << 20


class BufferPool:
    """Idle buffers by size class.

    Args:
        max_bytes: Idle memory that is kept; more is given back to the system.
    """

    def __init__(self, max_bytes: int = POOL_BYTES) -> None:
        self._max_bytes = max_bytes
        self._idle: dict[int, list[npt.NDArray[np.uint8]]] = defaultdict(list)
        self._idle_bytes = 0
        self._lock = threading.RLock()  # a finaliser may run inside a locked section of its own thread

    @property
    def idle_bytes(self) -> int:
        """Memory waiting to be used again."""
        return self._idle_bytes

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array of undefined content, as `np.empty` gives."""
        sizes = (shape,) if isinstance(shape, int) else shape
        kind = np.dtype(dtype)
        num_bytes = math.prod(sizes) * kind.itemsize
        if num_bytes < SMALL_BYTES:
            return np.empty(sizes, kind)
        lease = _Lease(self, self._take(size_class(num_bytes)), sizes, kind)
        return np.asarray(lease)

    def _take(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        with self._lock:
            if self._idle[num_bytes]:
                self._idle_bytes -= num_bytes
                return self._idle[num_bytes].pop()
        return np.empty(num_bytes, np.uint8)

    def _give_back(self, memory: npt.NDArray[np.uint8]) -> None:
        with self._lock:
            if self._idle_bytes + memory.nbytes <= self._max_bytes:
                self._idle[memory.nbytes].append(memory)
                self._idle_bytes += memory.nbytes


class _Lease:
    """Owner of borrowed memory: the base of every array over it, so it dies after the last of them."""

    def __init__(self, pool: BufferPool, memory: npt.NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._pool, self._memory = pool, memory
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (memory.ctypes.data, False)}

    def __del__(self) -> None:
        self._pool._give_back(self._memory)


def size_class(num_bytes: int) -> int:
    """The next size with three significant bits: at most a quarter more, so that batches of nearly equal size share buffers."""
    step = 1 << max(num_bytes.bit_length() - 3, 0)
    return -(-num_bytes // step) * step
