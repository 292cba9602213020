"""Windows filled by a thread of their own while batches are made of those before. Owns the thread, and when it may take memory for one window more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from loader.scan.order import Window
from loader.train.stats import StageClock

W = TypeVar("W")


class StoppedError(Exception):
    """The thread was told to stop in the middle of a window."""


class WindowsAhead(Generic[W]):
    """Fills windows in order, at most one before somebody asks for it.

    Args:
        coming: All windows, in the order in which they will be asked for.
        fill: Makes one; called in the thread.
        may_fill: Whether there is memory for one more before it is asked for. One that is asked for is always filled.
        filled: Told of each window that is made, in the thread.
        clock: Of `fill`; charged with `hand_over` while there is nothing to do.
        waiting: Clock of who asks, charged with what the thread is at while it waits.
    """

    def __init__(
        self,
        coming: Iterator[Window],
        fill: Callable[[Window], W],
        *,
        may_fill: Callable[[], bool],
        filled: Callable[[W], None],
        clock: StageClock,
        waiting: StageClock,
    ) -> None:
        self._coming, self._fill, self._may_fill, self._filled = coming, fill, may_fill, filled
        self._clock, self._waiting = clock, waiting
        self._changed = threading.Condition()
        self._ready: tuple[Window, W] | None = None
        self._error: BaseException | None = None
        self._asked = self._stopping = False
        self._thread: threading.Thread | None = None

    def take(self, window: Window) -> W:
        """The window that comes next.

        Raises:
            BaseException: What filling it met.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="headrace-windows", daemon=True)
            self._thread.start()
        with self._waiting.waiting_for(self._clock), self._changed:
            self._asked = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ready is not None or self._error is not None)
            if self._ready is None:
                assert self._error is not None
                raise self._error
            (found, data), self._ready, self._asked = self._ready, None, False
            assert found == window
            return data

    def look(self) -> None:
        """Memory was given back: perhaps there is room for one more now."""
        with self._changed:
            self._changed.notify_all()

    def check(self) -> None:
        """Called in the thread between the blocks of a window.

        Raises:
            StoppedError: Nobody wants the window any more.
        """
        if self._stopping:
            raise StoppedError

    def close(self) -> None:
        """Stop the thread and wait for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._ready = None

    def _run(self) -> None:
        try:
            for window in self._coming:
                with self._clock.stage("hand_over"), self._changed:
                    self._changed.wait_for(lambda: self._stopping or (self._ready is None and (self._asked or self._may_fill())))
                self.check()
                data = self._fill(window)
                self._filled(data)
                with self._changed:
                    self._ready = window, data
                    self._changed.notify_all()
                del data
        except BaseException as error:  # noqa: BLE001 (raised again where the window would have come)
            with self._changed:
                self._error = error
                self._changed.notify_all()
