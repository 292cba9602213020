"""What a Ray Train worker gets from `ray.train.get_dataset_shard`: its part of a scan as plain data, and the loader made of it.

Owns how a worker finds the lake, its rank and who fetches its blocks. It holds no position: that is the loader's state, in the run's checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from loader.distributed.ahead import expect
from loader.distributed.batch_stream import RayBatchStream
from loader.distributed.stream import RayBlockStream
from loader.scan.fetch import FetchSpec, OpensPlan
from loader.scan.plan import open_plan
from loader.train.loader import DataLoader

if TYPE_CHECKING:
    from loader.scan.mix import AnyScan


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanShard:
    """One worker's part of a scan.

    Attributes:
        name: Of the dataset.
        spec: The scan at its snapshot, from which the worker plans it again.
        rank: Data-parallel rank.
        world_size: Workers of this start of the ranks; another start may have another number.
        node: Ray's id of the worker's host, or None where Ray does not say.
        actors: Options of `RayBlockStream` (of `RayBatchStream` with decode="actor"), or None where threads of the worker fetch.
    """

    name: str
    spec: FetchSpec | OpensPlan
    rank: int
    world_size: int
    node: str | None = None
    actors: Mapping[str, Any] | None = None

    def scan(self) -> AnyScan:
        """The scan, at the snapshot that the run began with, of a lake that is opened for it: `scan.table.lake`."""
        scan: AnyScan = open_plan(self.spec).scan
        return scan

    def loader(self, *, state: Mapping[str, Any] | None = None, epochs: int = 1, **options: Any) -> DataLoader:
        """This worker's `DataLoader`. Every rank gets the same number of batches, and together they get every row once.

        Args:
            state: `state_dict()` of any earlier loader of this scan, at any world size, to go on from there.
            epochs: How many are going to be iterated, this one included: actors then fetch on from epoch to epoch.
            options: Of `DataLoader`; rank and world size are the shard's.

        Raises:
            StateMismatchError: The state belongs to other samples.
            ValueError: An option is wrong.
        """
        stream, scan = self._stream(options), self.scan()
        try:
            batches = DataLoader(scan, **{"rank": self.rank, "world_size": self.world_size, "stream": stream, **options})
        except BaseException:
            _end(scan, None)
            raise
        weakref.finalize(batches, _end, scan, stream)
        if state is not None:
            batches.load_state_dict(state)
        if stream is not None and options.get("stream", stream) is stream:
            expect(stream, batches, epochs=range(batches.epoch, batches.epoch + max(epochs, 1)), position=batches.position)
        return batches

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(f"the shard of dataset {self.name!r} is not iterated itself: make a loader of it, shard.loader(global_batch_size=…), and iterate that")

    def _stream(self, options: Mapping[str, Any]) -> RayBlockStream | RayBatchStream | None:
        if self.actors is None and options.get("decode") != "actor":
            return None
        stream = RayBatchStream if options.get("decode") == "actor" else RayBlockStream
        return stream(self.spec, **(self.actors or {}))


def _end(scan: AnyScan, stream: RayBlockStream | RayBatchStream | None) -> None:
    """After the loader: nobody else knows of them."""
    if stream is not None:
        stream.close()
    for source in scan.sources:
        source.table.lake.close()


def shards(name: str, spec: FetchSpec | OpensPlan, *, world_size: int, nodes: list[str] | None, actors: Mapping[str, Any] | None) -> list[ScanShard]:
    """The shards of all ranks, in the order of the ranks."""
    make = functools.partial(ScanShard, name=name, spec=spec, world_size=world_size, actors=actors)
    return [make(rank=rank, node=nodes[rank] if nodes else None) for rank in range(world_size)]
