"""Claims about a loader on a device, run on the host runtime: the CPU's batches bit for bit, whatever streams do; nothing overwritten, lost or left behind."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loader

from .device import compare, host_runtime
from .sample_table import TENSOR_COLUMNS, create, delete_rows

LATER = pa.schema([pa.field("late", pa.float64()), pa.field("more", pa.list_(pa.int32())), pa.field("pair", pa.list_(pa.int16(), 2))])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Patched values and lists, deleted rows, late labels, and columns that the first segments are too old to have, patched there too."""
    lake = loader.connect(str(tmp_path_factory.mktemp("device") / "lake"))
    table = create(lake, num_rows=360)
    for ref in table.view().segments[:3]:
        delete_rows(lake, table, ref, [0, 2, ref.num_rows - 1])
    yield table
    lake.close()


def maker(table, columns=tuple(TENSOR_COLUMNS), batch=48, where=None, closed_before=None, **options):
    def make(device):
        scan = table.scan(columns=list(columns), where=where, closed_before=closed_before)
        return loader.DataLoader(scan, global_batch_size=batch, device=device, threads=2, **{"window_rows": 80, **options})

    return make


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    world=st.sampled_from([1, 2, 3]),
    shards=st.sampled_from([None, 1, 3]),
    batch=st.sampled_from([12, 36, 120]),
    window=st.sampled_from([1, 40, 100_000]),
    mode=st.sampled_from(["none", "blocks", "windows", "full"]),
    remainder=st.sampled_from(["drop", "pad", "uneven"]),
    unique=st.sampled_from([(), ("tags",), ("history", "tags")]),
    timing=st.sampled_from(["lazy", "random"]),
    schedule=st.sampled_from(["forward", "reverse", "shuffled", "greedy shuffled"]),
    seed=st.integers(0, 99),
)
def test_batches_and_states_are_the_cpus(table, world, shards, batch, window, mode, remainder, unique, timing, schedule, seed):
    options = {"canonical_shards": shards, "window_rows": window, "shuffle": mode, "remainder": remainder, "unique": unique, "prefetch_bytes": 1 << 16}
    for rank in range(world):
        make = maker(table, batch=batch, rank=rank, world_size=world, **options)
        assert compare(make, host_runtime(schedule, timing, seed + rank)) == len(make("cpu"))
