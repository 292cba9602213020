"""Damaged segments for `scripts/fuzz_segment`, one a seed, and what reading each must lead to.

Run as a program, in a process of its own so that a crash is seen: python fuzz_segment_cases.py FIRST COUNT PROGRESS_FILE prints counts as JSON.
"""

from __future__ import annotations

import collections
import functools
import json
import os
import pathlib
import resource
import sys
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from loader.errors import HeadraceError
from loader.segment.checksum import crc32c, page_checksums
from loader.segment.layout import CHUNK, DIRECTORY_ENTRY, SECTION_PAGE_BYTES, TAIL, Section
from loader.segment.reader import SegmentReader
from loader.segment.writer import WriteOptions, encode_segment
from tests.segment.tables import BYTES, LEAVES, LISTS, SHAPES, Maker, same_table

NUM_BASES = 64
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
Base = tuple[bytes, pa.Table]


@functools.lru_cache(maxsize=NUM_BASES)
def base(number: int) -> Base:
    """A good segment and its table: a few columns of any types and shapes, so that all bases together have every encoding."""
    rng = np.random.default_rng(1_000 + number)
    rows = int(rng.choice([1, 40, 700, 1024, 1500, 2600]))
    columns = {}
    for place in range(3):
        kinds = LEAVES + BYTES
        kind = kinds[int(rng.integers(len(kinds)))]
        if rng.random() < 0.4 and kind not in (pa.string_view(), pa.binary_view()):
            kind = LISTS[int(rng.integers(len(LISTS)))](kind)
        maker = Maker(rng, str(rng.choice(SHAPES)), float(rng.choice([0.0, 0.1, 0.9])))
        columns[f"c{place}"] = maker.array(kind, rows)
    columns["decimal"] = pa.array((rng.integers(0, 4_000, rows) / 100).astype(np.float32), mask=rng.random(rows) < 0.3)
    columns["runs"] = pa.array(np.repeat(rng.integers(0, 1 << 40, rows), 20)[:rows])
    columns["skewed"] = pa.array(rng.zipf(1.4, rows).clip(0, 1 << 40))
    columns["growing"] = pa.array(1_700_000_000 + np.cumsum(rng.integers(0, 90, rows)))
    ends = np.arange(0, 12 * rows + 1, 12, dtype=np.int32)
    events = rng.integers(0, 1 << 33, 4 * rows + 12)
    columns["history"] = pa.ListArray.from_arrays(ends, events[(np.cumsum(rng.integers(0, 3, rows))[:, None] + np.arange(12)).reshape(-1)])
    table = pa.table(columns).select([name for name in columns if name == "history" or rng.random() < 0.6] or ["runs"])
    options = WriteOptions(block_rows=int(rng.choice([1030, 65_536])), segment_id=bytes(16))
    return bytes(encode_segment(table, column_ids=range(1, table.num_columns + 1), options=options).data), table


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
        checksums = page_checksums(bytes(data[first : first + size]), SECTION_PAGE_BYTES).tobytes()
        data[sums : sums + len(checksums)] = checksums
    whole = bytes(data[start : start + count * DIRECTORY_ENTRY.itemsize]) + bytes(data[-TAIL.itemsize : -TAIL.itemsize + 52])
    data[-12:-8] = crc32c(whole).to_bytes(4, "little")
    data[60:64] = crc32c(bytes(data[:60])).to_bytes(4, "little")


def attempt(seed: int) -> str:
    """What reading a damaged segment led to: refused, equal, or (only where checksums were made right again) other values.

    Raises:
        AssertionError: Wrong values though checksums were compared.
        Exception: Anything that is not one of Headrace's own errors.
    """
    rng = np.random.default_rng(seed)
    good, table = base(int(rng.integers(NUM_BASES)))
    data = bytearray(good)
    tail = np.frombuffer(good, TAIL, 1, len(good) - TAIL.itemsize)[0]
    directory = np.frombuffer(good, DIRECTORY_ENTRY, int(tail["num_sections"]), int(tail["directory_offset"]))
    body = int(directory["offset"].min())
    mode = rng.random()
    if mode < 0.5:  # anything, checksums compared
        for _ in range(int(rng.integers(1, 4))):
            damage(data, rng, 0, len(data))
        if rng.random() < 0.15:
            del data[int(rng.integers(len(data))) :]
        elif rng.random() < 0.05:
            at = int(rng.integers(len(data)))
            data[at:at] = data[: int(rng.integers(1, 500))]
    elif mode < 0.85:  # chunks, read with checksums that are right
        for _ in range(int(rng.integers(1, 4))):
            damage(data, rng, 64, body)
        repair(data)
    else:  # the footer, its checksums right again
        entry = directory[int(rng.integers(directory.size))]
        damage(data, rng, int(entry["offset"]), int(entry["offset"]) + max(int(entry["num_bytes"]), 8))
        repair(data)
    try:
        with SegmentReader(bytes(data)) as reader:
            rows = None if rng.random() < 0.7 else rng.integers(0, max(table.num_rows, 1), 5)
            read = reader.read(rows=rows)
    except HeadraceError:
        return "refused"
    try:
        read.validate(full=True)
    except pa.ArrowInvalid as error:
        # a time of day past midnight is a wrong value, not a broken array
        if mode >= 0.5 and ("acceptable range" in str(error) or "whole number of days" in str(error)):
            return "other values"
        raise
    expected = table if rows is None else pa.concat_tables([table.slice(int(row), 1) for row in rows])
    if _same(read, expected):
        return "equal"
    assert mode >= 0.5, f"seed {seed}: other values though checksums were compared"
    return "other values"


def _same(read: pa.Table, expected: pa.Table) -> bool:
    try:
        return same_table(read, expected)
    except (pa.ArrowException, AttributeError, KeyError):
        return False  # types that cannot even be compared


def main() -> None:
    first, count, progress = int(sys.argv[1]), int(sys.argv[2]), os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT)
    found: collections.Counter[str] = collections.Counter()
    failures: list[dict[str, Any]] = []
    for seed in range(first, first + count):
        os.pwrite(progress, b"%-20d" % seed, 0)
        try:
            found[attempt(seed)] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the fuzzing looks for
            failures.append({"seed": seed, "error": f"{type(error).__name__}: {error}"[:500]})
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MAX_RSS_BYTES:
            failures.append({"seed": seed, "error": f"took more than {MAX_RSS_BYTES:,} bytes"})
            break
    sys.stdout.write(json.dumps({"counts": found, "failures": failures, "done": seed - first + 1}) + "\n")


if __name__ == "__main__":
    main()
