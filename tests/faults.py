"""Storage and catalogs that fail as real ones do, seeded: errors, lost answers, uploads that were cut off, objects that are not there for once, slow answers.

Nothing here breaks a promise that a store makes: an object is there whole or not at all, and what was acknowledged stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from loader.catalog.connection import Database
from loader.errors import CatalogUnavailableError, StorageError
from loader.storage import COALESCE_GAP_BYTES, MAX_REQUEST_BYTES, Buffer, Range, Storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """How often each fault comes, of 1, and how long a slow answer takes."""

    refused: float = 0.02  # an error, and nothing happened
    lost: float = 0.02  # it happened, and the answer is an error
    read: float = 0.0005  # a read fails: there are hundreds in a write, and nobody above repeats one
    delete: float = 0.005  # likewise; a collection deletes many
    slow: float = 0.002
    slow_seconds: float = 0.01


class FaultyStorage(Storage):
    """Another storage with faults before and after its operations."""

    def __init__(self, files: Storage, rng: random.Random, rates: Rates) -> None:
        super().__init__(files.url)
        self.files, self.rng, self.rates = files, rng, rates
        self.counts: Counter[str] = Counter()

    def put(self, path: str, data: Buffer, *, sync: bool = True) -> None:
        self._before(f"put {path}", self.rates.refused)  # an upload that is cut off leaves nothing behind
        self.files.put(path, data, sync=sync)
        self._after(f"put {path}")

    def size(self, path: str) -> int:
        self._before(f"size {path}", self.rates.read)
        return self.files.size(path)

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._before(f"delete {path}", self.rates.delete)
            self.files.delete([path])

    def read_ranges(
        self, path: str, ranges: Sequence[Range], *, coalesce_gap_bytes: int = COALESCE_GAP_BYTES, max_request_bytes: int = MAX_REQUEST_BYTES
    ) -> list[memoryview]:
        self._before(f"read {path}", self.rates.read)
        return self.files.read_ranges(path, ranges, coalesce_gap_bytes=coalesce_gap_bytes, max_request_bytes=max_request_bytes)

    def _before(self, what: str, rate: float) -> None:
        if self.rng.random() < self.rates.slow:
            self.counts["slow"] += 1
            time.sleep(self.rates.slow_seconds)
        if self.rng.random() < rate:
            self.counts[what.split()[0]] += 1
            raise StorageError(f"injected: {what} was refused (503 SlowDown)")

    def _after(self, what: str) -> None:
        if self.rng.random() < self.rates.lost:
            self.counts["lost"] += 1
            raise StorageError(f"injected: the answer to {what} was lost")


def break_catalog(database: Database, rng: random.Random, rates: Rates) -> Counter[str]:
    """Make write transactions of an open catalog fail: before they begin, before they commit, or after, with a lost answer. Returns what came."""
    counts: Counter[str] = Counter()
    real: Any = database.write
    kind = CatalogUnavailableError if "postgres" in type(database).__module__ else StorageError

    @contextlib.contextmanager
    def write(table_id: int | None = None, **options: Any) -> Iterator[Any]:
        if rng.random() < rates.refused:
            counts["catalog refused"] += 1
            raise kind("injected: the catalog does not answer")
        with real(table_id, **options) as connection:
            yield connection
            if rng.random() < rates.refused:
                counts["catalog cut"] += 1
                raise kind("injected: the connection broke before the commit")
        if rng.random() < rates.lost:
            counts["answer lost"] += 1
            raise kind("injected: the answer to the commit was lost")

    database.write = write  # type: ignore[method-assign]
    return counts
