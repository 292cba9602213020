"""Streams and events of the host runtime: queues of deferred work, run as late, as early or as mixed as a GPU might.

Owns ordering only. Work runs when somebody blocks on an event behind it, or when the timing picks it, so that an order which the code
forgot to ask for does not hold by luck. Events mean what CUDA's mean: a wait takes the event as it was last recorded, an event never
recorded counts as done, recording again moves it.
"""

from __future__ import annotations

import collections
import random
import threading
from collections.abc import Callable

TIMINGS = ("eager", "lazy", "random")


class Mark:
    """A place in a stream: done when all before it is."""

    def __init__(self, stream: HostStream) -> None:
        self.stream, self.done = stream, False


class HostEvent:
    """An event; `mark` is where it was last recorded."""

    def __init__(self) -> None:
        self.mark: Mark | None = None


class HostStream:
    """Work in order. What the caller's own stream is given runs at once: the caller is the CPU."""

    def __init__(self, name: str, *, is_caller: bool = False) -> None:
        self.name, self.is_caller = name, is_caller
        self.pending: collections.deque[Callable[[], None] | Mark | tuple[Mark]] = collections.deque()


class HostStreams:
    """All streams of a runtime.

    Args:
        timing: `eager` runs work as soon as nothing bars it, `lazy` when somebody blocks on it or asks twice, `random` in between.
        seed: Of `random`.
    """

    def __init__(self, timing: str, seed: int) -> None:
        if timing not in TIMINGS:
            raise ValueError(f"timing is {timing!r}: {', '.join(TIMINGS)}")
        self.lock = threading.RLock()
        self.caller = HostStream("caller", is_caller=True)
        self._timing, self._random = timing, random.Random(seed)
        self._streams: dict[str, HostStream] = {}

    def stream(self, name: str) -> HostStream:
        with self.lock:
            return self._streams.setdefault(name, HostStream(name))

    def submit(self, stream: HostStream, work: Callable[[], None]) -> None:
        """Give a stream work; all that a caller's stream had before is done first."""
        with self.lock:
            stream.pending.append(work)
            if stream.is_caller:
                self._drain(stream)
            self._let_time_pass()

    def record(self, event: HostEvent, stream: HostStream) -> None:
        with self.lock:
            event.mark = Mark(stream)
            stream.pending.append(event.mark)
            self._let_time_pass()

    def wait(self, stream: HostStream, event: HostEvent) -> None:
        with self.lock:
            if event.mark is not None and not event.mark.done:
                stream.pending.append((event.mark,))
                if stream.is_caller:
                    self._drain(stream)
            self._let_time_pass()

    def is_done(self, event: HostEvent) -> bool:
        """Late by one question at least, where the timing is not eager; asking for ever comes to an end."""
        with self.lock:
            mark = event.mark
            if mark is None or mark.done:
                return True
            self._step_towards(mark)
            return False

    def synchronize(self, event: HostEvent) -> None:
        with self.lock:
            while event.mark is not None and not event.mark.done:
                self._step_towards(event.mark)

    def finish(self) -> None:
        """Run all that is left."""
        with self.lock:
            for stream in [*self._streams.values(), self.caller]:
                self._drain(stream)

    @property
    def num_pending(self) -> int:
        """Work that was submitted and has not run."""
        with self.lock:
            return sum(callable(work) for stream in self._streams.values() for work in stream.pending)

    def _drain(self, stream: HostStream) -> None:
        while stream.pending:
            self._advance(stream)

    def _step_towards(self, mark: Mark) -> None:
        if not mark.stream.pending:
            raise RuntimeError(f"an event of stream {mark.stream.name} can never happen: work before it failed")
        self._advance(mark.stream)

    def _advance(self, stream: HostStream) -> None:
        """One step of a stream, or of the one that it waits for."""
        head = stream.pending[0]
        while isinstance(head, tuple) and not head[0].done:
            stream = head[0].stream
            if not stream.pending:
                raise RuntimeError(f"an event of stream {stream.name} can never happen: work before it failed")
            head = stream.pending[0]
        stream.pending.popleft()
        if isinstance(head, Mark):
            head.done = True
        elif callable(head):
            head()

    def _let_time_pass(self) -> None:
        if self._timing == "lazy":
            return
        steps = self._random.randrange(4) if self._timing == "random" else -1
        while steps:
            ready = [stream for stream in [*self._streams.values(), self.caller] if stream.pending and not self._is_barred(stream)]
            if not ready:
                return
            self._advance(self._random.choice(ready))
            steps -= 1

    @staticmethod
    def _is_barred(stream: HostStream) -> bool:
        head = stream.pending[0]
        return isinstance(head, tuple) and not head[0].done
