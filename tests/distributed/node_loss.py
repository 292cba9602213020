"""A cluster of several simulated hosts that loses some of them, in a process of its own: `python -m tests.distributed.node_loss FOLDER`.

It writes what it found to `found.json` in the folder.
Each part of the answer is judged by `test_node_loss`. Hosts are Ray nodes of `ray.cluster_utils.Cluster`, told apart by a resource that they have.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.cluster_utils import Cluster
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

import loader
from loader.distributed import RayBlockStream, ScanDataConfig
from loader.errors import StreamTimeoutError
from loader.scan.encoded import EncodedBlock, FetchRequest
from tests.distributed.fake_blocks import FakeFetcher
from tests.train.sample_table import create

QUICK_TO_NOTICE = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 300, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
LOADER: dict[str, Any] = {"global_batch_size": 24, "window_rows": 64, "threads": 1, "seed": 3, "output": "numpy", "remainder": "uneven"}


class TellingFetcher(FakeFetcher):
    """Notes the host of every fetch."""

    def fetch(self, request: FetchRequest) -> EncodedBlock:
        with open(self.spec["hosts"], "a", encoding="utf-8") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()}\n")
        return super().fetch(request)


def lose_fetchers(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """Blocks come from other hosts; the host they come from is lost; then there is none left."""
    nodes = [cluster.add_node(num_cpus=1, resources={"storage": 1}) for _ in range(2)]
    spec = {"bytes": 200_000, "hosts": str(folder / "hosts")}
    options: dict[str, Any] = {"resources": {"resources": {"storage": 0.5}}, "prefetch_bytes": 800_000, "prefetch_blocks": 1, "make_fetcher": TellingFetcher}
    requests = [FetchRequest(sequence=number, shard=0, block=number) for number in range(60)]
    blocks = RayBlockStream(spec, timeout_seconds=60, **options).open(requests)
    arrived = [next(blocks).request for _ in range(10)]
    hosts = (folder / "hosts").read_text().split()
    (lost,) = [node for node in nodes if node.node_id == hosts[0]]
    cluster.remove_node(lost, allow_graceful=False)
    arrived += [block.request for block in blocks]
    after = (folder / "hosts").read_text().split()
    (left,) = [node for node in nodes if node is not lost]
    cluster.remove_node(left, allow_graceful=False)
    try:
        error = str(list(RayBlockStream(spec, timeout_seconds=1, **options).open(requests)))
    except StreamTimeoutError as raised:
        error = str(raised)
    return {
        "first_hosts_are_storage": set(hosts) <= {node.node_id for node in nodes},
        "in_order": arrived == requests,
        "moved": left.node_id in after,
        "ahead": len(hosts),
        "error": error,
    }


def train(settings: Mapping[str, Any]) -> None:
    """One epoch on a rank that trains nothing: a line a batch, a checkpoint every other batch. The first start waits in the middle, for its host to be lost."""
    context, folder = ray.train.get_context(), Path(settings["folder"])
    rank, saved, state, start = context.get_world_rank(), ray.train.get_checkpoint(), None, 0
    if saved is not None:
        with saved.as_directory() as path:
            state = json.loads((Path(path) / "state.json").read_text())
            start = 1
    with ray.train.get_dataset_shard("train").loader(state=state, **LOADER) as batches, open(folder / f"{start}-{rank}.jsonl", "a", encoding="utf-8") as lines:
        for number, batch in enumerate(batches, start=1):
            at = batches.state_dict()
            lines.write(json.dumps({"position": at["position"], "ids": batch["id"][: batch.num_samples].tolist()}) + "\n")
            lines.flush()
            if start == 0 and number == 5:
                (folder / f"host-{rank}").write_text(ray.get_runtime_context().get_node_id())
                (folder / f"host-{rank}").rename(folder / f"waiting-{rank}")
                signal.pause()
            if number % 2:
                continue
            with tempfile.TemporaryDirectory() as path:
                (Path(path) / "state.json").write_text(json.dumps(at))
                ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(path) if rank == 0 else None)


def lose_rank(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """The host of a rank is lost in the middle of an epoch, and there is another."""
    nodes = [cluster.add_node(num_cpus=2, resources={"rank": 1}) for _ in range(3)]
    with loader.connect(folder / "lake") as lake:
        scan = create(lake, num_rows=300).scan(columns=["id"])

        def lose() -> None:
            while not all((folder / f"waiting-{rank}").exists() for rank in range(2)):
                threading.Event().wait(0.05)
            host = (folder / "waiting-1").read_text()
            cluster.remove_node(next(node for node in nodes if node.node_id == host), allow_graceful=False)

        threading.Thread(target=lose, daemon=True).start()
        with ScanDataConfig({"train": scan}) as data:
            DataParallelTrainer(
                train,
                train_loop_config={"folder": str(folder)},
                datasets=data.datasets(),
                dataset_config=data,
                scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1, "rank": 1}),
                run_config=ray.train.RunConfig(
                    name="run",
                    storage_path=str(folder / "runs"),
                    failure_config=ray.train.FailureConfig(max_failures=3),
                    logging_config=ray.train.LoggingConfig(log_level="ERROR"),
                ),
            ).fit()
    records: dict[int, list[dict[str, Any]]] = {}
    for path in folder.glob("*.jsonl"):
        records.setdefault(int(path.name[0]), []).extend(json.loads(line) for line in path.read_text().splitlines())
    restored = min(record["position"] for record in records[1]) - LOADER["global_batch_size"]
    kept = [record for record in records[0] if record["position"] <= restored] + records[1]
    return {
        "ids": sorted(number for record in kept for number in record["ids"]),
        "rolled_back": len(records[0]) + len(records[1]) - len(kept),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20, "_system_config": QUICK_TO_NOTICE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": environment})
        found = {"rank": lose_rank(cluster, folder), "fetchers": lose_fetchers(cluster, folder)}
        (folder / "found.json").write_text(json.dumps(found))
    finally:
        for node in [*cluster.worker_nodes, cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
    os._exit(0)  # a read that was given up still waits for the cluster, which Ray would start again for it


if __name__ == "__main__":
    main()
