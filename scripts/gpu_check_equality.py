"""The correctness stages of scripts/gpu_check: random programs, segments, windows and batches on the device, bit for bit those of the CPU executor."""

from __future__ import annotations

import collections
import dataclasses
import gc
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gpu_check_data import patch_values, random_table
from gpu_check_lake import Lake, batches_of, delete_and_patch, open_device, options_of, program_of, write_lake

from loader.batch.batch import Batch
from loader.batch.jagged import Jagged
from loader.decode import cpu, cuda
from loader.decode.program import Program
from loader.encodings.quantise import KINDS
from loader.errors import CorruptSegmentError
from loader.scan.columns import LabelFill
from loader.scan.encoded import FetchRequest
from loader.segment.layout import OUT_ITEM_BYTES, PADDING_BYTES, OpKind, OutKind, Scan, SourceKind
from loader.segment.writer import WriteOptions
from tests.kernels.programs import random_program

POISON = 0xA5
MAX_PROBLEMS = 20


@dataclasses.dataclass
class Tally:
    """What a stage found.

    Attributes:
        passed, failed: Comparisons.
        problems: The first failures, in words.
        figures: Numbers to keep.
        not_run: Why the stage, or a part of it, did not run.
    """

    passed: int = 0
    failed: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    not_run: list[str] = dataclasses.field(default_factory=list)

    def check(self, holds: bool, problem: str) -> None:
        """Count one comparison."""
        if holds:
            self.passed += 1
            return
        self.failed += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """What every stage is given.

    Attributes:
        open_runtime: Opens the device; its argument numbers the case, by which a host runtime draws its schedule and timing.
        on_gpu: Whether it is one.
        tiny: Few and small cases.
        seconds: How long a stage that repeats itself may take.
        seed: Of all cases.
    """

    open_runtime: Callable[[int], Any]
    on_gpu: bool
    tiny: bool
    seconds: float
    seed: int

    def cases(self, tiny: int, full: int) -> Iterator[tuple[int, np.random.Generator]]:
        """Numbers and generators of cases, as many as time and size allow."""
        stop = time.monotonic() + self.seconds
        for number in range(tiny if self.tiny else full):
            if time.monotonic() > stop:
                return
            yield number, np.random.default_rng([self.seed, number])


def decode(bench: Bench) -> Tally:
    """Random programs of every op, source, scan and store, whole and damaged; then the chunks of segments of every encoding."""
    tally, seen = Tally(), collections.Counter[str]()
    executor, opened = None, -1
    for number, rng in bench.cases(30, 2_000):
        if executor is None or (not bench.on_gpu and number // 4 != opened):
            executor, opened = cuda.CudaExecutor(bench.open_runtime(number)), number // 4
        built = random_program(bench.seed * 100_000 + number)
        _count_kinds(built.program, seen)
        _compare_program(tally, executor, built.program, built.slab, f"random program {number}")
        damaged = built.slab.copy()
        damaged[rng.integers(0, max(damaged.size - PADDING_BYTES, 1), 8)] = rng.integers(0, 256, 8)
        _compare_program(tally, executor, built.program, damaged, f"damaged random program {number}")
    tally.figures["programs"] = tally.passed + tally.failed
    for number, rng in bench.cases(3, 60):
        executor = cuda.CudaExecutor(bench.open_runtime(number))
        _decode_segments(bench, tally, executor, rng, number, seen)
    wanted = {f"{kind.__name__}.{member.name}" for kind in (OpKind, OutKind, Scan, SourceKind) for member in kind}
    tally.check(wanted <= set(seen), f"no case has {', '.join(sorted(wanted - set(seen)))}: run more of them")
    tally.figures["kinds_met"] = len(wanted & set(seen))
    tally.figures["chunk_comparisons"] = tally.passed + tally.failed - tally.figures["programs"]
    return tally


def _decode_segments(bench: Bench, tally: Tally, executor: cuda.CudaExecutor, rng: np.random.Generator, number: int, seen: collections.Counter[str]) -> None:
    rows = int(rng.choice([1, 31, 1_000, 2_500])) if bench.tiny or not bench.on_gpu else int(rng.choice([1, 1_023, 4_097, 65_536]))
    effort = str(rng.choice(["size", "balanced", "speed"]))
    with tempfile.TemporaryDirectory() as folder:
        table = random_table(rng, rows, text=True)
        lossy = {name: KINDS[number % len(KINDS)] for name in table.column_names if name.startswith("noise")}
        lake = write_lake(pathlib.Path(folder), [table], options=WriteOptions(block_rows=max(rows // 2, 1), effort=effort, quantise=lossy))
        fetcher = lake.fetcher()
        for block in range(lake.num_blocks):
            fetched = fetcher.fetch(FetchRequest(sequence=block, shard=0, block=block))
            program = program_of(fetched)
            _count_kinds(program, seen)
            _compare_program(tally, executor, program, fetched.slab, f"segment {number} ({rows} rows, effort {effort}), block {block}")


def _count_kinds(program: Program, seen: collections.Counter[str]) -> None:
    for kind, values in ((OpKind, program.ops["kind"]), (OutKind, program.ops["out_kind"]), (Scan, program.ops["scan"]), (SourceKind, program.sources["kind"])):
        for value, count in zip(*np.unique(values, return_counts=True), strict=True):
            seen[f"{kind.__name__}.{kind(int(value)).name}"] += int(count)


def _compare_program(tally: Tally, executor: cuda.CudaExecutor, program: Program, slab: np.ndarray, what: str) -> None:
    """Both executors refuse it, or both write the same bytes."""
    results = []
    for run in (cpu.execute, lambda *buffers: cuda.execute(executor, *buffers)):
        arena, error = _aligned(program.arena_bytes + PADDING_BYTES), ""
        try:
            run(program, _aligned_copy(slab), arena)
        except CorruptSegmentError as refused:
            error = str(refused)
        results.append((arena, error))
    (wanted, refused), (found, refused_there) = results
    if refused or refused_there:
        tally.check(bool(refused) == bool(refused_there), f"{what}: the CPU says {refused or 'nothing'!r}, the device {refused_there or 'nothing'!r}")
        return
    written = _written(program)
    wrong = np.flatnonzero((wanted != found)[: written.size] & written)
    where = f"{what}: {wrong.size:,} of {int(written.sum()):,} bytes differ, the first at {int(wrong[0]) if wrong.size else 0} of the arena"
    tally.check(not wrong.size, where)


def _written(program: Program) -> np.ndarray:
    """bool [arena]: what the ops write; between regions lies anything."""
    mask = np.zeros(program.arena_bytes, np.bool_)
    for start, count, kind in zip(program.ops["out"].tolist(), program.ops["count"].tolist(), program.ops["out_kind"].tolist(), strict=True):
        mask[start : start + count * int(OUT_ITEM_BYTES[kind])] = True
    return mask


def _aligned(num_bytes: int) -> np.ndarray:
    room = np.full(num_bytes + 64, POISON, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + num_bytes]


def _aligned_copy(data: np.ndarray) -> np.ndarray:
    copy = _aligned(data.size)
    copy[:] = data
    return copy


def batches(bench: Bench) -> Tally:
    """Windows and batches of random tables, with deleted rows, patches, late labels, every order, world and remainder."""
    tally = Tally()
    for number, rng in bench.cases(4, 150):
        with tempfile.TemporaryDirectory() as folder:
            lake = random_lake(bench, rng, pathlib.Path(folder))
            compare_batches(tally, lake, random_options(rng, lake), bench.open_runtime(number), f"table {number}")
    return tally


def random_lake(bench: Bench, rng: np.random.Generator, folder: pathlib.Path) -> Lake:
    """Two or three segments of one schema, patched and with deleted rows, and a label that closes."""
    rows = 90 if bench.tiny or not bench.on_gpu else int(rng.choice([700, 5_000, 40_000]))
    first = random_table(rng, rows)
    tables = [first, *(first.take(rng.integers(0, rows, rows // 2)) for _ in range(int(rng.integers(1, 3))))]
    small = next((number for number, name in enumerate(first.column_names) if name.startswith("skewed")), None)
    label = LabelFill(label=small, default=0.0) if small is not None and rng.random() < 0.7 else None
    lake = write_lake(folder, tables, options=WriteOptions(block_rows=max(rows // 3, 1)), label=label)
    delete_and_patch(lake, rng, patch_values(rng, tables))
    return lake


def random_options(rng: np.random.Generator, lake: Lake) -> Any:
    """Any order, world and remainder that the rows allow, and some lists unexpanded."""
    world = int(rng.integers(1, 4))
    batch = world * int(rng.integers(1, max(lake.num_rows // (2 * world), 2)))
    lists = [column.name for column in lake.read if column.leaf.depth]
    return options_of(
        batch=batch, mode=str(rng.choice(["none", "blocks", "windows", "full"])), window_rows=int(rng.integers(1, lake.num_rows)),
        shards=int(rng.choice([1, world, 3 * world])), rank=int(rng.integers(world)), world_size=world, threads=2,
        remainder=str(rng.choice(["drop", "pad", "uneven"])), unique=tuple(rng.choice(lists, int(rng.integers(0, len(lists))), replace=False).tolist()),
        prefetch_bytes=1 << int(rng.integers(12, 24)),
    )  # fmt: skip


def compare_batches(tally: Tally, lake: Lake, options: Any, runtime: Any, what: str, *, poison: bool = False, hold: int = 0, delay: Any = None) -> None:
    """An epoch on the CPU and one on the device.

    Args:
        tally: Of every batch.
        lake, options: What is read, and how.
        runtime: The device.
        what: Names the case.
        poison: Fill device memory with garbage before.
        hold: Batches kept alive and compared later, when their memory would have been written again if it were recycled too early.
        delay: Called before a batch is read: makes the consumer late.
    """
    device = open_device(runtime, lake, options)
    if poison:
        fill_memory(runtime, device)
    held: list[tuple[Batch, dict[str, bytes], int]] = []
    number = -1
    for number, (wanted, found) in enumerate(zip(batches_of(lake, options), batches_of(lake, options, device=device), strict=True)):
        if delay is not None:
            delay()
        held.append((found, contents(wanted), number))
        if len(held) > hold:
            _compare_batch(tally, *held.pop(0), what)
        del wanted, found
    for entry in held:
        _compare_batch(tally, *entry, what)
    held.clear()
    gc.collect()
    finish = getattr(runtime, "finish", None)
    if finish is not None:
        finish()


def _compare_batch(tally: Tally, found: Batch, wanted: dict[str, bytes], number: int, what: str) -> None:
    there = contents(found)
    wrong = [name for name in wanted if wanted[name] != there.get(name)]
    tally.check(not wrong and there.keys() == wanted.keys(), f"{what}, batch {number}: {', '.join(wrong) or 'columns'} differ")


def contents(batch: Batch) -> dict[str, bytes]:
    """Every byte that a batch shows: columns, offsets, inverses, validity, mask, positions."""
    shown: dict[str, Any] = {"mask": batch.mask, "positions": torch.from_numpy(batch.positions())}
    for name, column in batch.items():
        shown[f"validity of {name}"] = batch.validity[name]
        parts = {"values": column.values, "offsets": column.offsets, "inverse": column.inverse} if isinstance(column, Jagged) else {"values": column}
        shown |= {f"{part} of {name}": tensor for part, tensor in parts.items() if tensor is not None}
    return {name: _bytes_of(tensor) for name, tensor in shown.items()}


def _bytes_of(tensor: torch.Tensor) -> bytes:
    """A tensor's shape, type and bytes."""
    host = tensor.cpu()
    plain = host.view(torch.int16) if host.dtype is torch.bfloat16 else host  # NumPy has no bfloat16
    return repr((tuple(tensor.shape), tensor.dtype)).encode() + plain.numpy().tobytes()


def fill_memory(runtime: Any, device: Any) -> None:
    """Garbage in all device memory of a loader: what is read before it is written shows."""
    for memory in (device._heap, device._slab_memory):
        runtime.tensor(memory, memory.address, (memory.num_bytes,), np.uint8).fill_(POISON)
    if runtime.name == "cuda":
        torch.cuda.synchronize()


def copies(bench: Bench) -> Tally:
    """The copy path's order: a ring of pinned slabs that holds little more than a block, batches held back, and a consumer that is late."""
    tally = Tally()

    def late() -> None:
        if bench.on_gpu:
            torch.cuda._sleep(20_000_000)

    for number, rng in bench.cases(3, 40):
        with tempfile.TemporaryDirectory() as folder:
            lake = random_lake(bench, rng, pathlib.Path(folder))
            block = int(lake.blocks["num_rows"].max() * lake.encoded_row_bytes * 1.5) + PADDING_BYTES + 4096
            options = dataclasses.replace(random_options(rng, lake), pinned_bytes=2 * block, prefetch_bytes=block)
            compare_batches(tally, lake, options, bench.open_runtime(1000 + number), f"table {number}", hold=2, delay=late)
    return tally


def soak(bench: Bench) -> Tally:
    """The same again and again over poisoned memory, until the time is up."""
    tally, rounds = Tally(), 0
    stop = time.monotonic() + bench.seconds
    while time.monotonic() < stop and (not bench.tiny or rounds < 2):
        rng = np.random.default_rng([bench.seed, 77, rounds])
        with tempfile.TemporaryDirectory() as folder:
            lake = random_lake(bench, rng, pathlib.Path(folder))
            for _ in range(1 if bench.tiny else 3):
                compare_batches(tally, lake, random_options(rng, lake), bench.open_runtime(2000 + rounds), f"round {rounds}", poison=True, hold=1)
        rounds += 1
    tally.figures["rounds"] = rounds
    return tally
