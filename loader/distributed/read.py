"""A thread that drives one Ray Data execution, so that fetching starts before anybody asks for the first block. Knows rows, not their order."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from loader.distributed.wire import unpack
from loader.errors import HeadraceError
from loader.scan.encoded import EncodedBlock

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
_POLL_SECONDS = 0.1


class _End:
    """After the last rows: the error that ended the read, or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Read:
    """An execution under way.

    Args:
        start: Begins it: tables of rows in order (`wire.SCHEMA`).
        ahead: Tables held ready.
    """

    def __init__(self, start: Callable[[], Iterable[Any]], *, ahead: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._blocks: Iterator[EncodedBlock] = iter(())
        self._thread = threading.Thread(target=self._drive, args=(start,), name="headrace-ray-read", daemon=True)
        self._thread.start()

    def next_block(self) -> EncodedBlock | None:
        """The next block in the order of the rows, None after the last.

        Raises:
            HeadraceError: What a fetch actor raised, as it raised it; any other error of Ray as it is.
        """
        while (block := next(self._blocks, None)) is None:
            rows = self._queue.get()
            if isinstance(rows, _End):
                self._queue.put(rows)
                if rows.error is None:
                    return None
                cause = getattr(rows.error, "cause", None)
                if isinstance(cause, HeadraceError):
                    raise cause from rows.error
                raise rows.error
            self._blocks = unpack(rows)
        return block

    def close(self) -> None:
        """Stop the execution; returns when its thread has ended, or Ray does not answer. Whoever still waits for a block gets None."""
        self._stop.set()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._drain()
            self._thread.join(_POLL_SECONDS)
        if self._thread.is_alive():
            logger.warning("Ray has not answered for %g s, and its read is left behind: can the cluster place the fetch actors?", CLOSE_SECONDS)
        self._drain()
        self._blocks = iter(())
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
        except BaseException as raised:  # noqa: BLE001 (carried to the thread that takes the blocks)
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
