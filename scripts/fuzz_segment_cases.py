"""Damaged segments for `scripts/fuzz_segment`, one a seed, and what reading each must lead to.

Run as a program, in a process of its own so that a crash is seen: python fuzz_segment_cases.py FOLDER FIRST COUNT PROGRESS_FILE prints counts as JSON; the
folder has the good segments (see fuzz_segment_bases.py). A case that takes too long ends the process by its alarm.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import fuzz_segment_bases as bases

from loader.batch.buffers import BufferPool
from loader.batch.whole import plain_batches
from loader.errors import HeadraceError
from loader.schema import take
from loader.segment import rows as segment_rows
from loader.segment.checksum import crc32c, page_checksums
from loader.segment.column_files import JoinedReader
from loader.segment.layout import CHUNK, DIRECTORY_ENTRY, SECTION_PAGE_BYTES, SHARED_CHUNK, TAIL, Section
from loader.segment.reader import SegmentReader
from loader.segment.stream import stream_blocks
from loader.segment.verify import verify_segment
from tests.segment.tables import same_table

INTERESTING = (
    0,
    1,
    7,
    31,
    32,
    33,
    255,
    1023,
    1024,
    1025,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFE,
    0xFFFF_FFFF,
    1 << 32,
    (1 << 63) - 1,
    (1 << 64) - 8,
    (1 << 64) - 1,
)
MAX_RSS_BYTES = 2 << 30
segment_rows.WHOLE_CHUNK_BYTES = 0  # so that chunks as small as these are read in parts, too
RECIPE_BYTES = 400
CASE_SECONDS = 60  # a case takes milliseconds
CHECKED = 0.5  # share of cases whose checksums are compared and wrong; the others have theirs made right again
Files = tuple[bytes, bytes | None]  # a segment, and its column file


def damage(data: bytearray, rng: np.random.Generator, low: int, high: int) -> None:
    """One change of the bytes from `low` to `high`."""
    at = int(rng.integers(low, high))
    kind = rng.random()
    if kind < 0.35:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind < 0.75:
        size = int(rng.choice([1, 2, 4, 8]))
        at = min(at // size * size, high - size)
        value = (
            int(rng.choice(np.array(INTERESTING, np.uint64)))
            if rng.random() < 0.6
            else int.from_bytes(data[at : at + size], "little") + int(rng.integers(-70, 70))
        )
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    elif kind < 0.9:
        other, size = int(rng.integers(low, high)), int(rng.integers(1, 200))
        size = min(size, high - at, high - other)
        data[at : at + size] = data[other : other + size]
    else:
        size = min(int(rng.integers(1, 300)), high - at)
        data[at : at + size] = bytes(size)


def repair(data: bytearray) -> None:
    """Make every checksum of the footer right again, as somebody who means harm would."""
    tail = np.frombuffer(data, TAIL, 1, len(data) - TAIL.itemsize)[0]
    start, count = int(tail["directory_offset"]), int(tail["num_sections"])
    directory = np.frombuffer(bytes(data[start : start + count * DIRECTORY_ENTRY.itemsize]), DIRECTORY_ENTRY)
    for entry in directory:
        first, size, sums = int(entry["offset"]), int(entry["num_bytes"]), int(entry["checksums_offset"])
        if entry["kind"] == Section.CHUNKS:
            for at in range(first, first + size, CHUNK.itemsize):
                offset, num_bytes = int.from_bytes(data[at : at + 8], "little"), int.from_bytes(data[at + 8 : at + 12], "little")
                data[at + 12 : at + 16] = crc32c(bytes(data[offset : offset + num_bytes])).to_bytes(4, "little")
        if entry["kind"] == Section.SHARED_CHUNKS:
            for at in range(first, first + size, SHARED_CHUNK.itemsize):
                offset, num_bytes = int.from_bytes(data[at + 8 : at + 16], "little"), int.from_bytes(data[at + 16 : at + 20], "little")
                data[at + 20 : at + 24] = crc32c(bytes(data[offset : offset + num_bytes])).to_bytes(4, "little")
        checksums = page_checksums(bytes(data[first : first + size]), SECTION_PAGE_BYTES).tobytes()
        data[sums : sums + len(checksums)] = checksums
    whole = bytes(data[start : start + count * DIRECTORY_ENTRY.itemsize]) + bytes(data[-TAIL.itemsize : -TAIL.itemsize + 52])
    data[-12:-8] = crc32c(whole).to_bytes(4, "little")
    data[60:64] = crc32c(bytes(data[:60])).to_bytes(4, "little")


def corrupt(good: bytes, rng: np.random.Generator) -> tuple[bytes, bool]:
    """A damaged copy, and whether checksums can tell."""
    data = bytearray(good)
    tail = np.frombuffer(good, TAIL, 1, len(good) - TAIL.itemsize)[0]
    directory = np.frombuffer(good, DIRECTORY_ENTRY, int(tail["num_sections"]), int(tail["directory_offset"]))
    body = int(directory["offset"].min())
    mode = rng.random()
    if mode < CHECKED:  # anything
        for _ in range(int(rng.integers(1, 4))):
            damage(data, rng, 0, len(data))
        if rng.random() < 0.15:
            del data[int(rng.integers(len(data))) :]
        elif rng.random() < 0.05:
            at = int(rng.integers(len(data)))
            data[at:at] = data[: int(rng.integers(1, 500))]
        return bytes(data), True
    if mode < 0.85:  # chunks, with checksums that are right: anywhere, or in the recipe at the start of one
        low, high = (64, body) if rng.random() < 0.5 else some_recipe(good, directory, rng)
        for _ in range(int(rng.integers(1, 4))):
            damage(data, rng, low, high)
    else:  # the footer, its checksums right again
        entry = directory[int(rng.integers(directory.size))]
        start = int(entry["offset"])
        for _ in range(int(rng.integers(1, 3))):
            damage(data, rng, start, start + max(int(entry["num_bytes"]), 1))
    repair(data)
    return bytes(data), False


def some_recipe(good: bytes, directory: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Where a chunk's header, regions and ops are, and its sources where there are few."""
    section = directory[directory["kind"] == Section.CHUNKS][0]
    chunks = np.frombuffer(good, CHUNK, int(section["count"]), int(section["offset"]))
    chunk = chunks[int(rng.integers(chunks.size))]
    return int(chunk["offset"]), int(chunk["offset"]) + min(int(chunk["num_bytes"]), RECIPE_BYTES)


def read_whole(base: bases.Base, files: Files, rng: np.random.Generator) -> bool:
    with SegmentReader(files[0]) as reader:
        return same(reader.read(), base.table)


def read_rows(base: bases.Base, files: Files, rng: np.random.Generator) -> bool:
    """A few rows by number, of some columns or all."""
    names = [name for name in base.table.column_names if rng.random() < 0.7] or base.table.column_names
    rows = rng.integers(0, max(base.table.num_rows, 1), int(rng.choice([1, 5, 40])))
    with SegmentReader(files[0]) as reader:
        read = reader.read(names if rng.random() < 0.5 else None, rows)
    expected = base.table.select(read.column_names) if set(read.column_names) <= set(base.table.column_names) else base.table
    return same(read, take(expected, rows))


def read_parts(base: bases.Base, files: Files, rng: np.random.Generator) -> bool:
    """Rows by number without checksums, so that a chunk is read in the parts that hold them."""
    rows = rng.integers(0, max(base.table.num_rows, 1), int(rng.choice([1, 5, 40])))
    with SegmentReader(files[0], verify=False) as reader:
        return same(pa.Table.from_batches([reader.take(rows)]), take(base.table, rows))


def read_columns(base: bases.Base, files: Files, rng: np.random.Generator) -> bool:
    names = [name for name in base.table.column_names if rng.random() < 0.5] or base.table.column_names[:1]
    with SegmentReader(files[0]) as reader:
        return same(reader.read(names), base.table.select(names))


def read_joined(base: bases.Base, files: Files, rng: np.random.Generator) -> bool:
    """The segment with its column file, where it has one."""
    if files[1] is None or base.joined is None:
        return read_whole(base, files, rng)
    with SegmentReader(files[0]) as reader, SegmentReader(files[1]) as file:
        return same(JoinedReader(reader, [file]).read(), base.joined)


def read_batches(base: bases.Base, files: Files, rng: np.random.Generator) -> bool:
    """As training reads: block by block, lists laid end to end, some rows at a time."""
    batch_rows = int(rng.choice([100, 1_000, 5_000]))
    return batches(files[0], batch_rows) == batches(base.data, batch_rows)


def read_verified(base: bases.Base, files: Files, rng: np.random.Generator) -> bool:
    """What `verify_segment` finds nothing wrong with must be readable; it also finds what reading does not touch."""
    problems = verify_segment(_Bytes(files[0])).problems
    try:
        return read_whole(base, files, rng)
    except HeadraceError as error:
        assert problems, f"verify finds nothing wrong, but reading says: {error}"
        raise


def same(read: pa.Table, expected: pa.Table) -> bool:
    """Whether a table that was read is the expected one.

    Raises:
        pa.ArrowInvalid: It does not hold together.
    """
    try:
        read.validate(full=True)
    except pa.ArrowInvalid as error:
        # a time of day past midnight is a wrong value, not a broken array
        if "acceptable range" in str(error) or "whole number of days" in str(error):
            return False
        raise
    try:
        return same_table(read, expected)
    except (pa.ArrowException, AttributeError, KeyError):
        return False  # types that cannot even be compared


def batches(data: bytes, batch_rows: int) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Every array of every batch, as type, shape and bytes."""
    found = []
    pool = BufferPool()
    with SegmentReader(data) as reader:
        ids = reader.resolve(None)
        leaves = reader.leaves(ids)
        for number, block in stream_blocks(reader, ids):
            for batch in plain_batches(block, leaves, int(reader.block_rows[number]), batch_rows, pool, threads=1 + batch_rows % 2):
                for plain in batch:
                    for part in (plain, plain.weights):
                        arrays = () if part is None else (part.values, *part.offsets, part.validity)
                        found += [(str(array.dtype), array.shape, array.tobytes()) for array in arrays if array is not None]
    return found


class _Bytes:
    """Bytes as a source with a size."""

    def __init__(self, data: bytes) -> None:
        self._data, self.num_bytes = memoryview(data), len(data)

    def read_ranges(self, ranges: Any) -> list[memoryview]:
        return [self._data[offset : offset + size] for offset, size in ranges]


Reading = Callable[[bases.Base, Files, np.random.Generator], bool]  # whether what was read is what was written
READINGS: dict[Reading, float] = {
    read_whole: 0.35,
    read_rows: 0.2,
    read_parts: 0.1,
    read_columns: 0.1,
    read_joined: 0.1,
    read_batches: 0.12,
    read_verified: 0.03,
}


def attempt(folder: pathlib.Path, seed: int) -> str:
    """What reading a damaged segment led to: refused, equal, or (only where checksums were made right again or not compared) other values.

    Raises:
        AssertionError: Wrong values though checksums were compared.
        Exception: Anything that is not one of Headrace's own errors.
    """
    rng = np.random.default_rng(seed)
    base = bases.read(folder, int(rng.integers(bases.NUM_BASES)))
    reading = list(READINGS)[int(rng.choice(len(READINGS), p=list(READINGS.values())))]
    if reading is read_joined and base.column_file is not None and rng.random() < 0.5:
        data, checked = corrupt(base.column_file, rng)
        files: Files = (base.data, data)
    else:
        data, checked = corrupt(base.data, rng)
        files = (data, base.column_file)
    try:
        equal = reading(base, files, rng)
    except HeadraceError:
        return "refused"
    assert equal or not checked or reading is read_parts, f"seed {seed}: other values though checksums were compared"
    return "equal" if equal else "other values"


def main() -> None:
    folder, first, count, progress = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), os.open(sys.argv[4], os.O_WRONLY | os.O_CREAT)
    found: collections.Counter[str] = collections.Counter()
    failures: list[dict[str, Any]] = []
    for seed in range(first, first + count):
        os.pwrite(progress, b"%-20d" % seed, 0)
        signal.alarm(CASE_SECONDS)
        try:
            found[attempt(folder, seed)] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the fuzzing looks for
            failures.append({"seed": seed, "error": f"{type(error).__name__}: {error}"[:500]})
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MAX_RSS_BYTES:
            failures.append({"seed": seed, "error": f"took more than {MAX_RSS_BYTES:,} bytes"})
            break
    sys.stdout.write(json.dumps({"counts": found, "failures": failures, "done": seed - first + 1}) + "\n")


if __name__ == "__main__":
    main()
