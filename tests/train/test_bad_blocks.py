"""Claims about damaged blocks: they stop a run, or stay in their place, masked and counted; and erased rows are masked, not blank samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import loader
from loader.distributed.batch_wire import unpack
from loader.distributed.decode_actors import DecodeActor, DecodeSpec
from loader.errors import BadRecordError, CorruptSegmentError, HeadraceError
from loader.kernels.runtime import override
from loader.scan.encoded import EncodedBlock, FetchRequest
from loader.table import files

from .device import host_runtime
from .sample_table import create, ids

COLUMNS = ["id", "price", "history"]


@pytest.fixture
def lake(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "INLINE_BYTES", 0)  # small commits, too, are files that can be damaged
    opened = loader.connect(str(tmp_path / "lake"))
    yield opened
    opened.close()


def damage(lake, table, number, column="history"):
    """Flip a byte in the first chunk of a column of a segment; returns (segment, its rows)."""
    ref = table.view().segments[number]
    reader = loader.SegmentReader(lake.storage.section(ref.path, ref.offset, ref.num_bytes))
    chunk = reader.chunks([table.schema.column(column).id], [0])[0, 0]
    stored = Path(lake.location) / ref.path
    data = bytearray(stored.read_bytes())
    data[ref.offset + int(chunk["offset"]) + 8] ^= 0xFF
    stored.write_bytes(data)
    return ref.segment_id, ref.num_rows


def make(table, batch=48, columns=COLUMNS, **options):
    return loader.DataLoader(table.scan(columns=columns), global_batch_size=batch, **{"window_rows": 80, "remainder": "uneven", **options})


def positions(batches):
    return [batch.positions().tolist() for batch in batches]


def reopen(lake, name="samples"):
    return loader.connect(lake.location, create=False).table(name)


def test_a_damaged_block_stays_in_its_place_masked_and_counted(lake):
    table = create(lake)
    with make(table) as batches:
        want = positions(batches)
    segment, rows = damage(lake, table, 4)
    table = reopen(lake)
    with make(table) as batches, pytest.raises(CorruptSegmentError, match="column 'history' in block 0 .*checksum"):
        list(batches)
    with make(table, bad_records="skip") as batches:
        found = list(batches)
        assert positions(found) == want
        for batch in found:
            bad = batch.positions()[:, 0] == segment
            assert (batch.mask.numpy() == ~bad).all() and batch.num_masked == bad.sum()
            for name in COLUMNS:
                assert not batch.validity[name].numpy()[bad].any()
            assert (batch.validity["id"].numpy() == ~bad).all()
        audit = batches.audit()
        assert (audit.this_rank.masked_rows, audit.this_rank.seen_rows, audit.planned) == (rows, 600 - rows, 600)
        assert batches.stats().bad_records == {"(whole rows)": rows}
    with make(table, columns=["id", "price"]) as untouched:
        assert all(batch.mask.all() for batch in untouched)  # the damaged column is not read
    with make(table, bad_records="skip", output="arrow") as batches:
        assert sum(batch.num_rows for batch in batches) == 600 - rows


def test_a_device_masks_what_the_cpu_masks(lake):
    table = create(lake)
    damage(lake, table, 4)
    table.erase([7, 11])
    with make(reopen(lake), bad_records="skip") as batches, override(host_runtime(timing="lazy")):
        want = [(batch.positions().tolist(), batch.mask.tolist(), batch["price"].tolist(), batch.validity["id"].tolist()) for batch in batches]
        with make(reopen(lake), bad_records="skip", device="cuda") as there:
            found = [(batch.positions().tolist(), batch.mask.tolist(), batch["price"].tolist(), batch.validity["id"].tolist()) for batch in there]
    assert found == want and sum(mask.count(False) for _, mask, _, _ in want) > 2


def test_bad_blocks_and_masked_rows_cross_to_other_processes(lake):
    table = create(lake)
    damage(lake, table, 4)
    table = reopen(lake)
    with make(table, bad_records="skip") as batches:
        plan = batches.plan
        want = [(batch.positions().tolist(), batch.mask.tolist()) for batch in batches]
    bad = next(n for n in range(plan.num_blocks) if plan.fetcher().fetch_or_mark(FetchRequest(sequence=0, shard=0, block=n)).bad is not None)
    block = plan.fetcher().fetch_or_mark(FetchRequest(sequence=0, shard=0, block=bad))
    marked = dataclasses.replace(block, masked=np.array([5], np.uint8))
    again = EncodedBlock.from_buffers([bytes(memoryview(buffer)) for buffer in marked.to_buffers()])
    assert again.bad == block.bad and again.masked.tolist() == [5]

    class Actor:
        """A batch stream whose parts cross a wire, without Ray."""

        def open_batches(self, job):
            spec = DecodeSpec(fetch=plan.fetch_spec(), options=job.part(0, 1).options, order=job.order)
            actor = DecodeActor(spec)
            for number in range(job.num_batches):
                run = pa.Table.from_pylist([{"epoch": 0, "position": job.bounds(number)[0], "num_batches": 1, "num_left": job.num_batches - number}])
                yield list(unpack(pa.concat_tables(actor(run))))

    with make(table, bad_records="skip", decode="actor", stream=Actor()) as batches:
        assert [(batch.positions().tolist(), batch.mask.tolist()) for batch in batches] == want
    with make(table, decode="actor", stream=Actor()) as batches, pytest.raises(CorruptSegmentError, match="column 'history'"):
        list(batches)


def test_quarantine_is_remembered_seen_by_the_operator_and_lifted_when_the_bytes_are_back(lake):
    table = create(lake)
    path = Path(lake.location) / table.view().segments[4].path
    whole = path.read_bytes()
    _, rows = damage(lake, table, 4)
    table = reopen(lake)
    with make(table, bad_records="quarantine") as batches:
        want = positions(batches)
    for policy in ("fail", "skip"):  # known now: no run tries it again, and every run says so
        with make(reopen(lake), bad_records=policy) as batches:
            assert positions(batches) == want and batches.audit().this_rank.masked_rows == rows
    with make(reopen(lake), columns=["id", "price"]) as untouched:
        assert untouched.plan.quarantined == {}
    found = [finding for finding in lake.doctor(deep=True).findings if finding.code == "quarantine"]
    assert len(found) == 1 and found[0].severity == "error" and "block 0" in found[0].where
    assert not found[0].is_repairable or lake.doctor(repair=True, deep=True)
    assert lake.catalog.load_quarantine(table.spec.id)  # still damaged: nothing was lifted
    path.write_bytes(whole)
    lake.doctor(repair=True, deep=True)
    with make(reopen(lake)) as batches:
        assert all(batch.mask.all() for batch in batches)


def test_a_store_that_is_wrong_is_not_skipped_over(lake):
    table = create(lake)
    for ref in table.view().segments:
        (Path(lake.location) / ref.path).write_bytes(b"\0" * ref.num_bytes)
    with make(reopen(lake), bad_records="skip", max_consecutive_bad=3) as batches, pytest.raises(BadRecordError, match="4 blocks one after another.*verify"):
        list(batches)


def test_a_lost_file_is_a_bad_block_too(lake):
    table = create(lake)
    ref = table.view().segments[2]
    (Path(lake.location) / ref.path).unlink()
    with make(reopen(lake), bad_records="skip") as batches:
        masked = sum(batch.num_masked for batch in batches)
    assert masked == sum(each.num_rows for each in table.view().segments if each.path == ref.path)
    with make(reopen(lake)) as batches, pytest.raises(HeadraceError, match=ref.path):
        list(batches)


def test_an_erased_row_is_masked_for_a_job_on_an_older_snapshot(lake):
    table = create(lake, num_rows=200)
    with make(table, 40) as batches:
        state, want = batches.state_dict(), positions(batches)
    table.erase([7, 11])
    with loader.DataLoader(table.scan(columns=COLUMNS), global_batch_size=40, window_rows=80, remainder="uneven") as batches:
        batches.load_state_dict(state)
        found = list(batches)
    assert positions(found) == want
    gone = np.concatenate([batch["id"].numpy()[~batch.mask.numpy()] for batch in found])
    assert sum(batch.num_masked for batch in found) == 2 and not {7, 11} & set(gone.tolist())
    assert sorted(i for batch in found for i, kept in zip(ids(batch), batch.mask.tolist(), strict=True) if kept) == sorted(set(range(200)) - {7, 11})
