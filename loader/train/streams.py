"""Where a loader's blocks, or batches, come from: the stream that it was given, or the one that its options ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from loader.batch.device import BatchDevice
from loader.extras import require
from loader.scan.fetch import FetchSpec, OpensPlan
from loader.scan.mix import AnyPlan, AnyScan
from loader.scan.stream import BlockStream, ThreadBlockStream
from loader.train.batch_stream import BatchStream
from loader.train.device_pipeline import pinned_fetch
from loader.train.options import LoaderOptions

StreamFactory: TypeAlias = Callable[[FetchSpec | OpensPlan], BlockStream | BatchStream]
Given: TypeAlias = BlockStream | BatchStream | StreamFactory | None


def open_stream(given: Given, plan: AnyPlan, scan: AnyScan, options: LoaderOptions, device: BatchDevice | None) -> BlockStream | BatchStream:
    """The stream of an iteration.

    Args:
        given: What the caller gave: a stream, what makes one of a plan's `FetchSpec`, or None.
        plan: What is read.
        scan: Of the plan.
        options: Of the loader.
        device: Where blocks are copied to, if anywhere.

    Raises:
        ValueError: The stream is of the wrong kind, or reads one epoch's sample where every epoch draws its own.
    """
    on_actors = options.decode == "actor"
    if given is None and on_actors:
        given = require("loader.distributed", extra="ray").RayBatchStream
    if given is None:
        return _threads(plan, options, device)
    is_made = not isinstance(given, type) and isinstance(given, BlockStream | BatchStream)
    if is_made and any(source.sample is not None and source.sample.per_epoch for source in scan.sources):
        raise ValueError("every epoch draws a sample of its own (per_epoch) and stream reads one: pass what makes a stream, such as its class")
    spec: FetchSpec | OpensPlan = plan.fetch_spec()
    stream: Any = given if is_made else given(spec)  # type: ignore[operator]
    if isinstance(stream, BatchStream) is not on_actors:
        wanted = "a stream of batches (loader.distributed.RayBatchStream)" if on_actors else "a stream of blocks (loader.distributed.RayBlockStream)"
        raise ValueError(f"decode is {options.decode!r} and stream gives a {type(stream).__name__}: give {wanted}, or leave stream out")
    return stream  # type: ignore[no-any-return]


def _threads(plan: AnyPlan, options: LoaderOptions, device: BatchDevice | None) -> ThreadBlockStream:
    fetcher = plan.fetcher()
    read = fetcher.fetch if options.bad_records == "fail" else fetcher.fetch_or_mark
    if device is None:
        return ThreadBlockStream(read, threads=options.threads, prefetch_bytes=options.prefetch_bytes)
    fetch, slabs = pinned_fetch(read, device.slabs), device.slabs
    return ThreadBlockStream(fetch, threads=options.threads, prefetch_bytes=options.prefetch_bytes, interrupt=slabs.interrupt)
