"""The good segments that `scripts/fuzz_segment` damages: by their number, so that all together have every type, encoding, option and kind of file.

They are written once into a folder, with the tables that went into them, because encoding them takes longer than reading thousands of damaged ones.
Run as a program, under sanitizers too: python fuzz_segment_bases.py FOLDER.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from loader.segment.column_files import encode_column_file
from loader.segment.reader import SegmentReader
from loader.segment.writer import WriteOptions, encode_segment
from tests.segment.tables import BYTES, LEAVES, LISTS, ODD, SHAPES, VIEWS, Maker, same_table

NUM_BASES = 96
EFFORTS = ("balanced", "size", "speed")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Base:
    """A good segment.

    Attributes:
        data: Its bytes.
        table: What reading it gives.
        column_file: Bytes of columns beside it, or None.
        joined: What reading both gives.
    """

    data: bytes
    table: pa.Table
    column_file: bytes | None
    joined: pa.Table | None


def make(number: int) -> Base:
    """Base `number`, always the same.

    Raises:
        AssertionError: It does not read back as it was written.
    """
    rng = np.random.default_rng(1_000 + number)
    rows = int(rng.choice([1, 40, 700, 1024, 1500, 2600]))
    columns = common_columns(rng, rows) | THEMES[number % len(THEMES)](rng, rows)
    table = pa.table(columns)
    quantise = {"lossy": ("float16", "bfloat16", "int8")[number % 3]} if "lossy" in columns else {}
    options = WriteOptions(
        block_rows=int(rng.choice([410, 1030, 65_536])), segment_id=number.to_bytes(16, "big"), effort=EFFORTS[number // len(THEMES) % 3], quantise=quantise
    )
    data = bytes(encode_segment(table, column_ids=range(1, table.num_columns + 1), options=options).data)
    with SegmentReader(data) as reader:
        read = reader.read()
        exact = [name for name in table.column_names if name != "lossy"]
        assert same_table(read.select(exact), table.select(exact)), f"base {number} does not read back"
        if number % 6:
            return Base(data=data, table=read, column_file=None, joined=None)
        beside = pa.table({name: array for name, array in common_columns(rng, rows).items() if name not in table.column_names} or {"beside": np.arange(rows)})
        file = encode_column_file(reader, beside, column_ids=range(100, 100 + beside.num_columns), options=options)
    joined = pa.Table.from_arrays([*read.columns, *beside.columns], schema=pa.schema([*read.schema, *beside.schema], metadata=read.schema.metadata))
    return Base(data=data, table=read, column_file=bytes(file.data), joined=joined)


def common_columns(rng: np.random.Generator, rows: int) -> dict[str, pa.Array]:
    """Some of the columns that lead to an encoding each."""
    ends = np.arange(0, 12 * rows + 1, 12, dtype=np.int32)
    events = rng.integers(0, 1 << 33, 4 * rows + 12)
    columns = {
        "decimal": pa.array((rng.integers(0, 4_000, rows) / 100).astype(np.float32), mask=rng.random(rows) < 0.3),
        "price": pa.array(rng.integers(0, 1 << 40, rows) / 1_000),
        "runs": pa.array(np.repeat(rng.integers(0, 1 << 40, rows), 20)[:rows]),
        "skewed": pa.array(rng.zipf(1.4, rows).clip(0, 1 << 40)),
        "growing": pa.array(1_700_000_000 + np.cumsum(rng.integers(0, 90, rows))),
        "rarely_wide": pa.array(np.where(rng.random(rows) < 0.01, rng.integers(0, 1 << 31, rows), rng.integers(0, 8, rows)).astype(np.int32)),
        "history": pa.ListArray.from_arrays(ends, events[(np.cumsum(rng.integers(0, 3, rows))[:, None] + np.arange(12)).reshape(-1)]),
    }
    return {name: array for name, array in columns.items() if rng.random() < 0.35} or {"runs": columns["runs"]}


def any_types(rng: np.random.Generator, rows: int) -> dict[str, pa.Array]:
    columns = {}
    for place in range(3):
        kind = (LEAVES + BYTES)[int(rng.integers(len(LEAVES + BYTES)))]
        if rng.random() < 0.4 and kind not in (pa.string_view(), pa.binary_view()):
            kind = LISTS[int(rng.integers(len(LISTS)))](kind)
        columns[f"c{place}"] = _maker(rng).array(kind, rows)
    return columns


def nested(rng: np.random.Generator, rows: int) -> dict[str, pa.Array]:
    """Lists of lists, of strings and of fixed-size lists."""
    kinds = [
        pa.list_(pa.list_(pa.int64())),
        pa.list_(pa.list_(pa.string())),
        pa.list_(pa.float32(), 3),
        pa.list_(pa.list_(pa.int8(), 2)),
        pa.large_list(pa.binary()),
    ]
    return {f"n{place}": _maker(rng).array(kinds[int(rng.integers(len(kinds)))], rows) for place in range(2)}


def blobs(rng: np.random.Generator, rows: int) -> dict[str, pa.Array]:
    """Texts that zstd makes smaller, of few and of many values."""
    words = [f"https://example.com/category/{number % 7}/item/{number}" for number in range(400)]
    texts = [" ".join(words[pick] for pick in row) for row in rng.integers(0, 400, (rows, 6)).tolist()]
    return {"text": pa.array(texts, mask=rng.random(rows) < 0.1), "word": pa.array([words[pick] for pick in rng.integers(0, 30, rows).tolist()])}


def quantised(rng: np.random.Generator, rows: int) -> dict[str, pa.Array]:
    return {"lossy": pa.array(rng.standard_normal(rows).astype(np.float32), mask=rng.random(rows) < 0.2)}


def shared(rng: np.random.Generator, rows: int) -> dict[str, pa.Array]:
    """Values that every block has: what a dictionary of a whole segment is for."""
    ids, names = rng.integers(0, 1 << 62, 120), [f"name {number} of something" for number in range(90)]
    picks = rng.zipf(1.3, 4 * rows).clip(1, 120) - 1
    columns = {
        "id": pa.array(ids[picks[:rows]], mask=rng.random(rows) < 0.1),
        "name": pa.array([names[pick % 90] for pick in picks[:rows].tolist()]),
        "ids": pa.ListArray.from_arrays(np.arange(0, 4 * rows + 1, 4, dtype=np.int32), ids[picks]),
        "key": pa.MapArray.from_arrays(np.arange(rows + 1, dtype=np.int32), ids[rng.integers(0, 120, rows)], np.ones(rows, np.float32)),
    }
    return columns


def lists(rng: np.random.Generator, rows: int) -> dict[str, pa.Array]:
    """Windows that slide at either end, repeats that are no neighbours, and lists of one session."""
    starts = np.cumsum(rng.integers(0, 3, rows))
    pool = rng.integers(0, 1 << 20, 3 * rows + 40).astype(np.int32)
    newest_first = pool[(starts[:, None] + np.arange(20)[::-1]).reshape(-1)]
    few = [pool[start : start + 7] for start in rng.integers(0, rows + 1, 12).tolist()]
    return {
        "newest_first": pa.ListArray.from_arrays(np.arange(0, 20 * rows + 1, 20, dtype=np.int32), newest_first),
        "repeats": pa.array([few[pick] for pick in rng.integers(0, 12, rows).tolist()], pa.list_(pa.int32())),
        "session": pa.array([few[pick] for pick in np.repeat(rng.integers(0, 12, rows), 9)[:rows].tolist()], pa.list_(pa.int32())),
    }


def _maker(rng: np.random.Generator) -> Maker:
    return Maker(rng, str(rng.choice(SHAPES)), float(rng.choice([0.0, 0.1, 0.9])))


def weighted(rng: np.random.Generator, rows: int) -> dict[str, pa.Array]:
    """Maps of id → weight, and types that are stored as others: dictionaries and nothing but nulls."""
    odd, weights = (*ODD, *VIEWS), (pa.float32(), pa.int64(), pa.list_(pa.int8()))
    kind = pa.map_((pa.int64(), pa.int32(), pa.string())[int(rng.integers(3))], weights[int(rng.integers(3))])
    return {"weights": _maker(rng).array(kind, rows), "odd": _maker(rng).array(odd[int(rng.integers(len(odd)))], rows)}


THEMES = (any_types, nested, weighted, shared, lists, blobs, any_types, quantised)


def write_all(folder: pathlib.Path) -> None:
    """Every base into the folder."""
    for number in range(NUM_BASES):
        base = make(number)
        (folder / f"{number}.segment").write_bytes(base.data)
        _store(base.table, folder / f"{number}.arrow")
        if base.column_file is not None and base.joined is not None:
            (folder / f"{number}.columns").write_bytes(base.column_file)
            _store(base.joined, folder / f"{number}.joined")


def _store(table: pa.Table, path: pathlib.Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.unify_dictionaries())


@functools.lru_cache(maxsize=NUM_BASES)
def read(folder: pathlib.Path, number: int) -> Base:
    """A base that was written before."""
    columns, joined = folder / f"{number}.columns", folder / f"{number}.joined"
    return Base(
        data=(folder / f"{number}.segment").read_bytes(),
        table=_load(folder / f"{number}.arrow"),
        column_file=columns.read_bytes() if columns.exists() else None,
        joined=_load(joined) if joined.exists() else None,
    )


def _load(path: pathlib.Path) -> pa.Table:
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        return file.read_all()


if __name__ == "__main__":
    write_all(pathlib.Path(sys.argv[1]))
