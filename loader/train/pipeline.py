"""The pipeline of one rank: requests → encoded blocks → windows → batches, and the thread that runs it ahead of the consumer.

Owns which windows are held and when they go. Order comes from `scan.order`, bytes from a block stream, arrays from `batch` or, made elsewhere, from a
batch stream; nothing here reads storage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import numpy as np

from loader.batch.assemble import BatchArrays, assemble
from loader.batch.batch import Batch
from loader.batch.device_arrays import DeviceArrays
from loader.batch.window import WindowData, WindowFill
from loader.decode.result import DecodedColumn
from loader.errors import CorruptSegmentError
from loader.scan.bad_blocks import describe
from loader.scan.decoded import Arena, decode, null_column
from loader.scan.encoded import EncodedBlock
from loader.scan.order import Window
from loader.scan.stream import BlockStream
from loader.train.bad_blocks import MetBlock
from loader.train.batch_stream import BatchStream, check_part, masked_rows, merge_parts
from loader.train.device_pipeline import make_device_arrays
from loader.train.stats import StageClock, StatsRecorder
from loader.train.windows import HeldWindows
from loader.train.work import Arrivals
from loader.train.work import Work as Work
from loader.train.work import layout_of as layout_of

logger = logging.getLogger(__name__)

QUEUED_BATCHES = 2
CLOSE_SECONDS = 10.0
SHAPED = ("kjt", "nested")  # made of what transforms return
WHOLE_ROWS = "(whole rows)"  # in the place of a column, where statistics count bad records
ENDED = "this iteration ended when another one of the same DataLoader began, or when it was closed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A batch for the consumer.

    Attributes:
        batch: What it gets.
        num_samples: Samples in it.
        hand_over: Called in the consumer's thread before it gets the batch.
        bad_records: Values in it that mean nothing and were left out, by column.
        num_bytes: Of its arrays in host memory.
        num_rows: Rows of it, padding included.
        num_units: What positions count of it: groups where rows are grouped, else samples.
        num_masked: Samples in it that cannot be had, and are masked.
    """

    batch: Any
    num_samples: int
    hand_over: Callable[[], None]
    bad_records: Mapping[str, int]
    num_rows: int
    num_units: int
    num_masked: int
    num_bytes: int = 0


def run(work: Work, stream: BlockStream | BatchStream, clock: StageClock, recorder: StatsRecorder) -> Iterator[Made]:
    """The batches of one rank: decoded here from blocks, on its device if it has one, or received from where they are made."""
    made: Generator[BatchArrays | DeviceArrays, None, None]
    if isinstance(stream, BatchStream):
        made = receive_arrays(work, stream, clock, recorder)
    elif work.device is not None:
        made = make_device_arrays(work, work.device, stream, clock, recorder)
    else:
        made = make_arrays(work, stream, clock, recorder)
    with contextlib.closing(made):
        for arrays in made:
            batch: Any = Batch(work.batch_layout, arrays)
            hand_over = arrays.hand_over
            output = work.batch_layout.output
            if output == "arrow":
                with clock.stage("assembly"):
                    batch = batch.shaped(output)
            bad: dict[str, int] = {}
            if work.transforms or work.images is not None or output in SHAPED:
                with arrays.transforming():
                    if work.images is not None:
                        with clock.stage("images"):
                            bad = work.images.apply(batch, arrays)
                    with clock.stage("transform"):
                        for transform in work.transforms:
                            batch = transform(batch)
                        if output in SHAPED:
                            batch = batch.shaped(output)
                hand_over = functools.partial(arrays.hand_over, batch)
            groups = work.batch_layout.groups
            units = arrays.num_samples if groups is None else int(groups.starts.at(arrays.blocks, arrays.rows).sum())
            masked = 0 if arrays.masked is None else int(np.count_nonzero(arrays.masked))
            if masked:
                bad = {**bad, WHOLE_ROWS: masked}
            held = arrays.num_bytes if isinstance(arrays, BatchArrays) else 0
            yield Made(
                batch=batch,
                num_samples=arrays.num_samples,
                hand_over=hand_over,
                bad_records=bad,
                num_rows=arrays.num_rows,
                num_units=units,
                num_masked=masked,
                num_bytes=held,
            )
            del batch, arrays, hand_over


def make_arrays(work: Work, stream: BlockStream, clock: StageClock, recorder: StatsRecorder) -> Generator[BatchArrays, None, None]:
    """The batches of one rank as arrays: blocks decoded, shuffled and assembled."""
    blocks = stream.open(work.requests())
    fill = _Fill(work, blocks, clock, recorder)
    windows = HeldWindows(work.windows(), fill.window, lambda data: data.num_bytes, recorder.note_window_bytes, unit_offsets=work.layout.unit_offsets)
    try:
        for index in range(work.num_batches):
            work.renew()
            slices = work.slices(index)
            parts = [part for piece in slices for part in windows.parts(piece)]
            with clock.stage("assembly"):
                arrays = assemble(work.batch_layout.columns, parts, pad_to=work.pad_to, threads=work.threads, pool=work.pool)
            del parts
            windows.release(slices)
            yield work.bad.mask(arrays)
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
                for met in part.bad:
                    work.bad.meet(met)
                recorder.blocks += part.blocks
                recorder.encoded_bytes += part.encoded_bytes
                recorder.note_window_bytes(part.window_bytes)
            with clock.stage("assembly"):
                parts = merge_parts(work.job, index, made, work.slices(index), work.batch_layout.groups)
                arrays = assemble(work.batch_layout.columns, parts, pad_to=work.pad_to, threads=work.threads, pool=work.pool)
                arrays = arrays.with_masked(masked_rows(made, arrays))
            del made, parts
            yield work.bad.mask(arrays)
            del arrays
    finally:
        _close(arrived)


def _close(items: Iterator[Any]) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        close()


class _Fill:
    """Decodes the blocks of windows as they arrive, then permutes."""

    def __init__(self, work: Work, blocks: Iterator[EncodedBlock], clock: StageClock, recorder: StatsRecorder) -> None:
        self._work, self._clock = work, clock
        self._arrivals = Arrivals(work, blocks, clock, recorder)
        self._arena = Arena()

    def window(self, window: Window) -> WindowData:
        work, clock = self._work, self._clock
        with clock.stage("shuffle"):
            blocks, heads, tails = work.layout.pieces(window)
            fill = WindowFill(work.batch_layout.columns, *work.layout.draw(window), len(blocks), threads=work.threads, pool=work.pool)
        for head, tail in zip(heads.tolist(), tails.tolist(), strict=True):
            block = self._arrivals.next()
            with clock.stage("decode"):
                decoded = self._decode(block)
            with clock.stage("shuffle"):
                fill.add(block.request.block, block.selected_rows(), decoded, head, tail)
        with clock.stage("shuffle"):
            return fill.finish()

    def _decode(self, block: EncodedBlock) -> list[DecodedColumn]:
        plan = self._work.plan
        try:
            return decode(block, plan.read, label=plan.label_of(block.request.block), threads=self._work.threads, arena=self._arena)
        except CorruptSegmentError as error:
            named = CorruptSegmentError(f"{plan.place(block.request.block)}: {error}; columns are {', '.join(column.name for column in plan.read)}")
            if not self._work.bad.is_tolerant:
                raise named from error
            self._work.bad.meet(MetBlock(block=block.request.block, bad=describe(named)))
            return [null_column(column.leaf, block.num_rows) for column in plan.read]


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

    @property
    def queued(self) -> int:
        """Items made and not yet taken."""
        return self._queue.qsize()

    def deepen(self, ahead: int) -> None:
        """Make so many items ahead from now on."""
        with self._queue.mutex:
            self._queue.maxsize = ahead
            self._queue.not_full.notify()

    def close(self) -> bool:
        """Stop the thread and wait for it, for as long as a store may be slow. Whoever still waits for an item, or asks for one later, is told.

        Returns:
            Whether the thread has ended.
        """
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
        return not self._thread.is_alive()

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
