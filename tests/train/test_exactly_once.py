"""Claims about whole runs: through crashes, other world sizes and other batch sizes every sample comes once, and the accounts say so, to the row."""

from __future__ import annotations

import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loader
from loader.errors import HeadraceError
from loader.scan import order as ordering
from loader.scan.order import Order

from .sample_table import TENSOR_COLUMNS, create, ids

quick = settings(max_examples=8, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    lake = loader.connect(str(tmp_path_factory.mktemp("once") / "lake"))
    yield create(lake)
    lake.close()


def make(table, columns=("id",), where=None, sample=None, **options):
    return loader.DataLoader(table.scan(columns=list(columns), where=where, sample=sample), **{"window_rows": 80, **options})


@quick
@given(
    legs=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4]), st.sampled_from([12, 36, 60]), st.integers(0, 9), st.sampled_from([1, 1 << 20])), max_size=4),
    last_world=st.sampled_from([1, 2, 4]),
    shards=st.sampled_from([None, 1, 3, 8]),
    mode=st.sampled_from(["none", "blocks", "windows", "full"]),
    remainder=st.sampled_from(["drop", "pad", "uneven"]),
    where=st.sampled_from([None, "user < 3"]),
    sample=st.sampled_from([None, [("user = 1", 1.0), (None, 0.6)]]),
)
def test_crashes_and_other_worlds_lose_and_repeat_nothing(table, legs, last_world, shards, mode, remainder, where, sample):
    chosen = {"shuffle": mode, "where": where, "sample": sample}
    with make(table, global_batch_size=12, canonical_shards=shards, **chosen, remainder="uneven") as first:
        state, want = first.state_dict(), sorted(row for batch in first for row in ids(batch))
    seen: list[int] = []
    for world, batch_size, batches, prefetch in [*legs, (last_world, 12, None, 1)]:
        chosen |= {"remainder": remainder if batches is None else "uneven", "prefetch_bytes": prefetch}
        ranks = [make(table, global_batch_size=batch_size, rank=rank, world_size=world, **chosen) for rank in range(world)]
        for rank in ranks:
            rank.load_state_dict(state)
        given_ids = [row for rank in ranks for batch in itertools.islice(rank, batches) for row in ids(batch)]
        audit = loader.total_audit([rank.audit() for rank in ranks])
        assert audit.planned == audit.handed_over + audit.remaining + audit.left_out == len(want)
        assert audit.this_rank.rows == audit.this_rank.handed_over == len(given_ids) and audit.this_rank.masked_rows == 0
        seen += given_ids
        assert audit.handed_over == len(seen)
        states = [json.dumps(rank.state_dict()) for rank in ranks]
        assert len(set(states)) == 1
        finished = audit.remaining == 0
        if batches is None:
            assert finished and audit.left_out == (len(want) - len(seen) if remainder == "drop" else 0) < 12
            padding = -(len(want) - (len(seen) - len(given_ids))) % 12 if remainder == "pad" else 0
            assert audit.this_rank.padding_rows == padding
        state = json.loads(states[0])
        for rank in ranks:
            rank.close()
        if finished:
            break
    assert len(seen) == len(set(seen)) and set(seen) <= set(want) and len(want) - len(seen) < 12


def test_an_audit_that_misses_a_rank_or_counts_one_twice_is_refused(table):
    ranks = [make(table, global_batch_size=60, rank=rank, world_size=2) for rank in range(2)]
    audits = []
    for rank in ranks:
        next(iter(rank))
        audits.append(rank.audit())
        rank.close()
    assert loader.total_audit(audits).this_rank.rows == 60 and json.dumps(audits[0].to_dict())
    with pytest.raises(HeadraceError, match="an audit of a rank is missing"):
        loader.total_audit(audits[:1])
    with pytest.raises(HeadraceError, match="not of different ranks"):
        loader.total_audit([audits[0], audits[0]])


@pytest.mark.parametrize(("mode", "run_rows"), [("windows", 1), ("windows", 16), ("blocks", 1), ("none", 1)])
def test_resuming_anywhere_in_a_plan_of_a_billion_rows_takes_less_than_a_second(mode, run_rows):
    rows = np.full(40_000, 25_000)
    rng = np.random.default_rng(7)
    for position in [0, 999_999_000, *rng.integers(0, 10**9, 3).tolist()]:
        began = time.perf_counter()
        layout = ordering.lay_out(rows, Order(seed=17, shards=64, mode=mode, run_rows=run_rows))
        layout.fingerprint()
        slices = layout.slices(position, position + 800, 3, 8)
        window = next(layout.windows(position, 3, 8))
        layout.pieces(window), layout.draw(window)
        assert time.perf_counter() - began < 1.0
        assert sum(piece.num_rows for piece in slices) == 100
    assert layout.num_rows == 10**9


def test_a_hundred_batches_stay_as_they_were(table):
    kept = []
    with make(table, TENSOR_COLUMNS, global_batch_size=6, prefetch_bytes=1) as batches:
        for batch in batches:
            copies = {name: (value.values if isinstance(value, loader.Jagged) else value).clone() for name, value in batch.items()}
            kept.append((batch, copies, [batch.validity[name].clone() for name in batch]))
        for _ in batches:  # another epoch through the same memory
            pass
    assert len(kept) == 100
    for batch, copies, validity in kept:
        for name, valid in zip(batch, validity, strict=True):
            value = batch[name].values if isinstance(batch[name], loader.Jagged) else batch[name]
            np.testing.assert_array_equal(value.numpy(), copies[name].numpy())
            assert (batch.validity[name] == valid).all()


class Stream:
    """What `record_stream` would get from CUDA."""


def test_batches_are_pipelineable(table, monkeypatch):
    torch = pytest.importorskip("torch")
    recorded = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: recorded.append((tensor.data_ptr(), stream)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    with make(table, TENSOR_COLUMNS, sample=[(None, 0.5)], global_batch_size=60, remainder="pad") as batches:
        batch = next(iter(batches))
    stream = Stream()
    for moved in (batch.to("cpu", non_blocking=True), batch.pin_memory()):
        assert len(moved) == len(batch) == 60 and list(moved) == list(batch)
        assert (moved.weights == batch.weights).all() and moved.weights is moved.weights and (moved.mask == batch.mask).all()
        assert all((moved.validity[name] == batch.validity[name]).all() for name in batch)
        recorded.clear()
        moved.record_stream(stream)
        pointers = {pointer for pointer, used in recorded if used is stream}
        assert {moved["history"].values.data_ptr(), moved["history"].offsets.data_ptr(), moved["price"].data_ptr(), moved.mask.data_ptr()} <= pointers
