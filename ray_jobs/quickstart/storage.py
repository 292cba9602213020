"""What the samples weigh: in the lake, and as Parquet with zstd holding the same rows in the same clustered order. Owns the comparison only."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loader.table.table import Table
from ray_jobs.quickstart.dataset import Manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class LakeBytes:
    """Stored bytes of a table's live files.

    Attributes:
        segments: Files that hold rows: data, footers and key indexes.
        overlays: Labels that wait to be folded in.
        num_segments: Segments.
        columns: Data bytes of each column, footers and indexes left out.
    """

    segments: int
    overlays: int
    num_segments: int
    columns: dict[str, int]

    @property
    def total(self) -> int:
        return self.segments + self.overlays


def lake_bytes(table: Table) -> LakeBytes:
    state = table.describe()
    return LakeBytes(segments=state["segment_bytes"], overlays=state["overlay_bytes"], num_segments=state["num_segments"], columns=table.bytes_by_column())


def parquet_bytes(
    table: Table, manifest: Manifest, scratch: Path, *, threads: int = 2, progress: Callable[[int, int], None] | None = None
) -> tuple[int, dict[str, int]]:
    """Write the table as Parquet with zstd and weigh it: a file for each month, its rows in the order of `cluster_by`, as in the lake.

    Args:
        table: The samples.
        manifest: For the span of time.
        scratch: A folder for the files; they are removed again.
        threads: Months written at the same time.
        progress: Called with (rows written, rows in all).

    Returns:
        Bytes of the files, and compressed bytes by column.
    """
    scratch.mkdir(parents=True, exist_ok=True)

    def write(where: str) -> tuple[int, int, dict[str, int]]:
        rows = in_order(table.to_arrow(where=where), table.cluster_by)
        path = scratch / f"{uuid.uuid4().hex}.parquet"
        pq.write_table(rows, path, compression="zstd")
        weights = rows.num_rows, path.stat().st_size, _column_bytes(path)
        path.unlink()
        return weights

    num_rows, num_bytes, columns = 0, 0, dict.fromkeys(table.schema.names, 0)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for rows, size, by_column in pool.map(write, _months(manifest)):
            num_rows, num_bytes = num_rows + rows, num_bytes + size
            columns = {name: total + by_column[name] for name, total in columns.items()}
            if progress:
                progress(num_rows, manifest.samples)
    scratch.rmdir()
    return num_bytes, columns


def in_order(rows: pa.Table, names: list[str]) -> pa.Table:
    """Rows sorted by columns, with lists written out in full: Parquet knows no views."""
    keys = [rows[name].to_numpy() for name in reversed(names)]
    order = np.lexsort(keys)
    columns = []
    for name in rows.column_names:
        column = rows[name]
        columns.append(_gather_lists(column, order) if pa.types.is_list_view(column.type) else column.take(pa.array(order)))
    return pa.table(columns, names=rows.column_names)


def _gather_lists(column: pa.ChunkedArray, order: np.ndarray) -> pa.Array:
    """The lists of a list-view column (without nulls) in another order, end to end."""
    pools, starts, base = [], [], 0
    for chunk in column.chunks:
        pools.append(chunk.values)
        starts.append(chunk.offsets.to_numpy().astype(np.int64) + base)
        base += len(chunk.values)
    start = np.concatenate(starts)[order]
    length = np.concatenate([chunk.sizes.to_numpy() for chunk in column.chunks])[order].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(length)])
    entries = np.repeat(start - offsets[:-1], length) + np.arange(offsets[-1])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.concat_arrays(pools).take(pa.array(entries)))


def _months(manifest: Manifest) -> Iterator[str]:
    first = datetime.datetime.fromtimestamp(manifest.start, datetime.timezone.utc).replace(day=1, hour=0, minute=0, second=0)
    last = datetime.datetime.fromtimestamp(manifest.end, datetime.timezone.utc)
    while first <= last:
        following = (first + datetime.timedelta(days=32)).replace(day=1)
        yield f"ts >= '{first:%Y-%m-%d %H:%M:%S}' and ts < '{following:%Y-%m-%d %H:%M:%S}'"
        first = following


def _column_bytes(path: Path) -> dict[str, int]:
    metadata = pq.read_metadata(path)
    totals: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            name = column.path_in_schema.partition(".")[0]
            totals[name] = totals.get(name, 0) + column.total_compressed_size
    return totals
