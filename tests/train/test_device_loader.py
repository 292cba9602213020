"""Claims about a loader on a device, run on the host runtime: the CPU's batches bit for bit, whatever streams do; nothing overwritten, lost or left behind."""

from __future__ import annotations

import collections
import gc
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import loader
from loader.batch.device import BatchDevice
from loader.errors import CorruptSegmentError, DeviceMemoryError, SchemaError
from loader.kernels.host_runtime import HostRuntime
from loader.kernels.runtime import override
from loader.scan.encoded import FetchRequest
from loader.scan.fetch import BlockFetcher

from .device import assert_same, compare, host_runtime, tensors
from .sample_table import TENSOR_COLUMNS, create, delete_rows


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Patched values and lists, deleted rows, late labels, and columns that the first segments are too old to have, patched there too."""
    lake = loader.connect(str(tmp_path_factory.mktemp("device") / "lake"))
    table = create(lake, num_rows=360)
    for ref in table.view().segments[:3]:
        delete_rows(lake, table, ref, [0, 2, ref.num_rows - 1])
    yield table
    lake.close()


@pytest.fixture(autouse=True)
def wipe_freed_memory(monkeypatch):
    """What is freed is wiped at once, behind what was launched before: whoever still reads it then gets zeros."""
    free = BatchDevice.free_heap

    def wipe(self, start):
        self.runtime.zero(self.heap_base + start, self._heap_spans._taken[start], self.work)
        free(self, start)

    monkeypatch.setattr(BatchDevice, "free_heap", wipe)


def maker(table, columns=tuple(TENSOR_COLUMNS), batch=48, where=None, closed_before=None, **options):
    def make(device):
        scan = table.scan(columns=list(columns), where=where, closed_before=closed_before)
        return loader.DataLoader(scan, global_batch_size=batch, device=device, threads=2, **{"window_rows": 80, **options})

    return make


@settings(max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.mark.parametrize(("where", "closed_before"), [("user < 4 and price > 0.3", None), (None, 200)])
def test_selections_and_closed_labels_are_the_cpus(table, where, closed_before):
    make = maker(table, where=where, closed_before=closed_before, remainder="pad", batch=24, unique=["history"])
    assert compare(make, host_runtime(seed=5)) > 3


def test_columns_added_later_are_null_or_their_default_before(tmp_path):
    lake = loader.connect(str(tmp_path / "lake"))
    table = create(lake, num_rows=120)
    fields = [pa.field("late", pa.float64()), pa.field("more", pa.list_(pa.int32())), pa.field("pair", pa.list_(pa.int16(), 2)), pa.field("since", pa.int32())]
    for field in fields:
        table.add_column(field, **({"default": 7} if field.name == "since" else {}))
    ids = pa.array(np.arange(0, 120, 7))
    table.patch(pa.table({"id": ids, "late": [0.5] * len(ids), "more": [[int(i)] * (int(i) % 3) for i in ids], "pair": [[1, int(i)] for i in ids]}))
    columns = ["id", *(field.name for field in fields)]
    assert compare(maker(table, columns, batch=30, shuffle=True), host_runtime("greedy", "lazy")) == 4
    lake.close()


def test_dictionaries_that_blocks_share_come_with_every_block(tmp_path):
    rng, rows = np.random.default_rng(12), 70_000  # two blocks
    ids = rng.integers(-(1 << 63), (1 << 63) - 1, 4_000)[np.minimum(rng.zipf(1.1, rows), 4_000) - 1]
    lake = loader.connect(str(tmp_path / "lake"))
    table = lake.create_table("t", pa.schema([("key", pa.int64()), ("id", pa.int64())]), primary_key=["key"], buckets=1, durability="relaxed")
    table.append(pa.table({"key": np.arange(rows), "id": ids}))
    plan = table.scan(columns=["key", "id"]).plan()
    assert plan.num_blocks == 2
    assert plan.fetcher().fetch(FetchRequest(sequence=0, shard=0, block=1)).dictionaries is not None
    plan.release()
    assert compare(maker(table, ["key", "id"], batch=8_000, remainder="uneven", window_rows=100_000, canonical_shards=1), host_runtime(timing="lazy")) == 9
    lake.close()


@pytest.mark.parametrize("stop_at", [2, 7])
def test_a_state_of_either_is_continued_by_the_other(table, stop_at):
    make, runtime = maker(table, remainder="pad"), host_runtime(seed=stop_at)
    with override(runtime):
        whole = [tensors(batch) for batch in make("cpu")]
        for first, second in (("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")):
            with make(first) as begun:
                iterator = iter(begun)
                for want in whole[:stop_at]:
                    assert all(np.array_equal(tensors(batch)[name], want[name]) for batch in [next(iterator)] for name in want)
                state = begun.state_dict()
                iterator.close()
            with make(second) as rest:
                rest.load_state_dict(state)
                for want, batch in zip(whole[stop_at:], rest, strict=True):
                    got = tensors(batch)
                    assert all(np.array_equal(got[name], want[name]) for name in want)
    runtime.finish()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Many small batches of a table without patches."""
    lake = loader.connect(str(tmp_path_factory.mktemp("plain") / "lake"))
    yield create(lake, num_rows=600, commit_rows=150, patch=False)
    lake.close()


def test_a_hundred_batches_stay_what_they_are_while_they_are_held(plain):
    make, runtime = maker(plain, ["id", "price", "history"], batch=6, prefetch_bytes=1 << 16), host_runtime(seed=3)
    with override(runtime), make("cpu") as cpu, make("cuda") as gpu:
        held = [(batch, tensors(want)) for batch, want in zip(gpu, cpu, strict=True)]
        assert len(held) == 100
        for number, (batch, want) in enumerate(held):
            got = tensors(batch)
            assert all(np.array_equal(got[name], want[name]) for name in want), number
    runtime.finish()


def test_nothing_is_allocated_and_memory_is_steady_once_a_loader_runs(plain):
    make, runtime = maker(plain, ["id", "price", "history"], batch=12, prefetch_bytes=1 << 16), host_runtime(seed=4)
    with override(runtime), make("cuda") as batches:
        held = collections.deque(maxlen=8)  # more than will ever be under way at once
        for batch in batches:
            held.append(batch)
        held.clear()
        before, memory = runtime.allocations, (runtime.device_memory.num_bytes, runtime.pinned_memory.num_bytes)
        for _ in range(3):
            for batch in batches:
                batch["history"].values.sum()
        assert runtime.allocations == before
        assert (runtime.device_memory.num_bytes, runtime.pinned_memory.num_bytes) == memory
    runtime.finish()
    del batch, batches
    gc.collect()
    assert runtime.device_memory.num_bytes == runtime.pinned_memory.num_bytes == 0


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize("timing", ["lazy", "random"])
def test_closing_at_any_point_leaves_no_thread_and_no_slab(plain, taken, timing):
    threads, runtime = set(threading.enumerate()), host_runtime(timing=timing, seed=taken)
    with override(runtime):
        batches = maker(plain, ["id", "history"], batch=6, prefetch_bytes=1 << 12, pinned_bytes=1 << 15)("cuda")
        iterator = iter(batches)
        for _ in range(taken):
            next(iterator)
        device = batches._device
        iterator.close()
        assert device is None or (device.slabs.taken_bytes, device.heap_taken_bytes) == (0, 0)
        assert sum(len(batch) for batch in batches) == 600  # the same memory serves the next epoch
        batches.close()
    runtime.finish()
    assert set(threading.enumerate()) <= threads


def test_a_block_that_cannot_be_read_is_an_error_and_leaves_nothing(plain, monkeypatch):
    runtime, fetch = host_runtime(), BlockFetcher.fetch

    def broken(self, request, empty=None):
        if request.sequence == 3:
            raise CorruptSegmentError("planted")
        return fetch(self, request, empty)

    with override(runtime), maker(plain, ["id"], batch=12, window_rows=20, prefetch_bytes=1 << 14)("cuda") as batches:
        monkeypatch.setattr(BlockFetcher, "fetch", broken)
        with pytest.raises(CorruptSegmentError, match="planted"):
            for _ in batches:
                pass
        monkeypatch.undo()
        assert batches._device is not None and batches._device.heap_taken_bytes == 0
        gc.collect()  # the error's traceback holds blocks
        assert batches._device.slabs.taken_bytes == 0
        assert sum(len(batch) for batch in batches) == 600
    runtime.finish()


def test_transforms_see_and_make_whole_tensors(plain):
    def double(batch):
        return batch.replace(price=batch["price"] * 2, history=None)

    make, runtime = maker(plain, ["id", "price", "history"], batch=24, transforms=double), host_runtime(timing="lazy")
    assert compare(make, runtime) == 25


def test_windows_go_when_no_batch_needs_them(plain):
    def peak(window_rows):
        with maker(plain, ["id", "history"], batch=12, window_rows=window_rows, canonical_shards=1)("cuda") as batches:
            for _ in batches:
                pass
            return batches.stats().peak_window_bytes

    with override(host_runtime(timing="lazy")):
        assert 0 < 3 * peak(20) < 2 * peak(100_000)


class Copies:
    """A stream whose blocks lie in memory of their own, as Ray's do."""

    def __init__(self, fetch):
        self._fetch = fetch

    def open(self, requests):
        return (self._fetch(request) for request in requests)


def test_blocks_from_another_stream_are_copied_to_pinned_memory(plain):
    def make(device):
        batches = maker(plain, ["id", "history"], batch=24)(device)
        batches._stream = Copies(batches.plan.fetcher().fetch)
        return batches

    assert compare(make, host_runtime(seed=6)) == 25


def test_stages_say_what_the_consumer_waited_for(plain):
    runtime = host_runtime()
    with override(runtime), maker(plain, ["id", "history"], batch=24)("cuda") as batches:
        for _ in batches:
            pass
        stats = batches.stats()
    assert stats.pipeline_seconds["copy"] > 0 and stats.pipeline_seconds["decode"] > 0
    assert set(stats.blocked_seconds) <= {"plan", "read", "checksum", "copy", "decode", "shuffle", "assembly", "transform", "hand_over"}
    assert stats.peak_window_bytes > 0 and stats.blocks > 0


def test_settings_that_cannot_hold_the_plan_are_refused_with_the_arithmetic(plain):
    with override(host_runtime()):
        with pytest.raises(ValueError, match=r"device_memory_bytes is 4,096, and [\d,]+ are needed: \d+ \+ 1 windows and two batches are [\d,]+ rows"):
            maker(plain, device_memory_bytes=4096)("cuda")
        with pytest.raises(ValueError, match=r"pinned_bytes is 100, and the largest block has [\d,]+ rows × [\d,]+ stored bytes"):
            maker(plain, pinned_bytes=100)("cuda")
        with pytest.raises(SchemaError, match="'name' is string, which no tensor holds"):
            maker(plain, ["id", "name"])("cuda")
        with pytest.raises(SchemaError, match="unique names 'price', which is float: only lists of numbers"):
            maker(plain, unique=["price"])("cuda")
    with override(HostRuntime(device_bytes=1 << 20)), pytest.raises(DeviceMemoryError, match="no room for"):
        next(iter(maker(plain)("cuda")))


def test_auto_takes_the_cpu_where_there_is_no_gpu(plain, caplog):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with maker(plain, ["id"])("auto") as batches:
        assert next(iter(batches))["id"].device.type == "cpu"
    assert "device=auto decodes on the CPU" in caplog.text


def test_an_unexpanded_column_says_each_list_once(plain):
    with maker(plain, ["id", "tags"], batch=120, unique=["tags"])("cpu") as unique, maker(plain, ["id", "tags"], batch=120)("cpu") as whole:
        for batch, want in zip(unique, whole, strict=True):
            tags, rows = batch["tags"], want["tags"]
            expanded = tags.expand()
            assert torch.equal(expanded.values, rows.values) and torch.equal(expanded.offsets, rows.offsets) and len(tags) == len(rows) == 120
            first = [tags.inverse.tolist().index(number) for number in range(int(tags.inverse.max()) + 1)]
            assert first == sorted(first) and len(tags.offsets) - 1 == len(first) < 120
            assert [tags[i].tolist() for i in range(120)] == [rows[i].tolist() for i in range(120)]
            assert batch.to_arrow().equals(want.to_arrow())


def test_batches_are_compared_for_real(table):
    """The comparison that all of this rests on sees a single bit."""
    with maker(table)("cpu") as batches:
        batch = next(iter(batches))
        other = batch.replace(id=batch["id"] + 1)
        with pytest.raises(AssertionError, match="id"):
            assert_same(other, batch)
