"""DataLoader: a scan as batches for one rank, in a seeded order that any world size shares, resumable at every batch.

Owns the options, the epoch and the position. The pipeline behind it is in `pipeline.py`, the state's format in `state.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from loader.batch.buffers import BufferPool
from loader.batch.device import BatchDevice
from loader.decode.known_answers import open_device
from loader.errors import ForkedProcessError, StateMismatchError
from loader.kernels.runtime import Runtime
from loader.scan import order as ordering
from loader.scan.follow import FollowPlan
from loader.scan.mix import AnyPlan, AnyScan
from loader.scan.mixed_order import AnyLayout
from loader.scan.order import Order
from loader.scan.scan import Scan
from loader.scan.stream import BlockStream
from loader.train import metrics
from loader.train.audit import Audit, Ledger
from loader.train.bad_blocks import MAX_CONSECUTIVE, BadBlocks
from loader.train.batch_stream import BatchJob, BatchStream
from loader.train.device_memory import plan_device_memory
from loader.train.flow import Flow
from loader.train.follow import Follower, check_follow
from loader.train.images import Images, ImageStage, image_columns
from loader.train.options import LoaderOptions, check_memory, default_order, distributed_rank, same_snapshot
from loader.train.pipeline import ENDED, Prefetcher, Work, layout_of, run
from loader.train.renewal import Renewal, let_go
from loader.train.state import LoaderState, snapshots_of
from loader.train.stats import LoaderStats, StageClock, StatsRecorder, nvtx_ranges
from loader.train.streams import StreamFactory, open_stream
from loader.train.watch import Watch

Transform = Callable[[Any], Any]


class DataLoader:
    """Batches of a scan for one rank.

    Every selected row comes once an epoch over all ranks; the global batches are the same sets of rows for every world size. A second `iter()` is the
    next epoch, in another order. Every rank gets the same number of batches.

    Args:
        scan: What to read: `table.scan(…)`, or several of them by weights: `loader.mix([…])`.
        global_batch_size: Rows of a batch over all ranks; a multiple of `world_size`.
        shuffle: "windows" permutes blocks, then rows inside windows; "blocks" blocks only; "full" all rows of a shard; "none" keeps the table's order inside
            each canonical shard. True is "windows", False "none".
        shuffle_run_rows: Neighbouring rows that stay together.
        window_rows: Rows a window mixes.
        canonical_shards: Parts of the order that can be read apart. Default 8 a rank, fewer for small plans, 1 a rank unshuffled; a state brings its own.
        seed: Of the order.
        rank: Default from torch.distributed where it is initialised, else 0; every rank then reads rank 0's newest snapshot, so every rank must make
            the loader. With tensor or pipeline parallelism pass the data-parallel rank, and a scan that names its snapshot.
        world_size: Likewise.
        remainder: "drop" leaves out the last rows that fill no batch, "pad" fills the last batch with masked rows, "uneven" makes it smaller.
        device: "cpu"; "cuda" or "cuda:N" decodes and makes batches on that GPU, or raises an error that says why not; "auto" takes a GPU where one can be
            used, else the CPU with a warning that says why. The batches are the same. One GPU a rank. With decode="cpu" or "actor" they come in host memory:
            move them with `batch.to(device)`.
        output: "dict" gives `Batch` of torch tensors; "kjt" too, with all lists of integers as one keyed jagged tensor `batch["kjt"]`; "nested" with lists as
            torch nested tensors. "numpy" gives `Batch` of arrays, "arrow" `pyarrow.RecordBatch`.
        decode: Where blocks are decoded: "rank" in this process; "cpu" too, and there on the CPU whatever the device; "actor" in Ray Data actors, which send
            whole batches. The batches are the same.
        transforms: Called on every batch in turn, in the loader's thread; each returns what the next one gets. `loader.Transforms` makes them of plain values.
        images: What binary columns of JPEG images become, by column; one `ImageOptions` is for all columns whose field is marked headrace.content = image/jpeg.
            They are decoded in the loader's thread before the transforms.
        stream: A block stream, or what makes one from a `FetchSpec` (`loader.distributed.RayBlockStream`). Default threads of this process. With
            decode="actor" a batch stream, or what makes one; default `loader.distributed.RayBatchStream` with one actor.
        prefetch_bytes: Encoded bytes fetched ahead at most; how many blocks that are follows how long the trainer waits for them.
        threads: For fetching, decoding and gathering. Default up to 4.
        memory_bytes: Limit for decoded windows and batches that wait; a loader that cannot keep it is refused. Default 80% of the memory that is free.
        unique: List columns that come unexpanded: each distinct list once, and for every row the number of its list (`Jagged.inverse`).
        device_memory_bytes: GPU memory for encoded bytes and windows, taken once; what batches hold comes on top. Default what the plan needs.
        pinned_bytes: Pinned host memory that blocks are fetched into, taken once. Default twice `prefetch_bytes`, and room for four blocks.
        bad_records: What to do about a block that is damaged or gone. "fail" raises the error; "skip" masks its rows in their place (`batch.mask`) and counts
            them; "quarantine" does, and writes the block down in the catalog, so that later runs skip it without trying.
        max_consecutive_bad: Bad blocks one after another after which "skip" and "quarantine" give up, too.

    Raises:
        ValueError: An option is wrong, the windows do not fit, or the plan is smaller than a batch that must be whole.
        SchemaError: A column has no place in a batch.
    """

    def __init__(
        self,
        scan: AnyScan,
        *,
        global_batch_size: int,
        shuffle: str | bool = "windows",
        shuffle_run_rows: int = 1,
        window_rows: int = 262_144,
        canonical_shards: int | None = None,
        seed: int = 17,
        rank: int | None = None,
        world_size: int | None = None,
        remainder: str = "drop",
        device: str = "cpu",
        output: str = "dict",
        decode: str = "rank",
        transforms: Transform | Sequence[Transform] | None = None,
        images: Images | None = None,
        stream: BlockStream | BatchStream | StreamFactory | None = None,
        prefetch_bytes: int = 64 << 20,
        threads: int | None = None,
        memory_bytes: int | None = None,
        unique: Sequence[str] = (),
        device_memory_bytes: int | None = None,
        pinned_bytes: int | None = None,
        bad_records: str = "fail",
        max_consecutive_bad: int = MAX_CONSECUTIVE,
    ) -> None:
        own_rank, own_world = distributed_rank(rank, world_size)
        self.options = LoaderOptions(
            global_batch_size=global_batch_size,
            shuffle=shuffle if isinstance(shuffle, str) else "windows" if shuffle else "none",
            shuffle_run_rows=shuffle_run_rows,
            window_rows=window_rows,
            canonical_shards=canonical_shards,
            seed=seed,
            rank=own_rank,
            world_size=own_world,
            remainder=remainder,
            device=device,
            output=output,
            decode=decode,
            prefetch_bytes=prefetch_bytes,
            threads=min(os.cpu_count() or 1, 4) if threads is None else threads,
            memory_bytes=memory_bytes,
            unique=tuple(unique),
            device_memory_bytes=device_memory_bytes,
            pinned_bytes=pinned_bytes,
            bad_records=bad_records,
            max_consecutive_bad=max_consecutive_bad,
        )
        self._transforms: tuple[Transform, ...] = (transforms,) if callable(transforms) else tuple(transforms or ())
        self._stream = stream
        self._images = images
        self._process = os.getpid()
        self._recorder, self._ledger = StatsRecorder(), Ledger()
        self._flow = Flow(threads=self.options.threads)
        self._pool = BufferPool()
        self._runtime: Runtime | None = None
        self._device: BatchDevice | None = None
        self._clock: StageClock | None = None
        self._prefetcher: Prefetcher | None = None
        self._epoch, self._position = 0, 0
        self._started = self._begun = self._closed = False
        self._follower: Follower | None = None
        begin = (same_snapshot(scan) if rank is None else scan).for_epoch(0)
        if isinstance(begin, Scan) and begin.follow is not None:
            check_follow(stream)
            self._follower = Follower(begin, self.options)
        self._adopt(begin)
        self._scan = scan.for_epoch(0)
        self._watch = Watch(self.plan.table, metrics.count_in(self), own_rank, own_world, self.stats)

    def _adopt(self, scan: AnyScan, order: Order | None = None) -> None:
        """Plan a scan and check that this loader can run it."""
        self.plan: AnyPlan = scan.plan() if self._follower is None else self._follower.first()
        self._renewal = Renewal(self.plan.renew) if self._follower is None else self._follower.renewal
        self._scan = scan
        try:
            self._take_plan(order)
        except Exception:
            self.plan.release()  # nobody closes a loader that could not be made
            raise

    def _take_plan(self, order: Order | None) -> None:
        self._order = order or default_order(self.plan, self.options)
        images = image_columns(self.plan, self._images)
        self._batch_layout = layout_of(self.plan, self.options.output, self.options.unique, images, pad_groups=self.options.pad_groups)
        if self._follower is None and self.options.remainder == "drop" and self.plan.num_units < self.options.global_batch_size:
            raise ValueError(
                f"the plan has {self.plan.num_units:,} {self._unit} and global_batch_size is {self.options.global_batch_size:,}, so remainder='drop' leaves no "
                "batch: lower it, select more, or use remainder='pad' or 'uneven'"
            )
        self._layout_cache: AnyLayout | None = None
        self._check_memory(self._order)
        device = "cpu" if self._runtime is None else self._runtime.device
        self._image_stage = ImageStage(self._batch_layout, images, device=device, threads=self.options.threads) if images else None

    def _check_memory(self, order: Order) -> None:
        """Refuse windows that do not fit where they will be; actors check their own where they make the batches."""
        options = self.options
        if options.may_use_gpu:
            memory = plan_device_memory(self.plan, order, options)
            if self._runtime is None:
                self._runtime = open_device(options.device, needed_bytes=memory.slab_bytes + memory.heap_bytes)
        if options.decode != "actor" and self._runtime is None:
            self._flow.queue_bytes = check_memory(self.plan, order, options)

    def _open_device(self) -> BatchDevice | None:
        """The memory of this loader on its GPU: allocated with the first iteration, and used by all."""
        if self._runtime is not None and self._device is None:
            self._device = BatchDevice(self._runtime, plan_device_memory(self.plan, self._order, self.options))
        return self._device

    def _layout(self) -> AnyLayout:
        if self._layout_cache is None or self._layout_cache.order.epoch != self._epoch:
            self._layout_cache = self.plan.lay_out(dataclasses.replace(self._order, epoch=self._epoch))
        return self._layout_cache

    def __len__(self) -> int:
        """Batches from the position where the current iteration began, or the next one begins; the same on every rank.

        Raises:
            TypeError: The scan follows its table: nobody knows.
        """
        if self._follower is not None:
            raise TypeError("a loader that follows a table has no length: iterate it until it ends, or stop() it")
        return self._num_batches()

    def _num_batches(self) -> int:
        if not self._begun:
            self._follow_epoch()
        return ordering.num_batches(self.plan.num_units, self._first_position, self.options.global_batch_size, self.options.remainder)

    @property
    def _first_position(self) -> int:
        return self._began_at if self._begun else self._position

    def __iter__(self) -> Iterator[Any]:
        if os.getpid() != self._process:
            raise ForkedProcessError(f"this DataLoader was made in process {self._process} and is used in its fork {os.getpid()}: start workers with spawn")
        if self._closed:
            raise RuntimeError("this DataLoader is closed: make a new one, and load this one's state_dict() to continue")
        self._stop()
        if self._begun and self._follower is None:
            self._epoch, self._position = self._epoch + 1, 0
        self._started = self._begun = True
        self._began_at = self._position
        self._follow_epoch()
        self._ledger.begin(self._epoch, self._position)
        return self._iterate() if self._follower is None else self._iterate_on(self._follower)

    def _snapshots(self) -> list[int]:
        return [snapshot for _, snapshot in snapshots_of(self.plan.state())]

    def _follow_epoch(self) -> None:
        """Plan anew where every epoch draws its own sample, at the same snapshot."""
        scan, before = self._scan.for_epoch(self._epoch), self.plan
        if scan is not self._scan:
            self._adopt(scan.at(*self._snapshots()), self._order)
            self._scan = scan
            before.release()

    def _iterate(self) -> Iterator[Any]:
        yield from self._iterate_plan()
        self._epoch, self._position, self._begun = self._epoch + 1, 0, False

    def _iterate_on(self, follower: Follower) -> Iterator[Any]:
        """Increment after increment, until the stream is over or was stopped. A second iteration goes on where this one ends."""
        plan = self.plan
        assert isinstance(plan, FollowPlan)
        agreed = follower.begin(plan, self._position)
        if agreed is not plan:
            self._take_increment(follower, agreed)
        self._recorder.begin()
        while True:
            plan = self.plan
            assert isinstance(plan, FollowPlan)
            with contextlib.closing(self._iterate_plan()) as batches:
                for batch in batches if self._num_batches() else ():
                    yield batch
                    if follower.is_stopped(plan):
                        return
            clock = StageClock()
            with self._recorder.blocked(clock), clock.stage("follow"):
                following = follower.advance(plan)
            if following is None:
                return
            self._take_increment(follower, following)

    def _take_increment(self, follower: Follower, plan: FollowPlan) -> None:
        self.plan, self._epoch, self._position, self._began_at = plan, plan.increment.number, 0, 0
        self._ledger.begin(self._epoch, 0)
        self._take_plan(follower.order_of(plan))
        if self._device is not None and not self._device.memory.covers(plan_device_memory(plan, self._order, self.options)):
            self._device = None  # a larger increment than any before

    def _iterate_plan(self) -> Generator[Any, None, None]:
        options, clock = self.options, StageClock(nvtx_ranges() if self._runtime is not None and self._runtime.device.startswith("cuda") else None)
        device = self._open_device()
        work = Work(
            plan=self.plan,
            layout=self._layout(),
            batch_layout=self._batch_layout,
            position=self._position,
            num_batches=self._num_batches(),
            global_batch_size=options.global_batch_size,
            rank=options.rank,
            world_size=options.world_size,
            remainder=options.remainder,
            threads=options.threads,
            transforms=self._transforms,
            pool=self._pool,
            renew=self._renewal,
            job=self.job() if options.decode == "actor" else None,
            images=self._image_stage,
            device=device,
            bad=BadBlocks(options.bad_records, options.max_consecutive_bad, self.plan.place, lambda met: self.plan.quarantine(met.block, met.bad)),
        )
        flow = self._flow
        flow.begin(is_fixed=device is not None)
        stream = open_stream(self._stream, self.plan, self._scan, self.options, device, self._recorder.count, flow.wanted_blocks)
        self._stop()
        self._recorder.begin()
        prefetcher = Prefetcher(lambda: run(work, stream, clock, self._recorder), name="headrace-batches", ahead=flow.batches, clock=clock)
        self._prefetcher, self._clock = prefetcher, clock
        try:
            for number in range(work.num_batches):
                queued = prefetcher.queued
                with self._recorder.blocked(clock):
                    made = prefetcher.get()
                    made.hand_over()
                if self._prefetcher is not prefetcher:
                    raise RuntimeError(ENDED)
                self._position = min(self._position + options.global_batch_size, self.plan.num_units)
                seconds = self._recorder.handed_over(made.num_samples, made.bad_records)
                if number:  # the first batch has to be waited for
                    flow.taken(self._recorder.waited, seconds, queued=queued, num_bytes=made.num_bytes)
                    prefetcher.deepen(flow.batches)
                self._recorder.note_queued_bytes(prefetcher.queued * made.num_bytes)
                rows = {"rows": made.num_samples, "masked_rows": made.num_masked, "padding_rows": made.num_rows - made.num_samples}
                self._ledger.hand_over(position=self._position, units=made.num_units, **rows)
                self._watch.look()
                batch = made.batch
                del made
                yield batch
        finally:
            if self._prefetcher is prefetcher:
                self._stop()

    def job(self) -> BatchJob:
        """What is left of the epoch under way, or of the next one to begin, as a stream of batches is asked for it."""
        num_batches = self._num_batches()
        return BatchJob(options=self.options, order=self._layout().order, position=self._position, num_batches=num_batches, num_rows=self.plan.num_units)

    @property
    def epoch(self) -> int:
        """The epoch under way, or the next one to begin."""
        return self._epoch

    @property
    def position(self) -> int:
        """Rows of this epoch that all ranks have yielded together."""
        return self._position

    @property
    def rows_per_epoch(self) -> int:
        """Samples that all ranks yield together in a whole epoch, exactly; groups, where the scan groups."""
        rows, batch = self.plan.num_units, self.options.global_batch_size
        return rows - rows % batch if self.options.remainder == "drop" else rows

    def set_epoch(self, epoch: int) -> None:
        """The next `iter()` gives this epoch from its start; numbering goes on from there."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it must be at least 0")
        if self._follower is not None:
            raise RuntimeError("set_epoch() begins another pass, and a loader that follows its table makes one: iterate it on, or load a state")
        self._stop()
        self._epoch, self._position, self._begun = epoch, 0, False
        self._ledger.begin(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was handed over, as JSON-able plain data; the same on every rank."""
        if self._follower is not None and isinstance(self.plan, FollowPlan):
            self._follower.saved(self.plan)
        return self._state().to_dict()

    @property
    def _unit(self) -> str:
        return "rows" if self.plan.groups is None else "groups"

    def audit(self) -> Audit:
        """What became of the epoch under way, or of the last one that ended: given, remaining, left out, masked, padded; exact, by rank and for all ranks.

        `loader.total_audit` adds up the audits of all ranks, and checks that nothing is missing or double.
        """
        return self._ledger.audit(self.options, planned=self.plan.num_units, unit=self._unit)

    def _state(self) -> LoaderState:
        self._follow_epoch()
        layout = self._layout()
        return LoaderState(content=self.plan.state(), order=layout.order, plan=layout.fingerprint(), position=self._position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where a state was saved, at any world size, batch size and prefetch depth.

        A scan without a snapshot of its own takes the state's; `canonical_shards` left to the default too.

        Raises:
            StateMismatchError: The state belongs to other samples or another order (the field is named), or iteration has begun.
        """
        if self._started:
            raise StateMismatchError("load_state_dict was called after iteration began: load the state into a fresh DataLoader, before its first iter()")
        saved = LoaderState.from_dict(state)
        order = self._order
        if self.options.canonical_shards is None:
            order = dataclasses.replace(order, shards=saved.order.shards)
        before = vars(self).copy()
        try:
            scan = (saved.snapshots_for(self._scan, self.plan.state()) or self._scan).for_epoch(saved.order.epoch)
            if self._follower is not None and isinstance(self._scan, Scan):
                self._resume(Follower(self._scan, self.options), saved, order)
            elif scan is not self._scan:
                self._adopt(scan if all(source.snapshot is not None for source in scan.sources) else scan.at(*self._snapshots()), order)
            elif order != self._order:
                self._check_memory(order)
                self._order = order
            self._epoch, self._layout_cache = saved.order.epoch, None
            saved.check(self._state())
        except Exception:
            refused, self.__dict__ = vars(self), before  # as if no state had been given
            let_go(refused, before)
            raise
        let_go(before, vars(self))
        self._position = saved.position
        self._ledger.begin(self._epoch, self._position)

    def _resume(self, follower: Follower, saved: LoaderState, order: Order) -> None:
        """Take up the increment of a state."""
        self._follower = follower
        self.plan = follower.resume(saved.content)
        self._renewal = follower.renewal
        self._take_plan(order)
        left, batch = saved.num_rows - saved.position, self.options.global_batch_size
        if self.options.remainder == "drop" and left % batch:
            raise StateMismatchError(
                f"global_batch_size: {left:,} rows are left of the state's increment, no multiple of {batch:,}, and remainder='drop' would lose the rest: "
                "keep the batch size until the increment ends, or use remainder='pad' or 'uneven'"
            )

    def restart(self, state: Mapping[str, Any]) -> None:
        """Go on at a state although iteration may have begun, which `load_state_dict` refuses: the next `iter()` begins there, and an iteration under way ends.

        Raises:
            StateMismatchError: As `load_state_dict`; the loader then stays as it was.
        """
        started, self._started = self._started, False
        try:
            self.load_state_dict(state)
        except Exception:
            self._started = started
            raise
        self._stop()
        self._begun = False

    def stats(self) -> LoaderStats:
        """What was read, and for what share of its time the consumer waited, by stage."""
        stats = dataclasses.replace(self._recorder.snapshot(self._clock), batches_ahead=self._flow.batches, blocks_ahead=self._flow.blocks)
        if self._follower is None or self._closed or not isinstance(self.plan, FollowPlan):
            return stats
        lag = self._follower.lag(self.plan, self._position)
        return dataclasses.replace(stats, behind_rows=lag.rows, behind_seconds=lag.seconds)

    def stop(self) -> None:
        """End an iteration that follows its table: at once where this rank is alone, else behind the increment under way, on all ranks alike.

        Safe in a signal handler and from other threads. The state stays where the last batch was handed over; the next iteration goes on there.
        """
        if self._follower is None:
            raise RuntimeError("stop() ends a loader that follows its table (scan(follow=True)); leave the loop over any other one with break")
        self._follower.stop()

    def _stop(self) -> None:
        """End the iteration under way, if there is one."""
        prefetcher, clock = self._prefetcher, self._clock
        self._prefetcher = self._clock = None
        if prefetcher is not None and clock is not None:
            if not prefetcher.close():
                self._device = None  # a thread that was left behind may still use it
            self._recorder.end(clock)
            self._watch.end()

    def close(self) -> None:
        """Stop all threads and let the snapshot go. The loader keeps its position and statistics, and gives no more batches."""
        self._stop()
        self._device = None
        if not self._closed:
            self._closed = True
            let_go(vars(self), {})

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._stop()
