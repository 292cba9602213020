"""One measurement of `scripts/bench_format`, in a process of its own on cores of its own: python bench_format_measure.py '{"job": …}' prints JSON.

A time is the best of some repeats after one to warm up, files in the page cache: the format's work, not the disk's or the neighbours'. The benchmark asks in
several rounds and takes the median of what they say.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

BATCH_ROWS = 4_096
LOOK_UP_ROWS = 100
LOCATED = 100
COPIED_BYTES = 256 << 20
CACHED_BYTES = 8 << 20  # of a buffer that stays in the last cache of most processors


def limit_cores(cores: int) -> None:
    """This process, and every thread that a library starts later, on so many cores: those that others use least just now."""
    allowed = os.sched_getaffinity(0)
    before = idle_ticks()
    time.sleep(0.3)
    after = idle_ticks()
    os.sched_setaffinity(0, sorted(allowed, key=lambda core: before.get(core, 0) - after.get(core, 0))[:cores])


def idle_ticks() -> dict[int, int]:
    """Time that each core has had nothing to do."""
    lines = [line.split() for line in pathlib.Path("/proc/stat").read_text().splitlines()]
    return {int(line[0][3:]): int(line[4]) + int(line[5]) for line in lines if line[0].startswith("cpu") and line[0] != "cpu"}


def best(call: Callable[[], Any], budget_seconds: float, repeats: int) -> float:
    """Seconds of the fastest call: at most `repeats`, fewer where they pass the budget."""
    call()
    times: list[float] = []
    while not times or (len(times) < repeats and sum(times) < budget_seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def take_all(batches: Any) -> None:
    """Take every batch and let it go."""
    for tensors in batches:
        del tensors


def flat(tensors: Any) -> Iterator[Any]:
    """The tensors of a batch, which may stand in tuples of a column's; None is no tensor."""
    for item in tensors:
        if isinstance(item, tuple):
            yield from flat(item)
        elif item is not None:
            yield item


def drain(batches: Any) -> dict[str, int]:
    """Take every batch and let it go: bytes of all tensors seen, and of the largest batch."""
    total = largest = 0
    for tensors in batches:
        num_bytes = sum(tensor.nbytes for tensor in flat(tensors))
        total, largest = total + num_bytes, max(largest, num_bytes)
        del tensors
    return {"output_bytes": total, "batch_bytes": largest}


def peak_bytes() -> int:
    """The most memory this process has had since `reset_peak`."""
    return _status("VmHWM")


def _status(key: str) -> int:
    line = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def reset_peak() -> int:
    """Forget the peak so far; the memory in use now. Pages of mapped files count, as they do for whoever shares the machine."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def load(path: str) -> Any:
    """The table as one piece in memory of its own."""
    import pyarrow as pa

    with pa.OSFile(path) as source, pa.ipc.open_file(source) as file:
        return file.read_all().combine_chunks()


def tune(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """What the format is told to do with this table, where there is something to choose."""
    return {"options": form.tune(load(job["table"]), pathlib.Path(job["path"] + ".tune"))}


def file(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """The file that other jobs read, once: where speeds were measured in this run, it is there."""
    path = pathlib.Path(job["path"])
    if path.exists():
        return {"num_bytes": form.num_bytes(path)}
    table = load(job["table"])
    start = time.perf_counter()
    form.write(table, path, job["cores"])
    return {"num_bytes": form.num_bytes(path), "write_once_seconds": time.perf_counter() - start}


def classes(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """Bytes of a file with the columns of each class alone."""
    table, path = load(job["table"]), pathlib.Path(job["path"] + ".class")
    found = {}
    for name, columns in job["classes"].items():
        form.write(table.select(columns), path, 1)
        found[name] = form.num_bytes(path)
    return {"class_bytes": found}


def speed(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """Seconds to write the table, to decode it whole, a tenth of its columns, its rows in random order, and to look up some rows; `times` names fewer."""
    import numpy as np
    import torch

    torch.set_num_threads(job["cores"])
    table, path, cores = load(job["table"]), pathlib.Path(job["path"]), job["cores"]
    order = np.random.default_rng(17).permutation(table.num_rows)
    rows, tenth = np.sort(order[:LOOK_UP_ROWS]), table.column_names[::10]
    calls: dict[str, Callable[[], Any]] = {
        "write_seconds": lambda: form.write(table, path, cores),
        "decode_seconds": lambda: take_all(form.scan(path, None, cores)),
        "tenth_seconds": lambda: take_all(form.scan(path, tenth, cores)),
        "shuffled_seconds": lambda: take_all(form.shuffled(path, order, BATCH_ROWS, cores)),
        "look_up_seconds": lambda: form.look_up(path, rows),
    }
    seconds = {name: best(call, job["budget"], job["repeats"]) for name, call in calls.items() if name in job.get("times", calls)}
    return {"num_bytes": form.num_bytes(path), **drain(form.scan(path, None, cores)), **seconds}


def kept(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """Seconds to decode the file whole, once more: the benchmark starts this process with a malloc that gives nothing back to the system."""
    import torch

    torch.set_num_threads(job["cores"])
    return {"decode_kept_seconds": best(lambda: take_all(form.scan(pathlib.Path(job["path"]), None, job["cores"])), job["budget"], job["repeats"])}


def memory(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """Peak of a scan over what the process has once everything is imported and the file was opened once."""
    path, column = pathlib.Path(job["path"]), job["columns"][:1]
    form.locate(path, column)
    first = next(iter(form.scan(path, column, job["cores"])))
    del first
    before = reset_peak()
    seen = drain(form.scan(path, None, job["cores"]))
    return {"peak_bytes": peak_bytes() - before, **seen}


def repeated(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """Write the table some times over, a block each time: files of the same blocks and of very different size. Bytes of a block, encoded and decoded."""
    import pyarrow as pa

    from loader.segment.layout import MAX_BLOCK_ROWS
    from loader.segment.reader import SegmentReader
    from loader.segment.writer import WriteOptions, write_segment

    table, path = load(job["table"]).slice(0, MAX_BLOCK_ROWS), pathlib.Path(job["path"])
    path.unlink(missing_ok=True)
    write_segment(path, pa.concat_tables([table] * job["blocks"]), options=WriteOptions(threads=job["cores"], block_rows=table.num_rows))
    with SegmentReader(path) as reader:
        chunks = reader.chunks(reader.resolve(None), range(reader.num_blocks))
        blocks = (chunks["num_bytes"].astype("i8") + chunks["arena_bytes"].astype("i8")).sum(axis=0)
        return {"blocks": reader.num_blocks, "num_bytes": path.stat().st_size, "block_bytes": int(blocks.max())}


def wide(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """Open a file of very many columns and locate some; read those. A warm-up comes first, so nothing is imported on the clock."""
    path, names = pathlib.Path(job["path"]), job["columns"]
    chosen = names[7 :: max(len(names) // LOCATED, 1)][:LOCATED]
    return {
        "locate_seconds": best(lambda: form.locate(path, chosen), job["budget"], job["repeats"] * 3),
        "wide_scan_seconds": best(lambda: drain(form.scan(path, chosen, 1)), job["budget"], job["repeats"]),
    }


def reads(job: dict[str, Any], _: Any) -> dict[str, Any]:
    """What Headrace asks the file for, to read projections of it, in bytes and requests."""
    from loader.segment.reader import SegmentReader
    from loader.segment.source import FileSource

    asked: list[int] = []

    class Counted:
        def __init__(self, path: str) -> None:
            self._file = FileSource(path)
            self.num_bytes = self._file.num_bytes

        def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
            asked.extend(num_bytes for _, num_bytes in ranges)
            return self._file.read_ranges(ranges)

    names = job["columns"]
    found = {}
    for title, chosen in {
        "100 spread": names[7 :: max(len(names) // LOCATED, 1)][:LOCATED],
        "100 neighbours": names[50:150],
        "every second": names[::2],
    }.items():
        reader = SegmentReader(Counted(job["path"]))
        ids = reader.resolve(chosen)
        chunks = reader.chunks(ids, range(reader.num_blocks))
        footer, asked[:] = list(asked), []
        for block in range(reader.num_blocks):
            reader.read_block(block, ids)
        projected = int(chunks["num_bytes"].sum())
        found[title] = {
            "projected_bytes": projected, "read_bytes": sum(asked), "requests": len(asked), "ratio": sum(asked) / projected,
            "footer_bytes": sum(footer), "footer_requests": len(footer),
        }  # fmt: skip
        asked[:] = []
    return {"projections": found}


def limits(job: dict[str, Any], _: Any) -> dict[str, Any]:
    """What no format can pass: this machine's memory on so many cores, and copying the table's own arrays into fresh tensors block by block."""
    import torch
    from bench_format_peers import ROW_GROUP, tensors_of

    torch.set_num_threads(job["cores"])
    speeds = {f"{name}_bytes_per_second": value for name, value in memory_speeds(job).items()}
    batches = [tensors_of(batch) for batch in load(job["table"]).to_batches(max_chunksize=ROW_GROUP)]

    def copy_table() -> None:
        for tensors in batches:
            made = [torch.empty_like(tensor).copy_(tensor) for tensor in tensors]
            del made

    return speeds | {"copy_table_seconds": best(copy_table, job["budget"], job["repeats"])}


def memory_speeds(job: dict[str, Any]) -> dict[str, float]:
    """Bytes a second of this machine's memory. Fresh memory is mapped anew each time, in small pages (torch's) or in huge ones (which NumPy asks for)."""
    import numpy as np
    import torch

    count = ((1 << 20) if job["tiny"] else COPIED_BYTES) // 8
    block = torch.ones(count, dtype=torch.int64)
    target = torch.empty_like(block)
    calls: dict[str, Callable[[], Any]] = {
        "copy": lambda: target.copy_(block),
        "read": lambda: block.sum(),
        "write_warm": lambda: target.fill_(7),
        "write_fresh": lambda: torch.empty(count, dtype=torch.int64).fill_(7),
        "write_fresh_huge": lambda: torch.from_numpy(np.empty(count, np.int64)).fill_(7),
    }
    speeds = {name: block.nbytes / best(call, job["budget"], job["repeats"] * 3) for name, call in calls.items()}
    small = torch.ones(min(count, CACHED_BYTES // 8), dtype=torch.int64)
    return speeds | {"write_cached": small.nbytes / best(lambda: small.fill_(7), job["budget"], job["repeats"] * 20)}


def stages(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """Where the time of Headrace's decode goes."""
    from bench_format_stages import stages as measured

    return measured(job, form)


JOBS = {item.__name__: item for item in (tune, file, classes, speed, kept, memory, repeated, wide, reads, limits, stages)}


def main() -> None:
    job = json.load(sys.stdin)
    limit_cores(job["cores"])
    import pyarrow as pa

    pa.set_cpu_count(job["cores"])
    pa.set_io_thread_count(max(job["cores"], 1))
    from bench_format_peers import formats

    form = formats().get(job["format"])
    if form is not None:
        form.options = job.get("options")
    sys.stdout.write(json.dumps(JOBS[job["job"]](job, form)) + "\n")


if __name__ == "__main__":
    main()
