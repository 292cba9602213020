"""How much memory a loader takes on a GPU and pinned on its host, from the plan and two settings; with the arithmetic where it cannot be enough."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from loader.batch.device import TABLE_BYTES, DeviceMemoryPlan
from loader.batch.device_columns import DeviceColumns
from loader.batch.window import Columns
from loader.scan.order import Order
from loader.segment.layout import PADDING_BYTES
from loader.train.options import LoaderOptions, window_memory

if TYPE_CHECKING:
    from loader.scan.mix import AnyPlan

SLACK = 1.5  # blocks differ, and spans of memory do not fit together exactly: with these two, simulated windows that vary by 30% never failed to fit
SPARE_WINDOWS = 2
MIN_BYTES = 4 << 20
PIECE_BYTES, PLANE_BYTES, LIST_BYTES = 1024, 128, 256  # tables a block, and a column and block
ROUND_BYTES = 1 << 16


def plan_device_memory(plan: AnyPlan, order: Order, options: LoaderOptions) -> DeviceMemoryPlan:
    """What a loader allocates, once.

    Raises:
        ValueError: A setting is too small for the plan; says the arithmetic.
    """
    windows, rows = window_memory(plan, order, options.world_size)
    batch_rows = -(-options.global_batch_size // options.world_size)
    layout = DeviceColumns.of(Columns.of(plan.read, options.unique))
    columns = len(layout)
    plane_bytes = int((layout.item_bytes * layout.width).sum()) + columns
    row_bytes = max(plan.row_bytes, plane_bytes) + 12
    block_rows = max(plan.num_rows / max(plan.num_blocks, 1), 1)
    held_rows, once_rows = (windows + 1) * rows + 2 * batch_rows, (1 + SPARE_WINDOWS / SLACK) * rows
    pieces = held_rows / block_rows + 2 * windows
    tables = pieces * (PIECE_BYTES + PLANE_BYTES * columns) + 2 * columns * (batch_rows / 1024 + 1) * 8
    unique = len(options.unique) * batch_rows * 2 * (8 * 4 + 3 * 4)
    heap = _rounded(SLACK * ((held_rows + once_rows) * row_bytes + tables + unique) + MIN_BYTES)
    stored = plan.encoded_row_bytes + columns * 64 / block_rows
    slab = _rounded(2 * SLACK * (rows * stored + PADDING_BYTES) + MIN_BYTES)
    limit = options.device_memory_bytes
    if limit is not None:
        if heap + slab > limit:
            raise ValueError(
                f"device_memory_bytes is {limit:,}, and {heap + slab:,} are needed: {windows} + 1 windows and two batches are {held_rows:,} rows held and "
                f"{once_rows:,.0f} being decoded or spare × {row_bytes:,.0f} bytes × {SLACK}, with tables {heap:,}; and encoded bytes of two windows "
                f"{slab:,}: raise it, or lower window_rows ({order.window_rows:,}) or canonical_shards ({order.shards}), or read fewer columns"
            )
        heap = int(limit * (heap / (heap + slab))) // ROUND_BYTES * ROUND_BYTES
        slab = (limit - heap) // ROUND_BYTES * ROUND_BYTES
    largest = int(plan.blocks["num_rows"].max(initial=0))
    block = math.ceil(largest * stored) + PADDING_BYTES
    pinned = max(2 * options.prefetch_bytes, 4 * block) if options.pinned_bytes is None else options.pinned_bytes
    if pinned < block:
        raise ValueError(
            f"pinned_bytes is {pinned:,}, and the largest block has {largest:,} rows × {stored:,.0f} stored bytes = {block:,}: raise it to a few blocks, "
            f"such as {_rounded(4 * block):,}"
        )
    return DeviceMemoryPlan(slab_bytes=slab, heap_bytes=heap, pinned_bytes=_rounded(pinned), table_bytes=max(TABLE_BYTES, _rounded(32 * rows + 4 * tables)))


def _rounded(num_bytes: float) -> int:
    return -(-math.ceil(num_bytes) // ROUND_BYTES) * ROUND_BYTES
