"""What decoding and assembling batches on a GPU share: streams, the memory that is allocated once, and who may use which part of it when.

Owns the division of device memory: a slab area that encoded bytes are copied into, a heap of windows and scratch, and the pool of batches. All work on
the heap is put on one stream, so a span of it may be taken again at once by what is launched later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.batch.device_buffers import DeviceBufferPool
from loader.batch.device_tables import THREADS, pack, places
from loader.decode.cuda import CudaExecutor, Decoding
from loader.decode.program import Program
from loader.decode.slabs import PinnedSlabs, RecycledSpans, Spans
from loader.errors import DeviceMemoryError
from loader.kernels.runtime import Event, Runtime, Stream
from loader.segment.layout import PADDING_BYTES

Array = npt.NDArray[Any]
TABLE_BYTES = 16 << 20
REPORT_BYTES = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceMemoryPlan:
    """How much memory a loader takes, all of it allocated once.

    Attributes:
        slab_bytes: Device memory for encoded bytes of windows that are being decoded.
        heap_bytes: Device memory for windows, what decoding reads once, and tables.
        pinned_bytes: Pinned host memory for encoded bytes that were fetched.
        table_bytes: Pinned host memory for tables on their way.
    """

    slab_bytes: int
    heap_bytes: int
    pinned_bytes: int
    table_bytes: int = TABLE_BYTES

    def covers(self, other: DeviceMemoryPlan) -> bool:
        """Whether it is as much of everything as another asks for."""
        return all(mine >= asked for mine, asked in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))


class BatchDevice:
    """A device with a loader's memory on it. One thread puts work on it; fetch threads only take slabs.

    Args:
        runtime: The device.
        memory: How much of it.

    Attributes:
        work: The stream of all kernels.
        copies: The stream of encoded bytes.
        slabs: Pinned slabs, for fetch threads.
        pool: Memory of batches.

    Raises:
        DeviceMemoryError: The device has no room.
    """

    def __init__(self, runtime: Runtime, memory: DeviceMemoryPlan) -> None:
        self.runtime, self.memory = runtime, memory
        self.work: Stream = runtime.stream("work")
        self.copies: Stream = runtime.stream("copy")
        self.slabs = PinnedSlabs(runtime, memory.pinned_bytes)
        self.pool = DeviceBufferPool(runtime, self.work)
        self.executor = CudaExecutor(runtime)
        self._tables = PinnedSlabs(runtime, memory.table_bytes)
        self._slab_memory = runtime.empty_device(memory.slab_bytes + PADDING_BYTES)
        self._slab_spans = RecycledSpans(runtime, memory.slab_bytes)
        self._heap = runtime.empty_device(memory.heap_bytes + PADDING_BYTES)
        self._heap_spans = Spans(memory.heap_bytes)
        self._large: tuple[Array, Event] | None = None
        self.peak_heap_bytes = 0

    @property
    def slab_base(self) -> int:
        """Device address of the slab area."""
        return self._slab_memory.address

    @property
    def heap_base(self) -> int:
        """Device address of the heap: the arena of every program."""
        return self._heap.address

    @property
    def heap_taken_bytes(self) -> int:
        """Bytes of windows and batches under way."""
        return self._heap_spans.num_bytes - self._heap_spans.free_bytes

    def take_heap(self, num_bytes: int, what: str, *, passing: bool = False) -> int:
        """Where a span of the heap starts; nothing is launched later that uses what it held before.

        Args:
            num_bytes: Of the span.
            what: For the error.
            passing: It is given back soon.

        Raises:
            DeviceMemoryError: There is no room; says the arithmetic.
        """
        start = self._heap_spans.take(num_bytes, from_end=passing)
        if start is None:
            spans = self._heap_spans
            raise DeviceMemoryError(
                f"{what} takes {num_bytes:,} bytes of device memory; of {spans.num_bytes:,} for windows {spans.num_bytes - spans.free_bytes:,} are taken and "
                f"the {spans.free_bytes:,} that are free are not enough in one piece: raise device_memory_bytes, or lower window_rows or canonical_shards"
            )
        self.peak_heap_bytes = max(self.peak_heap_bytes, self.heap_taken_bytes)
        return start

    def free_heap(self, start: int) -> None:
        """Give a span back, once all that uses it is launched."""
        self._heap_spans.give_back(start)

    def take_slab(self, num_bytes: int) -> int:
        """Where encoded bytes may lie in the slab area; waits for decodes that read it still.

        Raises:
            DeviceMemoryError: The area is smaller than a window's encoded bytes.
        """
        start = self._slab_spans.take_soon(num_bytes)
        if start is None:
            taken = self._slab_spans.spans.num_bytes - self._slab_spans.spans.free_bytes
            raise DeviceMemoryError(
                f"the encoded blocks of a window take more than the {self.memory.slab_bytes:,} bytes of device memory for them ({taken:,} taken, "
                f"{num_bytes:,} more needed): raise device_memory_bytes, or lower window_rows"
            )
        return start

    def free_slab(self, start: int, event: Event | None) -> None:
        """Give a span of the slab area back once an event has happened."""
        self._slab_spans.give_back(start, event)

    def pinned(self, num_bytes: int) -> Array:
        """A pinned buffer for tables; `sent` says when it may be used again."""
        return self._tables.empty(num_bytes)

    def sent(self, buffer: Array) -> Event:
        """Mark a pinned buffer as in use by all that the work stream was given so far."""
        event = self.done()
        self._tables.mark(buffer, event)
        return event

    def upload(self, start: int, tables: Sequence[Array]) -> list[int]:
        """Copy tables to a span of the heap, on the work stream; their device addresses."""
        at, num_bytes = places([table.nbytes for table in tables])
        if num_bytes > self._tables.num_bytes // 2:
            for place, table in zip(at.tolist(), tables, strict=True):
                self._upload_in_parts(start + place, np.ascontiguousarray(table).reshape(-1).view(np.uint8))
        elif num_bytes:
            buffer = self.pinned(num_bytes)
            pack(buffer, tables, at)
            self.runtime.copy_to_device(self.heap_base + start, buffer[:num_bytes], self.work)
            self.sent(buffer)
        return [self.heap_base + start + place for place in at.tolist()]

    def _upload_in_parts(self, start: int, table: npt.NDArray[np.uint8]) -> None:
        """A table that may be larger than the pinned memory for tables: windows have as many patches as their rows were given."""
        step = self._tables.num_bytes // 8
        for first in range(0, table.size, step):
            part = table[first : first + step]
            buffer = self.pinned(part.size)
            buffer[:] = part
            self.runtime.copy_to_device(self.heap_base + start + first, buffer, self.work)
            self.sent(buffer)

    def copy_slab(self, slab: Array, num_bytes: int) -> int:
        """Copy encoded bytes into the slab area, on the copy stream; where they start. What is not pinned is copied to pinned memory first."""
        large = self._large is not None and slab is self._large[0]
        if not large and not self.slabs.owns(slab):
            pinned = self.slabs.empty(num_bytes)
            pinned[:] = slab[:num_bytes]
            slab = pinned
        start = self.take_slab(num_bytes)
        self.runtime.copy_to_device(self.slab_base + start, slab[:num_bytes], self.copies)
        event = self.copied()
        if large:
            self._large = (slab, event)
        else:
            self.slabs.mark(slab, event)
        return start

    def large(self, num_bytes: int) -> Array:
        """Pinned memory apart from the ring, for what fetch threads do not know the size of; the one there was before must have been copied."""
        if self._large is not None:
            self.runtime.synchronize(self._large[1])
        if self._large is None or self._large[0].nbytes < num_bytes:
            self._large = (self.runtime.empty_pinned(num_bytes + num_bytes // 4), self.runtime.event())
        return self._large[0]

    def copied(self) -> Event:
        """Happens when all copies so far are done."""
        event = self.runtime.event()
        self.runtime.record(event, self.copies)
        return event

    def done(self) -> Event:
        """Happens when all work so far is done."""
        event = self.runtime.event()
        self.runtime.record(event, self.work)
        return event

    def decode(self, program: Program) -> Decoding:
        """Put a program over the slab area and the heap on the work stream, behind all copies so far."""
        self.runtime.wait(self.work, self.copied())
        memory = self.memory
        return self.executor.decode(
            program, slab=self.slab_base, slab_bytes=memory.slab_bytes, arena=self.heap_base, arena_bytes=memory.heap_bytes, stream=self.work
        )

    def launch(self, kernel: str, grid: tuple[int, int], arguments: tuple[int, ...]) -> None:
        """Put a kernel on the work stream."""
        self.runtime.launch(kernel, grid, THREADS, arguments, self.work)

    def synchronize(self) -> None:
        """Block until nothing is under way."""
        for event in (self.copied(), self.done()):
            self.runtime.synchronize(event)
