"""A thread that drives one Ray Data execution, so that work starts before anybody asks for the first item. Knows rows, not their order."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from loader.errors import HeadraceError

logger = logging.getLogger(__name__)
T = TypeVar("T")

CLOSE_SECONDS = 5.0
_POLL_SECONDS = 0.1


class _End:
    """After the last rows: the error that ended the read, or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Read(Generic[T]):
    """An execution under way.

    Args:
        start: Begins it: tables of rows in order.
        unpack: The items of such a table.
        ahead: Tables held ready.
    """

    def __init__(self, start: Callable[[], Iterable[Any]], unpack: Callable[[Any], Iterator[T]], *, ahead: int) -> None:
        self._unpack = unpack
        self._queue: queue.Queue[Any] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._items: Iterator[T] = iter(())
        self._thread = threading.Thread(target=self._drive, args=(start,), name="headrace-ray-read", daemon=True)
        self._thread.start()

    def take(self, timeout_seconds: float | None = None) -> T | None:
        """The next item in the order of the rows, None after the last.

        Raises:
            HeadraceError: What an actor raised, as it raised it; any other error of Ray as it is.
            TimeoutError: Nothing came for so long.
        """
        while (item := next(self._items, None)) is None:
            try:
                rows = self._queue.get(timeout=timeout_seconds)
            except queue.Empty:
                raise TimeoutError(f"nothing for {timeout_seconds:g} s") from None
            if isinstance(rows, _End):
                self._queue.put(rows)
                if rows.error is None:
                    return None
                cause = getattr(rows.error, "cause", None)
                if isinstance(cause, HeadraceError):
                    raise cause from rows.error
                raise rows.error
            self._items = self._unpack(rows)
        return item

    def close(self) -> None:
        """Stop the execution; returns when its thread has ended, or Ray does not answer. Whoever still waits for an item gets None."""
        self._stop.set()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._drain()
            self._thread.join(_POLL_SECONDS)
        if self._thread.is_alive():
            logger.warning("Ray has not answered for %g s, and its read is left behind: can the cluster place the actors?", CLOSE_SECONDS)
        self._drain()
        self._items = iter(())
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(_End(None))

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()

    def _drive(self, start: Callable[[], Iterable[Any]]) -> None:
        error: BaseException | None = None
        batches: Any = None
        try:
            batches = iter(start())
            for rows in batches:
                if not self._put(rows):
                    return
        except BaseException as raised:  # noqa: BLE001 (carried to the thread that takes the items)
            error = raised
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()
        self._put(_End(error))

    def _put(self, value: Any) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(value, timeout=_POLL_SECONDS)
                return True
        return False
