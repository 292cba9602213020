"""A table of segments in a local folder, read by the loader's own fetch, windows and batches, but without a catalog: for scripts/gpu_check.

Where a lake has a plan, this has a stand-in with the same fields. Patches and deleted rows are made up block by block, since overlays need a catalog.
"""

from __future__ import annotations

import dataclasses
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from loader.batch.batch import Batch
from loader.batch.buffers import BufferPool
from loader.batch.device import BatchDevice
from loader.catalog.records import SegmentRef
from loader.decode.program import Program, build
from loader.scan import order as ordering
from loader.scan.columns import LabelFill, ReadColumn, read_columns
from loader.scan.encoded import BlockPatch, EncodedBlock, FetchRequest
from loader.scan.fetch import BlockFetcher, BlockPlace
from loader.scan.order import Order
from loader.scan.selection import BLOCK_KEY
from loader.scan.stream import ThreadBlockStream
from loader.schema import Schema
from loader.segment.layout import PADDING_BYTES
from loader.segment.reader import SegmentReader
from loader.segment.writer import WriteOptions, write_segment
from loader.storage import LocalStorage
from loader.train.device_memory import plan_device_memory
from loader.train.device_pipeline import make_device_arrays, pinned_fetch
from loader.train.options import LoaderOptions
from loader.train.pipeline import make_arrays
from loader.train.stats import StageClock, StatsRecorder
from loader.train.work import Work, layout_of


@dataclasses.dataclass(kw_only=True, eq=False)
class Lake:
    """Segments and what would be their plan.

    Attributes:
        folder: Of the segment files.
        read, columns, label, blocks, row_starts: As a `loader.scan.plan.Plan` has them.
        refs: The segment of each block.
        bits: By block, the rows that are not deleted.
        patches: By block, then by column.
        row_bytes, encoded_row_bytes: Of a row of the columns, decoded and stored.
        row_weights, groups, block_sources: A plan without samples, groups and mixing has none.
    """

    folder: pathlib.Path
    read: tuple[ReadColumn, ...]
    columns: tuple[str, ...]
    label: LabelFill | None
    blocks: np.ndarray
    row_starts: np.ndarray
    refs: list[SegmentRef]
    bits: dict[int, np.ndarray]
    patches: dict[int, dict[int, BlockPatch]]
    row_bytes: float
    encoded_row_bytes: float
    row_weights: None = None
    groups: None = None
    block_sources: None = None

    @property
    def num_rows(self) -> int:
        return int(self.blocks["selected"].sum(dtype=np.int64))

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    def window_rows(self, order: Order) -> int:
        """Rows of a window at most."""
        return ordering.most_window_rows(self.num_rows, int(self.blocks["selected"].max(initial=0)), order)

    def label_of(self, block: int) -> LabelFill | None:
        return self.label

    @property
    def encoded_bytes(self) -> int:
        """Of all chunks of all blocks."""
        return int(self.encoded_row_bytes * int(self.blocks["num_rows"].sum(dtype=np.int64)))

    def reading(self, count: int) -> Lake:
        """The same segments, of which only the first columns are read."""
        names, ids = self.columns[:count], [column.id for column in self.read[:count]]
        decoded = stored = 0
        for ref in {ref.path: ref for ref in self.refs}.values():
            with SegmentReader(self.folder / ref.path) as reader:
                chunks = reader.chunks(ids, np.arange(reader.num_blocks))
            decoded, stored = decoded + int(chunks["arena_bytes"].sum()), stored + int(chunks["num_bytes"].sum())
        rows = int(self.blocks["num_rows"].sum(dtype=np.int64))
        return dataclasses.replace(self, read=self.read[:count], columns=names, row_bytes=decoded / rows, encoded_row_bytes=stored / rows)

    def place(self, block: int) -> BlockPlace:
        key = self.blocks[block]
        start = int(self.row_starts[block])
        return BlockPlace(ref=self.refs[block], block=int(key["block"]), row_start=start, num_rows=int(key["num_rows"]), selected=self.bits.get(block))

    def fetcher(self) -> PatchingFetcher:
        return PatchingFetcher(None, LocalStorage(self.folder), self.read, locate=self.place, patches=self.patches)  # type: ignore[arg-type]


class PatchingFetcher(BlockFetcher):
    """The loader's fetcher, and the lake's patches instead of a catalog's."""

    def __init__(self, *arguments: Any, patches: dict[int, dict[int, BlockPatch]], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._given = patches

    def fetch(self, request: FetchRequest, empty: Any = None) -> EncodedBlock:
        return dataclasses.replace(super().fetch(request, empty), patches=self._given.get(request.block, {}))


def write_lake(folder: pathlib.Path, tables: Sequence[pa.Table], *, options: WriteOptions, label: LabelFill | None = None) -> Lake:
    """Write each table as a segment; nothing is deleted or patched yet."""
    refs, keys, starts = [], [], []
    for number, table in enumerate(tables):
        path = folder / f"{number}.segment"
        rows = tuple(write_segment(path, table, options=options).block_rows)
        ref = SegmentRef(
            segment_id=number, path=path.name, offset=0, num_bytes=path.stat().st_size, bucket=0, partition=0, level=0, num_rows=table.num_rows,
            live_rows=table.num_rows, block_rows=rows, sequence_min=0, sequence_max=0, key_min=None, key_max=None, time_min=None, time_max=None,
            added_in=0, overlays=(), column_files=(),
        )  # fmt: skip
        refs += [ref] * len(rows)
        keys += [(number, block, count, count) for block, count in enumerate(rows)]
        starts += np.cumsum((0, *rows[:-1])).tolist()
    whole = Lake(
        folder=folder, read=read_columns(Schema.from_arrow(tables[0].schema), tables[0].column_names), columns=tuple(tables[0].column_names), label=label,
        blocks=np.array(keys, BLOCK_KEY), row_starts=np.array(starts, np.int64), refs=refs, bits={}, patches={}, row_bytes=0.0, encoded_row_bytes=0.0,
    )  # fmt: skip
    return whole.reading(len(whole.read))


def options_of(*, batch: int, mode: str = "windows", window_rows: int = 262_144, shards: int | None = None, rank: int = 0, **more: Any) -> LoaderOptions:
    """A loader's options; those that are not named have its defaults."""
    world_size = more.pop("world_size", 1)
    chosen = {
        "global_batch_size": batch, "shuffle": mode, "shuffle_run_rows": 1, "window_rows": window_rows, "canonical_shards": shards, "seed": 17, "rank": rank,
        "world_size": world_size, "remainder": "drop", "device": "auto", "output": "dict", "decode": "rank", "prefetch_bytes": 256 << 20, "threads": 4,
        "memory_bytes": None,
    }  # fmt: skip
    return LoaderOptions(**{**chosen, **more})


def open_device(runtime: Any, lake: Lake, options: LoaderOptions) -> BatchDevice:
    """The memory that a loader of these options would take."""
    return BatchDevice(runtime, plan_device_memory(lake, order_of(options), options))  # type: ignore[arg-type]


def order_of(options: LoaderOptions, epoch: int = 0) -> Order:
    shards = options.canonical_shards or options.world_size
    return Order(seed=options.seed, epoch=epoch, shards=shards, mode=options.shuffle, window_rows=options.window_rows, run_rows=options.shuffle_run_rows)


def batches_of(
    lake: Lake, options: LoaderOptions, *, device: BatchDevice | None = None, epoch: int = 0, memory: dict[int, EncodedBlock] | None = None
) -> Iterator[Batch]:
    """An epoch's batches of one rank, as a `DataLoader` makes them, but in this thread.

    Args:
        lake: What to read.
        options: How.
        device: Where; None is the CPU.
        epoch: Of the order.
        memory: Fetched blocks, kept here and used again: then nothing is read from files.
    """
    layout = ordering.lay_out(lake.blocks["selected"], order_of(options, epoch))
    work = Work(
        plan=lake, layout=layout, batch_layout=layout_of(lake, "dict", options.unique), position=0,  # type: ignore[arg-type]
        num_batches=ordering.num_batches(lake.num_rows, 0, options.global_batch_size, options.remainder), global_batch_size=options.global_batch_size,
        rank=options.rank, world_size=options.world_size, remainder=options.remainder, threads=options.threads, transforms=(), pool=BufferPool(),
        renew=lambda: None, device=device,
    )  # fmt: skip
    fetcher = lake.fetcher()
    fetch = fetcher.fetch if device is None else pinned_fetch(fetcher.fetch, device.slabs)
    if memory is not None:
        fetch = _remembered(fetcher, memory, device)
    interrupt = {"interrupt": device.slabs.interrupt} if device is not None else {}
    stream = ThreadBlockStream(fetch, threads=options.threads, prefetch_bytes=options.prefetch_bytes, **interrupt)
    clock, recorder = StageClock(), StatsRecorder()
    made: Any = make_arrays(work, stream, clock, recorder) if device is None else make_device_arrays(work, device, stream, clock, recorder)
    try:
        for arrays in made:
            arrays.hand_over()
            yield Batch(work.batch_layout, arrays)
            del arrays
    finally:
        made.close()


def _remembered(fetcher: BlockFetcher, memory: dict[int, EncodedBlock], device: BatchDevice | None) -> Any:
    """Blocks that stay in memory, on a device in its pinned slabs: copies then read them there, epoch after epoch."""
    lock = threading.Lock()

    def fetch(request: FetchRequest) -> EncodedBlock:
        with lock:
            if request.block not in memory:
                memory[request.block] = fetcher.fetch(request, None if device is None else device.slabs.empty)
            return dataclasses.replace(memory[request.block], request=request)

    return fetch


def delete_and_patch(lake: Lake, rng: np.random.Generator, values: Any) -> None:
    """Delete some rows of some blocks, and patch some values of some columns.

    Args:
        lake: Changed in place.
        rng: Says which.
        values: (column name, count) -> Arrow array of new values, or None where the column is never patched.
    """
    for block in range(lake.num_blocks):
        rows = int(lake.blocks["num_rows"][block])
        if rng.random() < 0.5:
            kept = rng.random(rows) > rng.choice([0.02, 0.5])
            kept[int(rng.integers(rows))] = True
            lake.bits[block] = np.packbits(kept, bitorder="little")
            lake.blocks["selected"][block] = int(kept.sum())
        patches = {}
        for index, column in enumerate(lake.read):
            count = int(rng.integers(1, max(rows // 4, 2)))
            new = values(column.name, count) if rng.random() < 0.4 else None
            if new is not None:
                patches[index] = BlockPatch(rows=np.sort(rng.choice(rows, count, replace=False)).astype(np.uint32), values=new)
        if patches:
            lake.patches[block] = patches


def program_of(block: EncodedBlock) -> Program:
    """The decode program of a fetched block."""
    _, offsets, sizes, shared = block.program_chunks()
    return build(block.slab, offsets, sizes, shared=shared)


def slab_bytes(block: EncodedBlock) -> int:
    """Encoded bytes of a block, without padding."""
    return block.slab.nbytes - PADDING_BYTES
