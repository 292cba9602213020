"""Parts of batches, made as actors make them but in this process: whatever the world, the shards and the parts, the rank's own batches come out."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import loader
from loader.distributed import batch_wire
from loader.distributed.decode_actors import DecodeActor, DecodeSpec, describe_runs
from loader.errors import CorruptSegmentError, HeadraceError
from loader.kernels.host_runtime import HostRuntime
from loader.kernels.runtime import override
from loader.scan.encoded import EncodedBlock, FetchRequest
from loader.scan.fetch import BlockFetcher, FetchSpec
from loader.scan.stream import ThreadBlockStream
from loader.train.batch_stream import BatchJob, PartBatch, num_parts
from tests.train.sample_table import TENSOR_COLUMNS, as_rows, create

pytest.importorskip("torch")
OPTIONS: dict[str, Any] = {"rank": 0, "world_size": 1, "global_batch_size": 48, "window_rows": 64, "canonical_shards": 12, "threads": 1, "seed": 3}


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with loader.connect(tmp_path_factory.mktemp("actors") / "lake") as lake:
        table = create(lake, num_rows=420)
        yield table.scan(columns=TENSOR_COLUMNS, where="user <> 3", snapshot=table.view().snapshot_id)


class LocalStream:
    """The actors of `RayBatchStream` without Ray: every part's rows go through their wire form.

    Args:
        spec: As for an actor.
        parts: At most.
        device: Where they decode.
        change: Applied to the parts of each batch.
    """

    def __init__(self, spec: FetchSpec, *, parts: int = 1, device: str = "cpu", change: Callable[[list[PartBatch]], list[PartBatch]] = list) -> None:
        self.spec, self.parts, self.device, self.change = spec, parts, device, change

    def open_batches(self, job: BatchJob) -> Iterator[Sequence[PartBatch]]:
        parts = num_parts(job, self.parts)
        specs = [DecodeSpec(fetch=self.spec, options=job.part(index, parts).options, order=job.order, device=self.device) for index in range(parts)]
        made = [DecodeActor(spec)(describe_runs(job, 3)) for spec in specs]
        for tables in zip(*made, strict=True):
            yield self.change([part for table in tables for part in batch_wire.unpack(table)])


def make(scan: Any, parts: int, change: Callable[[list[PartBatch]], list[PartBatch]] = list, **options: Any) -> loader.DataLoader:
    """A loader that decodes by itself (0 parts), or from that many actors."""
    actors = {"decode": "actor", "stream": functools.partial(LocalStream, parts=parts, change=change)} if parts else {}
    return loader.DataLoader(scan, **{**OPTIONS, **actors, **options})


def contents(batches: loader.DataLoader) -> list[tuple[Any, ...]]:
    return [(batch.positions().tolist(), as_rows(batch), batch.mask.tolist(), batches.state_dict()) for batch in batches]


@pytest.mark.parametrize(
    ("world", "parts", "options"),
    [
        (1, 1, {"remainder": "pad"}),
        (1, 4, {"shuffle_run_rows": 4}),
        (2, 3, {"shuffle": "none", "remainder": "uneven"}),
        (3, 2, {"shuffle": "full"}),
        (4, 8, {"remainder": "pad"}),
        (8, 2, {}),
    ],
)
def test_parts_make_the_batches_of_the_rank(scan: Any, world: int, parts: int, options: dict[str, Any]) -> None:
    place = {"rank": world - 1, "world_size": world, "global_batch_size": 48}
    with make(scan, 0, **place, **options) as here, make(scan, parts, **place, **options) as there:
        assert contents(there) == contents(here)
        assert contents(there) == contents(here), "a second epoch"
        there_stats, here_stats = there.stats(), here.stats()
    assert there_stats.rows == here_stats.rows
    assert there_stats.blocks == here_stats.blocks or world == 8  # where shards are shared, so are blocks


@pytest.mark.parametrize("unique", [(), ("history",)])
def test_actors_with_a_gpu_send_the_same_host_batches(scan: Any, unique: tuple[str, ...]) -> None:
    stream = functools.partial(LocalStream, parts=2, device="cuda")
    runtime = HostRuntime(timing="random", seed=5)
    options = {"remainder": "pad", "unique": unique}
    with override(runtime), make(scan, 0, device="cpu", **options) as here, make(scan, 0, decode="actor", stream=stream, **options) as there:
        assert contents(there) == contents(here)
    runtime.finish()
    assert runtime.launches > 0


def test_unexpanded_lists_are_the_ranks_own(scan: Any) -> None:
    with make(scan, 0, unique=["history", "tags"]) as here, make(scan, 3, unique=["history", "tags"]) as there:
        for mine, other in zip(here, there, strict=True):
            for name in ("history", "tags"):
                for part in ("values", "offsets", "inverse"):
                    np.testing.assert_array_equal(getattr(mine[name], part), getattr(other[name], part))


def test_a_state_goes_on_between_places_and_worlds(scan: Any) -> None:
    with make(scan, 2) as there:
        batches = iter(there)
        for _ in range(4):
            next(batches)
        state = json.loads(json.dumps(there.state_dict()))
    with make(scan, 0) as here:
        rest = contents(here)[4:]
    with make(scan, 0) as here, make(scan, 3) as there:
        here.load_state_dict(state)
        there.load_state_dict(state)
        assert contents(here) == contents(there) == rest
    positions = []
    for rank in range(4):
        with make(scan, 2, rank=rank, world_size=4, canonical_shards=None) as there:
            there.load_state_dict(state)
            positions += [position for batch in there for position in batch.positions().tolist()]
    assert sorted(positions) == sorted(position for batch in rest for position in batch[0])


def test_a_batch_owns_its_memory(scan: Any) -> None:
    with make(scan, 2) as there:
        first, second = next(iter(there)), None
        first["price"][:] = -1.0
        first["history"].values[:] = -1
    with make(scan, 2) as there:
        second = next(iter(there))
    assert not (second["price"] == -1.0).any()


@pytest.mark.parametrize("output", ["numpy", "arrow"])
def test_every_face_of_a_batch_and_transforms(scan: Any, output: str) -> None:
    def length(batch: Any) -> int:
        return len(batch)

    with make(scan, 0, output=output) as here, make(scan, 2, output=output) as there:
        mine, other = next(iter(here)), next(iter(there))
        if output == "arrow":
            assert mine.equals(other)
        else:
            np.testing.assert_array_equal(mine["history"].values, other["history"].values)
    with make(scan, 2, transforms=length) as there:
        assert list(there) == [48] * len(there)


def test_parts_divide_shards_and_rows_evenly(scan: Any) -> None:
    with make(scan, 0, world_size=2, global_batch_size=36) as here:
        job = here.job()
    assert [num_parts(job, wanted) for wanted in (1, 2, 3, 4, 6, 100)] == [1, 2, 3, 3, 6, 6]
    shared = dataclasses.replace(job, order=dataclasses.replace(job.order, shards=7))
    assert num_parts(shared, 4) == 1


def test_an_actor_begins_anew_at_a_run_that_is_not_the_next(scan: Any) -> None:
    with make(scan, 0) as here:
        job, spec = here.job(), here.plan.fetch_spec()
        expected = [batch.positions()[:, 1].tolist() for batch in here]
    actor = DecodeActor(DecodeSpec(fetch=spec, options=job.part(0, 1).options, order=job.order))
    runs = describe_runs(job, 2)
    for number in (0, 1, 3, 2, 0):  # 3 as on an actor that takes over, 2 and 0 as where what it made was lost
        (first, *_) = [part for table in actor(runs.slice(number, 1)) for part in batch_wire.unpack(table)]
        assert first.position == runs["position"][number].as_py()
        starts = here.plan.row_starts[first.arrays.blocks]
        assert (starts + first.arrays.rows).tolist() == expected[2 * number]


def swapped(parts: list[PartBatch]) -> list[PartBatch]:
    return [dataclasses.replace(part, position=part.position + 48) for part in parts]


def shortened(parts: list[PartBatch]) -> list[PartBatch]:
    return [dataclasses.replace(parts[0], arrays=dataclasses.replace(parts[0].arrays, num_rows=3)), *parts[1:]]


@pytest.mark.parametrize(("change", "message"), [(swapped, "lost or reordered batches"), (shortened, "rows where")])
def test_a_batch_that_is_not_the_next_is_refused(scan: Any, change: Any, message: str) -> None:
    with make(scan, 2, change) as there, pytest.raises(HeadraceError, match=message):
        list(there)


def test_a_damaged_block_is_named(scan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = BlockFetcher.fetch

    def damage(self: BlockFetcher, request: FetchRequest) -> EncodedBlock:
        block = real(self, request)
        block.slab[:64] = 255
        return block

    monkeypatch.setattr(BlockFetcher, "fetch", damage)
    with make(scan, 2) as there, pytest.raises(CorruptSegmentError, match=r"block \d+ \(rows .*columns are id, "):
        list(there)


def test_a_stream_of_the_wrong_kind_is_refused(scan: Any) -> None:
    def blocks(spec: FetchSpec) -> ThreadBlockStream:
        return ThreadBlockStream(lambda request: pytest.fail("never fetched"))

    with loader.DataLoader(scan, **OPTIONS, decode="actor", stream=blocks) as there, pytest.raises(ValueError, match="RayBatchStream"):
        next(iter(there))
    with loader.DataLoader(scan, **OPTIONS, stream=LocalStream) as there, pytest.raises(ValueError, match="RayBlockStream"):
        next(iter(there))


def test_wire_rows_keep_types_and_shapes(scan: Any) -> None:
    with make(scan, 0) as here:
        job, spec = here.job(), here.plan.fetch_spec()
    (table, *_) = DecodeActor(DecodeSpec(fetch=spec, options=job.part(0, 1).options, order=job.order))(describe_runs(job, 1))
    (part,) = batch_wire.unpack(pa.concat_tables([table]))
    assert [matrix.dtype for matrix in part.arrays.fixed] == [np.dtype(kind) for kind in ("<i8", "<i4", "<f4", "u1", "i1")]
    assert part.arrays.wide[5].shape == (48, 3) and all(not matrix.flags.writeable for matrix in part.arrays.fixed)
    assert part.blocks > 0 and part.encoded_bytes > 0 and part.window_bytes > 0
