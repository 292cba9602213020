"""Damaged, cut and newer segments give an error that says what and where, or the right answer; never a crash, never a wrong value."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from loader.errors import (
    AlreadyExistsError,
    ColumnNotFoundError,
    CorruptSegmentError,
    FormatError,
    HeadraceError,
    NotFoundError,
    StorageFullError,
    TruncatedSegmentError,
    UnsupportedVersionError,
)
from loader.segment.layout import DIRECTORY_ENTRY, SECTION_PAGE_BYTES, TAIL, Section
from loader.segment.reader import SegmentReader
from loader.segment.writer import WriteOptions, encode_segment, write_segment
from tests.segment.tables import Maker, same_table

NUM_FLIPS = 800


def small_table(rows: int = 400) -> pa.Table:
    maker = Maker(np.random.default_rng(11), "few", 0.2)
    plain = Maker(np.random.default_rng(12), "any", 0.0)
    sliding = Maker(np.random.default_rng(13), "narrow", 0.0)
    columns = {
        "id": plain.array(pa.int64(), rows),
        "few": maker.array(pa.int64(), rows),
        "bool": maker.array(pa.bool_(), rows),
        "float": plain.array(pa.float32(), rows),
        "word": maker.array(pa.string(), rows),
        "name": plain.array(pa.string(), rows),
        "history": sliding.array(pa.list_(pa.int64()), rows),
        "tags": maker.array(pa.list_(pa.list_(pa.int32())), rows),
        "pair": maker.array(pa.list_(pa.float64(), 2), rows),
        "constant": pa.array(np.zeros(rows, np.int32)),
    }
    return pa.table(columns).replace_schema_metadata({"origin": "damage"})


TABLE = small_table()
DATA = bytes(encode_segment(TABLE, column_ids=range(1, 11), options=WriteOptions(block_rows=250, segment_id=bytes(16))).data)


def read(data: bytes, *, verify: bool = True) -> pa.Table:
    reader = SegmentReader(data, verify=verify)
    assert len(reader.segment_id) == 16
    return reader.read()


def test_the_sound_segment_reads() -> None:
    assert same_table(read(DATA), TABLE)
    assert same_table(read(DATA, verify=False), TABLE)


def structural_points() -> list[int]:
    reader = SegmentReader(DATA)
    chunks = reader.chunks(list(range(1, 11)), [0, 1]).reshape(-1)
    tail = np.frombuffer(DATA[-TAIL.itemsize :], TAIL)[0]
    start = int(tail["directory_offset"])
    entries = np.frombuffer(DATA[start : start + int(tail["num_sections"]) * DIRECTORY_ENTRY.itemsize], DIRECTORY_ENTRY)
    points = {0, 1, 8, 63, 64, 65, start, len(DATA) - TAIL.itemsize, len(DATA) - 8, len(DATA) - 1}
    for first, size in [*zip(chunks["offset"], chunks["num_bytes"], strict=True), *zip(entries["offset"], entries["num_bytes"], strict=True)]:
        points |= {int(first), int(first) + 1, int(first) + int(size) - 1, int(first) + int(size)}
    return sorted(points)


def test_cut_at_every_structural_point(tmp_path: Path) -> None:
    path = tmp_path / "cut.segment"
    for point in structural_points():
        path.write_bytes(DATA[:point])
        with pytest.raises(TruncatedSegmentError, match=r"cut\.segment .*bytes.*fetch or write it again"):
            read(str(path))  # type: ignore[arg-type]


def test_bytes_joined_to_the_end_or_start_are_refused() -> None:
    for data in (DATA + bytes(64), bytes(64) + DATA, DATA + DATA):
        with pytest.raises(FormatError):
            read(data)


def flips(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    data = np.frombuffer(DATA, np.uint8).copy()
    if rng.random() < 0.3:
        # one bit
        data[rng.integers(data.size)] ^= np.uint8(1 << rng.integers(8))
    else:
        at = rng.integers(data.size) + np.arange(rng.integers(1, 9))
        data[at[at < data.size]] = rng.choice(np.array([0, 1, 127, 128, 255, rng.integers(256)], np.uint8), int((at < data.size).sum()))
    return data.tobytes()


def test_flipped_bytes_never_change_a_value_unnoticed() -> None:
    noticed = 0
    for seed in range(NUM_FLIPS):
        try:
            table = read(flips(seed))
        except FormatError:
            noticed += 1
        else:
            assert same_table(table, TABLE), f"seed {seed} gives other values without an error"
    assert noticed > NUM_FLIPS / 2


@pytest.mark.parametrize(("native", "num_flips"), [("0", 250), ("", NUM_FLIPS)])
def test_flipped_bytes_without_checksums_never_crash(monkeypatch: pytest.MonkeyPatch, native: str, num_flips: int) -> None:
    monkeypatch.setenv("HEADRACE_NATIVE", native)
    warnings.simplefilter("error")
    for seed in range(num_flips):
        try:
            table = read(flips(seed), verify=False)
            table.validate()
        except HeadraceError:
            continue


def patched_tail(**fields: int) -> bytes:
    tail = np.frombuffer(DATA[-TAIL.itemsize :], TAIL).copy()
    for name, value in fields.items():
        tail[name] = value
    return DATA[: -TAIL.itemsize] + tail.tobytes()


def test_a_newer_version_is_refused_by_number() -> None:
    with pytest.raises(UnsupportedVersionError, match="format version 2, this Headrace reads up to 1: upgrade Headrace"):
        read(patched_tail(version=2))


def test_an_unknown_feature_is_refused_by_name_or_number() -> None:
    with pytest.raises(UnsupportedVersionError, match="ENTROPY.*upgrade Headrace"):
        read(patched_tail(features=1 << 11))
    with pytest.raises(UnsupportedVersionError, match="bit 40.*upgrade Headrace"):
        read(patched_tail(features=1 << 40))


def test_a_changed_chunk_is_named() -> None:
    reader = SegmentReader(DATA)
    chunk = reader.chunks([4], [1])[0, 0]
    data = bytearray(DATA)
    data[int(chunk["offset"]) + int(chunk["num_bytes"]) - 1] ^= 1
    with pytest.raises(CorruptSegmentError, match=rf"block 1 of column 'float' at offset {int(chunk['offset']):,}.*checksum"):
        SegmentReader(bytes(data)).read()
    data[int(chunk["offset"]) + 8] ^= 1
    with pytest.raises(CorruptSegmentError, match=rf"block 1 of column 'float' at offset {int(chunk['offset']):,}: .*fetch the file again or restore it"):
        SegmentReader(bytes(data), verify=False).read()
    # the other columns are fine
    assert SegmentReader(bytes(data)).read(["id", "word"]).num_rows == 400


def test_a_changed_footer_page_is_named_when_it_is_touched() -> None:
    start = DATA.index(b"constant", len(DATA) // 2)
    data = DATA[:start] + b"konstant" + DATA[start + 8 :]
    reader = SegmentReader(data)
    with pytest.raises(CorruptSegmentError, match="page 0 of section NAMES at offset"):
        reader.read(["constant"])


def test_a_projection_reads_only_the_pages_it_touches() -> None:
    table = pa.table({f"column {index}": np.zeros(3, np.int8) for index in range(2000)})
    data = encode_segment(table, column_ids=range(1, 2001)).data
    reads: list[tuple[int, int]] = []

    class Source:
        num_bytes = len(data)

        def read_ranges(self, ranges: list[tuple[int, int]]) -> list[memoryview]:
            reads.extend(ranges)
            return [data[offset : offset + size] for offset, size in ranges]

    reader = SegmentReader(Source())
    assert len(reads) == 1
    assert reads[0][1] == 64 << 10
    assert reader.columns.size == 2000
    del reads[:]
    reader.chunks([3, 4, 1900], [0])
    assert sum(size for _, size in reads) <= 2 * SECTION_PAGE_BYTES + 8


def test_names_that_are_not_there() -> None:
    reader = SegmentReader(DATA)
    with pytest.raises(ColumnNotFoundError, match="no column 'histroy': did you mean history"):
        reader.read(["histroy"])
    with pytest.raises(ColumnNotFoundError, match="no column with id 77"):
        reader.chunks([77], [0])
    with pytest.raises(NotFoundError, match="no segment /nowhere/x"):
        SegmentReader("/nowhere/x")
    assert reader.section(Section.KEY_INDEX) is None


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.segment"
    encoded = write_segment(path, TABLE)
    assert path.read_bytes() == encoded.data
    with SegmentReader(path) as reader:
        assert same_table(reader.read(), TABLE)
        assert reader.segment_id == encoded.segment_id
    with pytest.raises(AlreadyExistsError, match="never overwritten"):
        write_segment(path, TABLE)
    with pytest.raises(NotFoundError, match="no folder .*create it first"):
        write_segment(tmp_path / "missing" / "b.segment", TABLE)
    assert [item.name for item in tmp_path.iterdir()] == ["a.segment"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageFullError, match="no space left for .*free some and write it again"):
        write_segment(tmp_path / "a.segment", TABLE)
    assert not list(tmp_path.iterdir())


def test_threads_that_compare_checksums_name_the_first_damaged_column() -> None:
    rng = np.random.default_rng(14)
    table = pa.table({f"x{number}": rng.integers(0, 1 << 62, 65_536) for number in range(12)})  # over 4 MiB: less is not shared among threads
    data = bytearray(encode_segment(table, column_ids=range(1, 13), options=WriteOptions(block_rows=65_536)).data)
    clean = SegmentReader(bytes(data))
    ids = clean.resolve(None)
    chunks = clean.chunks(ids, [0])[:, 0]
    assert int(chunks["num_bytes"].sum()) > 4 << 20
    for column in (9, 4, 7):
        data[int(chunks["offset"][column]) + 2_000] ^= 1
    damaged = SegmentReader(bytes(data))
    for threads in (1, 3):
        with pytest.raises(CorruptSegmentError, match=r"column 'x4' .*checksum does not match"):
            damaged.read_block(0, ids, threads=threads)
    assert damaged.read_block(0, ids[:4], threads=3).program.num_rows.tolist() == [65_536] * 4
