"""Claims about loaders over a mix: exact proportions, the same global batches anywhere, exact resume with every source, and honest refusals."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loader
from loader.catalog.admin import active_pins
from loader.errors import SchemaError, StateMismatchError

from .device import compare, host_runtime
from .sample_table import TENSOR_COLUMNS, as_rows, create, ids

quick = settings(max_examples=20, deadline=None, derandomize=True, database=None)
SMALL = 130


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Two tables in two lakes."""
    lakes = [loader.connect(str(tmp_path_factory.mktemp("mix") / name)) for name in ("large", "small")]
    yield create(lakes[0]), create(lakes[1], name="clicks", num_rows=SMALL, commit_rows=25)
    for lake in lakes:
        lake.close()


def mixed(tables, weights=(4, 1), columns=("id",), **scan):
    return loader.mix([(table.scan(columns=list(columns), **scan), weight) for table, weight in zip(tables, weights, strict=True)])


def make(tables, batch=40, weights=(4, 1), columns=("id",), scan=None, **options):
    return loader.DataLoader(scan or mixed(tables, weights, columns), global_batch_size=batch, **{"window_rows": 80, **options})


def pairs(batch):
    """(source, id) of the samples."""
    return list(zip(batch.source[: batch.num_samples].tolist(), ids(batch), strict=True))


def global_batches(tables, world, batch=40, state=None, **options):
    ranks = []
    for rank in range(world):
        with make(tables, batch, rank=rank, world_size=world, **options) as batches:
            if state is not None:
                batches.load_state_dict(state)
            ranks.append([pairs(part) for part in batches])
    assert len({len(parts) for parts in ranks}) == 1
    return [[parts[i] for parts in ranks] for i in range(len(ranks[0]))]


def merged(parts):
    return sorted(row for part in parts for row in part)


@quick
@given(
    weights=st.sampled_from([(4, 1), (1, 1), (5, 3), (1, 6)]),
    world=st.sampled_from([1, 2, 3, 4]),
    shards=st.sampled_from([None, 1, 2, 3, 8]),
    mode=st.sampled_from(["none", "blocks", "windows", "full"]),
    remainder=st.sampled_from(["drop", "pad", "uneven"]),
    window=st.sampled_from([10, 100_000]),
)
def test_an_epoch_has_exact_proportions_and_no_sample_twice(tables, weights, world, shards, mode, remainder, window):
    options = {"weights": weights, "canonical_shards": shards, "shuffle": mode, "remainder": remainder, "window_rows": window}
    parts = global_batches(tables, world, 24, **options)
    seen = [row for rank_parts in parts for part in rank_parts for row in part]
    periods = min(600 // weights[0], SMALL // weights[1])
    rows = periods * sum(weights)
    assert len(seen) == len(set(seen)) == (rows - rows % 24 if remainder == "drop" else rows)
    if remainder != "drop":
        assert sum(source == 0 for source, _ in seen) == periods * weights[0]
    assert {row for source, row in seen if source == 1} <= set(range(SMALL))
    if remainder != "uneven":
        assert all(len(part) == 24 // world for rank_parts in parts[:-1] for part in rank_parts)


@pytest.mark.parametrize("shards", [4, 3])
def test_global_batches_are_the_same_sets_for_every_world_size(tables, shards):
    want = [merged(parts) for parts in global_batches(tables, 1, 24, canonical_shards=shards, remainder="pad")]
    for world in (2, 3, 4, 6):
        assert [merged(parts) for parts in global_batches(tables, world, 24, canonical_shards=shards, remainder="pad")] == want


def test_every_batch_has_its_proportions_within_a_few_rows(tables):
    with make(tables, 50, canonical_shards=2) as batches:
        shares = [sum(source for source, _ in pairs(batch)) for batch in batches]
    assert len(shares) == 13 and max(abs(share - 10) for share in shares) <= 2


@pytest.mark.parametrize("stop_at", [0, 1, 5, 11])
def test_resume_gives_the_remaining_samples_at_another_world_size_batch_and_prefetch(tables, stop_at):
    whole = [merged(parts) for parts in global_batches(tables, 1, 48, canonical_shards=4, remainder="pad")]
    with make(tables, 48, canonical_shards=4, remainder="pad") as first:
        iterator = iter(first)
        done = [sorted(pairs(next(iterator))) for _ in range(stop_at)]
        state = json.loads(json.dumps(first.state_dict()))
    assert done == whole[:stop_at] and len(json.dumps(state)) < 1500
    for world in (1, 3):
        rest = global_batches(tables, world, 48, state=state, remainder="pad", prefetch_bytes=1)
        assert [merged(parts) for parts in rest] == whole[stop_at:]
    other = global_batches(tables, 2, 20, state=state, remainder="uneven")
    assert sorted(row for parts in other for row in merged(parts)) == sorted(row for rows in whole[stop_at:] for row in rows)


def test_the_next_epoch_draws_other_rows_of_the_larger_source(tables):
    with make(tables, 50, weights=(1, 1)) as batches:
        first, second = [{row for batch in batches for row in pairs(batch)} for _ in range(2)]
    large = [{row for source, row in epoch if source == 0} for epoch in (first, second)]
    assert len(large[0]) == len(large[1]) and large[0] != large[1]


def test_batches_hold_what_each_table_holds_late_labels_too(tables):
    want = [{row["id"]: row for row in table.to_arrow(TENSOR_COLUMNS).to_pylist()} for table in tables]
    seen = 0
    with make(tables, 30, columns=TENSOR_COLUMNS, remainder="pad") as batches:
        for batch in batches:
            for source, row in zip(batch.source.tolist(), as_rows(batch), strict=False):
                expected = want[source][row["id"]]
                assert {**row, "price": None} == {**expected, "price": None}
                seen += 1
            assert set(batch.source[batch.num_samples :].tolist()) <= {-1}
    assert seen == 5 * SMALL


def test_a_gpu_gives_the_same_batches_and_states(tables):
    def on(device):
        return make(tables, 40, columns=TENSOR_COLUMNS, device=device, remainder="pad", canonical_shards=4)

    assert compare(on, host_runtime()) == 17


def test_a_state_takes_the_snapshot_of_every_source_and_is_refused_by_other_mixes(tmp_path):
    lake = loader.connect(str(tmp_path / "lake"))
    pair = create(lake, num_rows=200, patch=False), create(lake, name="clicks", num_rows=60, patch=False)
    with make(pair, 20, weights=(2, 1)) as first:
        iterator = iter(first)
        done = [pairs(next(iterator)) for _ in range(3)]
        state = first.state_dict()
        rest = [pairs(batch) for batch in iterator]
    assert [source["table"] for source in state["sources"]] == ["samples", "clicks"] and done
    pair[1].append(create(lake, name="more", num_rows=90, patch=False).to_arrow(where="id >= 60"), on_conflict="trust")
    with make(pair, 20, weights=(2, 1)) as again:
        again.load_state_dict(state)
        assert [pairs(batch) for batch in again] == rest
        assert [part.snapshot for part in again.plan.parts] == [source["snapshot"] for source in state["sources"]]
    for scan, field in [
        (mixed(pair, (3, 1)), "sources.0.weight: state 2, loader 3"),
        (mixed(pair[::-1], (2, 1)), "sources.0.table: state 'samples', loader 'clicks'"),
        (mixed(pair, (2, 1), where="id >= 10"), "sources.0.where: state None"),
        (pair[0].scan(columns=["id"]), "sources"),
    ]:
        with loader.DataLoader(scan, global_batch_size=20) as other, pytest.raises(StateMismatchError, match=field):
            other.load_state_dict(state)
    with loader.DataLoader(pair[0].scan(columns=["id"]), global_batch_size=20) as single:
        plain = single.state_dict()
    with make(pair, 20) as other, pytest.raises(StateMismatchError, match="table: state 'samples', loader None"):
        other.load_state_dict(plain)
    for table in pair:
        with lake.database.read() as connection:
            assert active_pins(connection, table.spec) == []
    lake.close()


def test_sources_that_do_not_fit_are_refused_by_column(tables, tmp_path):
    lake = loader.connect(str(tmp_path / "lake"))
    other = lake.create_table("other", pa.schema([pa.field("id", pa.int32(), nullable=False), pa.field("x", pa.int64())]), primary_key=["id"])
    other.append(pa.table({"id": pa.array([1, 2], pa.int32()), "x": [1, 2]}))
    with pytest.raises(SchemaError, match="'id' is int64 in source 0 .table 'samples'. and int32 in source 1"):
        make((tables[0], other), 2)
    with pytest.raises(SchemaError, match="do not both have column 'user'"):
        loader.DataLoader(loader.mix([(tables[0].scan(columns=["id", "user"]), 1), (tables[1].scan(columns=["id"]), 1)]), global_batch_size=2)
    with pytest.raises(SchemaError, match="needs its time column 'ts'.*closed_before='watermark'"):
        scans = [(tables[0].scan(columns=["id", "label"]), 1), (tables[1].scan(columns=["id", "label"], closed_before="watermark"), 1)]
        loader.DataLoader(loader.mix(scans), global_batch_size=2)
    for table in (*tables, other):
        with table.lake.database.read() as connection:
            assert active_pins(connection, table.spec) == [], "a mix that is refused holds nothing"
    lake.close()


@pytest.mark.parametrize("sources", [[], [1], "ab"])
def test_what_is_no_mix_is_refused(sources):
    with pytest.raises(ValueError, match="at least one source|is no .scan, weight. of a mix"):
        loader.mix(sources)
