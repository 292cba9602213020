"""The decode actor: fetches, decodes, shuffles and assembles one part of a rank's batches, and sends them whole.

A task is a run of batches named by four integers. The pipeline behind them goes on from task to task; an actor that meets another run than the next one,
as after a death, begins a pipeline there: batches follow from their position, so what comes is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from loader.batch.assemble import BatchArrays
from loader.batch.buffers import BufferPool
from loader.batch.device import BatchDevice
from loader.distributed.batch_wire import pack
from loader.kernels.runtime import open_runtime
from loader.scan.encoded import EncodedBlock, FetchRequest
from loader.scan.fetch import FetchSpec, OpensPlan
from loader.scan.order import Order
from loader.scan.plan import open_plan
from loader.scan.stream import BlockStream, ThreadBlockStream
from loader.train.bad_blocks import BadBlocks
from loader.train.batch_stream import BatchJob, PartBatch
from loader.train.device_memory import plan_device_memory
from loader.train.device_pipeline import make_device_arrays, pinned_fetch
from loader.train.options import LoaderOptions, check_memory
from loader.train.pipeline import QUEUED_BATCHES, Prefetcher, Work, layout_of, make_arrays
from loader.train.stats import StageClock, StatsRecorder

RUNS = pa.schema([(name, pa.int64()) for name in ("epoch", "position", "num_batches", "num_left")])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeSpec:
    """All that another process needs to make one part of a rank's batches.

    Attributes:
        fetch: Of the plan.
        options: Of the part: its rank and world size are the part's.
        order: Of any epoch.
        device: Where the actor decodes: `cpu`, or `cuda` for the GPU of which it has a share.
    """

    fetch: FetchSpec | OpensPlan
    options: LoaderOptions
    order: Order
    device: str = "cpu"


def describe_runs(job: BatchJob, batches_per_task: int) -> pa.Table:
    """The batches of a job as runs, in their order: epoch, position of the first, how many, and how many are left of the job from there."""
    first = np.arange(0, job.num_batches, batches_per_task)
    left = job.num_batches - first
    columns = [np.full(len(first), job.order.epoch), job.position + first * job.options.global_batch_size, np.minimum(left, batches_per_task), left]
    return pa.Table.from_arrays([pa.array(column, pa.int64()) for column in columns], schema=RUNS)


class DecodeActor:
    """A callable for `map_batches`.

    Args:
        spec: Plain data from which the plan is made again on this host.
    """

    def __init__(self, spec: DecodeSpec) -> None:
        self._spec = spec

    @functools.cached_property
    def _maker(self) -> _Maker:
        """Made by the first task, not by the constructor: Ray hands a task's error on as it is, and only the death of an actor that cannot be made."""
        return _Maker(self._spec)

    def __call__(self, runs: pa.Table) -> Iterator[pa.Table]:
        """Rows of `batch_wire.SCHEMA`, one a batch, in the order of the runs.

        Raises:
            HeadraceError: The lake gives another plan, or a block cannot be fetched or decoded.
            ValueError: The windows do not fit into this host's memory.
        """
        for run in runs.to_pylist():
            for index in range(run["num_batches"]):
                position = run["position"] + index * self._spec.options.global_batch_size
                yield pack(self._maker.batches_at(run["epoch"], position, run["num_left"] - index).take())


class _Maker:
    """The plan of a part and the pipeline under way."""

    def __init__(self, spec: DecodeSpec) -> None:
        self._spec, self._plan = spec, open_plan(spec.fetch)
        self._layout, self._pool = layout_of(self._plan, "numpy", spec.options.unique), BufferPool()
        options, fetcher = spec.options, self._plan.fetcher()
        runtime = open_runtime(spec.device)
        self._device: BatchDevice | None = None
        read = fetcher.fetch if options.bad_records == "fail" else fetcher.fetch_or_mark
        fetch: Callable[[FetchRequest], EncodedBlock] = read
        interrupt: Callable[[], None] = _nothing
        if runtime is None:
            check_memory(self._plan, spec.order, options)
        else:
            self._device = BatchDevice(runtime, plan_device_memory(self._plan, spec.order, options))
            fetch, interrupt = pinned_fetch(read, self._device.slabs), self._device.slabs.interrupt
        self._stream = ThreadBlockStream(fetch, threads=options.threads, prefetch_bytes=options.prefetch_bytes, interrupt=interrupt)
        self._batches: _Batches | None = None

    def batches_at(self, epoch: int, position: int, num_left: int) -> _Batches:
        """The batches from a position on: those under way, where they stand there, else a pipeline that begins."""
        if self._batches is None or (self._batches.epoch, self._batches.position) != (epoch, position):
            if self._batches is not None:
                self._batches.close()
            self._batches = _Batches(self._work(epoch, position, num_left), self._stream)
        return self._batches

    def _work(self, epoch: int, position: int, num_left: int) -> Work:
        options = self._spec.options
        return Work(
            plan=self._plan,
            layout=self._plan.lay_out(dataclasses.replace(self._spec.order, epoch=epoch)),
            batch_layout=self._layout,
            position=position,
            num_batches=num_left,
            global_batch_size=options.global_batch_size,
            rank=options.rank,
            world_size=options.world_size,
            remainder=options.remainder,
            threads=options.threads,
            transforms=(),
            pool=self._pool,
            renew=_nothing,  # the rank holds the snapshot
            device=self._device,
            bad=BadBlocks(options.bad_records, None, self._plan.place),  # the rank counts, and knows when it is too many
        )


def _nothing() -> None:
    pass


def _host_arrays(work: Work, stream: BlockStream, clock: StageClock, recorder: StatsRecorder) -> Iterator[BatchArrays]:
    """A pipeline's batches in host memory, wherever they are made."""
    if work.device is None:
        yield from make_arrays(work, stream, clock, recorder)
        return
    with contextlib.closing(make_device_arrays(work, work.device, stream, clock, recorder)) as made:
        for arrays in made:
            yield arrays.to_host()
            del arrays


class _Batches:
    """A pipeline of one part from a position on, in a thread that runs ahead of whoever takes its batches."""

    def __init__(self, work: Work, stream: BlockStream) -> None:
        self.epoch, self.position = work.layout.order.epoch, work.position
        self._step, clock = work.global_batch_size, StageClock()
        self._bad = work.bad
        self._recorder, self._blocks, self._bytes = StatsRecorder(), 0, 0
        self._made = Prefetcher(lambda: _host_arrays(work, stream, clock, self._recorder), name="headrace-decode", ahead=QUEUED_BATCHES, clock=clock)

    def take(self) -> PartBatch:
        """The next batch."""
        arrays, recorder = self._made.get(), self._recorder
        blocks, num_bytes = recorder.blocks, recorder.encoded_bytes
        part = PartBatch(
            epoch=self.epoch,
            position=self.position,
            arrays=arrays,
            blocks=blocks - self._blocks,
            encoded_bytes=num_bytes - self._bytes,
            window_bytes=recorder.peak_window_bytes,
            bad=tuple(self._bad.take_new()),
        )
        self._blocks, self._bytes = blocks, num_bytes
        self.position += self._step
        return part

    def close(self) -> None:
        """Stop the thread."""
        self._made.close()
