"""The pipeline of one rank: requests → encoded blocks → windows → batches, and the thread that runs it ahead of the consumer.

Owns which windows are held and when they go. Order comes from `scan.order`, bytes from a block stream, arrays from `batch` or, made elsewhere, from a
batch stream; nothing here reads storage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any

import numpy as np

from loader.batch.assemble import BatchArrays, Part, assemble
from loader.batch.batch import Batch, BatchLayout
from loader.batch.buffers import BufferPool
from loader.batch.window import Columns, WindowData, WindowFill
from loader.decode.result import DecodedColumn
from loader.errors import CorruptSegmentError
from loader.scan import order as ordering
from loader.scan.decoded import Arena, decode
from loader.scan.encoded import EncodedBlock, FetchRequest
from loader.scan.order import Layout, Window
from loader.scan.plan import Plan
from loader.scan.stream import BlockStream, check_arrival
from loader.train.batch_stream import BatchJob, BatchStream, check_part, merge_parts
from loader.train.images import ImageStage
from loader.train.stats import StageClock, StatsRecorder

logger = logging.getLogger(__name__)

QUEUED_BATCHES = 2
CLOSE_SECONDS = 10.0
ENDED = "this iteration ended when another one of the same DataLoader began, or when it was closed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one rank does from a position to the end of an epoch.

    Attributes:
        plan: What is read.
        layout: In which order.
        batch_layout: What batches look like.
        position: Rows that all ranks yielded before.
        num_batches: Batches to come.
        global_batch_size: Rows of a global batch.
        rank, world_size: Which part of it is made.
        remainder: `pad` fills the last batch up.
        threads: For native decoding and gathers.
        transforms: Applied to every batch, in order.
        pool: Memory of batches.
        renew: Called before every batch, to keep the snapshot.
        job: What another process is asked for, where it makes the batches.
        images: Decodes image columns, where there are any.
    """

    plan: Plan
    layout: Layout
    batch_layout: BatchLayout
    position: int
    num_batches: int
    global_batch_size: int
    rank: int
    world_size: int
    remainder: str
    threads: int
    transforms: tuple[Callable[[Any], Any], ...]
    pool: BufferPool
    renew: Callable[[], None]
    job: BatchJob | None = None
    images: ImageStage | None = None

    @property
    def pad_to(self) -> int:
        """Rows that a batch has at least."""
        return self.global_batch_size // self.world_size if self.remainder == "pad" else 0

    def bounds(self, index: int) -> tuple[int, int]:
        """Positions [start, stop) of a global batch."""
        start = self.position + index * self.global_batch_size
        return start, min(start + self.global_batch_size, self.end)

    @property
    def end(self) -> int:
        """Position after the last batch."""
        return min(self.position + self.num_batches * self.global_batch_size, self.layout.num_rows)

    def windows(self) -> Iterator[Window]:
        """Windows in the order in which they are needed."""
        return ordering.rank_windows(self.layout, self.position, self.rank, self.world_size, self.end)

    def requests(self) -> Iterator[FetchRequest]:
        """Blocks in the order in which their windows are needed."""
        sequence = 0
        for window in self.windows():
            for block in ordering.window_pieces(self.layout, window)[0].tolist():
                yield FetchRequest(sequence=sequence, shard=window.shard, block=block)
                sequence += 1


def layout_of(plan: Plan, output: str, images: Collection[str] = ()) -> BatchLayout:
    """What all batches of a plan share."""
    return BatchLayout(
        columns=Columns.of(plan.read),
        names=plan.columns,
        block_segments=plan.blocks["segment_id"].astype(np.int64),
        block_row_starts=plan.row_starts,
        output=output,
        images=frozenset(images),
    )


def run(work: Work, stream: BlockStream | BatchStream, clock: StageClock, recorder: StatsRecorder) -> Iterator[tuple[Any, int, dict[str, int]]]:
    """The batches of one rank, decoded here from blocks or received from where they are made; each with the number of its samples, and of its bad
    records by column."""
    made = receive_arrays(work, stream, clock, recorder) if isinstance(stream, BatchStream) else make_arrays(work, stream, clock, recorder)
    with contextlib.closing(made):
        for arrays in made:
            batch: Any = Batch(work.batch_layout, arrays)
            with clock.stage("images"):
                bad = {} if work.images is None else work.images.apply(batch, arrays)
            with clock.stage("assembly"):
                if work.batch_layout.output == "arrow":
                    batch = batch.to_arrow()
            with clock.stage("transform"):
                for transform in work.transforms:
                    batch = transform(batch)
            yield batch, arrays.num_samples, bad


def make_arrays(work: Work, stream: BlockStream, clock: StageClock, recorder: StatsRecorder) -> Generator[BatchArrays, None, None]:
    """The batches of one rank as arrays: blocks decoded, shuffled and assembled."""
    blocks = stream.open(work.requests())
    try:
        windows = _Windows(work, blocks, clock, recorder)
        for index in range(work.num_batches):
            work.renew()
            slices = ordering.rank_slices(work.layout.order.shards, *work.bounds(index), work.rank, work.world_size)
            parts = [part for piece in slices for part in windows.parts(piece)]
            with clock.stage("assembly"):
                arrays = assemble(work.batch_layout.columns, parts, pad_to=work.pad_to, threads=work.threads, pool=work.pool)
            del parts
            windows.release(slices)
            yield arrays
            del arrays
    finally:
        _close(blocks)


def receive_arrays(work: Work, stream: BatchStream, clock: StageClock, recorder: StatsRecorder) -> Generator[BatchArrays, None, None]:
    """The same arrays, made elsewhere: checked, and copied to memory that the batch owns."""
    assert work.job is not None
    arrived = stream.open_batches(work.job)
    try:
        for index in range(work.num_batches):
            work.renew()
            with clock.stage("read"):
                made = next(arrived)
            for part in made:
                check_part(work.job, index, part)
                recorder.blocks += part.blocks
                recorder.encoded_bytes += part.encoded_bytes
                recorder.peak_window_bytes = max(recorder.peak_window_bytes, part.window_bytes)
            with clock.stage("assembly"):
                parts = merge_parts(work.job, index, made)
                arrays = assemble(work.batch_layout.columns, parts, pad_to=work.pad_to, threads=work.threads, pool=work.pool)
            del made, parts
            yield arrays
            del arrays
    finally:
        _close(arrived)


def _close(items: Iterator[Any]) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        close()


class _Windows:
    """The windows that a rank holds, filled in the order of the requests."""

    def __init__(self, work: Work, blocks: Iterator[EncodedBlock], clock: StageClock, recorder: StatsRecorder) -> None:
        self._work = work
        self._blocks = blocks
        self._clock = clock
        self._recorder = recorder
        self._requests = work.requests()
        self._coming = work.windows()
        self._held: dict[int, list[tuple[Window, WindowData]]] = {}
        self._held_bytes = 0
        self._arena = Arena()

    def parts(self, piece: ordering.ShardSlice) -> Iterator[Part]:
        """A rank's rows of one shard as slices of windows."""
        row = piece.start
        while row < piece.stop:
            window, data = self._window(piece.shard, row)
            stop = min(window.stop, piece.stop)
            yield Part(window=data, start=row - window.start, stop=stop - window.start, step=piece.step)
            row += -(-(stop - row) // piece.step) * piece.step

    def _window(self, shard: int, row: int) -> tuple[Window, WindowData]:
        while True:
            for window, data in self._held.get(shard, ()):
                if window.start <= row < window.stop:
                    return window, data
            window = next(self._coming)
            data = self._fill(window)
            self._held.setdefault(window.shard, []).append((window, data))
            self._held_bytes += data.num_bytes
            self._recorder.peak_window_bytes = max(self._recorder.peak_window_bytes, self._held_bytes)

    def release(self, slices: list[ordering.ShardSlice]) -> None:
        """Let go of windows that no later batch needs."""
        for piece in slices:
            after = piece.start + piece.num_rows * piece.step
            held = self._held[piece.shard]
            for window, data in held:
                if window.stop <= after:
                    self._held_bytes -= data.num_bytes
            self._held[piece.shard] = [(window, data) for window, data in held if window.stop > after]

    def _fill(self, window: Window) -> WindowData:
        """Decode the blocks of a window as they arrive, then permute."""
        work, clock = self._work, self._clock
        with clock.stage("shuffle"):
            blocks, heads, tails = ordering.window_pieces(work.layout, window)
            fill = WindowFill(work.batch_layout.columns, *ordering.window_draw(work.layout, window), len(blocks), threads=work.threads, pool=work.pool)
        for head, tail in zip(heads.tolist(), tails.tolist(), strict=True):
            with clock.stage("read"):
                wanted = next(self._requests)
                block = next(self._blocks)
                check_arrival(wanted, block)
            self._recorder.blocks += 1
            self._recorder.encoded_bytes += int(block.chunk_bytes.sum())
            with clock.stage("decode"):
                decoded = self._decode(block)
            with clock.stage("shuffle"):
                fill.add(wanted.block, block.selected_rows(), decoded, head, tail)
        with clock.stage("shuffle"):
            return fill.finish()

    def _decode(self, block: EncodedBlock) -> list[DecodedColumn]:
        plan = self._work.plan
        try:
            return decode(block, plan.read, label=plan.label, threads=self._work.threads, arena=self._arena)
        except CorruptSegmentError as error:
            raise CorruptSegmentError(f"{plan.place(block.request.block)}: {error}; columns are {', '.join(column.name for column in plan.read)}") from error


class Prefetcher:
    """Runs an iterator in a thread, a few items ahead. Errors reach the consumer where the item would have come.

    Args:
        source: Makes the iterator, in the thread.
        name: Of the thread.
        ahead: Items made and not yet taken.
        clock: Charged with `hand_over` while the consumer is slower.
    """

    def __init__(self, source: Callable[[], Iterator[Any]], *, name: str, ahead: int, clock: StageClock) -> None:
        self._source = source
        self._clock = clock
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        items = self._source()
        try:
            for item in items:
                if not self._put("item", item):
                    return
            self._put("end", None)
        except BaseException as error:  # noqa: BLE001 (raised again in the consumer)
            self._put("error", error)
        finally:
            with contextlib.suppress(Exception):
                items.close()  # type: ignore[attr-defined]

    def _put(self, kind: str, value: Any) -> bool:
        with self._clock.stage("hand_over"):
            while not self._stop.is_set():
                try:
                    self._queue.put((kind, value), timeout=0.1)
                except queue.Full:
                    continue
                return not self._stop.is_set()
        return False

    def get(self) -> Any:
        """The next item.

        Raises:
            StopIteration: There is none.
        """
        kind, value = self._queue.get()
        if kind == "item":
            return value
        self._queue.put((kind, value))  # whoever asks again gets the same answer
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and wait for it, for as long as a store may be slow. Whoever still waits for an item, or asks for one later, is told."""
        self._stop.set()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._drain()
            self._thread.join(timeout=0.05)
        if self._thread.is_alive():
            logger.warning("%s still waits for a block after %g s; it is left behind, and ends when the block comes", self._thread.name, CLOSE_SECONDS)
        self._drain()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(("error", RuntimeError(ENDED)))

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
