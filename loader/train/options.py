"""The options of a DataLoader, checked: what is wrong by itself, and what cannot fit into memory. Owns the defaults that depend on the machine."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from typing import TYPE_CHECKING, Any

from loader.batch.batch import TENSOR_OUTPUTS
from loader.extras import require
from loader.scan.order import REMAINDERS, Order
from loader.train.bad_blocks import MAX_CONSECUTIVE, POLICIES
from loader.train.flow import QUEUE_BYTES

if TYPE_CHECKING:
    from loader.scan.mix import AnyPlan, AnyScan

SHARDS_PER_RANK = 8
MIN_BLOCKS_A_SHARD = 2
MEMORY_SHARE = 0.8
DECODE_PLACES = ("rank", "actor", "cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """Everything a `DataLoader` is told, checked. See there."""

    global_batch_size: int
    shuffle: str
    shuffle_run_rows: int
    window_rows: int
    canonical_shards: int | None
    seed: int
    rank: int
    world_size: int
    remainder: str
    device: str
    output: str
    decode: str
    prefetch_bytes: int
    threads: int
    memory_bytes: int | None
    unique: tuple[str, ...] = ()
    device_memory_bytes: int | None = None
    pinned_bytes: int | None = None
    bad_records: str = "fail"
    max_consecutive_bad: int = MAX_CONSECUTIVE

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank} and world_size {self.world_size}; rank must be at least 0 and below world_size")
        if self.global_batch_size < 1 or self.global_batch_size % self.world_size:
            near = max(round(self.global_batch_size / self.world_size), 1) * self.world_size
            raise ValueError(f"global_batch_size is {self.global_batch_size}; it must be a multiple of world_size {self.world_size}, such as {near}")
        if self.remainder not in REMAINDERS:
            raise ValueError(f"remainder is {self.remainder!r}; it must be one of {', '.join(REMAINDERS)}")
        if self.decode not in DECODE_PLACES:
            raise ValueError(f"decode is {self.decode!r}; it must be one of {', '.join(DECODE_PLACES)}")
        if self.device.startswith("cuda") and self.decode == "rank" and self.output not in TENSOR_OUTPUTS:
            raise ValueError(f"device is {self.device!r} and output is {self.output!r}: a GPU gives tensors; use output='dict', or device='cpu'")
        if self.bad_records not in POLICIES:
            raise ValueError(f"bad_records is {self.bad_records!r}; it must be one of {', '.join(POLICIES)}")
        for name in ("prefetch_bytes", "threads", "device_memory_bytes", "pinned_bytes", "max_consecutive_bad"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def pad_groups(self) -> int:
        """Groups that a rank's batch has at least, where rows are grouped."""
        return self.global_batch_size // self.world_size if self.remainder == "pad" else 0

    @property
    def may_use_gpu(self) -> bool:
        """Whether batches may be made on a GPU: they are tensors, decoded in this process."""
        return self.device != "cpu" and self.output in TENSOR_OUTPUTS and self.decode == "rank"


def default_order(plan: AnyPlan, options: LoaderOptions) -> Order:
    """The order of epoch 0; small plans get fewer shards, so that most blocks lie in one shard and are read once."""
    shards = options.canonical_shards
    if shards is None:
        per_rank = min(SHARDS_PER_RANK, plan.shard_blocks // (MIN_BLOCKS_A_SHARD * options.world_size)) if options.shuffle != "none" else 1
        shards = options.world_size * max(per_rank, 1)
    window = options.window_rows if plan.groups is None else max(int(options.window_rows / max(plan.groups.mean_rows, 1)), 1)  # units are groups
    return Order(seed=options.seed, epoch=0, shards=shards, mode=options.shuffle, window_rows=window, run_rows=options.shuffle_run_rows)


def distributed_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and world size as given, or of torch.distributed where that is initialised, or 0 of 1."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank is {rank} and world_size is {world_size}: give both or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    distributed = process_group()
    return (0, 1) if distributed is None else (int(distributed.get_rank()), int(distributed.get_world_size()))


def process_group() -> Any:
    """torch.distributed where it is initialised, else None."""
    torch = sys.modules.get("torch")  # a process that never imported torch is in no process group
    distributed = getattr(torch, "distributed", None)
    return distributed if distributed is not None and distributed.is_available() and distributed.is_initialized() else None


def same_snapshot(scan: AnyScan) -> AnyScan:
    """The scan at rank 0's newest snapshot, where it names none. Ranks that plan while somebody writes would read different rows, and wait for ever.

    A collective of torch.distributed, where that is initialised.
    """
    distributed = process_group()
    if distributed is None or all(source.snapshot is not None for source in scan.sources):
        return scan
    torch = require("torch", extra="torch")
    newest = [source.table.view(source.snapshot).snapshot_id for source in scan.sources]
    snapshots = torch.tensor(newest, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.broadcast(snapshots, src=0)
    return scan.at(*snapshots.tolist())


def window_memory(plan: AnyPlan, order: Order, world_size: int) -> tuple[int, int]:
    """(windows held at a time, rows of a window at most): a rank holds one window a shard and the one being filled. In a mix: one of every source."""
    return order.shards // math.gcd(order.shards, world_size) + 1, plan.window_rows(order)


def check_memory(plan: AnyPlan, order: Order, options: LoaderOptions) -> int:
    """Refuse a set-up whose windows cannot fit, with the arithmetic; what is left for batches that wait, in bytes.

    Raises:
        ValueError: They cannot.
    """
    windows, rows = window_memory(plan, order, options.world_size)
    limit = options.memory_bytes if options.memory_bytes is not None else int(MEMORY_SHARE * available_bytes())
    floor = sum(column.leaf.dtype.itemsize * column.leaf.values_per_entry if not column.leaf.depth else 8 for column in plan.read)
    row_bytes = max(plan.row_bytes, floor) + 8
    if windows * rows * row_bytes > limit:
        name = "memory_bytes" if options.memory_bytes is not None else f"{MEMORY_SHARE:.0%} of the free memory"
        raise ValueError(
            f"windows need {windows} × {rows:,} rows × {row_bytes:,.0f} bytes = {windows * rows * row_bytes / 2**30:,.2f} GiB on this rank, and {name} is "
            f"{limit / 2**30:,.2f} GiB: lower window_rows ({order.window_rows:,}) or canonical_shards ({order.shards}), or read fewer columns"
        )
    return min(int(limit - windows * rows * row_bytes), QUEUE_BYTES)


def available_bytes() -> int:
    """Memory that the system could give this process now."""
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
