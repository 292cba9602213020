"""The data sets of `scripts/bench_format` as Arrow tables, and their columns by class.

`quickstart`: the quickstart's samples, of as many households as its `--small` takes, in the order in which a compacted lake keeps them.
`samples`: the fixed generator of bench_samples.py. `wide`: very many columns. Rows of a lake come in the place of all three.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow as pa
from bench_samples import make_samples

from ray_jobs.quickstart import dataset, features, source_data
from ray_jobs.quickstart.storage import in_order

HOUSEHOLDS = dataset.SMALL_HOUSEHOLDS
CLUSTER_BY = ["household_id", dataset.TIME]
CLASSES = {
    "samples": {
        "random floats": ("float_",),
        "decimals": ("decimal_",),
        "counts and flags": ("count_", "flag_"),
        "ids": ("user_id", "session_id", "item_id", "ts", "label"),
        "session lists": tuple(f"list_{k:02}" for k in range(0, 26, 2)),
        "row lists": tuple(f"list_{k:02}" for k in range(1, 26, 2)),
        "histories": ("history_",),
    },
    "quickstart": {
        "counts": ("quantity", *(name for name, kind in dataset.DENSE_TYPES.items() if pa.types.is_integer(kind))),
        "decimals": (*dataset.MONEY, "basket_value"),
        "gaps in days": ("pair_days", "type_days", "household_days"),
        "ids": (*dataset.KEY, dataset.TIME, dataset.LABEL, "product", "store", *dataset.NULLABLE_CODES),
        "histories": ("history",),
    },
}
TYPES = {"lists": pa.types.is_list, "floats": pa.types.is_floating, "integers": pa.types.is_integer, "times": pa.types.is_temporal}


def quickstart_folder(packages: pathlib.Path | None) -> pathlib.Path:
    """The raw files of the quickstart's package: of this Python, or of the peers' environment.

    Raises:
        MissingDependencyError: It is in neither.
    """
    found = None if packages is None else next(packages.glob(f"lib/python*/site-packages/{source_data.PACKAGE}/data"), None)
    return found or source_data.data_folder()


def quickstart_samples(folder: pathlib.Path, households: int) -> pa.Table:
    """Samples as the quickstart makes them, labels folded in: 1 where the product was bought again in time, else null; rows by household and time."""
    raw = source_data.read(folder, num_households=households)
    rows = pa.Table.from_batches(dataset.sample_batches(raw, features.compute(raw), raw.num_lines), schema=dataset.SAMPLE_SCHEMA)
    bought = features.label_times(raw) >= 0
    table = rows.append_column(pa.field(dataset.LABEL, pa.int8()), pa.array(bought.astype(np.int8), mask=~bought))
    return in_order(table, CLUSTER_BY).combine_chunks()


def wide_table(columns: int, rows: int) -> pa.Table:
    """Float columns, a third of them null in places, as wide feature tables are."""
    rng = np.random.default_rng(23)
    arrays = []
    for number in range(columns):
        values = rng.integers(0, 3 + number % 5_000, rows).astype(np.float32) / np.float32(100 if number % 2 else 1)
        arrays.append(pa.array(values, mask=rng.random(rows) < 0.5 if number % 3 == 0 else None))
    return pa.table(arrays, names=[f"feature_{number:05}" for number in range(columns)])


def lake_rows(location: str, name: str, rows: int) -> pa.Table:
    """The first rows of a table in a lake."""
    import loader

    with loader.connect(location, create=False) as lake:
        return lake.table(name).to_arrow().slice(0, rows).combine_chunks()


def classes_of(title: str, table: pa.Table) -> dict[str, list[str]]:
    """Columns by class: those of known data by their names, others by their types."""
    known = CLASSES.get(title, {})
    found: dict[str, list[str]] = {}
    for field in table.schema:
        name = next((label for label, prefixes in known.items() if field.name.startswith(prefixes)), None)
        if name is None:
            name = next((label for label, fits in TYPES.items() if fits(field.type)), "others")
        found.setdefault(name, []).append(field.name)
    return found


def store(table: pa.Table, path: pathlib.Path) -> str:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return str(path)


__all__ = ["HOUSEHOLDS", "classes_of", "lake_rows", "make_samples", "quickstart_folder", "quickstart_samples", "store", "wide_table"]
