"""Claims about batches grouped by request: groups come whole, once, in one batch on one rank, for every world size and resume; and apart they are refused."""

from __future__ import annotations

import functools
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loader
from loader.distributed.batch_wire import unpack
from loader.distributed.decode_actors import DecodeActor, DecodeSpec
from loader.errors import ColumnNotFoundError, SchemaError, StateMismatchError
from loader.kernels.runtime import override
from loader.scan.fetch import FetchSpec
from loader.scan.plan import open_plan
from loader.segment.writer import WriteOptions
from loader.train.batch_stream import num_parts

from .device import host_runtime

quick = settings(max_examples=15, deadline=None, derandomize=True, database=None)
SIZES = np.random.default_rng(5).integers(1, 9, 120)
REQUESTS = np.repeat(np.arange(120), SIZES)


def create(lake, name="requests", **options):
    """Requests of one to eight rows, in small blocks, so that many go on in the next block."""
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), ("request", pa.int64()), ("user", pa.int32()), ("clicks", pa.list_(pa.int32()))])
    table = lake.create_table(name, schema, primary_key=["id"], bucket_by=["request"], buckets=2, cluster_by=["request", "id"], **options)
    count = len(REQUESTS)
    rows = {"id": np.arange(count), "request": REQUESTS, "user": (REQUESTS % 7).astype(np.int32), "clicks": [[i] * (i % 4) for i in range(count)]}
    table.append(pa.table(rows, schema=schema))
    return table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("loader.table.rows.WriteOptions", functools.partial(WriteOptions, block_rows=13))
    lake = loader.connect(str(tmp_path_factory.mktemp("groups") / "lake"))
    yield create(lake)
    lake.close()
    monkeypatch.undo()


def make(table, batch=12, columns=("id", "request", "clicks"), where=None, **options):
    scan = table.scan(columns=list(columns), where=where, group_by=["request"])
    return loader.DataLoader(scan, global_batch_size=batch, **{"window_rows": 60, "remainder": "uneven", **options})


def groups(batch):
    """The groups of a batch as tuples of ids, in its order."""
    offsets, values = batch.group_offsets.tolist(), batch["id"].tolist()
    return [tuple(values[start:stop]) for start, stop in zip(offsets, offsets[1:], strict=False)]


WHOLE = {request: tuple(np.flatnonzero(request == REQUESTS).tolist()) for request in range(120)}


@quick
@given(
    world=st.sampled_from([1, 2, 3, 4]),
    shards=st.sampled_from([None, 1, 3, 8]),
    window=st.sampled_from([1, 40, 100_000]),
    mode=st.sampled_from(["none", "blocks", "windows", "full"]),
    run_rows=st.sampled_from([1, 3]),
    remainder=st.sampled_from(["drop", "pad", "uneven"]),
    stop_at=st.integers(0, 9),
)
def test_groups_are_whole_once_and_in_the_same_global_batches_anywhere(table, world, shards, window, mode, run_rows, remainder, stop_at):
    options = {"canonical_shards": shards, "window_rows": window, "shuffle": mode, "shuffle_run_rows": run_rows, "remainder": remainder}
    first = make(table, rank=0, world_size=1, **options)
    want, state = [], first.state_dict()
    for number, batch in enumerate(first):
        want.append(groups(batch))
        if number + 1 == stop_at:
            state = json.loads(json.dumps(first.state_dict()))
    first.close()
    seen = [group for batch in want for group in batch if group]
    assert sorted(seen) == sorted(WHOLE.values())  # 120 is a multiple of 12: "drop" loses none
    options["canonical_shards"] = None
    parts = []
    for rank in range(world):
        with make(table, rank=rank, world_size=world, **options) as again:
            again.load_state_dict(state)
            assert len(again) == len(want) - stop_at
            parts.append([groups(batch) for batch in again])
    rest = [sorted(group for part in batch for group in part if group) for batch in zip(*parts, strict=True)]
    assert rest == [sorted(group for group in batch if group) for batch in want[stop_at:]]


def test_rows_and_lists_are_those_of_the_table(table):
    want = {row["id"]: row for row in table.to_arrow().to_pylist()}
    with make(table) as batches:
        assert batches.plan.num_blocks > 30
        for batch in batches:
            assert len(batch.group_offsets) == 13 and batch.group_offsets[-1] == len(batch)
            for row, i in enumerate(batch["id"].tolist()):
                assert batch["clicks"][row].tolist() == want[i]["clicks"] and int(batch["request"][row]) == want[i]["request"]
            for start, stop in zip(batch.group_offsets, batch.group_offsets[1:], strict=False):
                assert len(set(batch["request"][start:stop].tolist())) == 1
        audit = batches.audit()
    assert (audit.unit, audit.planned, audit.handed_over, audit.this_rank.rows) == ("groups", 120, 120, len(REQUESTS))


def test_a_device_gives_the_same_groups(table):
    with make(table, columns=("id", "clicks")) as batches:
        want = [(groups(batch), batch["clicks"].values.tolist()) for batch in batches]
    with override(host_runtime(timing="lazy")), make(table, columns=("id", "clicks"), device="cuda") as batches:
        assert [(groups(batch), batch["clicks"].values.tolist()) for batch in batches] == want


def test_actors_give_the_same_groups(table):
    with make(table) as batches:
        plan, want = batches.plan, [groups(batch) for batch in batches]

    class Actors:
        """A batch stream of two parts, without Ray."""

        def open_batches(self, job):
            parts = num_parts(job, 2)
            specs = [DecodeSpec(fetch=plan.fetch_spec(), options=job.part(index, parts).options, order=job.order) for index in range(parts)]
            actors = [DecodeActor(spec) for spec in specs]
            for number in range(job.num_batches):
                run = pa.Table.from_pylist([{"epoch": 0, "position": job.bounds(number)[0], "num_batches": 1, "num_left": job.num_batches - number}])
                yield [part for actor in actors for part in unpack(pa.concat_tables(actor(run)))]

    with make(table, decode="actor", stream=Actors()) as batches:
        assert [groups(batch) for batch in batches] == want


def test_a_predicate_thins_groups_and_leaves_out_empty_ones(table):
    with make(table, where="user <> 3 and id > 50", batch=10) as batches:
        seen = [group for batch in batches for group in groups(batch)]
        assert batches.plan.num_units == len(seen)
    want = [tuple(i for i in ids if i > 50 and (REQUESTS[i] % 7) != 3) for ids in WHOLE.values()]
    assert sorted(seen) == sorted(group for group in want if group)


def test_padding_makes_empty_groups(table):
    batches = [make(table, batch=48, remainder="pad", rank=rank, world_size=4) for rank in range(4)]
    last = [list(each)[-1] for each in batches]
    assert [len(batch.group_offsets) for batch in last] == [13] * 4
    assert sum(len(group) > 0 for batch in last for group in groups(batch)) == 120 % 48
    assert all(batch.mask.all() for batch in last)


def test_a_plan_opened_elsewhere_has_the_same_groups(table):
    with make(table) as batches:
        again = open_plan(FetchSpec.from_json(batches.plan.fetch_spec().to_json()))
        layout = batches.plan.lay_out(batches._order)
        assert again.num_units == 120 and again.lay_out(batches._order).fingerprint() == layout.fingerprint()


def test_groups_hold_a_state_of_their_own(table):
    with make(table) as grouped, loader.DataLoader(table.scan(columns=["id", "request", "clicks"]), global_batch_size=12, window_rows=60) as plain:
        with pytest.raises(StateMismatchError, match="group_by"):
            plain.load_state_dict(grouped.state_dict())
        with pytest.raises(ValueError, match="not grouped.*group_by"):
            _ = next(iter(plain)).group_offsets


def test_groups_that_lie_apart_are_refused_by_name_and_mended_by_compaction(tmp_path):
    lake = loader.connect(str(tmp_path / "lake"))
    table = create(lake)
    late = pa.table({"id": [10_000], "request": [5], "user": [5], "clicks": [[1]]}, schema=table.schema.to_arrow())
    table.append(late)
    with pytest.raises(SchemaError, match=r"by request lie apart in table 'requests': in block \d+ of segment \d+ and in block \d+ of segment \d+ .*compact"):
        make(table)
    table.compact(full=True)
    with make(table) as batches:
        seen = {group for batch in batches for group in groups(batch)}
    assert (*WHOLE[5], 10_000) in seen
    table.append(pa.table({"id": [20_000], "request": [None], "user": [5], "clicks": [[1]]}, schema=table.schema.to_arrow()))
    with pytest.raises(SchemaError, match="'request', and a selected row is null there.*is not null"):
        make(table)
    lake.close()


def test_wrong_groups_are_refused_when_the_scan_is_made(table):
    with pytest.raises(ColumnNotFoundError, match="did you mean request"):
        table.scan(group_by=["requests"])
    with pytest.raises(SchemaError, match="group_by names 'clicks'"):
        table.scan(group_by=["clicks"])
    with pytest.raises(ValueError, match="give a list"):
        table.scan(group_by="request")
    with pytest.raises(SchemaError, match="has group_by: groups are not mixed"):
        loader.mix([(table.scan(columns=["id"], group_by=["request"]), 1)]).plan()
