"""Segments are the same to the last byte whoever writes them: the native encoders or NumPy, one thread or several, today or tomorrow."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from loader.segment.writer import WriteOptions, encode_segment
from scripts.bench_samples import make_samples
from tests.segment.golden.make import cascades
from tests.segment.tables import BYTES, LEAVES, LISTS, SHAPES, Maker


def mixed(shape: str) -> pa.Table:
    maker = Maker(np.random.default_rng(5), shape, 0.1)
    kinds = [*LEAVES, *BYTES, *(make(leaf) for make in LISTS for leaf in LEAVES[::3]), pa.list_(pa.list_(pa.int64())), pa.list_(pa.float32(), 3)]
    return pa.table({str(number): maker.array(kind, 700) for number, kind in enumerate(kinds)})


TABLES = {"cascades": cascades, "samples": lambda: make_samples(2500), **{shape: (lambda shape=shape: mixed(shape)) for shape in SHAPES}}


@pytest.mark.parametrize("name", TABLES)
def test_native_and_numpy_write_the_same(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    table = TABLES[name]()
    written = []
    for native, threads in (("0", 1), ("", 1), ("", 3)):
        monkeypatch.setenv("HEADRACE_NATIVE", native)
        options = WriteOptions(segment_id=bytes(16), block_rows=1500, threads=threads, effort="size" if name == "samples" else "balanced")
        written.append(bytes(encode_segment(table, column_ids=range(1, table.num_columns + 1), options=options).data))
    assert written[0] == written[1]
    assert written[1] == written[2]
