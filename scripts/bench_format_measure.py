"""One measurement of `scripts/bench_format`, in a process of its own on cores of its own: python bench_format_measure.py '{"job": …}' prints JSON.

Times are the best of some repeats after one to warm up, files in the page cache: the format's work, not the disk's or the neighbours'.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

BATCH_ROWS = 4_096
LOOK_UP_ROWS = 100
LOCATED = 100


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


def drain(batches: Any) -> int:
    """Take every batch and let it go; the number of tensors seen."""
    count = 0
    for tensors in batches:
        count += len(tensors)
        del tensors
    return count


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


def write(job: dict[str, Any], form: Any) -> dict[str, Any]:
    table, path = load(job["table"]), pathlib.Path(job["path"])
    form.write(table, path, job["cores"])  # tuning, and warm-up
    seconds = best(lambda: form.write(table, path, job["cores"]), job["budget"], job["repeats"])
    return {"write_seconds": seconds, "num_bytes": form.num_bytes(path)}


def classes(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """Bytes of a file with the columns of each class alone."""
    table, path = load(job["table"]), pathlib.Path(job["path"] + ".class")
    found = {}
    for name, columns in job["classes"].items():
        form.write(table.select(columns), path, 1)
        found[name] = form.num_bytes(path)
    return {"class_bytes": found}


def read(job: dict[str, Any], form: Any) -> dict[str, Any]:
    import numpy as np
    import torch

    torch.set_num_threads(job["cores"])
    path, cores, columns = pathlib.Path(job["path"]), job["cores"], job["columns"]
    order = np.random.default_rng(17).permutation(job["num_rows"])
    rows = np.sort(order[:LOOK_UP_ROWS])
    calls: dict[str, Callable[[], Any]] = {
        "decode_seconds": lambda: drain(form.scan(path, None, cores)),
        "tenth_seconds": lambda: drain(form.scan(path, columns[::10], cores)),
        "shuffled_seconds": lambda: drain(form.shuffled(path, order, BATCH_ROWS, cores)),
        "look_up_seconds": lambda: form.look_up(path, rows),
    }
    return {name: best(call, job["budget"], job["repeats"]) for name, call in calls.items()}


def memory(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """Peak of a scan over what the process has once everything is imported and the file was opened once."""
    form.locate(pathlib.Path(job["path"]), job["columns"][:1])
    first = next(iter(form.scan(pathlib.Path(job["path"]), job["columns"][:1], job["cores"])))
    del first
    before = reset_peak()
    drain(form.scan(pathlib.Path(job["path"]), None, job["cores"]))
    return {"peak_bytes": peak_bytes() - before}


def wide(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """Open a file of very many columns and locate some; read those. The process has opened another file before, so nothing is imported on the clock."""
    table, path = load(job["table"]), pathlib.Path(job["path"])
    form.write(table, path, 1)
    names = [table.column_names[number] for number in range(7, table.num_columns, max(table.num_columns // LOCATED, 1))][:LOCATED]
    return {
        "wide_bytes": form.num_bytes(path),
        "locate_seconds": best(lambda: form.locate(path, names), job["budget"], job["repeats"] * 3),
        "wide_scan_seconds": best(lambda: drain(form.scan(path, names, 1)), job["budget"], job["repeats"]),
    }


def reads(job: dict[str, Any], form: Any) -> dict[str, Any]:
    """What Headrace asks the file for, to read a projection of the wide table, in bytes and requests."""
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

    names = load(job["table"]).column_names
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
    """What no format can pass: copying, and copying the table's own arrays into fresh tensors block by block."""
    import numpy as np
    import torch

    torch.set_num_threads(job["cores"])
    block = torch.ones(8 << 20, dtype=torch.int64)
    target = torch.empty_like(block)
    copy = best(lambda: target.copy_(block), job["budget"], job["repeats"] * 3)
    table = load(job["table"])
    from bench_format_peers import ROW_GROUP, tensors_of

    def copy_table() -> None:
        for batch in table.to_batches(max_chunksize=ROW_GROUP):
            made = [torch.empty_like(tensor).copy_(tensor) for tensor in tensors_of(batch)]
            del made

    fresh = best(lambda: np.full(64 << 20, 7, np.uint8), job["budget"], job["repeats"])
    return {
        "memcpy_bytes_per_second": block.nbytes / copy,
        "copy_table_seconds": best(copy_table, job["budget"], job["repeats"]),
        "fresh_bytes_per_second": (64 << 20) / fresh,
    }


JOBS = {"write": write, "classes": classes, "read": read, "memory": memory, "wide": wide, "reads": reads, "limits": limits}


def main() -> None:
    job = json.loads(sys.argv[1])
    limit_cores(job["cores"])
    import pyarrow as pa

    pa.set_cpu_count(job["cores"])
    pa.set_io_thread_count(max(job["cores"], 1))
    from bench_format_peers import formats

    sys.stdout.write(json.dumps(JOBS[job["job"]](job, formats().get(job["format"]))) + "\n")


if __name__ == "__main__":
    main()
