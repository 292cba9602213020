"""What readers of a lake keep in memory from one read to the next, so that it is not opened or folded again: bounded in bytes, the least used goes first.

Owns the bound and nothing of what is kept. A path is written once and a key names all that its value was made of, so nothing that is kept ever becomes wrong;
it is dropped when it is pushed out, or when rows that it may hold were erased.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

READ_CACHE_BYTES = 128 << 20
T = TypeVar("T")


class Kept:
    """Values by key, at most so many bytes of them. Safe to share between threads: two that miss at once both do the work.

    Args:
        max_bytes: Of all values; 0 keeps nothing.

    Attributes:
        cleared: How often everything was forgotten.
    """

    def __init__(self, max_bytes: int = READ_CACHE_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"a cache of {max_bytes} bytes: give 0 to keep nothing")
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._num_bytes = 0
        self.cleared = 0

    @property
    def num_bytes(self) -> int:
        """In use."""
        return self._num_bytes

    def find(self, key: Hashable) -> Any:
        """The value of a key, None where nothing is kept."""
        with self._lock:
            held = self._held.get(key)
            if held is None:
                return None
            self._held.move_to_end(key)
            return held[0]

    def keep(self, key: Hashable, value: object, num_bytes: int, *, begun: int) -> None:
        """Keep a value, unless it takes more than a quarter of the bound, or everything was forgotten since it was begun.

        Args:
            key: Names all that the value depends on.
            value: Not None.
            num_bytes: What it takes in memory.
            begun: `cleared`, as it was before the first byte of the value was read.
        """
        if num_bytes > self.max_bytes // 4:
            return
        with self._lock:
            if begun != self.cleared:
                return
            before = self._held.pop(key, None)
            self._held[key] = (value, num_bytes)
            self._num_bytes += num_bytes - (0 if before is None else before[1])
            while self._num_bytes > self.max_bytes:
                self._num_bytes -= self._held.popitem(last=False)[1][1]

    def get(self, key: Hashable, make: Callable[[], T], num_bytes: Callable[[T], int]) -> T:
        """The value of a key, made and kept if it is not there."""
        found: T | None = self.find(key)
        if found is None:
            begun = self.cleared
            found = make()
            self.keep(key, found, num_bytes(found), begun=begun)
        return found

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._held.clear()
            self._num_bytes = 0
            self.cleared += 1
