"""Pinned memory that fetch threads fill and copies to a GPU empty: allocated once, handed out in spans, recycled on events.

Owns where spans lie and when they may be used again. A slab is an array; its span goes back when the array dies, and is handed out again when the copy
that was marked on it has been done. Slabs are handed out in the order of their turns, so that the block which is due next is never starved by later ones.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.errors import HeadraceError
from loader.kernels.runtime import Event, Runtime

SPAN_BYTES = 256  # spans start and end on so many


class InterruptedWaitError(HeadraceError):
    """Whoever waited for a slab is told that nobody wants it any more."""


class Spans:
    """Byte ranges of [0, num_bytes), neighbours joined when they come back. Not thread-safe.

    Attributes:
        num_bytes: All there are.
        free_bytes: Those that are not taken.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = self.free_bytes = num_bytes // SPAN_BYTES * SPAN_BYTES
        self._starts = [0] if self.num_bytes else []
        self._stops = [self.num_bytes] if self.num_bytes else []
        self._taken: dict[int, int] = {}

    def take(self, num_bytes: int, *, from_end: bool = False) -> int | None:
        """Where a range of so many bytes starts; None if no free range is as large.

        Args:
            num_bytes: How many.
            from_end: For what is given back soon: the last range that fits, at its end, so that it does not lie between what stays. Else the tightest.
        """
        size = span_bytes(num_bytes)
        fits = [index for index, start in enumerate(self._starts) if self._stops[index] - start >= size]
        if not fits:
            return None
        index = fits[-1] if from_end else min(fits, key=lambda one: self._stops[one] - self._starts[one])
        start, stop = self._starts[index], self._stops[index]
        if stop - start == size:
            del self._starts[index], self._stops[index]
        elif from_end:
            start = self._stops[index] = stop - size
        else:
            self._starts[index] = start + size
        self._taken[start] = size
        self.free_bytes -= size
        return start

    def give_back(self, start: int) -> None:
        """Free a range that `take` gave."""
        size = self._taken.pop(start)
        self.free_bytes += size
        stop, index = start + size, bisect.bisect(self._starts, start)
        if index < len(self._starts) and self._starts[index] == stop:
            stop = self._stops[index]
            del self._starts[index], self._stops[index]
        if index and self._stops[index - 1] == start:
            self._stops[index - 1] = stop
        else:
            self._starts.insert(index, start)
            self._stops.insert(index, stop)


def span_bytes(num_bytes: int) -> int:
    """What a span of so many bytes takes."""
    return max(-(-num_bytes // SPAN_BYTES), 1) * SPAN_BYTES


class RecycledSpans:
    """Spans that may be taken again once an event has happened. Not thread-safe.

    Args:
        runtime: Whose events they are.
        num_bytes: All there are.
    """

    def __init__(self, runtime: Runtime, num_bytes: int) -> None:
        self.spans = Spans(num_bytes)
        self._runtime = runtime
        self._waiting: deque[tuple[Event, int]] = deque()

    @property
    def oldest(self) -> Event | None:
        """The event that frees a span first, as far as one is known."""
        return self._waiting[0][0] if self._waiting else None

    def take(self, num_bytes: int) -> int | None:
        """Where a span starts that nothing uses any more; None if there is no room now. Does not block."""
        self.reclaim()
        return self.spans.take(num_bytes)

    def reclaim(self) -> None:
        """Free the spans whose events have happened."""
        while self._waiting and self._runtime.is_done(self._waiting[0][0]):
            self.spans.give_back(self._waiting.popleft()[1])

    def take_soon(self, num_bytes: int) -> int | None:
        """As `take`, after waiting for spans that are under way; None if those are not enough."""
        while (start := self.take(num_bytes)) is None:
            if self.oldest is None:
                return None
            self._runtime.synchronize(self.oldest)
        return start

    def give_back(self, start: int, event: Event | None = None) -> None:
        """Free a span; with an event, once that has happened."""
        if event is None:
            self.spans.give_back(start)
        else:
            self._waiting.append((event, start))


class PinnedSlabs:
    """A ring of pinned slabs of any size; safe to call from several threads.

    Args:
        runtime: Of the device that the slabs are copied to.
        num_bytes: Allocated now, and never more.
    """

    def __init__(self, runtime: Runtime, num_bytes: int) -> None:
        self._runtime = runtime
        self._memory = runtime.empty_pinned(num_bytes)
        self._spans = RecycledSpans(runtime, num_bytes)
        self._changed = threading.Condition(threading.RLock())  # a finaliser may run inside a locked section of its own thread
        self._marks: dict[int, Event] = {}
        self._turn = 0
        self._passed: set[int] = set()
        self._round = 0
        self._interrupted = False

    @property
    def num_bytes(self) -> int:
        return self._spans.spans.num_bytes

    @property
    def taken_bytes(self) -> int:
        """Bytes of slabs that live, or that a copy still reads."""
        with self._changed:
            self._spans.reclaim()
            return self._spans.spans.num_bytes - self._spans.spans.free_bytes

    def begin(self) -> None:
        """A new series of turns, from 0."""
        with self._changed:
            self._turn, self._round, self._interrupted = 0, self._round + 1, False
            self._passed.clear()

    def interrupt(self) -> None:
        """Whoever waits for a slab, or asks for one before the next `begin`, gets an InterruptedWaitError."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def empty(self, num_bytes: int, turn: int | None = None) -> npt.NDArray[np.uint8]:
        """A slab of undefined content; blocks until there is room, and until all earlier turns were taken or passed.

        Raises:
            ValueError: The ring is smaller than that.
            InterruptedWaitError: See `interrupt`.
        """
        if span_bytes(num_bytes) > self.num_bytes:
            raise ValueError(f"a block takes {num_bytes:,} bytes of pinned memory and pinned_bytes is {self.num_bytes:,}: raise it to a few blocks")
        with self._changed:
            number = self._round
            self._wait_for(lambda: turn is None or self._turn >= turn, number)
            while (start := self._spans.take(num_bytes)) is None:
                self._wait_for_room(number)
            self._pass(turn)
        return np.asarray(_Slab(self, start, self._memory[start : start + num_bytes]))

    def pass_turn(self, turn: int) -> None:
        """A turn that needs no slab, or has one."""
        with self._changed:
            self._pass(turn)

    def mark(self, slab: npt.NDArray[np.uint8], event: Event) -> None:
        """The slab's memory may be used again after this event, once the array is dead."""
        with self._changed:
            self._marks[slab.ctypes.data - self._memory.ctypes.data] = event

    def owns(self, slab: npt.NDArray[np.uint8]) -> bool:
        """Whether the array is one of these slabs."""
        return 0 <= slab.ctypes.data - self._memory.ctypes.data < self.num_bytes

    def _pass(self, turn: int | None) -> None:
        if turn is None or turn < self._turn:
            return
        self._passed.add(turn)
        while self._turn in self._passed:
            self._passed.remove(self._turn)
            self._turn += 1
        self._changed.notify_all()

    def _wait_for(self, ready: Any, number: int) -> None:
        self._changed.wait_for(lambda: ready() or self._interrupted or number != self._round)
        if self._interrupted or number != self._round:
            raise InterruptedWaitError("the read was stopped")

    def _wait_for_room(self, number: int) -> None:
        """Until a copy is done, or a slab dies; gives the lock away meanwhile."""
        oldest = self._spans.oldest
        if oldest is None:
            before = self._spans.spans.free_bytes
            self._wait_for(lambda: self._spans.oldest is not None or self._spans.spans.free_bytes != before, number)
            return
        self._changed.release()
        try:
            self._runtime.synchronize(oldest)
        finally:
            self._changed.acquire()
        self._wait_for(lambda: True, number)

    def _died(self, start: int) -> None:
        with self._changed:
            self._spans.give_back(start, self._marks.pop(start, None))
            self._changed.notify_all()


class _Slab:
    """Owner of a span: the base of every array over it, so it dies after the last of them."""

    def __init__(self, slabs: PinnedSlabs, start: int, memory: npt.NDArray[np.uint8]) -> None:
        self._slabs, self._start, self._memory = slabs, start, memory
        self.__array_interface__ = {"version": 3, "shape": memory.shape, "typestr": "|u1", "data": (memory.ctypes.data, False)}

    def __del__(self) -> None:
        self._slabs._died(self._start)
