"""Device and pinned memory of the host runtime: poisoned when it is allocated and when it dies, with guards on both sides.

Owns which addresses are somebody's. An address outside of a live allocation, a write past one, and memory that dies or changes under
work in flight are errors that say so.
"""

from __future__ import annotations

import bisect
import weakref
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
GUARD_BYTES = 256
PAGE_BYTES = 4096
FRESH, DEAD, GUARD, IN_FLIGHT = 0xA5, 0xDD, 0xC7, 0xB6  # what memory holds before anybody writes it, after its death, around it, and during a copy


class MisuseError(RuntimeError):
    """Something that a GPU would do wrong silently, or crash on."""


class HostMemory:
    """An allocation. Dies with its last reference; the bytes stay readable for work in flight, as poison.

    Attributes:
        address: Of the first byte.
        num_bytes: Between the guards.
        data: uint8 over them.
    """

    def __init__(self, space: Space, num_bytes: int, alignment: int) -> None:
        room = np.full(num_bytes + 2 * GUARD_BYTES + alignment, GUARD, np.uint8)
        start = GUARD_BYTES + -(room.ctypes.data + GUARD_BYTES) % alignment
        self.address, self.num_bytes = room.ctypes.data + start, num_bytes
        self.data = room[start : start + num_bytes]
        self.data[:] = FRESH
        self._before, self._after = room[start - GUARD_BYTES : start], room[start + num_bytes : start + num_bytes + GUARD_BYTES]
        self._space = space
        self.__array_interface__ = {"version": 3, "shape": (num_bytes,), "typestr": "|u1", "data": (self.address, False)}
        space._born(self)

    def guards_hold(self) -> bool:
        return bool((self._before == GUARD).all() and (self._after == GUARD).all())

    def __del__(self) -> None:
        if hasattr(self, "_space"):
            self._space._died(self)
            self.data[:] = DEAD


class Space:
    """All live allocations of one kind.

    Args:
        name: For errors: `device` or `pinned`.
    """

    def __init__(self, name: str) -> None:
        self.name, self.num_bytes, self.violations = name, 0, list[str]()
        self._starts: list[int] = []
        self._live: dict[int, weakref.ref[HostMemory]] = {}

    def _born(self, memory: HostMemory) -> None:
        bisect.insort(self._starts, memory.address)
        self._live[memory.address] = weakref.ref(memory)
        self.num_bytes += memory.num_bytes

    def _died(self, memory: HostMemory) -> None:
        self._starts.remove(memory.address)
        del self._live[memory.address]
        self.num_bytes -= memory.num_bytes
        if not memory.guards_hold():
            self.violations.append(f"{self.name} memory of {memory.num_bytes} bytes died with bytes written outside of it")

    def find(self, address: int, num_bytes: int, what: str) -> HostMemory:
        """The allocation that these bytes lie in.

        Raises:
            MisuseError: There is none.
        """
        number = bisect.bisect_right(self._starts, address) - 1
        memory = self._live[self._starts[number]]() if number >= 0 else None
        if memory is None or address + num_bytes > memory.address + memory.num_bytes:
            raise MisuseError(f"{what}: {num_bytes} bytes at {address:#x} do not lie inside of {self.name} memory")
        return memory

    def check_guards(self, what: str) -> None:
        """Raise MisuseError if something was written outside of an allocation."""
        for reference in list(self._live.values()):
            memory = reference()
            if memory is not None and not memory.guards_hold():
                raise MisuseError(f"{what} wrote outside of {self.name} memory of {memory.num_bytes} bytes at {memory.address:#x}")
