"""Turns the raw lines into two replayable event streams on disk: samples, and labels that arrive when a product is bought again.

Owns the schema of a sample, the streams' files and their manifest. Histories are written as list views over a small pool for each record
batch, so that neither memory nor disk ever holds a hundred copies of an entry; files are Arrow IPC, in event order.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loader.errors import ConfigError
from ray_jobs.quickstart import features, source_data
from ray_jobs.quickstart.features import Features
from ray_jobs.quickstart.source_data import DEMOGRAPHICS, MONEY, PRODUCT_CODES, RawData

VERSION = 1
KEY = ("household_id", "basket_id", "product_id")
TIME = "ts"
LABEL = "label"
NULLABLE_CODES = (*PRODUCT_CODES, *DEMOGRAPHICS)
CUT_SHARE = 0.8
SMALL_HOUSEHOLDS = 240
SECONDS = pa.timestamp("s")

DENSE_TYPES = {
    "hour": pa.int32(),
    "weekday": pa.int32(),
    "basket_lines": pa.int32(),
    "basket_value": pa.float32(),
    "pair_count": pa.int32(),
    "pair_count_28d": pa.int32(),
    "pair_days_since": pa.float32(),
    "pair_days_between": pa.float32(),
    "type_count": pa.int32(),
    "type_count_28d": pa.int32(),
    "type_days_since": pa.float32(),
    "household_lines": pa.int32(),
    "household_lines_28d": pa.int32(),
    "household_baskets": pa.int32(),
    "household_days_since": pa.float32(),
    "product_lines": pa.int32(),
    "product_lines_28d": pa.int32(),
    "product_households": pa.int32(),
    "product_repeats": pa.int32(),
}

SAMPLE_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.int64(), nullable=False) for name in KEY),
        pa.field(TIME, SECONDS, nullable=False),
        *(pa.field(name, pa.int32()) for name in ("product", "store", *NULLABLE_CODES)),
        pa.field("quantity", pa.int32()),
        *(pa.field(name, pa.float32()) for name in MONEY),
        *(pa.field(name, kind) for name, kind in DENSE_TYPES.items()),
        pa.field("history", pa.list_view(pa.int32())),
        pa.field("history_times", pa.list_view(SECONDS)),
    ]
)
LABEL_SCHEMA = pa.schema(
    [*(pa.field(name, pa.int64(), nullable=False) for name in KEY), pa.field(LABEL, pa.int8()), pa.field("event_time", SECONDS, nullable=False)]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `prepare` wrote, and the split it implies.

    Attributes:
        version, num_households: Of this preparation; another one is not continued. None means all households.
        samples, labels: Events in each stream.
        start, cut, end: Seconds since 1970, UTC: the first line, the cut between training and test (a midnight), the last line.
        train_rows: Samples whose window closed before the cut.
        test_rows: Samples from the cut on whose window closed before the end.
        vocabulary: Number of codes of each id column, 0 (unknown) included.
        households: How many there are.
    """

    version: int
    num_households: int | None
    samples: int
    labels: int
    start: int
    cut: int
    end: int
    train_rows: int
    test_rows: int
    vocabulary: dict[str, int]
    households: int

    @property
    def cut_text(self) -> str:
        """The cut as SQL and YAML write it."""
        return datetime.datetime.fromtimestamp(self.cut, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def table_schema() -> pa.Schema:
    """A sample with its label."""
    return SAMPLE_SCHEMA.append(pa.field(LABEL, pa.int8()))


def prepare(
    target: Path,
    *,
    num_households: int | None = None,
    batch_rows: int = 16_384,
    batches_per_file: int = 8,
    data_folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write both streams into `target`, or return at once if they are there.

    Args:
        target: Folder; it appears whole or not at all.
        num_households: A subset of the households; None takes all.
        batch_rows: Rows of a record batch.
        batches_per_file: Record batches of a file.
        data_folder: Folder of the raw Parquet files; default, the installed package's.
        progress: Called with (samples written, samples in all).
    """
    manifest = read_manifest(target)
    if manifest is not None and (manifest.version, manifest.num_households) == (VERSION, num_households):
        return manifest
    if manifest is not None:
        raise ConfigError(
            f"{target} holds the streams of {manifest.num_households or 'all'} households (version {manifest.version}), not of {num_households or 'all'} "
            f"(version {VERSION}): give another --output, or start over with --fresh"
        )
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    raw = source_data.read(data_folder or source_data.data_folder(), num_households=num_households)
    computed = features.compute(raw)
    labelled = features.label_times(raw)
    for index, batches in enumerate(_groups(sample_batches(raw, computed, batch_rows), batches_per_file)):
        done = _write(part / "samples" / f"{index:05d}.arrow", SAMPLE_SCHEMA, batches)
        if progress:
            progress(min((index + 1) * batch_rows * batches_per_file, raw.num_lines) if done else 0, raw.num_lines)
    for index, batches in enumerate(_groups(label_batches(raw, labelled, batch_rows), batches_per_file)):
        _write(part / "labels" / f"{index:05d}.arrow", LABEL_SCHEMA, batches)
    manifest = _manifest(raw, labelled, num_households)
    (part / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest), indent=1), encoding="utf-8")
    part.rename(target)
    return manifest


def read_manifest(target: Path) -> Manifest | None:
    """The manifest of a finished preparation, or None."""
    path = target / "manifest.json"
    return Manifest(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def split(ts: np.ndarray, *, cut: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Boolean masks of the training and of the test rows, by their time in seconds."""
    closes = ts + features.WINDOW_SECONDS
    return closes <= cut, (ts >= cut) & (closes <= end)


def sample_batches(raw: RawData, computed: Features, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """All samples in event order, `batch_rows` at a time."""
    columns = _flat_columns(raw, computed)
    for begin in range(0, raw.num_lines, batch_rows):
        rows = slice(begin, min(begin + batch_rows, raw.num_lines))
        arrays = [_array(values[rows], SAMPLE_SCHEMA.field(name).type, name) for name, values in columns.items()]
        yield pa.record_batch([*arrays, *_history_arrays(computed.history, raw.lines["household_id"][rows], rows)], schema=SAMPLE_SCHEMA)


def label_batches(raw: RawData, labelled: np.ndarray, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """One event for each line that is bought again in time, ordered by when that happens."""
    lines = np.flatnonzero(labelled >= 0)
    lines = lines[np.argsort(labelled[lines], kind="stable")]
    for begin in range(0, len(lines), batch_rows):
        some = lines[begin : begin + batch_rows]
        keys = [pa.array(raw.lines[name][some]) for name in KEY]
        yield pa.record_batch([*keys, pa.array(np.ones(len(some), np.int8)), pa.array(labelled[some]).cast(SECONDS)], schema=LABEL_SCHEMA)


def _flat_columns(raw: RawData, computed: Features) -> dict[str, np.ndarray]:
    names = (*KEY, TIME, "product", "store", *PRODUCT_CODES)
    return {name: raw.lines[name] for name in names} | raw.demographics | {name: raw.lines[name] for name in ("quantity", *MONEY)} | computed.dense


def _array(values: np.ndarray, kind: pa.DataType, name: str) -> pa.Array:
    """Codes of 0 and dense values of NaN become null."""
    if name in NULLABLE_CODES:
        return pa.array(values.astype(np.int32), kind, mask=values == 0)
    if pa.types.is_floating(kind):
        return pa.array(values, kind, from_pandas=True)
    return pa.array(values).cast(kind)


def _history_arrays(history: features.History, household: np.ndarray, rows: slice) -> list[pa.Array]:
    """List views over a pool that holds, for each household of the batch, the stretch of its lines that any row sees."""
    start, length = history.start[rows], history.length[rows]
    _, code = np.unique(household, return_inverse=True)
    low = np.full(code.max() + 1, np.iinfo(np.int64).max)
    high = np.zeros(code.max() + 1, np.int64)
    np.minimum.at(low, code, start)
    np.maximum.at(high, code, start + length)
    sizes = high - low
    base = np.cumsum(sizes) - sizes
    pool = np.repeat(low - base, sizes) + np.arange(sizes.sum())
    offsets = pa.array((start - low[code] + base[code]).astype(np.int32))
    lengths = pa.array(length.astype(np.int32))
    products, times = pa.array(history.products[pool]), pa.array(history.times[pool]).cast(SECONDS)
    return [pa.ListViewArray.from_arrays(offsets, lengths, products), pa.ListViewArray.from_arrays(offsets, lengths, times)]


def _groups(batches: Iterator[pa.RecordBatch], count: int) -> Iterator[list[pa.RecordBatch]]:
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == count:
            yield group
            group = []
    if group:
        yield group


def _write(path: Path, schema: pa.Schema, batches: list[pa.RecordBatch]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sum(batch.num_rows for batch in batches)


def _manifest(raw: RawData, labelled: np.ndarray, num_households: int | None) -> Manifest:
    ts = raw.lines["ts"]
    start, end = int(ts.min()), int(ts.max())
    cut = int(start + CUT_SHARE * (end - start)) // 86_400 * 86_400
    train, test = split(ts, cut=cut, end=end)
    counts: dict[str, Any] = {"samples": raw.num_lines, "labels": int((labelled >= 0).sum()), "train_rows": int(train.sum()), "test_rows": int(test.sum())}
    households = len(np.unique(raw.lines["household_id"]))
    return Manifest(version=VERSION, num_households=num_households, start=start, cut=cut, end=end, vocabulary=raw.vocabulary, households=households, **counts)
