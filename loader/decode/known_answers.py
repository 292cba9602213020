"""A device's own test before it is trusted: columns of every op kind decoded there and on the CPU, held equal bit for bit.

Takes some milliseconds where a loader opens. A device that compiles the kernels and then computes something else is refused like one that does not
compile them.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow as pa

from loader.decode import cpu
from loader.decode.cuda import CudaExecutor, execute
from loader.decode.program import Program, build
from loader.encodings.chunk import encode_chunk
from loader.encodings.leaf import leaf_type
from loader.encodings.options import EncodeOptions
from loader.encodings.shred import shred
from loader.errors import CorruptSegmentError, DeviceError
from loader.kernels.runtime import Runtime, open_runtime
from loader.segment.layout import OUT_ITEM_BYTES, PADDING_BYTES, round_up

Array = np.ndarray[Any, np.dtype[Any]]
_ROWS = 2500  # three vectors, the last one cut
logger = logging.getLogger(__name__)


def _columns() -> list[pa.Array]:
    rng = np.random.default_rng(1)
    numbers, mask = rng.integers(0, 1000, _ROWS), rng.random(_ROWS) < 0.3
    skewed = np.where(rng.random(_ROWS) < 0.6, rng.integers(0, 4, _ROWS), rng.integers(0, 1 << 20, _ROWS))
    decimals = np.where(rng.random(_ROWS) < 0.03, np.nan, numbers / 100)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(0, _ROWS + 1, 4, dtype=np.int32)), pa.array(numbers))
    session = lists.take(pa.array(np.arange(_ROWS) // 5))  # a list that stays for five rows
    return [
        pa.array(numbers, mask=mask), pa.array(skewed), pa.array(np.cumsum(numbers)), pa.array(np.repeat(numbers << 50, 10)[:_ROWS]), pa.array(decimals),
        pa.array(rng.integers(0, 1 << 60, 65)[numbers % 65], mask=mask), pa.array(decimals.astype(np.float32)), pa.array(rng.random(_ROWS)),
        lists.take(pa.array(numbers % 500)), session, pa.array([str(number) for number in numbers]), pa.array(numbers % 2 == 0),
    ]  # fmt: skip


def known_program() -> tuple[Program, Array]:
    """A program with every op kind, and its slab."""
    chunks = []
    for column in _columns():
        leaf = leaf_type(column.type, "known answers")
        chunks.append(encode_chunk(shred(column, leaf), leaf, len(column), EncodeOptions()).data)
    sizes = np.array([chunk.size for chunk in chunks], np.int64)
    offsets = np.cumsum([0, *(round_up(chunk.size) for chunk in chunks)])
    slab = np.zeros(int(offsets[-1]) + PADDING_BYTES, np.uint8)
    for chunk, offset in zip(chunks, offsets, strict=False):
        slab[offset : offset + chunk.size] = chunk
    return build(slab, offsets[:-1], sizes), slab


def check_device(executor: CudaExecutor) -> None:
    """Decode known columns on the device.

    Args:
        executor: Of the device.

    Raises:
        DeviceError: It gives other bytes than the CPU does, or an error.
    """
    program, slab = known_program()
    want, found = (np.zeros(program.arena_bytes + PADDING_BYTES, np.uint8) for _ in range(2))
    cpu.execute(program, slab, want)
    where = executor.runtime.device
    try:
        execute(executor, program, slab, found)
    except CorruptSegmentError as error:
        raise DeviceError(f"{where} reports sound bytes as corrupt, so its kernels do not work: {error}") from error
    for op in program.ops:
        start, size = int(op["out"]), int(op["count"]) * int(OUT_ITEM_BYTES[op["out_kind"]])
        if not np.array_equal(found[start : start + size], want[start : start + size]):
            kinds = f"kind {int(op['kind'])}, out kind {int(op['out_kind'])}"
            raise DeviceError(f"{where} decodes known columns to other bytes than the CPU, first in an op of {kinds}: set device to cpu, and report this")


def open_device(device: str = "auto", *, needed_bytes: int = 0) -> Runtime | None:
    """`open_runtime`, and a GPU's known answers.

    Args:
        device: As for `open_runtime`.
        needed_bytes: As for `open_runtime`.

    Raises:
        DeviceError: As `open_runtime`, or the GPU gives wrong answers; under `auto` that is a warning, and the CPU decodes.
        MissingDependencyError: As `open_runtime`.
        ValueError: No such setting.
    """
    runtime = open_runtime(device, needed_bytes=needed_bytes)
    if runtime is None or runtime.name != "cuda":
        return runtime
    try:
        check_device(CudaExecutor(runtime, table_bytes=1 << 16, num_tables=1))
    except DeviceError as error:
        if device != "auto":
            raise
        logger.warning("device=auto decodes on the CPU: %s", error)
        return None
    return runtime
