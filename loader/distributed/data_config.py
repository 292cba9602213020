"""Scans as datasets of Ray Train: each worker gets its own deterministic shard, whatever the number of workers and however often they are started again.

Ray's own way, `streaming_split(equal=True)`, cuts rows off so that the parts are equal, deals blocks out as they come, and forgets where it was when the
workers start again. Here a shard is arithmetic on (snapshot, seed, epoch, position), and the position is in the run's checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loader.distributed.datasource import describe, make_datasource
from loader.distributed.shard import ScanShard, shards
from loader.extras import require
from loader.scan.encoded import FetchRequest
from loader.scan.fetch import FetchSpec, OpensPlan
from loader.scan.mix import AnyPlan, AnyScan

ray_train = require("ray.train", extra="ray")


class ScanDataConfig(ray_train.DataConfig):  # type: ignore[misc, name-defined]
    """The datasets of a Ray Train run that are scans; others beside them go Ray's own way.

        data = ScanDataConfig({"train": scan}, actors={"num_actors": 1})
        TorchTrainer(train, datasets=data.datasets(), dataset_config=data, …).fit()

    In a worker `ray.train.get_dataset_shard("train").loader(global_batch_size=…)` is its `DataLoader`. Every start of the workers, with whatever number of
    them, reads the snapshot that the config was made with, which is held for a day from each loader's last hour of work, and by this object until `close`.

    Args:
        scans: By name of the dataset.
        actors: Options of `RayBlockStream`, or of `RayBatchStream` for loaders with decode="actor": Ray Data actors then fetch blocks ahead, on whatever
            hosts `resources` allow. None leaves fetching to threads of the workers.
        options: Of `ray.train.DataConfig`, for the other datasets.

    Raises:
        MissingDependencyError: Ray is not installed.
        ValueError: `scans` is empty.
    """

    def __init__(self, scans: Mapping[str, AnyScan], *, actors: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        if not scans:
            raise ValueError("scans is empty: name at least one, as in {'train': table.scan(…)}")
        self._plans: dict[str, AnyPlan] = {name: scan.plan() for name, scan in scans.items()}
        self._specs: dict[str, FetchSpec | OpensPlan] = {name: plan.fetch_spec() for name, plan in self._plans.items()}
        self._actors = None if actors is None else dict(actors)

    def datasets(self) -> dict[str, Any]:
        """What to give the trainer as `datasets`: Ray datasets of the numbers of each plan's blocks, which nothing reads."""
        ray_data = require("ray.data", extra="ray")
        described = {}
        for name, plan in self._plans.items():
            blocks = describe(FetchRequest(sequence=block, shard=0, block=block) for block in range(plan.num_blocks))
            described[name] = ray_data.read_datasource(make_datasource(blocks, blocks_per_task=max(plan.num_blocks, 1)), override_num_blocks=1)
        return described

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: list[Any] | None, worker_node_ids: list[str] | None, **more: Any
    ) -> list[dict[str, Any]]:
        """Ray calls it once for every dataset and start of the workers."""
        others = {name: dataset for name, dataset in datasets.items() if name not in self._specs}
        configured: list[dict[str, Any]] = super().configure(others, world_size, worker_handles, worker_node_ids, **more)
        for name in datasets.keys() & self._specs.keys():
            of_ranks: list[ScanShard] = shards(name, self._specs[name], world_size=world_size, nodes=worker_node_ids, actors=self._actors)
            for found, shard in zip(configured, of_ranks, strict=True):
                found[name] = shard
        return configured

    def close(self) -> None:
        """Let the snapshots go; loaders that are under way hold them by themselves."""
        for plan in self._plans.values():
            plan.release()

    def __getstate__(self) -> dict[str, Any]:
        """What travels to the workers: plain data, not the plans."""
        return {**vars(self), "_plans": {}}

    def __enter__(self) -> ScanDataConfig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
