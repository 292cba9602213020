"""The benchmark of scripts/gpu_check: what the card and the bus can do, and what share of it decoding and loading reach. Figures only count on a GPU.

Every way is timed with the host's clock around work that is synchronised at both ends, repeated until that is small. Targets stand beside the figures.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from bench_samples import make_samples
from gpu_check_data import columns_table, dlrm_table
from gpu_check_equality import Bench, Tally
from gpu_check_lake import Lake, batches_of, open_device, options_of, program_of, slab_bytes, write_lake

from loader.decode.cuda import CudaExecutor
from loader.decode.inflate import inflate_into_slab, inflated_bytes
from loader.decode.join import join_programs
from loader.decode.program import Program
from loader.scan.encoded import EncodedBlock, FetchRequest
from loader.segment.layout import PADDING_BYTES
from loader.segment.writer import WriteOptions

REPEATS = 5
MAX_SECONDS = 400.0  # of a stage that goes on until a count is reached
AT_LEAST = {"decode_share_of_copy": 0.5, "fixed_width_share_of_copy": 0.7, "pinned_share_of_bus": 0.9, "dlrm_samples_per_second": 30e6}
AT_MOST = {"columns_1500_over_15": 1.5}
NEEDS_A_GPU = "needs a GPU"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured; small ones show that the code runs."""

    copy_bytes: int
    rows: int
    block_rows: int
    batch: int
    columns_rows: int
    dlrm_rows: int
    dlrm_batch: int
    launches: int
    batches: int


FULL = Sizes(
    copy_bytes=1 << 30, rows=262_144, block_rows=65_536, batch=65_536, columns_rows=131_072, dlrm_rows=1 << 20, dlrm_batch=16_384, launches=20, batches=10_000
)
TINY = Sizes(copy_bytes=1 << 16, rows=300, block_rows=150, batch=100, columns_rows=60, dlrm_rows=300, dlrm_batch=100, launches=1, batches=12)


def benchmark(bench: Bench) -> Tally:
    """What the card can do, decode kernels, and loading of the format benchmark's samples."""
    return _on_gpu(bench, measure)


def shapes(bench: Bench) -> Tally:
    """Many columns against few, and the record of MLPerf Storage's DLRM."""
    return _on_gpu(bench, measure_shapes)


def steady(bench: Bench) -> Tally:
    """10,000 batches through the same memory: nothing is allocated, and the device's used memory does not grow."""
    return _on_gpu(bench, measure_steady)


def _on_gpu(bench: Bench, measured: Callable[[Bench, Sizes], Tally]) -> Tally:
    return measured(bench, TINY if bench.tiny else FULL) if bench.on_gpu else Tally(not_run=[NEEDS_A_GPU])


def measure(bench: Bench, sizes: Sizes) -> Tally:
    """The figures of `benchmark`, on any runtime."""
    runtime = bench.open_runtime(0)
    figures: dict[str, Any] = limits(runtime, sizes)
    with tempfile.TemporaryDirectory() as folder:
        root, samples = pathlib.Path(folder), make_samples(sizes.rows)
        lake = write_lake(_folder(root, "samples"), [samples], options=WriteOptions(block_rows=sizes.block_rows))
        fixed = [name for name in samples.column_names if not pa.types.is_list(samples.schema.field(name).type)]
        plain = write_lake(_folder(root, "fixed"), [samples.select(fixed)], options=WriteOptions(block_rows=sizes.block_rows))
        figures["decode"] = decode_figures(runtime, lake, sizes)
        figures["decode_fixed_width"] = decode_figures(runtime, plain, sizes)
        options = options_of(batch=sizes.batch, window_rows=sizes.block_rows)
        figures["from_pinned_memory"] = loading(runtime, lake, options, from_files=False)
        figures["from_page_cache"] = loading(runtime, lake, options, from_files=True)
        figures["others"] = others(samples) if bench.on_gpu else {}
    copy, bus = figures["copy_gb_per_second"], figures["host_to_device_gb_per_second"]
    figures["decode_share_of_copy"] = figures["decode"]["gb_per_second"] / copy
    figures["fixed_width_share_of_copy"] = figures["decode_fixed_width"]["gb_per_second"] / copy
    figures["pinned_share_of_bus"] = figures["from_pinned_memory"]["encoded_gb_per_second"] / bus
    return Tally(figures=judged(figures))


def measure_shapes(bench: Bench, sizes: Sizes) -> Tally:
    """The figures of `shapes`, on any runtime."""
    runtime, rng = bench.open_runtime(0), np.random.default_rng(bench.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        figures = columns_figures(runtime, rng, root, sizes)
        figures["dlrm"] = dlrm_figures(runtime, rng, root, sizes)
    figures["columns_1500_over_15"] = figures["1500"]["seconds_per_batch_gb"] / figures["15"]["seconds_per_batch_gb"]
    figures["dlrm_samples_per_second"] = figures["dlrm"]["samples_per_second"]
    return Tally(figures=judged(figures))


def judged(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures, rounded, and for each target whether it was reached."""
    reached = {name: figures[name] >= bound for name, bound in AT_LEAST.items() if name in figures}
    reached |= {name: figures[name] <= bound for name, bound in AT_MOST.items() if name in figures}
    targets = {name: bound for name, bound in {**AT_LEAST, **AT_MOST}.items() if name in figures}
    return dict(_rounded({**figures, "targets": targets, "reached": reached}))


def _folder(root: pathlib.Path, name: str) -> pathlib.Path:
    (root / name).mkdir()
    return root / name


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def settle(runtime: Any, stream: Any) -> None:
    """Block until a stream is done."""
    event = runtime.event()
    runtime.record(event, stream)
    runtime.synchronize(event)


def settle_all(runtime: Any) -> None:
    if runtime.name == "cuda":
        torch.cuda.synchronize(runtime.device)


def best_seconds(call: Callable[[], Any], done: Callable[[], None], launches: int) -> float:
    """Of one call, the best of some rounds of `launches` calls."""
    best = float("inf")
    for _ in range(REPEATS):
        done()
        begin = time.perf_counter()
        for _ in range(launches):
            call()
        done()
        best = min(best, (time.perf_counter() - begin) / launches)
    return best


def limits(runtime: Any, sizes: Sizes) -> dict[str, float]:
    """What the device's memory and the bus do: bytes read and written of a copy on the card; bytes of a copy from pinned memory."""
    source = torch.zeros(sizes.copy_bytes, dtype=torch.uint8, device=runtime.device)
    target = torch.empty_like(source)
    copy = best_seconds(functools.partial(target.copy_, source), functools.partial(settle_all, runtime), sizes.launches)
    stream, num_bytes = runtime.stream("copy"), sizes.copy_bytes // 4
    pinned, memory = runtime.empty_pinned(num_bytes), runtime.empty_device(num_bytes)
    pinned[:] = 1
    done = functools.partial(settle, runtime, stream)
    bus = best_seconds(lambda: runtime.copy_to_device(memory.address, pinned, stream), done, sizes.launches)
    return {"copy_gb_per_second": 2 * sizes.copy_bytes / copy / 1e9, "host_to_device_gb_per_second": num_bytes / bus / 1e9}


class Recorder:
    """A runtime that notes its launches, so that kernels alone can be run again."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.launches: list[tuple[Any, ...]] = []

    def launch(self, *arguments: Any) -> None:
        self.launches.append(arguments)
        self._runtime.launch(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


def decode_figures(runtime: Any, lake: Lake, sizes: Sizes) -> dict[str, Any]:
    """Decode kernels alone over all blocks of a lake, joined as a window joins them: bytes read and written a second."""
    fetcher = lake.fetcher()
    blocks = [fetcher.fetch(FetchRequest(sequence=number, shard=0, block=number)) for number in range(lake.num_blocks)]
    slab, program, used, encoded = _joined(runtime, blocks)
    stream = runtime.stream("work")
    device_slab, arena = runtime.empty_device(slab.size), runtime.empty_device(program.arena_bytes + PADDING_BYTES)
    runtime.copy_to_device(device_slab.address, slab, stream)
    recorder = Recorder(runtime)
    executor = CudaExecutor(recorder, table_bytes=64 << 20, num_tables=1)  # type: ignore[arg-type]
    addresses = {"slab": device_slab.address, "slab_bytes": used, "arena": arena.address, "arena_bytes": program.arena_bytes}
    executor.decode(program, **addresses, stream=stream).check()
    again = list(recorder.launches)

    def kernels() -> None:
        for arguments in again:
            runtime.launch(*arguments)

    seconds = best_seconds(kernels, functools.partial(settle, runtime, stream), sizes.launches)
    return {
        "encoded_bytes": encoded, "decoded_bytes": program.arena_bytes, "launches": len(again), "columns": len(lake.read), "blocks": len(blocks),
        "seconds": seconds, "gb_per_second": (encoded + program.arena_bytes) / seconds / 1e9,
    }  # fmt: skip


def _joined(runtime: Any, blocks: list[EncodedBlock]) -> tuple[np.ndarray, Program, int, int]:
    """(pinned slab, program, bytes used of the slab, bytes of the chunks)."""
    parts, programs, starts, arenas, at, arena = [], [], [], [], 0, 0
    for block in blocks:
        program, used = program_of(block), slab_bytes(block)
        room = np.zeros(-(-(used + inflated_bytes(program)) // 64) * 64, np.uint8)
        room[:used] = block.slab[:used]
        program, used = inflate_into_slab(program, room, used)
        parts.append(room)
        programs.append(program)
        starts.append(at)
        arenas.append(arena)
        at, arena = at + room.size, -(-(arena + program.arena_bytes) // 64) * 64
    pinned = runtime.empty_pinned(at + PADDING_BYTES)
    pinned[:at], pinned[at:] = np.concatenate(parts), 0
    return pinned, join_programs(programs, starts, arenas), at, sum(int(block.chunk_bytes.sum()) for block in blocks)


def loading(runtime: Any, lake: Lake, options: Any, *, from_files: bool) -> dict[str, Any]:
    """Epochs of whole batches on the device: from pinned memory, or from files in the page cache with their checksums verified."""
    options = dataclasses.replace(options, pinned_bytes=None if from_files else int(1.5 * lake.encoded_bytes) + (64 << 20))
    device, memory = open_device(runtime, lake, options), None if from_files else dict[int, EncodedBlock]()
    best, cpu, whole, rows = float("inf"), 0.0, 0, 0
    for epoch in range(1 + 3):  # the first one fills caches
        settle_all(runtime)
        before, begin = _cpu_seconds(), time.perf_counter()
        rows = 0
        for batch in batches_of(lake, options, device=device, epoch=epoch, memory=memory):
            rows += batch.num_samples
            whole += sum(_tensor_bytes(batch[name]) for name in batch) if epoch == 0 else 0
        settle_all(runtime)
        seconds = time.perf_counter() - begin
        if epoch and seconds < best:
            best, cpu = seconds, _cpu_seconds() - before
    encoded = lake.encoded_bytes
    return {
        "seconds": best, "samples_per_second": rows / best, "encoded_gb_per_second": encoded / best / 1e9, "batch_gb_per_second": whole / best / 1e9,
        "cpu_seconds_per_encoded_gb": cpu / (encoded / 1e9), "encoded_bytes": encoded, "batch_bytes": whole,
    }  # fmt: skip


def _tensor_bytes(column: Any) -> int:
    parts = (column.values, column.offsets) if hasattr(column, "offsets") else (column,)
    return sum(part.numel() * part.element_size() for part in parts)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def columns_figures(runtime: Any, rng: np.random.Generator, root: pathlib.Path, sizes: Sizes) -> dict[str, Any]:
    """A batch in 1,200 dense and 300 sparse columns, and in 12 and 3 that are a hundred times as wide; compared by the byte, since offsets differ."""
    figures: dict[str, Any] = {}
    for name, columns in (("1500", (1_200, 300, 4, 4)), ("15", (12, 3, 400, 400))):
        table = columns_table(rng, sizes.columns_rows, *columns)
        lake = write_lake(_folder(root, f"columns_{name}"), [table], options=WriteOptions(block_rows=sizes.block_rows, effort="speed"))
        del table
        found = loading(runtime, lake, options_of(batch=min(sizes.batch, sizes.columns_rows), window_rows=sizes.block_rows), from_files=False)
        figures[name] = {**found, "seconds_per_batch_gb": found["seconds"] / (found["batch_bytes"] / 1e9)}
    return figures


def dlrm_figures(runtime: Any, rng: np.random.Generator, root: pathlib.Path, sizes: Sizes) -> dict[str, Any]:
    """MLPerf Storage's DLRM: 40 columns of 200, of four bytes each, batches of 16,384, from host memory."""
    lake = _dlrm_lake(rng, _folder(root, "dlrm"), sizes)
    return loading(runtime, lake, options_of(batch=sizes.dlrm_batch, window_rows=sizes.block_rows), from_files=False)


def _dlrm_lake(rng: np.random.Generator, folder: pathlib.Path, sizes: Sizes) -> Lake:
    return write_lake(folder, [dlrm_table(rng, sizes.dlrm_rows)], options=WriteOptions(block_rows=sizes.block_rows, effort="speed")).reading(40)


def measure_steady(bench: Bench, sizes: Sizes) -> Tally:
    """The check and figures of `steady`, on any runtime."""
    tally, runtime, stop = Tally(), bench.open_runtime(0), time.monotonic() + MAX_SECONDS
    with tempfile.TemporaryDirectory() as folder:
        lake = _dlrm_lake(np.random.default_rng(bench.seed), pathlib.Path(folder), sizes)
        options = options_of(batch=sizes.dlrm_batch, window_rows=sizes.block_rows, pinned_bytes=int(1.5 * lake.encoded_bytes) + (64 << 20))
        device, memory = open_device(runtime, lake, options), dict[int, EncodedBlock]()
        done, epoch, seen = 0, 0, []
        while done < sizes.batches and time.monotonic() < stop:
            for _ in batches_of(lake, options, device=device, epoch=epoch, memory=memory):
                done += 1
            epoch += 1
            gc.collect()
            settle_all(runtime)
            free = torch.cuda.mem_get_info(runtime.device)[0] if runtime.name == "cuda" else 0
            seen.append((done, free, runtime.allocations))
    first, last = seen[min(1, len(seen) - 1)], seen[-1]
    tally.check(last[2] == first[2], f"device or pinned memory was allocated {last[2] - first[2]} times between batches {first[0]} and {last[0]}")
    tally.check(last[1] >= first[1], f"used device memory grew by {first[1] - last[1]:,} bytes between batches {first[0]} and {last[0]}")
    tally.figures = {"batches": done, "free_bytes_first": first[1], "free_bytes_last": last[1], "allocations_first": first[2], "allocations_last": last[2]}
    return tally


def others(samples: pa.Table) -> dict[str, Any]:
    """cuDF and nvCOMP on the same rows, where they are installed; otherwise nothing is said of them."""
    figures: dict[str, Any] = {}
    for name, run in (("cudf", _cudf), ("nvidia.nvcomp", _nvcomp)):
        try:
            figures[name] = run(importlib.import_module(name), samples)
        except ImportError:
            continue
        except Exception as error:  # noqa: BLE001 (somebody else's library; its failure is noted)
            figures[name] = {"error": f"{type(error).__name__}: {error}"}
    return figures


def _cudf(cudf: Any, samples: pa.Table) -> dict[str, Any]:
    """`read_parquet` from host memory to device columns, zstd and row groups of 65,536 rows."""
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(samples, sink, compression="zstd", row_group_size=65_536)
    data = sink.getvalue().to_pybytes()
    seconds = best_seconds(lambda: cudf.read_parquet(data), torch.cuda.synchronize, 1)
    speeds = {"encoded_gb_per_second": len(data) / seconds / 1e9, "table_gb_per_second": samples.nbytes / seconds / 1e9}
    return {"seconds": seconds, "encoded_bytes": len(data), **speeds}


def _nvcomp(nvcomp: Any, samples: pa.Table) -> dict[str, Any]:
    """Zstd over the table's Arrow buffers, on the device."""
    plain = np.concatenate([np.frombuffer(buffer, np.uint8) for column in samples.columns for chunk in column.chunks for buffer in chunk.buffers() if buffer])
    codec = nvcomp.Codec(algorithm="Zstd")
    packed = codec.encode(nvcomp.as_array(plain).cuda())
    seconds = best_seconds(lambda: codec.decode(packed), torch.cuda.synchronize, 1)
    return {"seconds": seconds, "plain_bytes": plain.nbytes, "packed_bytes": packed.buffer_size, "plain_gb_per_second": plain.nbytes / seconds / 1e9}
