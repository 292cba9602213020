"""Where the time of Headrace's decode goes: each stage of a scan by itself, its bytes, and the scan with buffers that are fresh, reused or in the cache.

A job of `scripts/bench_format`, in the process and on the cores of its other measurements: what a stage could reach at best is in the same run's limits.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from bench_format_measure import best, flat, take_all

OP_KINDS = ("copies", "packed", "nulls", "ranks", "classes", "runs")  # by OpKind
BATCH_ROWS = (8_192, 4_096, 2_048)


def stages(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """Seconds of each stage, and of whole scans by rows of a batch and by how their memory is had.

    Stages: opening, reading, comparing checksums, building the program, the ops of each kind, columns as NumPy views, measuring lists, laying them out with
    their offsets, tensors. They are timed one at a time, so that each has the caches to itself: their sum is a lower bound of the scan.
    """
    from loader.batch.buffers import BufferPool
    from loader.kernels import native
    from loader.segment.reader import SegmentReader

    library, path, threads = native.load(), pathlib.Path(job["path"]), job["cores"]
    if library is None:
        return {}

    def timed(call: Callable[[], Any]) -> float:
        return best(call, job["budget"], job["repeats"])

    def open_segment() -> None:
        with SegmentReader(path) as opened:
            opened.leaves(opened.resolve(None))

    seconds: dict[str, float] = {"open": timed(open_segment)}
    with SegmentReader(path) as reader:
        ids = reader.resolve(None)
        blocks = range(reader.num_blocks)
        seconds["read"] = timed(lambda: [reader.fetch(block, ids, verify=False) for block in blocks])
        block_stages = [_block_stages(reader, block, ids, threads, timed) for block in blocks]
    for name in {name: None for parts in block_stages for name in parts[0]}:
        seconds[name] = sum(parts[0].get(name, 0.0) for parts in block_stages)
    scans = {}
    for rows, reused in itertools.product(BATCH_ROWS, (True, False)):
        form.pool = BufferPool() if reused else BufferPool(max_bytes=0)
        scans[f"{rows:,} rows a batch, {'reused' if reused else 'fresh'} memory"] = timed(lambda rows=rows: take_all(form.scan(path, None, threads, rows)))
    sizes = {name: sum(parts[1].get(name, 0) for parts in block_stages) for name in {name: None for parts in block_stages for name in parts[1]}}
    return {"stage_seconds": seconds, "stage_bytes": sizes, "scan_seconds": scans, "num_tensors": sum(parts[2] for parts in block_stages)}


def _block_stages(
    reader: Any, block: int, ids: Sequence[int], threads: int, timed: Callable[[Callable[[], Any]], float]
) -> tuple[dict[str, float], dict[str, int], int]:
    """Seconds by stage, bytes that a stage reads from the file or writes, and how many tensors there are of it in the end."""
    from loader.batch.buffers import BufferPool
    from loader.batch.whole import _Plan
    from loader.decode.program import build
    from loader.decode.result import DecodedBlock
    from loader.segment.checksum import first_mismatch

    chunks = reader.fetch(block, ids, verify=False)
    slab, leaves, num_rows = chunks.slab, reader.leaves(ids), int(reader.block_rows[block])
    sums = np.ascontiguousarray(chunks.records["checksum"])
    seconds = {"checksums": timed(lambda: first_mismatch(slab, chunks.offsets, chunks.sizes, sums))}
    seconds["program"] = timed(lambda: build(slab, chunks.offsets, chunks.sizes, shared=chunks.shared))
    program = build(slab, chunks.offsets, chunks.sizes, shared=chunks.shared)
    arena = np.empty(program.arena_bytes + 8192, np.uint8)
    encoded = int(chunks.sizes.sum())
    sizes = {"read": encoded, "checksums": encoded}
    op_seconds, op_sizes = _op_seconds(program, slab, arena, threads, timed)
    seconds, sizes = seconds | op_seconds, sizes | op_sizes
    decoded = DecodedBlock(program, arena, leaves)
    columns, pool = list(decoded), BufferPool()
    seconds["columns"] = timed(lambda: list(DecodedBlock(program, arena, leaves)))
    rows = min(BATCH_ROWS[-1], num_rows)
    seconds["measure lists"] = timed(lambda: _Plan(columns, leaves, num_rows, rows, pool, threads))
    plan = _Plan(columns, leaves, num_rows, rows, pool, threads)

    def lay_out() -> None:
        for number in range(plan.num_batches):
            plan.batch(number)

    batch, num_tensors = plan.batch(0), 0

    def make_tensors() -> None:
        plan._tensors = None
        for _ in range(plan.num_batches):
            batch.tensors()

    seconds["lists"], seconds["tensors"] = timed(lay_out), timed(make_tensors)
    sizes["lists"] = 0
    for number in range(plan.num_batches):
        batch = plan.batch(number)
        sizes["lists"] += batch.list_bytes
        num_tensors += sum(1 for _ in flat(batch.tensors()))
    return seconds, sizes, num_tensors


def _op_seconds(program: Any, slab: Any, arena: Any, threads: int, timed: Callable[[Callable[[], Any]], float]) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of the ops of each kind, every kind of a level in a call of its own after the levels below it; and bytes that they write."""
    from loader.decode import cpu
    from loader.kernels import native
    from loader.segment.layout import OUT_ITEM_BYTES

    library = native.load()
    assert library is not None
    cpu.execute(program, slab, arena, threads)
    seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for first, stop in itertools.pairwise(program.level_starts.tolist()):
        ops = program.ops[first:stop]
        for kind in np.unique(ops["kind"]).tolist():
            chosen = np.ascontiguousarray(ops[(ops["kind"] == kind) & (ops["flags"] == 0)])
            name = f"decode {OP_KINDS[kind]}"
            seconds[name] = seconds.get(name, 0.0) + timed(lambda chosen=chosen: library.decode(slab, arena, chosen, program.sources, threads))
            sizes[name] = sizes.get(name, 0) + int((chosen["count"].astype(np.int64) * OUT_ITEM_BYTES[chosen["out_kind"]]).sum())
    return seconds, sizes
