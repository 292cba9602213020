"""A rank's batches through Ray Data: actors fetch, decode and assemble them, and the rank receives them whole, in order, checked on arrival.

A rank with several actors gets a part of every batch from each: parts own whole shards, so nothing is read or decoded twice, and each part is one ordered
Ray read with one actor that Ray keeps alive. Decoded bytes cross the object store, which is several times what `RayBlockStream` sends: README says when
that pays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from loader.distributed.batch_wire import unpack
from loader.distributed.decode_actors import DecodeActor, DecodeSpec, describe_runs
from loader.distributed.execution import TIMEOUT_SECONDS, start_rows
from loader.distributed.lane import Lane
from loader.distributed.read import Read
from loader.extras import require
from loader.scan.fetch import FetchSpec, OpensPlan
from loader.train.batch_stream import BatchJob, PartBatch, check_part, num_parts


class RayBatchStream:
    """A `BatchStream` whose batches Ray Data actors make: `DataLoader(scan, decode="actor", stream=RayBatchStream)`.

    Args:
        spec: `plan.fetch_spec()`: plain data, from which an actor makes the plan again.
        num_actors: Actors of this rank, at most: as many as divide its shards and its rows of a batch evenly.
        prefetch_bytes: Decoded bytes of each actor that may wait in the object store.
        prefetch_batches: Batches held ready in this process.
        batches_per_task: Batches that one Ray task makes; more saves scheduling where batches are small, and an actor's death costs a task.
        cpus_per_actor: Logical CPUs an actor reserves; it decodes with `threads` of the loader's options.
        gpus_per_actor: Share of a GPU an actor reserves; above 0 it decodes there, and sends host batches all the same.
        resources: More options for the actors, as for `ray.remote`: `resources`, `label_selector`, `memory`.
        timeout_seconds: Longest wait for a batch. It covers actors that start or are replaced, and nodes that come.

    Raises:
        MissingDependencyError: Ray is not installed.
    """

    def __init__(
        self,
        spec: FetchSpec | OpensPlan,
        *,
        num_actors: int = 1,
        prefetch_bytes: int = 128 << 20,
        prefetch_batches: int = 2,
        batches_per_task: int = 4,
        cpus_per_actor: float = 0.0,
        gpus_per_actor: float = 0.0,
        resources: Mapping[str, Any] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        require("ray.data", extra="ray")
        if min(num_actors, prefetch_bytes, prefetch_batches, batches_per_task) < 1 or min(cpus_per_actor, gpus_per_actor) < 0 or timeout_seconds <= 0:
            raise ValueError(
                f"num_actors {num_actors}, prefetch_bytes {prefetch_bytes}, prefetch_batches {prefetch_batches} and batches_per_task {batches_per_task} "
                f"must be at least 1, cpus_per_actor {cpus_per_actor} and gpus_per_actor {gpus_per_actor} not negative, "
                f"timeout_seconds {timeout_seconds} positive"
            )
        self._spec, self._num_actors, self._batches_per_task = spec, num_actors, batches_per_task
        self._prefetch_bytes, self._prefetch_batches = prefetch_bytes, prefetch_batches
        self._device = "cuda" if gpus_per_actor else "cpu"
        self._remote_options = {"num_cpus": cpus_per_actor, **({"num_gpus": gpus_per_actor} if gpus_per_actor else {}), **(resources or {})}
        self._timeout_seconds = timeout_seconds
        self._lanes: list[Lane[PartBatch]] = []
        self._specs: list[DecodeSpec] = []

    def expect(self, jobs: Iterable[BatchJob]) -> None:
        """Start at once with what will be opened next, one job after another: the rest of an epoch, and epochs after it."""
        coming = list(jobs)
        if coming:
            self._set_lanes(coming[0])
            for lane in self._lanes:
                lane.expect(describe_runs(job, self._batches_per_task) for job in coming)

    def open_batches(self, job: BatchJob) -> Iterator[Sequence[PartBatch]]:
        """The parts of every batch. Closing the iterator before its end stops the actors.

        Raises:
            HeadraceError: A batch could not be made (the actor's own error), or came out of order.
        """
        self._set_lanes(job)
        check = functools.partial(check_part, job)
        step, start = job.options.global_batch_size, job.position
        runs = describe_runs(job, self._batches_per_task)
        parts = [lane.open(runs, job.num_batches, check, lambda number: f"the batch at position {start + number * step:,}") for lane in self._lanes]
        return self._batches(parts)

    def close(self) -> None:
        """Stop the actors."""
        for lane in self._lanes:
            lane.close()

    def _set_lanes(self, job: BatchJob) -> None:
        """One lane a part; those that are there stay where the job needs the same actors."""
        parts = num_parts(job, self._num_actors)
        order = dataclasses.replace(job.order, epoch=0)  # a run names its own
        specs = [DecodeSpec(fetch=self._spec, options=job.part(index, parts).options, order=order, device=self._device) for index in range(parts)]
        if specs != self._specs:
            self.close()
            self._specs = specs
            self._lanes = [
                Lane(functools.partial(self._start, spec), "batches", timeout_seconds=self._timeout_seconds, asked=self._remote_options) for spec in specs
            ]

    def _batches(self, parts: Sequence[Iterator[PartBatch]]) -> Iterator[Sequence[PartBatch]]:
        with contextlib.ExitStack() as stack:
            for part in parts:
                if hasattr(part, "close"):
                    stack.callback(part.close)
            yield from zip(*parts, strict=True)

    def _start(self, spec: DecodeSpec, runs: pa.Table) -> Read[PartBatch]:
        rows = start_rows(
            runs,
            DecodeActor,
            (spec,),
            num_actors=1,
            rows_per_task=1,
            prefetch_bytes=self._prefetch_bytes,
            options=self._remote_options,
            row_by_row=True,
        )
        return Read(rows, unpack, ahead=self._prefetch_batches)
