"""From a caller's data to encoded sections: conform, key, bucket, partition, sort, encode. Pure but for reading a Parquet path."""

from __future__ import annotations

import dataclasses
import itertools
import os
import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loader.catalog.records import ALL_BUCKETS, NewSegment, TableSpec
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
MIXED_ROWS = 1024  # of a commit, below which they are not sorted into buckets: sections of fewer rows than a vector cost more than they help


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
class PreparedParts:
    """Rows of several commits, prepared in one go.

    Attributes:
        whole: All rows; sections lie inside one part each, parts end to end.
        row_bounds, section_bounds: The first row and the first section of each part, and behind them their numbers.
    """

    whole: PreparedRows
    row_bounds: Sequence[int]
    section_bounds: Sequence[int]

    def part(self, number: int) -> PreparedRows:
        """The rows of one commit."""
        first, last = self.row_bounds[number : number + 2]
        sections = self.whole.sections[self.section_bounds[number] : self.section_bounds[number + 1]]
        return PreparedRows(
            table=self.whole.table.slice(first, last - first),
            keys=self.whole.keys.slice(first, last),
            sections=tuple((bucket, partition, start - first, stop - first) for bucket, partition, start, stop in sections),
        )


@dataclasses.dataclass(kw_only=True)
class EncodedRows:
    """One encoded section with what the catalog records of it. Not frozen for the same reason as `NewSegment`."""

    segment: EncodedSegment
    key_index: bytes | memoryview
    bucket: int
    partition: int
    key_range: tuple[int, int] | tuple[None, None]
    time_range: tuple[int, int] | tuple[None, None]
    stats: bytes

    @property
    def index(self) -> KeyIndex:
        return KeyIndex.open(self.key_index)

    def new_segment(self, path: str, offset: int, num_bytes: int, *, level: int, sequences: tuple[int, int] | None = None) -> NewSegment:
        block_rows = self.segment.block_rows
        return NewSegment(
            uuid=self.segment.segment_id.hex(),
            path=path,
            offset=offset,
            num_bytes=num_bytes,
            bucket=self.bucket,
            partition=self.partition,
            level=level,
            num_rows=self.segment.num_rows,
            block_rows=struct.pack(f"<{len(block_rows)}I", *block_rows),
            key_min=self.key_range[0],
            key_max=self.key_range[1],
            time_min=self.time_range[0],
            time_max=self.time_range[1],
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
    return prepare_parts(spec, data, [0, data.num_rows]).whole


def prepare_parts(spec: TableSpec, data: pa.Table, bounds: Sequence[int]) -> PreparedParts:
    """`prepare` for the rows of several commits, which may name the same keys.

    Args:
        spec: The table.
        data: Rows of all commits, end to end.
        bounds: The first row of each commit, and behind them the number of rows.
    """
    table = conform(data, spec.schema).combine_chunks()
    keys = key_words(spec, table)
    parts = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)) if len(bounds) > 2 else None
    twice = keys.first_twice(parts)
    if twice is not None:
        raise KeyExistsError(
            f"key {describe_key(spec, table, twice[0])} stands twice in the data, in rows {twice[0]} and {twice[1]}: table {spec.name!r} takes each key once"
        )
    return _lay_out(spec, table, keys, parts, bounds)


def lay_out(spec: TableSpec, table: pa.Table, keys: Keys) -> PreparedRows:
    """Sort rows that fit the schema into sections; hidden columns come along."""
    return _lay_out(spec, table, keys, None, [0, table.num_rows]).whole


def _lay_out(spec: TableSpec, table: pa.Table, keys: Keys, parts: npt.NDArray[np.int64] | None, bounds: Sequence[int]) -> PreparedParts:
    buckets = _buckets(spec, table, keys, bounds)
    partitions = _partitions(spec, table)
    order = cluster_order(spec, table, buckets, partitions, parts)
    if order is not None:
        table, keys = take(table, order), keys.take(order)
        buckets, partitions = buckets[order], partitions[order]
    changed = (buckets[1:] != buckets[:-1]) | (partitions[1:] != partitions[:-1])
    if parts is not None:
        changed |= parts[1:] != parts[:-1]  # rows stay in their part's place
    starts = [0, *(np.flatnonzero(changed) + 1).tolist()] if table.num_rows else []
    stops = [*starts[1:], table.num_rows]
    sections = tuple(zip(buckets[starts].tolist(), partitions[starts].tolist(), starts, stops, strict=False)) if starts else ()
    return PreparedParts(
        whole=PreparedRows(table=table, keys=keys, sections=sections), row_bounds=bounds, section_bounds=np.searchsorted(starts, bounds).tolist()
    )


def _buckets(spec: TableSpec, table: pa.Table, keys: Keys, bounds: Sequence[int]) -> npt.NDArray[np.int64]:
    """The bucket of the section that each row goes to."""
    if spec.buckets == 1:
        return np.zeros(table.num_rows, np.int64)
    sizes = np.diff(bounds)
    is_small = sizes < MIXED_ROWS
    if is_small.all():
        return np.full(table.num_rows, ALL_BUCKETS)
    buckets = buckets_of(spec, table, keys)
    buckets[np.repeat(is_small, sizes)] = ALL_BUCKETS
    return buckets


def buckets_of(spec: TableSpec, table: pa.Table, keys: Keys) -> npt.NDArray[np.int64]:
    """The bucket of each row, by what the table is bucketed by."""
    if spec.bucket_by_ids == spec.primary_key_ids:
        return bucket_of(keys, spec.buckets)
    return bucket_of(keys_of([table[name] for name in spec.bucket_by], hashed=True), spec.buckets)


def _partitions(spec: TableSpec, table: pa.Table) -> npt.NDArray[np.int64]:
    column = spec.time_column
    if column is None:
        return np.zeros(table.num_rows, np.int64)
    if table[column.name].null_count:
        raise SchemaError(f"time column {column.name!r} of table {spec.name!r} holds {table[column.name].null_count} nulls and may hold none")
    return partition_of(time_words(table[column.name]), column.type, spec.partition_by)


def cluster_order(
    spec: TableSpec,
    table: pa.Table,
    buckets: npt.NDArray[np.int64] | None = None,
    partitions: npt.NDArray[np.int64] | None = None,
    parts: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64] | None:
    """Positions that sort rows by (part, bucket, partition, cluster_by), stable; None where they are sorted by construction."""
    differing = [values for values in (parts, buckets, partitions) if values is not None and len(values) and (values != values[0]).any()]
    if differing and not spec.cluster_by:
        return np.lexsort(differing[::-1])
    arrays, names = [], []
    for name, values in (("g", parts), ("b", buckets), ("p", partitions)):
        if any(values is one for one in differing):
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
    segments = encode_segments(table, bounds, column_ids=column_ids, options=options, key_indexes=indexes)
    key_ranges = [(signed(low), signed(high)) if low is not None and high is not None else (None, None) for low, high in _ranges(keys.low, bounds)]
    times = None if spec.time_column is None else time_words(table[spec.time_column.name])
    time_ranges = [(None, None)] * len(sections) if times is None else _ranges(times, bounds)
    records = records_of(tracked_columns(spec), table, column_ids, bounds, [segment.stats for segment in segments])
    parts = zip(sections, indexes, segments, key_ranges, time_ranges, records, strict=True)
    return [
        EncodedRows(segment=segment, key_index=index, bucket=bucket, partition=partition, key_range=key_range, time_range=time_range, stats=stats)
        for (bucket, partition, _, _), index, segment, key_range, time_range, stats in parts
    ]


def _ranges(values: npt.NDArray[Any], bounds: Sequence[int]) -> list[tuple[int, int] | tuple[None, None]]:
    """The lowest and highest value of each stretch, None where it is empty."""
    found: list[tuple[int, int] | tuple[None, None]] = [(None, None)] * (len(bounds) - 1)
    filled = [at for at, (start, stop) in enumerate(itertools.pairwise(bounds)) if start < stop]
    starts = [bounds[at] for at in filled]
    if starts:
        for at, low, high in zip(filled, np.minimum.reduceat(values, starts).tolist(), np.maximum.reduceat(values, starts).tolist(), strict=True):
            found[at] = (low, high)
    return found


def hidden_name(column_id: int) -> str:
    """The name of a hidden column in a segment."""
    return SEQUENCE_NAME if column_id == SEQUENCE_COLUMN_ID else f"{ORDER_NAME_PREFIX}{column_id - ORDER_BASE_ID}"
