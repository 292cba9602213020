"""What fetching did: reads of storage, lost ones that were tried again, opened segments kept and opened anew, and where its threads spent their time."""

from __future__ import annotations

import dataclasses
import threading


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchCounts:
    """Totals over all threads.

    Attributes:
        reads: Calls of the store, each for the chunks of a block or for a footer.
        retries: Calls that the store lost or refused and that were made again.
        cache_hits: Footers and folded patches that were still there.
        cache_misses: Those that were read.
        read_seconds: Of fetching threads, waiting for the store.
        checksum_seconds: Of fetching threads, comparing checksums.
    """

    reads: int = 0
    retries: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    read_seconds: float = 0.0
    checksum_seconds: float = 0.0

    def __add__(self, other: FetchCounts) -> FetchCounts:
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return FetchCounts(**{field.name: a + b for field, a, b in zip(dataclasses.fields(self), mine, theirs, strict=True)})

    @property
    def checksum_share(self) -> float:
        """Share of the fetching threads' time that went into checksums."""
        total = self.read_seconds + self.checksum_seconds
        return self.checksum_seconds / total if total else 0.0


class FetchMeter:
    """Adds up counts; any thread may."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = FetchCounts()

    def add(self, counts: FetchCounts) -> None:
        with self._lock:
            self._counts += counts

    @property
    def counts(self) -> FetchCounts:
        """Totals up to now."""
        return self._counts
