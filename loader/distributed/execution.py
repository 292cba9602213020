"""How Ray Data is asked for rows: one ordered, bounded, quiet execution over a pool of actors. Owns every setting of Ray Data that we change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from loader.distributed.datasource import make_datasource
from loader.extras import require

TIMEOUT_SECONDS = 600.0  # a cluster that adds nodes takes minutes
TASKS_IN_FLIGHT = 2  # an actor's next task waits at the actor, not at the scheduler
ROW_BY_ROW_BYTES = 1  # a block is given out as soon as it holds this much: rows are large, and somebody waits for them


def start_rows(
    descriptors: pa.Table,
    actor: type[Any],
    arguments: Sequence[Any],
    *,
    num_actors: int,
    rows_per_task: int,
    prefetch_bytes: int,
    options: Mapping[str, Any],
    row_by_row: bool = False,
) -> Callable[[], Iterable[Any]]:
    """Set up an execution; calling what is returned begins it and gives Arrow tables in the order of the descriptors.

    Args:
        descriptors: What is wanted, a row each.
        actor: A callable for `map_batches`: a table of descriptors in, tables out.
        arguments: Of its constructor; they travel to the actors.
        num_actors: Size of the pool. Ray replaces an actor that dies and does its task again.
        rows_per_task: Descriptors of one Ray task.
        prefetch_bytes: Bytes of results that may wait in the object store.
        options: For the actors, as for `ray.remote`.
        row_by_row: Give out every table when the actor yields it, instead of those of a task together.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    ray_data = require("ray.data", extra="ray")
    source = make_datasource(descriptors, blocks_per_task=rows_per_task)
    with ray_data.DataContext.current(_context(ray_data, prefetch_bytes, row_by_row)):
        rows = ray_data.read_datasource(source, override_num_blocks=len(source.bounds), **options).map_batches(
            actor,
            fn_constructor_args=tuple(arguments),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray_data.ActorPoolStrategy(size=num_actors, max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT),
            **options,
        )
    return functools.partial(rows.iter_batches, batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def describe_cluster(asked: Mapping[str, Any]) -> str:
    """What an actor asks for, and what there is: for the error of whoever waits in vain."""
    ray = require("ray", extra="ray")
    wants = ", ".join(f"{name} {value}" for name, value in sorted(asked.items())) or "nothing"
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        total, free = ray.cluster_resources(), ray.available_resources()
    except Exception as error:  # noqa: BLE001 (the error it is part of matters more)
        return f"an actor asks for {wants}, and the cluster does not answer ({error})"
    shown = [f"{name} {free.get(name, 0.0):g} free of {total[name]:g}" for name in sorted(total) if not name.startswith(("node:", "object_store", "memory"))]
    return f"an actor asks for {wants}; the cluster has {len(alive)} nodes, {', '.join(shown) or 'without any resource'}"


def _context(ray_data: Any, prefetch_bytes: int, row_by_row: bool) -> Any:
    """Ray Data's settings for this read alone; the process's own stay as they are."""
    context = ray_data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray_data.ExecutionResources.for_limits(object_store_memory=prefetch_bytes)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    if row_by_row:
        context.target_max_block_size = ROW_BY_ROW_BYTES
    return context
