"""Very many columns: found by name without reading the footer whole, read in few requests, and laid out by a hint; and scans in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from loader.errors import SchemaError
from loader.segment.layout import ALIGNMENT
from loader.segment.reader import SegmentReader
from loader.segment.requests import plan
from loader.segment.source import MemorySource
from loader.segment.writer import WriteOptions, encode_segment, write_segment
from tests.segment.tables import same_table

COLUMNS = 1_500
ROOT = Path(__file__).parents[2]


class Counted:
    """A source that notes what is read of it."""

    def __init__(self, data: object) -> None:
        self._memory = MemorySource(data)
        self.num_bytes, self.reads = self._memory.num_bytes, list[tuple[int, int]]()

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        self.reads += ranges
        return self._memory.read_ranges(ranges)


@pytest.fixture(scope="module")
def wide() -> pa.Table:
    rng = np.random.default_rng(17)
    return pa.table({f"feature_{number:05}": rng.integers(0, 50, 20, dtype=np.int32) for number in range(COLUMNS)})


@pytest.fixture(scope="module")
def data(wide: pa.Table) -> memoryview:
    return encode_segment(wide, column_ids=range(1, COLUMNS + 1)).data


def test_columns_are_found_without_reading_the_footer_whole(data: memoryview) -> None:
    source = Counted(data)
    reader = SegmentReader(source)
    assert sum(size for _, size in source.reads) <= 64 << 10
    reader.chunks([700], [0])
    # the records of columns are read whole; of chunks, statistics and names only what is asked for
    assert sum(size for _, size in source.reads) < len(data) / 4


def test_a_projection_reads_little_more_than_it_needs(wide: pa.Table, data: memoryview) -> None:
    rng = np.random.default_rng(18)
    for chosen in (range(300, 420), range(0, COLUMNS, 2), rng.permutation(COLUMNS)[:500].tolist()):
        source = Counted(data)
        reader = SegmentReader(source)
        ids = [number + 1 for number in chosen]
        projected = int(reader.chunks(ids, [0])["num_bytes"].sum())
        before = len(source.reads)
        reader.read_block(0, ids)
        assert sum(size for _, size in source.reads[before:]) <= 1.2 * projected
    assert same_table(reader.read([f"feature_{number:05}" for number in (1_499, 0, 17)]), wide.select([1_499, 0, 17]))


def test_columns_of_the_hint_lie_together(wide: pa.Table) -> None:
    hint = tuple(f"feature_{number:05}" for number in (1_277, 3, 1_499, 512))
    source = Counted(encode_segment(wide, column_ids=range(1, COLUMNS + 1), options=WriteOptions(column_order=hint)).data)
    reader = SegmentReader(source)
    ids = reader.resolve(hint)
    assert reader.chunks(ids, [0])["offset"][:, 0].tolist() == sorted(reader.chunks(ids, [0])["offset"][:, 0].tolist())
    assert reader.blocks.size == 1  # read before reads are counted
    before = len(source.reads)
    reader.read_block(0, ids)
    assert len(source.reads) - before == 1
    assert same_table(reader.read(hint), wide.select(list(hint)))
    with pytest.raises(SchemaError, match="column_order names columns that are not there: nobody"):
        encode_segment(wide.select([0]), column_ids=[1], options=WriteOptions(column_order=("nobody",)))


@pytest.mark.parametrize("seed", range(20))
def test_requests_hold_every_chunk(seed: int) -> None:
    rng = np.random.default_rng(seed)
    file = rng.integers(0, 256, 1 << 16, dtype=np.uint8)
    sizes = rng.integers(1, 3_000, int(rng.integers(1, 40)))
    offsets = rng.integers(0, (file.size - 3_000) // ALIGNMENT, sizes.size) * ALIGNMENT
    wanted = plan(offsets, sizes, max_request_bytes=int(rng.choice([1, 4_096, 1 << 20])))
    slab = np.zeros(wanted.slab_bytes, np.uint8)
    for (offset, size), start in zip(wanted.ranges, wanted.starts, strict=True):
        slab[start : start + size] = file[offset : offset + size]
    for offset, size, at in zip(offsets.tolist(), sizes.tolist(), wanted.chunk_offsets.tolist(), strict=True):
        assert at % ALIGNMENT == 0
        assert np.array_equal(slab[at : at + size], file[offset : offset + size])
    covered = np.zeros(file.size, np.bool_)
    for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
        covered[offset : offset + size] = True
    read = sum(size for _, size in wanted.ranges)
    assert read <= int(covered.sum()) + 0.15 * int(sizes.sum()) + ALIGNMENT * sizes.size


def test_parquet_to_segment_to_parquet(tmp_path: Path) -> None:
    fields = [
        pa.field("when", pa.timestamp("us", tz="UTC"), metadata={"unit": "microseconds"}),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("vector", pa.list_(pa.float32(), 4)),
        pa.field("id", pa.uint64(), nullable=False),
    ]
    schema = pa.schema(fields, metadata={"owner": "ranking", "version": "3"})
    rows = [[1, ["a", None, ""], [0.5, -0.0, 1.0, 2.0], 1], [None, None, None, 2**64 - 1], [3, [], [1.0, 2.0, 3.0, 4.0], 0]]
    columns = [pa.array([row[number] for row in rows], field.type) for number, field in enumerate(fields)]
    pa.parquet.write_table(pa.Table.from_arrays(columns, schema=schema), tmp_path / "before.parquet")
    before = pa.parquet.read_table(tmp_path / "before.parquet")
    write_segment(tmp_path / "middle.segment", before)
    with SegmentReader(tmp_path / "middle.segment") as reader:
        pa.parquet.write_table(reader.read(), tmp_path / "after.parquet")
    after = pa.parquet.read_table(tmp_path / "after.parquet")
    assert same_table(after, before)
    assert after.schema.metadata[b"owner"] == b"ranking"
    assert after.schema.field("when").metadata[b"unit"] == b"microseconds"


SCAN = """
import pathlib, sys
from loader.segment.reader import SegmentReader
from loader.segment.stream import stream_blocks

def status(key):
    return int(next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1]) * 1024

with SegmentReader(sys.argv[1]) as reader:
    next(stream_blocks(reader, ["small"]))
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    total = sum(int(block[1].values.sum()) for _, block in stream_blocks(reader))
    print(status("VmHWM") - before, total)
"""


def test_a_scan_takes_the_memory_of_blocks_not_of_the_file(tmp_path: Path) -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the peak of memory cannot be reset here")
    rng = np.random.default_rng(19)
    table = pa.table({"wide": rng.integers(0, 1 << 62, 1_000_000), "small": rng.integers(0, 9, 1_000_000)})
    write_segment(tmp_path / "a.segment", table, options=WriteOptions(block_rows=50_000))
    block = 50_000 * 16
    result = subprocess.run([sys.executable, "-c", SCAN, str(tmp_path / "a.segment")], capture_output=True, text=True, cwd=ROOT, check=True)
    peak, total = map(int, result.stdout.split())
    assert total == int(table["small"].to_numpy().sum())
    assert peak <= 3 * block + (1 << 20), f"{peak:,} bytes for blocks of {block:,}"
