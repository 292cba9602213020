"""Catalogs of a table with very many files, filled by script: no file is there, and planning a scan needs none."""

from __future__ import annotations

import json
import pathlib
import uuid
from collections.abc import Callable
from typing import Any

import bench_table_data as data
import bench_table_peers as peers
import numpy as np

FILE_ROWS, FILE_BYTES = 65_536, 9_000_000
DAYS = 365
SCHEMA = data.samples(np.zeros(0, np.int64), 0).schema


def delta(folder: pathlib.Path, num_files: int) -> Callable[[], int]:
    table = peers.Delta(folder, SCHEMA)
    table.append(data.commit_rows(0, 1))
    log = folder / "delta" / "_delta_log" / "00000000000000000001.json"
    stats = json.dumps({"numRecords": FILE_ROWS, "minValues": {"id": 0, "ts": 0}, "maxValues": {"id": 1 << 40, "ts": 1 << 31}, "nullCount": {"id": 0, "ts": 0}})
    with log.open("w") as lines:
        for number in range(num_files):
            action = {
                "path": f"part-{number:08d}.parquet",
                "partitionValues": {},
                "size": FILE_BYTES,
                "modificationTime": 0,
                "dataChange": True,
                "stats": stats,
            }
            lines.write(json.dumps({"add": action}) + "\n")
    table._open().create_checkpoint()
    return lambda: len(table._open().file_uris())


def iceberg(folder: pathlib.Path, num_files: int) -> Callable[[], int]:
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record

    table = peers.Iceberg(folder, SCHEMA)
    table.append(data.commit_rows(0, 1))
    with table._table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        for number in range(num_files):
            append.append_data_file(
                DataFile.from_args(
                    content=DataFileContent.DATA,
                    file_path=f"file://{folder}/warehouse/part-{number:08d}.parquet",
                    file_format=FileFormat.PARQUET,
                    partition=Record(),
                    record_count=FILE_ROWS,
                    file_size_in_bytes=FILE_BYTES,
                    column_sizes={},
                    value_counts={1: FILE_ROWS},
                    null_value_counts={1: 0},
                    nan_value_counts={},
                    lower_bounds={1: (0).to_bytes(8, "little")},
                    upper_bounds={1: (1 << 40).to_bytes(8, "little")},
                    split_offsets=None,
                )
            )

    def plan() -> int:
        table._table.refresh()
        return sum(1 for _ in table._table.scan().plan_files())

    return plan


def ducklake(folder: pathlib.Path, num_files: int) -> Callable[[], int]:
    table = peers.DuckLake(folder, SCHEMA)
    table.append(data.commit_rows(0, 100))  # fewer rows would lie in the catalog
    copies: dict[str, Any] = {
        "data_file_id": "10 + n",
        "file_order": "10 + n",
        "path": "'part-' || n || '.parquet'",
        "record_count": FILE_ROWS,
        "row_id_start": f"{FILE_ROWS} * n",
    }
    for name in ("ducklake_data_file", "ducklake_file_column_stats"):
        whole = f"__ducklake_metadata_lake.{name}"
        columns = [row[0] for row in table.connection.execute(f"describe {whole}").fetchall()]
        values = ", ".join(str(copies.get(column, column)) for column in columns)
        table.connection.execute(f"insert into {whole} ({', '.join(columns)}) select {values} from {whole}, range({num_files}) numbers(n)")
    return lambda: len(table.connection.execute("select data_file from ducklake_list_files('lake', 't')").fetchall())


def lance(folder: pathlib.Path, num_files: int) -> Callable[[], int]:
    import lance

    table = peers.Lance(folder, SCHEMA)
    table.append(data.commit_rows(0, 1))
    (there,) = (fragment.metadata.to_json() for fragment in table._open().get_fragments())
    fragments = []
    for _ in range(num_files):
        copy: dict[str, Any] = json.loads(json.dumps(there))
        copy["files"][0]["path"] = f"{uuid.uuid4().hex}.lance"
        copy["physical_rows"] = FILE_ROWS
        fragments.append(lance.FragmentMetadata.from_json(json.dumps(copy)))
    lance.LanceDataset.commit(table._uri, lance.LanceOperation.Append(fragments), read_version=table._open().version)
    return lambda: len(table._open().get_fragments())


FILLS: dict[str, Callable[[pathlib.Path, int], Callable[[], int]]] = {"Delta": delta, "Iceberg": iceberg, "DuckLake": ducklake, "Lance": lance}
