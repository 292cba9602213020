"""From an experiment's `lake`, `data` and `loader` sections to the loaders of one rank. The same plans on every rank and after every restart."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import loader
from loader.config import ExperimentConfig
from loader.distributed import RayBatchStream, RayBlockStream
from loader.scan.mix import AnyPlan
from loader.scan.plan import Plan
from loader.train.options import LoaderOptions

Stream: TypeAlias = RayBlockStream | RayBatchStream
Maker: TypeAlias = Callable[[Any], Stream]


def open_lake(config: ExperimentConfig) -> Any:
    """The experiment's lake; it must exist."""
    return loader.connect(config.lake.location, catalog=config.lake.catalog, create=False)


def make_scan(config: ExperimentConfig, lake: Any, *, test: bool = False) -> Any:
    """The rows that train, or those that test."""
    data = config.data
    where, closed_before = (data.test_where, data.test_closed_before) if test else (data.where, data.closed_before)
    chosen = {} if test else {"sample": data.sample, "group_by": data.group_by}
    own = lake.table(config.lake.table).scan(columns=data.columns, where=where, closed_before=closed_before, snapshot=config.lake.snapshot, **chosen)
    if data.follow is not None and not test:
        return dataclasses.replace(own, follow=loader.Follow(name=config.run.name, **data.follow.model_dump()))
    if test or not data.mix:
        return own
    others = [(lake.table(source.table).scan(data.columns, source.where, source.snapshot, source.closed_before), source.weight) for source in data.mix]
    return loader.mix([(own, data.weight), *others])


def pinned_at(config: ExperimentConfig, plan: AnyPlan) -> ExperimentConfig:
    """The experiment with the snapshots that a plan of its training rows reads."""
    first, *others = [plan.snapshot] if isinstance(plan, Plan) else [part.snapshot for part in plan.parts]
    sources = tuple(source.model_copy(update={"snapshot": snapshot}) for source, snapshot in zip(config.data.mix, others, strict=True))
    changed = {"lake": config.lake.model_copy(update={"snapshot": first}), "data": config.data.model_copy(update={"mix": sources})}
    return config.model_copy(update=changed)


def snapshots(config: ExperimentConfig) -> list[tuple[str, int | str | None]]:
    """(table, snapshot) of all that the experiment reads."""
    return [(config.lake.table, config.lake.snapshot), *((source.table, source.snapshot) for source in config.data.mix)]


def is_tested(config: ExperimentConfig) -> bool:
    """Whether the experiment names rows that measure the model."""
    return config.data.test_where is not None or config.data.test_closed_before is not None


def loader_options(config: ExperimentConfig, *, rank: int, world_size: int, test: bool = False) -> LoaderOptions:
    """The options of one rank's loader. Test rows come unshuffled, and none of them is dropped.

    Raises:
        ValueError: One is wrong, or not possible yet.
    """
    options = config.loader
    return LoaderOptions(
        global_batch_size=options.global_batch_size,
        shuffle="none" if test else options.shuffle,
        shuffle_run_rows=options.shuffle_run_rows,
        window_rows=options.window_rows,
        canonical_shards=options.canonical_shards,
        seed=options.seed,
        rank=rank,
        world_size=world_size,
        remainder="pad" if test else options.remainder,
        device=options.device,
        output=options.output,
        decode="rank" if test and options.decode == "actor" else options.decode,  # test rows are read once: actors would take longer to start
        prefetch_bytes=options.prefetch_bytes,
        threads=options.threads,
        memory_bytes=None,
        device_memory_bytes=options.device_memory_bytes,
        pinned_bytes=options.pinned_bytes,
        bad_records=options.bad_records,
        max_consecutive_bad=options.max_consecutive_bad,
    )


def make_loader(config: ExperimentConfig, scan: Any, *, rank: int, world_size: int, stream: Stream | Maker | None = None, test: bool = False) -> Any:
    """The loader of one rank."""
    options = loader_options(config, rank=rank, world_size=world_size, test=test)
    transforms = loader.Transforms(config.data.transforms) if config.data.transforms else None
    return loader.DataLoader(scan, stream=stream, transforms=transforms, **dataclasses.asdict(options))


def make_stream(config: ExperimentConfig, plan: AnyPlan) -> Stream | Maker | None:
    """Who fetches the training blocks, or makes the batches: None for threads of the rank, or its Ray Data actors.

    Of a followed table it is what makes them, for one increment after another.
    """
    make = _stream_maker(config)
    return make if make is None or config.data.follow is not None else make(plan.fetch_spec())


def _stream_maker(config: ExperimentConfig) -> Maker | None:
    train = config.train
    if config.loader.decode == "actor":
        shares = {"cpus_per_actor": train.decode_actor_cpus, "gpus_per_actor": train.decode_actor_gpus}
        return functools.partial(RayBatchStream, num_actors=train.decode_actors, prefetch_bytes=config.loader.prefetch_bytes, **shares)
    if train.stream == "threads":
        return None
    return functools.partial(RayBlockStream, num_actors=train.fetch_actors, prefetch_bytes=config.loader.prefetch_bytes)


def planned_positions(plan: AnyPlan) -> npt.NDArray[np.int64]:
    """int64 [rows, 2], (segment id, row) of every row of a plan, from its selection alone: no order, no batch, no fetch has a say in it."""
    parts = [np.zeros((0, 2), np.int64)]
    for index in range(plan.num_blocks):
        place = plan.place(index)
        rows = np.arange(place.num_rows) if place.selected is None else np.flatnonzero(np.unpackbits(place.selected, count=place.num_rows, bitorder="little"))
        parts.append(np.stack([np.full(len(rows), place.ref.segment_id, np.int64), place.row_start + rows], axis=1))
    return np.concatenate(parts)
