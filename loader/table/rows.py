"""From a caller's data to encoded sections: conform, key, bucket, partition, sort, encode. Pure but for reading a Parquet path."""

from __future__ import annotations

import dataclasses
import itertools
import os
import uuid
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loader.catalog.records import NewSegment, TableSpec
from loader.errors import KeyExistsError, NotFoundError, SchemaError
from loader.schema import conform, take
from loader.segment.key_index import KeyIndex, Keys, bucket_of, build_all, keys_of, signed
from loader.segment.layout import SEQUENCE_COLUMN_ID
from loader.segment.writer import EncodedSegment, WriteOptions, encode_segments
from loader.table.merge import ORDER_BASE_ID
from loader.table.statistics import records_of, tracked_columns
from loader.table.times import partition_of, time_words

Data: TypeAlias = pa.Table | pa.RecordBatch | pa.RecordBatchReader | str | os.PathLike[str]
SEQUENCE_NAME = "__sequence"
ORDER_NAME_PREFIX = "__order_of_"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedRows:
    """Rows ready to encode.

    Attributes:
        table: Sorted by bucket, partition, then cluster_by.
        keys: Of its rows, in the same order.
        sections: (bucket, partition, start, stop) of each section of rows.
    """

    table: pa.Table
    keys: Keys
    sections: tuple[tuple[int, int, int, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """One encoded section with what the catalog records of it."""

    segment: EncodedSegment
    index: KeyIndex
    bucket: int
    partition: int
    time_min: int | None
    time_max: int | None
    stats: bytes

    def new_segment(self, path: str, offset: int, num_bytes: int, *, level: int, sequences: tuple[int, int] | None = None) -> NewSegment:
        low = self.index.keys.low
        return NewSegment(
            uuid=uuid.UUID(bytes=bytes(self.segment.segment_id)).hex,
            path=path,
            offset=offset,
            num_bytes=num_bytes,
            bucket=self.bucket,
            partition=self.partition,
            level=level,
            num_rows=self.segment.num_rows,
            block_rows=np.asarray(self.segment.block_rows, "<u4").tobytes(),
            key_min=signed(int(low[0])) if len(low) else None,
            key_max=signed(int(low[-1])) if len(low) else None,
            time_min=self.time_min,
            time_max=self.time_max,
            sequence_min=None if sequences is None else sequences[0],
            sequence_max=None if sequences is None else sequences[1],
            stats=self.stats,
        )


def as_table(data: Data) -> pa.Table:
    """Any form of input as one Arrow table.

    Raises:
        ValueError: It is none of pyarrow.Table, RecordBatch, RecordBatchReader, or a path to a Parquet file.
        NotFoundError: No file is at the path.
        SchemaError: A column stands twice.
    """
    table = _table(data)
    names = sorted(table.column_names)
    twice = [name for name, following in itertools.pairwise(names) if name == following]
    if twice:
        raise SchemaError(f"column {twice[0]!r} stands twice in the data: rename or drop one")
    return table


def _table(data: Data) -> pa.Table:
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if isinstance(data, pa.RecordBatchReader):
        return data.read_all()
    if isinstance(data, str | os.PathLike):
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(os.fspath(data))
        except FileNotFoundError as error:
            raise NotFoundError(f"no Parquet file {os.fspath(data)}: check the path") from error
    raise ValueError(f"data is a {type(data).__name__}: give a pyarrow Table, RecordBatch or RecordBatchReader, or the path of a Parquet file")


def key_words(spec: TableSpec, table: pa.Table) -> Keys:
    """The keys of rows.

    Raises:
        SchemaError: A key column holds nulls.
    """
    columns = [table[name] for name in spec.primary_key]
    for name, column in zip(spec.primary_key, columns, strict=True):
        if column.null_count:
            raise SchemaError(f"primary key column {name!r} of table {spec.name!r} holds {column.null_count} nulls and may hold none")
    return keys_of(columns)


def describe_key(spec: TableSpec, table: pa.Table, row: int) -> str:
    """A key for an error message: (household 7, basket 3)."""
    return "(" + ", ".join(f"{name} {table[name][row].as_py()!r}" for name in spec.primary_key) + ")"


def prepare(spec: TableSpec, data: pa.Table) -> PreparedRows:
    """Conform rows to the schema and sort them into sections.

    Raises:
        SchemaError: The data does not fit the schema.
        KeyExistsError: A key stands twice in the data.
    """
    table = conform(data, spec.schema).combine_chunks()
    keys = key_words(spec, table)
    twice = keys.first_twice()
    if twice is not None:
        raise KeyExistsError(
            f"key {describe_key(spec, table, twice[0])} stands twice in the data, in rows {twice[0]} and {twice[1]}: table {spec.name!r} takes each key once"
        )
    return lay_out(spec, table, keys)


def lay_out(spec: TableSpec, table: pa.Table, keys: Keys) -> PreparedRows:
    """Sort rows that fit the schema into sections; hidden columns come along."""
    if spec.bucket_by_ids == spec.primary_key_ids:
        buckets = bucket_of(keys, spec.buckets)
    else:
        buckets = bucket_of(keys_of([table[name] for name in spec.bucket_by], hashed=True), spec.buckets)
    partitions = _partitions(spec, table)
    order = cluster_order(spec, table, buckets, partitions)
    if order is not None:
        table, keys = take(table, order), keys.take(order)
        buckets, partitions = buckets[order], partitions[order]
    cuts = np.flatnonzero((np.diff(buckets) != 0) | (np.diff(partitions) != 0)) + 1
    bounds = [0, *cuts.tolist(), table.num_rows] if table.num_rows else [0]
    sections = tuple((int(buckets[a]), int(partitions[a]), a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True))
    return PreparedRows(table=table, keys=keys, sections=sections)


def _partitions(spec: TableSpec, table: pa.Table) -> npt.NDArray[np.int64]:
    column = spec.time_column
    if column is None:
        return np.zeros(table.num_rows, np.int64)
    if table[column.name].null_count:
        raise SchemaError(f"time column {column.name!r} of table {spec.name!r} holds {table[column.name].null_count} nulls and may hold none")
    return partition_of(time_words(table[column.name]), column.type, spec.partition_by)


def cluster_order(
    spec: TableSpec, table: pa.Table, buckets: npt.NDArray[np.int64] | None = None, partitions: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64] | None:
    """Positions that sort rows by (bucket, partition, cluster_by), stable; None where they are sorted by construction."""
    arrays, names = [], []
    for name, values in (("b", buckets), ("p", partitions)):
        if values is not None and len(values) and (values != values[0]).any():
            arrays.append(pa.array(values))
            names.append(name)
    for at, name in enumerate(spec.cluster_by):
        arrays.append(table[name].combine_chunks())
        names.append(f"c{at}")
    if not arrays or not table.num_rows:
        return None
    keys = pa.Table.from_arrays(arrays, names=names)
    order: npt.NDArray[np.int64] = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in names]).to_numpy().astype(np.int64)
    return order


def encode_sections(
    spec: TableSpec, table: pa.Table, keys: Keys, column_ids: Sequence[int], sections: Sequence[tuple[int, int, int, int]], *, threads: int | None = None
) -> list[EncodedRows]:
    """Encode sections of rows, hidden columns included: all in one go, since a small commit has one for each bucket.

    Args:
        spec: The table.
        table: Rows of all sections, end to end.
        keys: Of the rows.
        column_ids: Of the table's columns.
        sections: (bucket, partition, start, stop), as `PreparedRows` has them.
        threads: Columns encoded at the same time, at most.
    """
    bounds = [0, *(stop for _, _, _, stop in sections)]
    indexes = build_all(keys, bounds)
    options = WriteOptions(cluster_by=tuple(spec.cluster_by), threads=threads)
    segments = encode_segments(table, bounds, column_ids=column_ids, options=options, key_indexes=[section for section, _ in indexes])
    times = None if spec.time_column is None else time_words(table[spec.time_column.name])
    records = records_of(tracked_columns(spec), table, column_ids, bounds, [segment.stats for segment in segments])
    encoded = []
    for (bucket, partition, start, stop), (_, index), segment, stats in zip(sections, indexes, segments, records, strict=True):
        own = None if times is None or start == stop else times[start:stop]
        time_min, time_max = (None, None) if own is None else (int(own.min()), int(own.max()))
        encoded.append(EncodedRows(segment=segment, index=index, bucket=bucket, partition=partition, time_min=time_min, time_max=time_max, stats=stats))
    return encoded


def encode_rows(
    spec: TableSpec, table: pa.Table, keys: Keys, column_ids: Sequence[int], bucket: int, partition: int, *, threads: int | None = None
) -> EncodedRows:
    """Encode the rows of one section."""
    return encode_sections(spec, table, keys, column_ids, [(bucket, partition, 0, table.num_rows)], threads=threads)[0]


def hidden_name(column_id: int) -> str:
    """The name of a hidden column in a segment."""
    return SEQUENCE_NAME if column_id == SEQUENCE_COLUMN_ID else f"{ORDER_NAME_PREFIX}{column_id - ORDER_BASE_ID}"
