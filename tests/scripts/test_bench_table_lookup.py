"""The look-up part of the table benchmark runs in its tiny form, and checks what it finds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_table_lookup


def test_probes_and_looks_up(tmp_path: Path) -> None:
    found = bench_table_lookup.probe(tmp_path, num_rows=5_000, runs=[1, 3], repeats=2)
    assert found["num_keys"] == 50
    assert len(found["probe_1_runs_seconds"]) == len(found["probe_3_runs_seconds"]) == 2
    found = bench_table_lookup.look_ups(tmp_path / "lake", num_rows=200_000, num_columns=6, calls=3, cold_calls=2)
    assert found["num_columns"] == 6 and found["row_bytes"] >= 200_000 * 6 * 4
    names = {name for name in found if name.endswith("_seconds")}
    kinds = ("warm_columns", "cold_columns", "warm_rows", "cold_rows", "ten_rows")
    assert names == {f"{kind}_{count}_seconds" for kind in kinds for count in (1, 500)}
    assert min(min(found[name]) for name in names) > 0
    assert bench_table_lookup.percentile([3.0, 1.0, 2.0], 0.5) == pytest.approx(2.0)
