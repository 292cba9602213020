"""Look-ups and probes of Headrace alone, for `scripts/bench_table`: warm, cold, on data ten times the cache, with and without rows side by side; keys in runs.

Every function takes a folder that it may fill, and sizes, and returns figures: lists of seconds, a sample each call.
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys
import time
from typing import Any

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

import bench_table_data as data  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402

import loader  # noqa: E402
from loader.segment import key_run  # noqa: E402
from loader.segment.key_index import KeyIndex, Keys, build, keys_of  # noqa: E402
from loader.segment.key_run import Alive, KeyRun  # noqa: E402

Figures = dict[str, Any]
BUCKETS = 8


def probe(folder: pathlib.Path, *, num_rows: int, runs: list[int], repeats: int = 5) -> Figures:
    """Finding a hundredth of all keys, in memory: one list of seconds for each number of runs."""
    keys = data.shuffled_keys(num_rows)
    wanted = keys_of([pa.array(np.random.default_rng(7).choice(keys, max(1, num_rows // 100), replace=False))])
    found: Figures = {"num_keys": len(wanted)}
    for count in runs:
        parts = [_run(number, keys_of([pa.array(part)])) for number, part in enumerate(np.array_split(keys, count))]
        taken = []
        for _ in range(repeats + 1):
            segments, rows = np.full(len(wanted), -1), np.full(len(wanted), -1)
            started = time.perf_counter()
            for alive in parts:
                key_run.probe(alive, wanted, segments, rows)
            taken.append(time.perf_counter() - started)
            if (segments < 0).any():
                raise SystemExit(f"{int((segments < 0).sum())} keys of {len(wanted)} were not found in {count} runs")
        found[f"probe_{count}_runs_seconds"] = taken[1:]
    return found


def _run(number: int, keys: Keys) -> Alive:
    run = KeyRun.of(number, KeyIndex.open(build(keys)))
    return Alive(run, np.ones(1, bool), [None])


def look_ups(folder: pathlib.Path, *, num_rows: int, num_columns: int, calls: int, cold_calls: int = 20) -> Figures:
    """Look-ups of 1 and of 500 random keys × columns.

    `warm`: what was looked up before. `cold`: caches of an eighth and more of the data hold other rows, and the system's were dropped for the lake's files.
    `ten`: as `cold`, by a lake whose cache is a tenth of the data. `columns` and `rows`: as segments have them, and with rows side by side.
    """
    keys = data.shuffled_keys(num_rows)
    table = data.samples(keys, 0, num_features=num_columns - 4)
    columns = [name for name in table.column_names if name != "id"][:num_columns]
    lake = loader.connect(folder)
    samples = lake.create_table("samples", table.schema, primary_key=["id"], buckets=BUCKETS)
    for start in range(0, num_rows, max(1, num_rows // 4)):
        samples.append(table.slice(start, max(1, num_rows // 4)), on_conflict="trust")
    found: Figures = {"num_columns": len(columns), "stored_bytes": sum(ref.num_bytes for ref in samples.view().segments)}
    measure = functools.partial(_measure, folder, keys, table, columns)
    found |= measure("columns", calls, cold_calls)
    report = samples.build_lookup([*columns, "id"])
    found |= {"row_bytes": report.num_bytes} | measure("rows", calls, cold_calls)
    found |= measure("ten_rows", calls, cold_calls, cache_bytes=max(1, report.num_bytes // 10))
    return found


def _measure(
    folder: pathlib.Path, keys: np.ndarray, rows: pa.Table, columns: list[str], what: str, calls: int, cold_calls: int, *, cache_bytes: int = 1 << 30
) -> Figures:
    """One kind of storage, by a process-like fresh lake."""
    lake = loader.connect(folder, lookup_cache_bytes=2 * cache_bytes)
    table, rng, found = lake.table("samples"), np.random.default_rng(11), {}
    table.lookup(pa.array(keys[: min(2000, len(keys))]), columns)
    for count in (1, min(500, len(keys))):
        cold, warm = [], []
        for _ in range(cold_calls):
            places = rng.choice(len(keys), count, replace=False)
            drop_pages(folder)
            cold.append(_timed(table, keys, rows, places, columns))
        hot = [rng.choice(len(keys), count, replace=False) for _ in range(10)]
        for places in hot:
            table.lookup(pa.array(keys[places]), columns)
        for number in range(calls):
            warm.append(_timed(table, keys, rows, hot[number % len(hot)], columns))
        name = "ten" if what == "ten_rows" else "cold"
        found |= {f"{name}_{what.removeprefix('ten_')}_{count}_seconds": cold}
        if name == "cold":
            found |= {f"warm_{what}_{count}_seconds": warm}
    lake.close()
    return found


def _timed(table: loader.Table, keys: np.ndarray, rows: pa.Table, places: np.ndarray, columns: list[str]) -> float:
    wanted = pa.array(keys[places])
    started = time.perf_counter()
    result = table.lookup(wanted, columns)
    taken = time.perf_counter() - started
    if not result[columns[-1]].combine_chunks().equals(rows[columns[-1]].combine_chunks().take(pa.array(places))):
        raise SystemExit(f"a look-up of {len(places)} keys found other values")
    return taken


def drop_pages(folder: pathlib.Path) -> None:
    """Ask the system to forget what it holds of the lake's files."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in (folder / "data").rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def percentile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))]
