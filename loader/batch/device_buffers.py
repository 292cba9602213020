"""Device memory of batches, used again once nobody holds it.

A lease keeps its memory for as long as it, a tensor over it or a view of one is alive; only then does the memory go back, with an event on every stream
that was told of it. So nothing is ever recycled under a tensor that somebody holds, nor under work that the consumer's stream still has to do.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from loader.batch.buffers import size_class
from loader.errors import DeviceMemoryError
from loader.extras import require
from loader.kernels.runtime import DeviceMemory, Event, Runtime, Stream

if TYPE_CHECKING:
    import torch

IDLE_BYTES = 1 << 30
SMALLEST_BYTES = 4096
MOST_TIMES_LARGER = 2  # a buffer that serves a smaller batch is at most so much too large


class DeviceBufferPool:
    """Idle device buffers by size class; safe to call from several threads.

    Args:
        runtime: Whose memory it is.
        stream: The stream that writes batches: it waits for what a buffer's last readers had still to do.
        max_idle_bytes: Idle memory that is kept; more is given back to the device.
    """

    def __init__(self, runtime: Runtime, stream: Stream, max_idle_bytes: int = IDLE_BYTES) -> None:
        self.runtime = runtime
        self._stream = stream
        self._max_idle_bytes = max_idle_bytes
        self._idle: dict[int, list[tuple[DeviceMemory, list[Event]]]] = defaultdict(list)
        self._idle_bytes = 0
        self._lock = threading.RLock()  # a finaliser may run inside a locked section of its own thread

    @property
    def idle_bytes(self) -> int:
        """Memory waiting to be used again."""
        return self._idle_bytes

    def empty(self, num_bytes: int) -> DeviceLease:
        """Memory of undefined content, to be written on the pool's stream.

        Raises:
            DeviceMemoryError: The device has no room.
        """
        size = size_class(max(num_bytes, SMALLEST_BYTES))
        with self._lock:
            self._trim(self._max_idle_bytes)
            fits = min((idle_size for idle_size, idle in self._idle.items() if idle and size <= idle_size <= MOST_TIMES_LARGER * size), default=None)
            memory, events = (None, []) if fits is None else self._idle[fits].pop(0)
            self._idle_bytes -= fits or 0
        for event in events:
            self.runtime.wait(self._stream, event)
        return DeviceLease(self, self._allocate(size) if memory is None else memory)

    def _allocate(self, size: int) -> DeviceMemory:
        """New memory; where the device has no room, in place of idle buffers of other sizes."""
        try:
            return self.runtime.empty_device(size)
        except DeviceMemoryError:
            with self._lock:
                if not self._idle_bytes:
                    raise
                self._trim(0)
        return self.runtime.empty_device(size)

    def _trim(self, most_bytes: int) -> None:
        """Give the largest idle buffers back until there are no more bytes than this; first wait for whoever still reads them."""
        while self._idle_bytes > most_bytes:
            size = max(size for size, idle in self._idle.items() if idle)
            memory, events = self._idle[size].pop(0)
            for event in events:
                self.runtime.synchronize(event)
            self._idle_bytes -= size
            del memory

    def _give_back(self, memory: DeviceMemory, streams: list[Stream]) -> None:
        events = []
        for stream in streams:
            event = self.runtime.event()
            self.runtime.record(event, stream)
            events.append(event)
        with self._lock:
            self._idle[memory.num_bytes].append((memory, events))
            self._idle_bytes += memory.num_bytes


class DeviceLease:
    """Borrowed device memory; the owner of every tensor over it.

    Attributes:
        address: On 256 bytes.
    """

    def __init__(self, pool: DeviceBufferPool, memory: DeviceMemory) -> None:
        self._pool, self._memory = pool, memory
        self._streams: list[Stream] = []
        self.address = memory.address

    def used_on(self, stream: Stream) -> None:
        """Another stream reads the memory: it is not written again before that stream has done what it was given until the lease dies."""
        if stream not in self._streams:
            self._streams.append(stream)

    def tensor(self, num_bytes: int) -> torch.Tensor:
        """uint8 tensor over the first bytes, without a copy; the lease lives as long as it or a view of it."""
        return self._pool.runtime.tensor(self, self.address, (num_bytes,), np.uint8)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be going down
            self._pool._give_back(self._memory, self._streams)


@functools.cache
def torch_dtype(dtype: np.dtype[Any]) -> Any:
    """torch's type of a NumPy type."""
    return require("torch", "torch").from_numpy(np.zeros(0, dtype)).dtype
