"""A thread that drives one Ray Data execution, so that fetching starts before anybody asks for the first block. Knows rows, not their order."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from loader.distributed.wire import unpack
from loader.errors import HeadraceError
from loader.scan.encoded import EncodedBlock

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
        """Stop the execution; returns when its thread has ended. Whoever still waits for a block gets None."""
        self._stop.set()
        while self._thread.is_alive():
            self._drain()
            self._thread.join(_POLL_SECONDS)
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
