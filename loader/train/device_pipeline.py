"""The batches of one rank made on a GPU: encoded bytes cross the bus as they arrive, windows are decoded and batches assembled behind them.

Owns the order in which work is put on the device, and what the host waits for: the sums of a batch's lists, one batch behind, and room where all of it is in
use. Equal to `pipeline.make_arrays`, batch by batch, bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator

from loader.batch.device import BatchDevice
from loader.batch.device_arrays import DeviceArrays
from loader.batch.device_assemble import BatchUnderWay, DeviceAssembler
from loader.batch.device_columns import DeviceColumns
from loader.batch.device_window import DeviceWindow, DeviceWindowFill
from loader.decode.slabs import PinnedSlabs
from loader.errors import CorruptSegmentError
from loader.kernels.native import NO_ERROR
from loader.scan.encoded import EncodedBlock, FetchRequest
from loader.scan.fetch import Empty
from loader.scan.order import ShardSlice, Window
from loader.scan.stream import BlockStream
from loader.train.stats import StageClock, StatsRecorder
from loader.train.windows import HeldWindows
from loader.train.work import Arrivals, Work


def pinned_fetch(fetch_into: Callable[[FetchRequest, Empty], EncodedBlock], slabs: PinnedSlabs) -> Callable[[FetchRequest], EncodedBlock]:
    """A fetch that reads straight into pinned slabs, which are handed out in the order of the requests."""

    def fetch(request: FetchRequest) -> EncodedBlock:
        try:
            return fetch_into(request, functools.partial(slabs.empty, turn=request.sequence))
        finally:
            slabs.pass_turn(request.sequence)  # also where the block could not be read

    return fetch


def make_device_arrays(work: Work, device: BatchDevice, stream: BlockStream, clock: StageClock, recorder: StatsRecorder) -> Generator[DeviceArrays, None, None]:
    """The batches of one rank as arrays on a device."""
    device.slabs.begin()
    blocks = stream.open(work.requests())
    maker = _Maker(work, device, blocks, clock, recorder)
    try:
        before: tuple[BatchUnderWay, list[ShardSlice]] | None = None
        for index in range(work.num_batches):
            work.renew()
            slices = work.slices(index)
            begun = maker.begin(slices)
            if before is not None:
                yield work.bad.mask(maker.finish(*before))
            before = begun, slices
        if before is not None:
            yield work.bad.mask(maker.finish(*before))
    finally:
        device.slabs.interrupt()
        close: Callable[[], None] | None = getattr(blocks, "close", None)
        if close is not None:
            close()
        maker.close()


class _Maker:
    """One iteration's windows and batches."""

    def __init__(self, work: Work, device: BatchDevice, blocks: Iterator[EncodedBlock], clock: StageClock, recorder: StatsRecorder) -> None:
        self._work, self._device, self._clock, self._recorder = work, device, clock, recorder
        self._columns = DeviceColumns.of(work.batch_layout.columns)
        self._assembler = DeviceAssembler(device, self._columns)
        self._arrivals = Arrivals(work, blocks, clock, recorder)
        self._windows: HeldWindows[DeviceWindow] = HeldWindows(
            work.windows(), self._fill, lambda window: window.num_bytes, recorder.note_window_bytes, self._free, work.layout.unit_offsets
        )
        self._unchecked: list[DeviceWindow] = []
        self._filling: DeviceWindowFill | None = None
        self._begun: list[BatchUnderWay] = []

    def begin(self, slices: list[ShardSlice]) -> BatchUnderWay:
        """Put a batch's windows and rows on the device."""
        parts = [part for piece in slices for part in self._windows.parts(piece)]
        with self._clock.stage("assembly"):
            batch = self._assembler.begin(parts, pad_to=self._work.pad_to)
        self._begun.append(batch)
        return batch

    def finish(self, batch: BatchUnderWay, slices: list[ShardSlice]) -> DeviceArrays:
        """Put the rest of a batch on the device, once its sums are known; let go of windows that no later batch needs."""
        for part in batch.parts:
            if part.window in self._unchecked:
                self._check(part.window)
                self._unchecked.remove(part.window)
        with self._clock.stage("assembly"):
            arrays = self._assembler.finish(batch)
        self._begun.remove(batch)
        self._windows.release(slices)
        return arrays

    def _fill(self, window: Window) -> DeviceWindow:
        """Copy the blocks of a window as they arrive, then put its decoding on the device."""
        work, clock = self._work, self._clock
        with clock.stage("shuffle"):
            blocks = work.layout.pieces(window)[0]
            self._filling = DeviceWindowFill(self._device, self._columns, *work.layout.draw(window), work.plan.label_of(int(blocks[0])))
        for _ in blocks.tolist():
            block = self._arrivals.next()
            with clock.stage("copy"):
                self._add(self._filling, block)
            del block
        with clock.stage("decode"):
            filled = self._filling.finish()
        self._filling = None
        self._unchecked.append(filled)
        return filled

    def _add(self, fill: DeviceWindowFill, block: EncodedBlock) -> None:
        try:
            fill.add(block.request.block, block)
        except CorruptSegmentError as error:
            raise CorruptSegmentError(f"{self._place(block.request.block)}: {error}; {self._named()}") from error

    def _check(self, window: DeviceWindow) -> None:
        """Wait for a window, and raise what its kernels met; the wait is charged to what it is for."""
        runtime = self._device.runtime
        with self._clock.stage("copy"):
            runtime.synchronize(window.copied)
        with self._clock.stage("decode"):
            runtime.synchronize(window.decoded)
        failure = window.decoding.failure()
        if failure is not None:
            block, column = window.plan_blocks[window.chunk_piece[failure.chunk]], int(window.chunk_column[failure.chunk])
            name = repr(self._columns.name(column)) if column >= 0 else "that several columns share"
            raise CorruptSegmentError(f"{self._place(block)}: the chunk of column {name} is corrupt: {failure.reason}") from failure.error
        word = int(window.report[0])
        if word != NO_ERROR:
            self._assembler.raise_error(word, f"a window of {', '.join(self._place(block) for block in window.plan_blocks[:4])}")

    def _place(self, block: int) -> str:
        return str(self._work.plan.place(block))

    def _named(self) -> str:
        return f"columns are {', '.join(column.name for column in self._work.plan.read)}"

    def _free(self, window: DeviceWindow) -> None:
        for span in window.spans:
            self._device.free_heap(span)

    def close(self) -> None:
        """Give everything back, whatever was under way."""
        self._device.synchronize()
        if self._filling is not None:
            self._filling.discard()
        for batch in self._begun:
            self._assembler.discard(batch)
        self._windows.close()
        self._begun, self._unchecked, self._filling = [], [], None
