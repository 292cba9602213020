"""The stream benchmark's tiny form, and the policy's promises over an hour by simulation."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench_table_stream import reads_under_patches, simulate, write_amplification


@pytest.mark.parametrize(("batches", "every"), [(360, 1), (720, 2), (1_800, 2)])
def test_an_hour_of_micro_batches_is_rewritten_less_than_three_times(batches: int, every: int) -> None:
    found = simulate(batches, every=every)
    assert found["write_amplification"] <= 4 and found["max_runs"] <= 16


def test_a_small_stream_keeps_its_bounds(tmp_path: Path) -> None:
    found = write_amplification(tmp_path, batches=60, rows=200, buckets=2, columns=10)
    assert found["write_amplification"] <= 4 and found["max_segments"] <= 16 and found["max_overlays"] <= 9
    assert found["maintenance_bytes"] > 0


def test_reads_are_measured_on_both_sides(tmp_path: Path) -> None:
    found = reads_under_patches(tmp_path, rows=20_000, commits=4, every=2, reads=1)
    assert found["all_ratio"] > 0 and found["some_ratio"] > 0 and found["maintenance"] > 0
