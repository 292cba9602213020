"""The measurements of `scripts/bench_table`, each a process of its own: reads a job as JSON from its input, prints what it found as JSON.

Every function takes the folder it may fill, the system and sizes, and returns figures: seconds, or lists of seconds where each call is one sample. A
measurement that would take too long ends early and says how many calls it made: nothing is estimated from fewer.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

import bench_table_data as data  # noqa: E402
import bench_table_peers as peers  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402

PATCHED = ["id", "label", "value"]
Figures = dict[str, Any]


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def repeated(call: Callable[[int], Any], times: int, limit_seconds: float) -> list[float]:
    """Seconds of each call, as many as fit into the limit, one at least."""
    taken: list[float] = []
    while len(taken) < times and sum(taken) < limit_seconds:
        taken.append(timed(lambda: call(len(taken))))
    return taken


def open_system(folder: pathlib.Path, name: str, rows: pa.Table) -> peers.System:
    return peers.SYSTEMS[name](folder, rows.schema)


def commits(folder: pathlib.Path, *, system: str, commits: int, rows: int, limit_seconds: float) -> Figures:
    """Small appends, one after another, by one writer."""
    batches = [data.commit_rows(number, rows) for number in range(commits + 1)]
    table = open_system(folder, system, batches[0])
    table.append(batches[0])
    found: Figures = {"synced": table.synced}
    if isinstance(table, peers.HeadraceGroup):
        started = time.perf_counter()
        found["acknowledged_after_seconds"] = table.append_all(batches[1:])
        found["commits_per_second"] = commits / (time.perf_counter() - started)
        count = commits
    else:
        found["commit_seconds"] = repeated(lambda number: table.append(batches[number + 1]), commits, limit_seconds)
        count = len(found["commit_seconds"])
        found["commits_per_second"] = count / sum(found["commit_seconds"])
    there = table.read(["id"]).num_rows
    if there != (count + 1) * rows:
        raise SystemExit(f"{system} acknowledged {(count + 1) * rows} rows and reads {there}")
    return found | {"bytes": folder_bytes(folder)}


def keyed(folder: pathlib.Path, *, system: str, num_rows: int, repeats: int, limit_seconds: float) -> Figures:
    """Patches, upserts and deletes by key in a large table."""
    keys = data.shuffled_keys(num_rows)
    rows = data.samples(keys, 0)
    table = open_system(folder, system, rows)
    found: Figures = {"load_seconds": timed(functools.partial(table.append, rows)), "loaded_bytes": folder_bytes(folder)}
    del rows
    patches = [data.updates(keys, 0.01, number) for number in range(repeats)]
    whole = [data.upserts(keys, 0.01, number) for number in range(repeats)]
    rng = np.random.default_rng(5)
    gone = rng.choice(keys, max(1, num_rows // 1000) * repeats, replace=False).reshape(repeats, -1)
    found["patch_seconds"] = repeated(lambda number: table.patch(patches[number]), repeats, limit_seconds)
    found["upsert_seconds"] = repeated(lambda number: table.upsert(whole[number]), repeats, limit_seconds)
    found["delete_seconds"] = repeated(lambda number: table.delete(pa.array(gone[number])), repeats, limit_seconds)
    check_keyed(table, patches[: len(found["patch_seconds"])], whole[: len(found["upsert_seconds"])], gone[: len(found["delete_seconds"])], keys)
    return found


def check_keyed(table: peers.System, patches: list[pa.Table], whole: list[pa.Table], gone: np.ndarray, keys: np.ndarray) -> None:
    """Every system must have done the same work."""
    ids = table.read(["id"])["id"].to_numpy()
    expected = np.setdiff1d(np.union1d(keys, np.concatenate([batch["id"].to_numpy() for batch in whole])), gone)
    if len(ids) != len(expected) or not np.array_equal(np.sort(ids), expected):
        raise SystemExit(f"{table.title}: {len(ids)} rows after the changes, {len(expected)} expected, or other keys")


def reads(folder: pathlib.Path, *, system: str, num_rows: int, patches: int, maintained: bool, limit_seconds: float, repeats: int = 3) -> Figures:
    """Reads of everything after many patch commits, with and without compaction."""
    keys = data.shuffled_keys(num_rows)
    rows = data.samples(keys, 0)
    table = open_system(folder, system, rows)
    table.append(rows)
    del rows

    def measure(when: str) -> Figures:
        best = {"all": None, "patched": PATCHED}
        return {f"{when}_{what}_seconds": min(timed(functools.partial(table.read, columns)) for _ in range(repeats)) for what, columns in best.items()}

    found = measure("fresh")
    spent: list[float] = []

    def patch(number: int) -> None:
        table.patch(data.updates(keys, 0.01, number))
        if maintained:
            spent.append(timed(table.maintain))

    patch_seconds = repeated(patch, patches, limit_seconds)
    found |= {"patch_commits": len(patch_seconds), "patch_seconds": patch_seconds, "maintenance_seconds": sum(spent)} | measure("patched")
    total = table.read(["label"])["label"].to_numpy().sum()
    found["compact_seconds"] = timed(table.compact)
    found |= measure("compacted")
    if total != table.read(["label"])["label"].to_numpy().sum():
        raise SystemExit(f"{system}: compaction changed what is read")
    return found


def look_ups(folder: pathlib.Path, *, system: str, num_rows: int, num_columns: int, calls: int, limit_seconds: float) -> Figures:
    """Look-ups of 1 and of 500 random keys; columns by name. Warm: every system has looked 2,000 keys up before, which lie all over its files."""
    keys = data.shuffled_keys(num_rows)
    rows = data.samples(keys, 0, num_features=num_columns - 4)
    columns = [name for name in rows.column_names if name != "id"]
    table = open_system(folder, system, rows)
    for start in range(0, num_rows, max(1, num_rows // 8)):
        table.append(rows.slice(start, max(1, num_rows // 8)))
    del rows
    table.index()
    rng = np.random.default_rng(6)
    found: Figures = {"num_columns": len(columns)}
    for _ in range(2):
        table.look_up(pa.array(keys[:: max(1, num_rows // 2000)]), columns)
    for count in (1, 500):
        starts = rng.integers(0, num_rows - count, calls)  # keys are in no order: neighbours there are random ones
        wanted = [pa.array(keys[start : start + count]) for start in starts.tolist()]
        for number in range(min(20, calls)):
            result = table.look_up(wanted[number], columns)
            if result.num_rows != count:
                raise SystemExit(f"{system} found {result.num_rows} of {count} keys")
        found[f"look_up_{count}_seconds"] = repeated(lambda number, wanted=wanted: table.look_up(wanted[number], columns), calls, limit_seconds)
    return found


def plan(folder: pathlib.Path, *, system: str, num_files: int, repeats: int = 3) -> Figures:
    """Opening a table that has very many files, and listing what a scan of it reads. The catalog is filled by script: no file is there."""
    import bench_table_fills

    if system == "Headrace":
        return plan_headrace(folder / "lake", num_files, repeats)
    started = time.perf_counter()
    open_and_plan = bench_table_fills.FILLS[system](folder, num_files)
    found: Figures = {"num_files": num_files, "fill_seconds": time.perf_counter() - started}
    counts: list[int] = []
    found["plan_seconds"] = min(timed(lambda: counts.append(open_and_plan())) for _ in range(repeats))
    if not all(num_files <= count <= num_files + 1 for count in counts):
        raise SystemExit(f"{system} plans {counts} files of {num_files}")
    return found


def plan_headrace(folder: pathlib.Path, num_segments: int, repeats: int) -> Figures:
    """The same, each figure in a process of its own, so that its memory is what that figure needs."""
    import bench_table_fill

    import loader

    started = time.perf_counter()
    with loader.connect(folder) as lake:
        bench_table_fill.fill(lake, num_segments)
    found: Figures = {"num_files": num_segments, "fill_seconds": time.perf_counter() - started}
    for way, title in (("plan", "plan"), ("view", "view"), ("week", "week"), ("follow", "next_plan")):
        command = [sys.executable, str(pathlib.Path(__file__).with_name("bench_plan")), "--one", way, str(folder), ""]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(repeats)]
        best = min(runs, key=lambda one: one["seconds"])
        found |= {f"{title}_seconds": best["seconds"], f"{title}_bytes": best["mb"] * 1e6}
        if way in ("plan", "view") and best["segments"] != num_segments:
            raise SystemExit(f"Headrace plans {best['segments']} segments of {num_segments}")
    return found


def probe(folder: pathlib.Path, *, system: str, num_rows: int) -> Figures:
    """Keys found in memory, a hundredth of all, in one and in more runs."""
    import bench_table_lookup

    return bench_table_lookup.probe(folder, num_rows=num_rows, runs=[1, 8, 64])


def cold_look_ups(folder: pathlib.Path, *, system: str, num_rows: int, calls: int, cold_calls: int) -> Figures:
    """Look-ups of what is in no cache, and with rows side by side."""
    import bench_table_lookup

    return bench_table_lookup.look_ups(folder, num_rows=num_rows, num_columns=20, calls=calls, cold_calls=cold_calls)


def stream(folder: pathlib.Path, *, system: str, batches: int, rows: int) -> Figures:
    """What maintenance writes beside an hour's stream with late labels."""
    import bench_table_stream

    return dict(bench_table_stream.write_amplification(folder, batches=batches, rows=rows))


def folder_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


JOBS: dict[str, Callable[..., Figures]] = {
    "commits": commits,
    "keyed": keyed,
    "reads": reads,
    "plan": plan,
    "plan large": plan,
    "look_ups": look_ups,
    "probe": probe,
    "cold look_ups": cold_look_ups,
    "stream": stream,
}
ALONE = ("plan large", "probe", "cold look_ups", "stream")  # nobody else has the like


def systems_of(stage: str) -> list[str]:
    """Those that a stage compares."""
    chosen = {
        "commits": ["Headrace", "Headrace files", "Headrace group", "DuckLake", "DuckLake inline", "Lance", "Delta", "Iceberg"],
        "reads": ["Headrace", "Headrace maintained", "DuckLake", "Lance", "Delta"],  # 100 of Iceberg's take an hour
    }
    if stage == "plan":
        import bench_table_fills

        return ["Headrace", *bench_table_fills.FILLS]
    if stage in ALONE:
        return ["Headrace"]
    return chosen.get(stage, ["Headrace", "DuckLake", "Lance", "Delta", "Iceberg"])


def more_of(stage: str, system: str) -> dict[str, Any]:
    """Arguments that only this system has in a stage."""
    return {"maintained": True} if (stage, system) == ("reads", "Headrace maintained") else {}


def measure(job: dict[str, Any]) -> Figures:
    """Run one job in a folder that is removed after it."""
    arguments = {name: value for name, value in job.items() if name not in ("job", "tiny", "folder")}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-", dir=job["folder"]) as folder:
        return JOBS[job["job"]](pathlib.Path(folder), **arguments)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(json.load(sys.stdin))) + "\n")
    sys.stdout.flush()
    os._exit(0)  # peers' threads may not end by themselves
