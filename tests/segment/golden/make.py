"""Writes the golden segment of the format version in force, once: `python -m tests.segment.golden.make`. Files that exist are never touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from loader.segment.layout import FORMAT_VERSION
from loader.segment.writer import WriteOptions, write_segment
from tests.segment.tables import BYTES, LEAVES, LISTS, Maker

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


def main() -> None:
    """Write v<N>.segment and v<N>.arrow beside this file."""
    table = golden_table()
    segment, expected = FOLDER / f"v{FORMAT_VERSION}.segment", FOLDER / f"v{FORMAT_VERSION}.arrow"
    write_segment(
        segment,
        table,
        column_ids=range(10, 10 + table.num_columns),
        options=WriteOptions(block_rows=1030, segment_id=bytes(range(16)), cluster_by=("constant",)),
    )
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with expected.open("xb") as file, pa.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table)


if __name__ == "__main__":
    main()
