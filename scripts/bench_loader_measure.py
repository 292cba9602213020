"""One measurement of `scripts/bench_loader`, in a process of its own on cores of its own: the job comes as JSON from the input, figures go out as JSON.

Every job reads files that are in the page cache: the loader's work, not the disk's. A rate is that of the batches after the first one, epoch after epoch until
its seconds have passed; the first batch is the cold start: from opening the files, with all packages imported, to having it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402
from bench_format_measure import limit_cores  # noqa: E402
from bench_loader_peers import PEERS, Peer, headrace_tensors  # noqa: E402

LOOK_SECONDS = 0.2
SHARES = (0.5, 0.8, 0.95)
ENDLESS = 1 << 20  # epochs


def processes() -> list[psutil.Process]:
    """This process and all that it started."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


class Meter:
    """Processor time and memory of this process and its children, looked at every so often so that those which end are counted."""

    def __init__(self) -> None:
        self.cpu_seconds: dict[int, float] = {}
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def look(self) -> float:
        """Processor seconds so far."""
        held = 0
        for process in processes():
            with contextlib.suppress(psutil.Error, OSError):
                times = process.cpu_times()
                self.cpu_seconds[process.pid] = times.user + times.system
                rollup = pathlib.Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                held += next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))
        self.peak_bytes = max(self.peak_bytes, held)
        return sum(self.cpu_seconds.values())

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self.look()

    def __enter__(self) -> Meter:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def peer_of(job: dict[str, Any]) -> Peer:
    return PEERS[job["peer"]](pathlib.Path(job["folder"]), job)


def batches_of(opened: Any) -> Iterator[tuple[int, Any]]:
    """(epoch, batch) for ever."""
    for epoch in range(ENDLESS):
        for batch in opened:
            yield epoch, batch


def write(job: dict[str, Any]) -> dict[str, Any]:
    """Store the samples as the peer wants them."""
    with pa.OSFile(job["table"]) as source, pa.ipc.open_file(source) as file:
        table = file.read_all().slice(0, job["num_rows"])
    folder = pathlib.Path(job["folder"])
    before, start = stored_bytes(folder), time.perf_counter()
    peer_of(job).write(table)
    return {"write_seconds": time.perf_counter() - start, "num_bytes": stored_bytes(folder) - before}


def stored_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rate(job: dict[str, Any]) -> dict[str, Any]:
    """First batch, samples a second after it, processor seconds a million samples, peak memory less what the imports took."""
    peer, rows = peer_of(job), 0
    warm_up(job)
    with Meter() as meter:
        imported = meter.peak_bytes
        begin = time.perf_counter()
        source = batches_of(peer.open())
        next(source)
        first = time.perf_counter() - begin
        spent, start = meter.look(), time.perf_counter()
        num_tensors = num_bytes = 0
        while (seconds := time.perf_counter() - start) < job["seconds"] or not rows:
            _, tensors = next(source)
            rows, num_tensors = rows + job["batch_rows"], len(tensors)
            num_bytes += sum(tensor.nbytes for tensor in tensors)
            del tensors
        seconds, spent = time.perf_counter() - start, meter.look() - spent
    peer.close()
    return {
        "samples_per_second": rows / seconds,
        "bytes_per_second": num_bytes / seconds,
        "first_batch_seconds": first,
        "cpu_seconds_per_million": spent / rows * 1e6,
        "peak_bytes": meter.peak_bytes - imported,
        "num_tensors": num_tensors,
    }


def warm_up(job: dict[str, Any]) -> None:
    """Import what the peer imports, so that a cold start is the loader's."""
    for name in ("torch", "torch.utils.data", "loader", "loader.train.loader", "loader.lake", *job.get("imports", ())):
        __import__(name)
    if job["peer"] == "Mosaic Streaming":
        PEERS[job["peer"]].open.__globals__["import_streaming"]()
    if job["peer"] in ("Headrace, Ray", "Parquet, Ray Data"):
        __import__("ray.data")


def middle(job: dict[str, Any]) -> dict[str, Any]:
    """The state in the middle of an epoch."""
    peer = peer_of(job)
    opened = peer.open()
    source = iter(opened)
    for _ in range(job["num_rows"] // job["batch_rows"] // 2):
        next(source)
    state = peer.state(opened)
    del source
    peer.close()
    return {"state": state}


def resume(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds from opening the files and loading the state to the next batch."""
    peer = peer_of(job)
    warm_up(job)
    begin = time.perf_counter()
    next(iter(peer.open(job["state"])))
    seconds = time.perf_counter() - begin
    peer.close()
    return {"resume_seconds": seconds}


def paced(job: dict[str, Any]) -> dict[str, Any]:
    """Share of its time that a consumer waits for batches, which takes a fixed time for each, as a GPU would, at shares of the loader's own rate.

    Own rate and waiting are measured in turns in this process: the machine's other work changes both. To name a batch's tensors is the consumer's own time.
    """
    peer = peer_of(job)
    warm_up(job)
    peer.open()
    source = batches_of(peer.batches)  # type: ignore[attr-defined]
    next(source)
    found = {}
    for share in SHARES:
        step = pace(source, 0.0, job["seconds"] / 2)[1] / share
        waited, took = pace(source, step, job["seconds"])
        found[str(share)] = {"waiting_share": waited / (waited + step), "step_seconds": step, "seconds_per_batch": took}
    peer.close()
    return {"paced": found}


def pace(source: Iterator[tuple[int, Any]], step_seconds: float, seconds: float) -> tuple[float, float]:
    """(mean seconds that `next` took, mean seconds from batch to batch) of a consumer that works `step_seconds` on each, first batches of epochs left out."""
    waited = took = 0.0
    number, known, begin = 0, -1, time.perf_counter()
    while (now := time.perf_counter()) - begin < seconds or not number:
        epoch, batch = next(source)
        got = time.perf_counter()
        headrace_tensors(batch)
        del batch
        if (left := step_seconds - (time.perf_counter() - got)) > 0:
            time.sleep(left)
        if epoch == known:
            waited, took, number = waited + got - now, took + time.perf_counter() - now, number + 1
        known = epoch
    return waited / number, took / number


def ranks(job: dict[str, Any]) -> dict[str, Any]:
    """Samples a second of two ranks together, each a process with a thread, in process and over one Ray."""
    found = {}
    for way in ("Headrace", "Headrace, Ray"):
        if way == "Headrace, Ray":
            from bench_loader_peers import start_ray

            start_ray(job["cores"])
        command = [sys.executable, __file__]
        workers = []
        for rank in range(2):
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            workers.append(worker)
            worker.stdin.write(json.dumps(job | {"job": "rank", "peer": way, "rank": rank}) + "\n")  # type: ignore[union-attr]
            worker.stdin.flush()  # type: ignore[union-attr]
        for worker in workers:
            worker.stdout.readline()  # type: ignore[union-attr]  # its first batch is there
        for worker in workers:
            worker.stdin.write("go\n")  # type: ignore[union-attr]
            worker.stdin.flush()  # type: ignore[union-attr]
        found[way] = sum(json.loads(worker.communicate()[0].splitlines()[-1])["samples_per_second"] for worker in workers)
        if way == "Headrace, Ray":
            import ray

            ray.shutdown()
    return {"two_ranks": found}


def rank(job: dict[str, Any]) -> dict[str, Any]:
    """One of two ranks: its first batch, then, when told, its rate."""
    from bench_loader_peers import Headrace

    peer = Headrace(pathlib.Path(job["folder"]), job)
    warm_up(job)
    scan, stream = peer.scan(), None
    if job["peer"] == "Headrace, Ray":
        import ray

        from loader.distributed import RayBlockStream

        ray.init(address="auto", log_to_driver=False)
        stream = RayBlockStream(scan.plan().fetch_spec())
    batches = peer.loader(scan, rank=job["rank"], world_size=2, threads=1, global_batch_size=2 * job["batch_rows"], stream=stream)
    if stream is not None:
        from loader.distributed.ahead import expect

        expect(stream, batches, epochs=range(64), position=0)
    source = batches_of(batches)
    next(source)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    start, rows = time.perf_counter(), 0
    while time.perf_counter() - start < job["seconds"] or not rows:
        headrace_tensors(next(source)[1])
        rows += job["batch_rows"]
    found = {"samples_per_second": rows / (time.perf_counter() - start)}
    batches.close()
    return found


JOBS = {"write": write, "rate": rate, "middle": middle, "resume": resume, "paced": paced, "ranks": ranks, "rank": rank}


def main() -> None:
    job = json.loads(sys.stdin.readline() or "{}")
    if job["job"] != "rank":
        limit_cores(job["cores"])
    found = JOBS[job["job"]](job)
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # what a peer left running is not waited for


if __name__ == "__main__":
    main()
