"""The fetch actor: opens the lake's storage once and turns descriptors into rows of encoded blocks. It decodes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pyarrow as pa

from loader.distributed.wire import pack
from loader.scan.encoded import EncodedBlock, FetchRequest


class Fetcher(Protocol):
    """What the actor needs of `loader.scan.fetch.BlockFetcher`."""

    def fetch(self, request: FetchRequest) -> EncodedBlock: ...


class FetchActor:
    """A callable for `map_batches`.

    Args:
        spec: Plain data from which the fetcher is made again on this host.
        make_fetcher: Usually `loader.scan.plan.open_fetcher`.
    """

    def __init__(self, spec: Any, make_fetcher: Callable[[Any], Fetcher]) -> None:
        self._fetcher = make_fetcher(spec)

    def __call__(self, descriptors: pa.Table) -> Iterator[pa.Table]:
        """Rows of `wire.SCHEMA`, one at a time, in the order of the descriptors."""
        fetch = getattr(self._fetcher, "fetch_or_mark", self._fetcher.fetch)  # what to do about a damaged block, the rank knows
        columns = [descriptors.column(name).to_pylist() for name in ("sequence", "shard", "block")]
        for sequence, shard, block in zip(*columns, strict=True):
            yield pack(fetch(FetchRequest(sequence=sequence, shard=shard, block=block)))
