"""Writes golden segments, once: `python -m tests.segment.golden.make`. Files that exist are never touched.

`v1` was written when version 1 knew packing, dictionaries and views; `v1-cascades` shows the features that came after,
`v1-maps` maps, `v1-shared` dictionaries that blocks share.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from loader.segment.writer import WriteOptions, write_segment
from tests.segment.tables import BYTES, LEAVES, LISTS, ODD, Maker

FOLDER = Path(__file__).parent
ROWS = 1050


def histories(rng: np.random.Generator, *, newest_first: bool) -> pa.Array:
    """Windows of 20 over a history that grows by 0 to 2 items a row."""
    events = rng.integers(1 << 40, (1 << 40) + 5000, 4 * ROWS)
    windows = events[np.cumsum(rng.integers(0, 3, ROWS))[:, None] + np.arange(20)]
    values = (windows[:, ::-1] if newest_first else windows).reshape(-1)
    return pa.ListArray.from_arrays(np.arange(0, values.size + 1, 20, dtype=np.int32), pa.array(values))


def golden_table() -> pa.Table:
    """Every type, null or not, and data that leads to every encoding of version 1."""
    rng = np.random.default_rng(20_260_101)
    columns: dict[str, pa.Array] = {}
    kinds = [*LEAVES, *BYTES, *(make(pa.int32()) for make in LISTS), pa.list_(pa.float32(), 3), pa.list_(pa.list_(pa.string()))]
    for number, kind in enumerate(kinds):
        shape = ("few", "narrow", "extreme")[number % 3]
        columns[f"{kind}"] = Maker(rng, shape, 0.0).array(kind, ROWS)
        columns[f"{kind} null"] = Maker(rng, "few", 0.2).array(kind, ROWS)
    columns["constant"] = pa.array(np.full(ROWS, -7))
    columns["plain"] = pa.array(rng.standard_normal(ROWS))
    columns["halves"] = pa.array(rng.integers(0, 1 << 45, ROWS))
    columns["dictionary"] = pa.array(rng.choice(rng.integers(0, 1 << 62, 40), ROWS))
    columns["session"] = pa.array([[number // 16, number // 64, 5] for number in range(ROWS)])
    columns["oldest first"] = histories(rng, newest_first=False)
    columns["newest first"] = histories(rng, newest_first=True)
    columns["no rows"] = pa.nulls(ROWS, pa.list_(pa.int16()))
    fields = [pa.field(name, array.type, metadata={"number": str(number)}) for number, (name, array) in enumerate(columns.items())]
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata={"made by": "golden"}))


def cascades() -> pa.Table:
    """Data that leads to class splits, differences, runs, decimals, exceptions, quantised values and compressed bytes, null or not."""
    rng = np.random.default_rng(20_261_123)
    decimals = np.where(rng.random(ROWS) < 0.03, np.nan, rng.integers(0, 1 << 14, ROWS) / 100)
    decimals[:4] = -0.0, np.inf, -np.inf, -12.34
    frequent = rng.integers(0, 1 << 60, 130)[np.minimum(rng.zipf(1.3, ROWS), 129)]
    plain: dict[str, np.ndarray] = {
        "decimals single": decimals.astype(np.float32),
        "decimals double": decimals,
        "skewed": np.where(rng.random(ROWS) < 0.6, rng.integers(0, 4, ROWS), rng.integers(0, 1 << 20, ROWS)).astype(np.int64),
        "two classes": np.where(rng.random(ROWS) < 0.9, 3, rng.integers(0, 1 << 30, ROWS)).astype(np.uint32),
        "rising": np.cumsum(rng.integers(0, 9, ROWS)),
        "wandering": np.cumsum(rng.integers(-4, 5, ROWS)).astype(np.int32),
        "jumps": np.cumsum(np.where(rng.random(ROWS) < 0.02, 1 << 20, 3)),
        "outliers": np.where(rng.random(ROWS) < 0.01, 1 << 20, rng.integers(0, 16, ROWS)),
        "runs": np.repeat(rng.integers(0, 1 << 32, ROWS // 30), 30).astype(np.uint32),
        "wide runs": np.repeat(rng.integers(-(1 << 62), 1 << 62, ROWS // 10), 10),
        "frequent": frequent,
        "float16": (rng.integers(-800, 800, ROWS) / 8).astype(np.float32),
        "bfloat16": (rng.integers(-100, 100, ROWS) / 4).astype(np.float32),
        "int8": np.append(rng.integers(-127, 128, ROWS - 30), np.full(30, 127)).astype(np.float32),
    }
    columns: dict[str, pa.Array] = {}
    for name, values in plain.items():
        columns[name] = pa.array(values)
        columns[f"{name} null"] = pa.array(values, mask=(rng.random(ROWS) < 0.2) & (np.arange(ROWS) % 1029 > 0))
    lengths = np.where(rng.random(ROWS) < 0.6, 0, rng.integers(1, 30, ROWS))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    columns["lists"] = pa.ListArray.from_arrays(offsets, pa.array(np.minimum(rng.zipf(1.2, offsets[-1]), 1 << 40)))
    columns["interrupted"] = pa.array([[number // 9, 7, 8, 9] if number % 3 else None for number in range(ROWS)], pa.list_(pa.int64()))
    words = np.array(["river", "stone", "bridge", "water", "turbine"])[rng.integers(0, 5, (ROWS, 6))]
    columns["text"] = pa.array([" ".join(row) + str(number) for number, row in enumerate(words.tolist())])
    return pa.table(columns)


def maps() -> pa.Table:
    """Maps whose lists repeat together, slide together, repeat apart and not at all, null or not; columns of nulls and of dictionaries."""
    rng = np.random.default_rng(20_261_124)
    ids, weights = rng.integers(0, 1 << 40, 4 * ROWS), rng.random(4 * ROWS, np.float32)
    session, window = np.arange(ROWS)[:, None] // 16 * 12 + np.arange(12), np.arange(ROWS)[:, None] + np.arange(12)
    ends = np.arange(0, 12 * ROWS + 1, 12, dtype=np.int32)
    columns: dict[str, pa.Array] = {}
    for name, at in (("together", session), ("sliding", window)):
        columns[name] = pa.MapArray.from_arrays(ends, pa.array(ids[at.reshape(-1)]), pa.array(weights[at.reshape(-1)]))
    columns["apart"] = pa.MapArray.from_arrays(ends, pa.array(ids[session.reshape(-1)]), pa.array(rng.random(12 * ROWS, np.float32)))
    kinds = [
        (pa.int64(), pa.float32()),
        (pa.uint16(), pa.float16()),
        (pa.string(), pa.float64()),
        (pa.binary(3), pa.list_(pa.int8())),
        (pa.int32(), pa.string()),
    ]
    for number, (key, weight) in enumerate(kinds):
        columns[f"{key} {weight}"] = Maker(rng, ("any", "few")[number % 2], 0.2).array(pa.map_(key, weight), ROWS)
    for kind in ODD:
        columns[str(kind)] = Maker(rng, "few", 0.1).array(kind, ROWS)
    return pa.table(columns)


def shared() -> pa.Table:
    """Hashed ids that come in every block: as values, under nulls, in lists, as keys, narrow ones, and beside them ids of which each comes once."""
    rng = np.random.default_rng(20_261_125)
    count, offsets = 3 * ROWS, np.arange(0, 3 * ROWS + 1, 3, dtype=np.int32)
    ids, short = rng.integers(-(1 << 63), (1 << 63) - 1, 250), rng.integers(0, 1 << 32, 250).astype(np.uint32)
    skewed = np.minimum(rng.zipf(1.1, count), 250) - 1
    columns = {
        "id": pa.array(ids[skewed[:ROWS]]),
        "null": pa.array(ids[rng.integers(0, 250, ROWS)], mask=rng.random(ROWS) < 0.2),
        "unsigned": pa.array(ids[rng.integers(0, 250, ROWS)].astype(np.uint64)),
        "short": pa.array(short[rng.integers(0, 250, ROWS)]),
        "lists": pa.ListArray.from_arrays(offsets, pa.array(ids[rng.permutation(skewed)])),
        "keys": pa.MapArray.from_arrays(offsets, pa.array(ids[rng.permutation(skewed)]), pa.array(rng.random(count, np.float32))),
        "unique": pa.array(rng.integers(-(1 << 63), (1 << 63) - 1, ROWS)),
    }
    return pa.table(columns)


def write(name: str, table: pa.Table, options: WriteOptions) -> None:
    """Write <name>.segment and <name>.arrow beside this file, unless they are there."""
    segment, expected = FOLDER / f"{name}.segment", FOLDER / f"{name}.arrow"
    if segment.exists() or expected.exists():
        return
    write_segment(segment, table, column_ids=range(10, 10 + table.num_columns), options=options)
    compressed = pa.ipc.IpcWriteOptions(compression="zstd")
    with expected.open("xb") as file, pa.ipc.new_file(file, table.schema, options=compressed) as writer:
        writer.write_table(table)


def main() -> None:
    """Write what is not there yet."""
    options = WriteOptions(block_rows=1030, segment_id=bytes(range(16)), cluster_by=("constant",))
    write("v1", golden_table(), options)
    lossy = {f"{kind}{null}": kind for kind in ("float16", "bfloat16", "int8") for null in ("", " null")}
    write("v1-cascades", cascades(), WriteOptions(block_rows=1030, segment_id=bytes(range(16)), quantise=lossy))
    write("v1-maps", maps(), WriteOptions(block_rows=1030, segment_id=bytes(range(16))))
    write("v1-shared", shared(), WriteOptions(block_rows=300, segment_id=bytes(range(16))))


if __name__ == "__main__":
    main()
