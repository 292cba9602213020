"""Damage to every encoding of the golden segment is noticed by checksums; without them it gives an error or some values, never a crash."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from loader.errors import FormatError, HeadraceError
from loader.segment.layout import CHUNK_HEADER, OP, REGION, SOURCE
from loader.segment.reader import SegmentReader
from tests.segment.tables import same_table

PATH = Path(__file__).parent / "golden" / "v1-cascades.segment"
DATA = np.frombuffer(PATH.read_bytes(), np.uint8)
SOUND = SegmentReader(bytes(DATA))
CHUNKS = SOUND.chunks(SOUND.columns["column_id"].tolist(), [0])[:, 0]


def flipped(seed: int) -> bytes:
    """A few bytes changed in one chunk: half of the time in its tables, half of the time in its streams."""
    rng = np.random.default_rng(seed)
    data = DATA.copy()
    chunk = CHUNKS[seed % CHUNKS.size]
    start, size = int(chunk["offset"]), int(chunk["num_bytes"])
    header = DATA[start : start + CHUNK_HEADER.itemsize].view(CHUNK_HEADER)[0]
    tables = CHUNK_HEADER.itemsize + sum(
        int(header[name]) * record.itemsize for name, record in (("num_regions", REGION), ("num_ops", OP), ("num_sources", SOURCE))
    )
    low, high = (0, tables) if rng.random() < 0.5 else (tables, size)
    at = start + int(rng.integers(low, high)) + np.arange(rng.integers(1, 5))
    data[at[at < start + size]] = rng.choice([0, 1, 2, 4, 5, 127, 128, 255, int(rng.integers(256))], int((at < start + size).sum()))
    return data.tobytes()


def test_checksums_notice_everything() -> None:
    with pa.ipc.open_file(PATH.with_suffix(".arrow")) as file:
        expected = file.read_all()
    for seed in range(200):
        data = flipped(seed)
        if data == DATA.tobytes():
            continue
        column = SOUND.columns["column_id"][seed % CHUNKS.size]
        name = next(c.name for index, c in enumerate(SOUND.layout().columns) if SOUND.columns["column_id"][index] == column)
        with pytest.raises(FormatError, match="checksum"):
            SegmentReader(data).read([name])
    assert same_table(SOUND.read(), expected)


@pytest.mark.parametrize(("native", "num_flips"), [("0", 300), ("", 1500)])
def test_without_checksums_nothing_crashes(monkeypatch: pytest.MonkeyPatch, native: str, num_flips: int) -> None:
    monkeypatch.setenv("HEADRACE_NATIVE", native)
    warnings.simplefilter("error")
    names = [column.name for column in SOUND.layout().columns]
    refused = 0
    for seed in range(num_flips):
        try:
            table = SegmentReader(flipped(seed), verify=False).read([names[seed % CHUNKS.size]])
            table.validate()
        except HeadraceError:
            refused += 1
    assert refused > num_flips / 4


def test_native_and_reference_agree_on_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [column.name for column in SOUND.layout().columns]
    for seed in range(1000, 1200):
        found = []
        for native in ("0", ""):
            monkeypatch.setenv("HEADRACE_NATIVE", native)
            try:
                found.append(SegmentReader(flipped(seed), verify=False).read([names[seed % CHUNKS.size]]))
            except HeadraceError:
                found.append(None)
        one, two = found
        assert (one is None) == (two is None), f"seed {seed}: only one of them refuses {names[seed % CHUNKS.size]}"
        if one is not None:
            assert same_table(one, two), f"seed {seed}"
