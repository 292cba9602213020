"""One Ray read that several `open`s in turn may share, since starting actors takes a second or two. Knows tables of descriptors, not what they name."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import pyarrow as pa

from loader.distributed.execution import describe_cluster
from loader.distributed.read import Read
from loader.errors import HeadraceError, StreamTimeoutError

T = TypeVar("T")


class Lane(Generic[T]):
    """Reads under way and expected.

    Args:
        start: Begins the read of some descriptors.
        noun: What the items are, for an error.
        timeout_seconds: Longest wait for an item; the first waits for actors to start too.
        asked: What an actor reserves, for an error.
    """

    def __init__(self, start: Callable[[pa.Table], Read[T]], noun: str, *, timeout_seconds: float, asked: Mapping[str, Any]) -> None:
        self._start, self._noun = start, noun
        self._timeout_seconds, self._asked = timeout_seconds, asked
        self._expected: deque[pa.Table] = deque()
        self.read: Read[T] | None = None

    def expect(self, tables: Iterable[pa.Table]) -> None:
        """Begin at once with what will be opened next, one table after another; expecting wrongly costs time, never correctness."""
        self.close()
        self._expected = deque(table for table in tables if table.num_rows)
        if self._expected:
            self.read = self._start(pa.concat_tables(self._expected))

    def open(self, table: pa.Table, num_items: int, check: Callable[[int, T], None], name: Callable[[int], str]) -> Iterator[T]:
        """The items that a table describes, read from now on. Closing the iterator before its end stops the actors.

        Args:
            table: Descriptors.
            num_items: How many items they name.
            check: Refuses an item that is not the one of this number.
            name: Says which item has a number, for an error.

        Raises:
            StreamTimeoutError: While iterating: an item did not come in time.
        """
        if not num_items:
            return iter(())
        if self.read is None or not self._expected or not self._expected[0].equals(table):
            self.close()
            self._expected = deque([table])
            self.read = self._start(table)
        self._expected.popleft()
        return self._items(self.read, num_items, check, name)

    def close(self) -> None:
        """End what is under way."""
        read, self.read = self.read, None
        self._expected.clear()
        if read is not None:
            read.close()

    def _items(self, read: Read[T], num_items: int, check: Callable[[int, T], None], name: Callable[[int], str]) -> Iterator[T]:
        arrived = 0
        try:
            while arrived < num_items:
                try:
                    item = read.take(self._timeout_seconds)
                except TimeoutError:
                    raise StreamTimeoutError(
                        f"Ray's actors gave nothing for {self._timeout_seconds:g} s: waiting for {name(arrived)}, after {arrived} of {num_items} "
                        f"{self._noun}; {describe_cluster(self._asked)}; mend the cluster and start again from the last checkpoint, or raise timeout_seconds"
                    ) from None
                if item is None:
                    raise HeadraceError(f"Ray ended the read after {arrived} of {num_items} {self._noun}: see the actors' logs")
                check(arrived, item)
                arrived += 1
                yield item
                del item
        finally:
            if self.read is read and (arrived < num_items or not self._expected):
                self.close()
            elif self.read is not read:
                read.close()
