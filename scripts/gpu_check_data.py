"""Random tables for scripts/gpu_check: every kind of column that batches hold, in shapes that reach every encoding, from a seed; and benchmark tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

KINDS = ("flag", "small", "wide", "sparse", "sorted", "runs", "skewed", "price", "noise", "double", "half", "pair", "session", "history", "ragged", "floats")


def random_table(rng: np.random.Generator, num_rows: int, *, text: bool = False) -> pa.Table:
    """A table of all kinds, in random order, some columns twice.

    Args:
        rng: Of everything.
        num_rows: Rows.
        text: With strings and binaries too, which decode but are no tensors.
    """
    chosen = [*KINDS, *rng.choice(KINDS, 4), *(("words", "blob") if text else ())]
    rng.shuffle(chosen)
    names = [f"{kind}_{number}" for number, kind in enumerate(chosen)]
    return pa.table([column(kind, rng, num_rows) for kind in chosen], names=names)


def column(kind: str, rng: np.random.Generator, count: int) -> pa.Array:
    """`count` values of one kind; a third of all columns have nulls."""
    mask = rng.random(count) < rng.choice([0.05, 0.6]) if rng.random() < 0.35 and kind != "pair" else None
    if kind in ("session", "history", "ragged", "floats"):
        return _lists(kind, rng, count, mask)
    if kind == "words":
        return pa.array(np.array(["", "a", "headrace", "ü" * 40])[rng.integers(0, 4, count)], mask=mask)
    if kind == "blob":
        return pa.array([bytes(rng.integers(0, 4, int(size), np.uint8)) for size in rng.integers(0, 60, count)], pa.binary(), mask=mask)
    if kind == "pair":
        return pa.FixedSizeListArray.from_arrays(pa.array(rng.random(2 * count).astype(np.float32)), 2)
    return pa.array(_fixed(kind, rng, count), mask=mask)


def _fixed(kind: str, rng: np.random.Generator, count: int) -> np.ndarray:
    if kind == "flag":
        return rng.random(count) < rng.choice([0.01, 0.5, 1.0])
    if kind == "small":
        return rng.integers(0, 1 << int(rng.integers(1, 16)), count).astype(rng.choice(["int16", "int32", "uint32", "int64"]))
    if kind == "wide":
        return rng.integers(-(2**62), 2**62, count)
    if kind == "sparse":
        return np.where(rng.random(count) < 0.03, rng.integers(0, 2**40, count), 7)
    if kind == "sorted":
        return np.cumsum(rng.integers(-2, 9, count)) + int(rng.integers(0, 2**45))
    if kind == "runs":
        return np.repeat(rng.integers(0, 2**20, count // 9 + 1), 9)[:count].astype(np.int32)
    if kind == "skewed":
        return np.minimum(rng.zipf(1.4, count), 2**31 - 1).astype(np.int32)
    if kind == "price":
        return (rng.integers(0, 100_000, count) / 100).astype(rng.choice(["float32", "float64"]))
    return rng.standard_normal(count).astype({"noise": "float32", "double": "float64", "half": "float16"}[kind])


def _lists(kind: str, rng: np.random.Generator, count: int, mask: np.ndarray | None) -> pa.Array:
    """Lists that stay through a session, histories that slide, lists of any length, and lists of floats."""
    lengths = rng.integers(0, 9, count) if kind != "ragged" else rng.integers(0, 40, count) ** 2 // 40
    if kind == "session":
        unit = np.repeat(np.arange(count // 6 + 1), 6)[:count]
        starts, lengths = unit * 11, (unit * 7919) % 11
    elif kind == "history":
        starts, lengths = np.cumsum(rng.integers(0, 3, count)), np.full(count, int(rng.integers(1, 30)))
    else:
        starts = np.cumsum(lengths) - lengths
    lengths = lengths if mask is None else np.where(mask, 0, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    index = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    pool = rng.integers(0, 2**20, int(index.max(initial=0)) + 1) + (10**12 if kind == "history" else 0)
    values = pool[index].astype(np.float32) if kind == "floats" else pool[index].astype(np.int64 if kind == "history" else np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=None if mask is None else pa.array(mask))


def patch_values(rng: np.random.Generator, tables: list[pa.Table]) -> object:
    """What `delete_and_patch` asks: new values in the column's own type, from other rows of the tables."""

    def values(name: str, count: int) -> pa.Array:
        whole = pa.concat_arrays(chunk for table in tables for chunk in table[name].chunks)
        return whole.take(pa.array(rng.integers(0, len(whole), count)))

    return values


def columns_table(rng: np.random.Generator, num_rows: int, num_dense: int, num_sparse: int, dense_bytes: int, list_length: int) -> pa.Table:
    """float32 columns (of several values a row where `dense_bytes` is over 4) and int32 list columns of a mean length."""
    width, columns = dense_bytes // 4, {}
    for number in range(num_dense):
        values = pa.array(rng.standard_normal(num_rows * width, np.float32))
        columns[f"dense_{number}"] = values if width == 1 else pa.FixedSizeListArray.from_arrays(values, width)
    for number in range(num_sparse):
        lengths = rng.integers(0, 2 * list_length + 1, num_rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        columns[f"sparse_{number}"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(rng.integers(0, 2**20, offsets[-1]).astype(np.int32)))
    return pa.table(columns)


def dlrm_table(rng: np.random.Generator, num_rows: int, num_columns: int = 200) -> pa.Table:
    """The MLPerf Storage DLRM record: 13 dense numbers, ids for the rest and a label, four bytes each."""
    dense = {f"dense_{number}": pa.array(rng.standard_normal(num_rows).astype(np.float32)) for number in range(13)}
    vocabulary = 10 ** (2 + np.arange(num_columns - 14) % 6)
    sparse = {f"id_{number}": pa.array((rng.random(num_rows) ** 4 * size).astype(np.int32)) for number, size in enumerate(vocabulary)}
    return pa.table({**dense, **sparse, "label": pa.array(rng.integers(0, 2, num_rows).astype(np.int32))})
