"""Quantised columns come back near what was written, and only where it was asked for; strings and blobs compress and come back exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.errors import CorruptSegmentError, SchemaError
from loader.segment.layout import CHUNK_HEADER, OP, REGION, SOURCE, Feature
from loader.segment.reader import SegmentReader
from loader.segment.writer import WriteOptions, encode_segment
from tests.segment.tables import same_table

RNG = np.random.default_rng(0)
ROWS = 3000


def write(table: pa.Table, **options: Any) -> SegmentReader:
    return SegmentReader(encode_segment(table, column_ids=range(1, table.num_columns + 1), options=WriteOptions(**options)).data)


@pytest.mark.parametrize("native", ["0", ""])
@pytest.mark.parametrize(("kind", "error"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8), ("int8", 0.5 / 127)])
def test_values_come_back_near(monkeypatch: pytest.MonkeyPatch, native: str, kind: str, error: float) -> None:
    monkeypatch.setenv("HEADRACE_NATIVE", native)
    values = RNG.uniform(-3, 3, ROWS).astype(np.float32)
    mask = RNG.random(ROWS) < 0.2
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.tile(values, 4)), 4)
    table = pa.table({"x": values, "null": pa.array(values, mask=mask), "vector": vectors, "exact": values})
    reader = write(table, quantise={"x": kind, "null": kind, "vector": kind})
    read = reader.read()
    assert read.schema == table.schema
    for name, written in (("x", values), ("null", values[~mask]), ("vector", np.tile(values, 4))):
        found = read[name].combine_chunks()
        found = found.flatten() if name == "vector" else found.drop_null()
        scale = 3.0 if kind == "int8" else np.maximum(np.abs(written), 2.0**-14)
        assert (np.abs(found.to_numpy() - written) <= error * scale * 1.01).all(), name
    assert read["exact"].equals(table["exact"])
    assert read["null"].is_null().equals(table["null"].is_null())
    assert reader.features & Feature.QUANTISED
    tree = {column.name: column.encoding for column in reader.layout().columns}
    assert kind in tree["x"]
    assert kind in tree["null"]


@pytest.mark.parametrize("native", ["0", ""])
def test_values_without_a_near_one(monkeypatch: pytest.MonkeyPatch, native: str) -> None:
    monkeypatch.setenv("HEADRACE_NATIVE", native)
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e30, 1e-30, 0.0, 65_504] * 50, np.float32)
    table = pa.table({"half": odd, "brain": odd, "int8": odd, "zero": np.zeros(400, np.float32)})
    read = write(table, quantise={"half": "float16", "brain": "bfloat16", "int8": "int8", "zero": "int8"}).read()
    half, brain = read["half"].to_numpy(), read["brain"].to_numpy()
    assert np.isnan(half[0])
    assert half[1:8].tolist() == [np.inf, -np.inf, 0, np.inf, 0, 0, 65_504]
    assert np.isnan(brain[0])
    assert np.allclose(brain[3:8], odd[3:8], rtol=2.0**-8)
    assert brain[1:3].tolist() == [np.inf, -np.inf]
    assert np.signbit(brain[3])
    # int8 has no room for them: kept as they are
    assert same_table(read.select(["int8", "zero"]), table.select(["int8", "zero"]))


def test_metadata_asks_for_it() -> None:
    values = RNG.standard_normal(ROWS).astype(np.float32)
    field = pa.field("x", pa.float32(), metadata={"headrace.quantise": "bfloat16"})
    table = pa.Table.from_arrays([pa.array(values)], schema=pa.schema([field]))
    reader = write(table)
    assert "bfloat16" in reader.layout().columns[0].encoding
    assert reader.read().schema.equals(table.schema, check_metadata=True)


@pytest.mark.parametrize("options", [{"x": "float8"}, {"y": "float16"}, {"nothing": "float16"}])
def test_what_cannot_be_quantised_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(SchemaError):
        write(pa.table({"x": np.zeros(3, np.float32), "y": np.zeros(3)}), quantise=options)


def sentences(count: int) -> list[str]:
    words = ["river", "stone", "bridge", "water", "turbine", "gate", "level", "storm"]
    picks = RNG.integers(0, len(words), (count, 9))
    return [" ".join(words[index] for index in row) + str(number) for number, row in enumerate(picks.tolist())]


@given(st.sampled_from([pa.string(), pa.binary(), pa.large_string()]), st.sampled_from([0.0, 0.2]), st.integers(1, 900))
def test_text_is_compressed_and_comes_back(kind: pa.DataType, nulls: float, count: int) -> None:
    texts = pa.array(sentences(count)).cast(kind)
    mask = pa.array(RNG.random(count) < nulls)
    table = pa.table({"text": pa.array(texts.to_pylist(), kind, mask=mask.to_numpy(zero_copy_only=False)), "list": pa.array([[text] for text in texts])})
    reader = write(table, block_rows=400)
    assert same_table(reader.read(), table)
    if count > 100:
        assert "pool=zstd" in reader.layout().columns[0].encoding
        assert reader.features & Feature.COMPRESSED_BYTES
    assert not write(table, compress=False).features & Feature.COMPRESSED_BYTES


@pytest.mark.parametrize("native", ["0", ""])
def test_damaged_frames_are_refused(monkeypatch: pytest.MonkeyPatch, native: str) -> None:
    monkeypatch.setenv("HEADRACE_NATIVE", native)
    table = pa.table({"text": sentences(500)})
    data = bytearray(encode_segment(table, column_ids=[1], options=WriteOptions(segment_id=bytes(16))).data)
    chunk = SegmentReader(bytes(data)).chunks([1], [0])[0, 0]
    start = int(chunk["offset"])
    header = np.frombuffer(data, CHUNK_HEADER, count=1, offset=start)[0]
    ops = start + CHUNK_HEADER.itemsize + int(header["num_regions"]) * REGION.itemsize
    sources = np.frombuffer(data, SOURCE, count=int(header["num_sources"]), offset=ops + int(header["num_ops"]) * OP.itemsize)
    frame = next(source for source in sources if source["num_words"] > 1000 and source["kind"] == 2)
    noticed = 0
    for at in range(0, int(frame["num_words"]), 37):
        damaged = bytearray(data)
        damaged[start + int(frame["data"]) + at] ^= 1 << (at % 8)
        with pytest.raises(CorruptSegmentError, match="checksum"):
            SegmentReader(bytes(damaged)).read()
        try:
            SegmentReader(bytes(damaged), verify=False).read()
        except CorruptSegmentError:
            noticed += 1
        except pa.ArrowInvalid:
            continue
    assert noticed
