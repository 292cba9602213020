"""Blanking rows of stored segments: pure functions from a segment's bytes to new bytes of as many rows, in the same blocks, without what the rows held.

A blank row is null where a column may be null, else zero or empty. Its time is the earliest of the rows that stay, so that it prunes as before; its key is one
that is not erased, and its entry in the key index a word that no other row of the segment has, since nobody is to find it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog.records import TableSpec
from loader.errors import SchemaError
from loader.schema import take
from loader.segment.column_files import COLUMNS_OF
from loader.segment.key_index import KeyIndex, Keys, build, keys_of, signed
from loader.segment.layout import ROW_COLUMN_ID, SEQUENCE_COLUMN_ID, Feature, Section
from loader.segment.plan import QUANTISE_KEY
from loader.segment.reader import SegmentReader
from loader.segment.writer import WriteOptions, encode_segment
from loader.table.resolve import scatter
from loader.table.statistics import records_of, tracked_columns
from loader.table.times import partition_start, time_words

Rows = npt.NDArray[np.uint32]
_KEPT_COLUMNS = (SEQUENCE_COLUMN_ID, ROW_COLUMN_ID)  # numbers of the table's own, which say nothing of a row
_SPARE_KEYS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blanked:
    """A rewritten section, with what the catalog records of it."""

    data: memoryview
    columns: Mapping[str, int | bytes | None] = dataclasses.field(default_factory=dict)


def blank_segment(spec: TableSpec, reader: SegmentReader, rows: Rows, erased: Keys, partition: int) -> Blanked:
    """A segment whose `rows` are blank; its id, blocks, columns and the other rows' commit sequences stay.

    Args:
        spec: The table.
        reader: The segment.
        rows: Sorted row numbers.
        erased: The keys that are being erased, which no blank row may have.
        partition: The time partition that its rows lie in.
    """
    ids, table = _read(reader)
    stay = np.ones(table.num_rows, bool)
    stay[rows] = False
    fixed: dict[int, pa.Scalar] = {}
    times: npt.NDArray[np.int64] | None = None
    if spec.time_column is not None and spec.time_column.id in ids:
        at = ids.index(spec.time_column.id)
        times = time_words(table.column(at)).copy()
        first = int(times[stay].min()) if stay.any() else partition_start(partition, table.schema.field(at).type, spec.partition_by)
        fixed[spec.time_column.id] = _time_scalar(first, table.schema.field(at).type)
        times[rows] = first
    kinds = [table.schema.field(ids.index(column_id)).type for column_id in spec.primary_key_ids]
    table = _blank(table, ids, rows, fixed | free_key(spec, kinds, erased, fixed))
    index = _without_keys(reader, rows, erased)
    options = WriteOptions(segment_id=reader.segment_id, cluster_by=tuple(reader.properties.get("cluster_by", ())))
    encoded = encode_segment(table, column_ids=ids, options=options, key_index=build(index), block_rows=reader.block_rows.tolist())
    lows = index.low
    stats = records_of(tracked_columns(spec), table, ids, [0, table.num_rows], [encoded.stats])[0]
    columns: dict[str, int | bytes | None] = {
        "stats": stats,
        "key_min": signed(int(lows.min())) if len(lows) else None,
        "key_max": signed(int(lows.max())) if len(lows) else None,
        "time_min": None if times is None else int(times.min()),
        "time_max": None if times is None else int(times.max()),
    }
    return Blanked(data=encoded.data, columns=columns)


def blank_columns(reader: SegmentReader, rows: Rows) -> Blanked:
    """A column file, or operands of waiting labels, whose `rows` are blank."""
    ids, table = _read(reader)
    properties = {COLUMNS_OF: reader.properties[COLUMNS_OF]} if COLUMNS_OF in reader.properties else {}
    features = reader.features & int(Feature.COLUMN_FILE | Feature.OVERLAY)
    options = WriteOptions(segment_id=reader.segment_id, properties=properties)
    table = _blank(table, ids, rows, {})
    return Blanked(data=encode_segment(table, column_ids=ids, options=options, features=features, block_rows=reader.block_rows.tolist()).data)


def drop_operands(reader: SegmentReader, rows: Rows) -> Blanked | None:
    """A patch without its operands for `rows`; None where it has others only, and nothing is to be done."""
    ids, table = _read(reader)
    patched = table.column(ids.index(ROW_COLUMN_ID)).combine_chunks().to_numpy(zero_copy_only=False)
    stays = np.flatnonzero(~np.isin(patched, rows))
    if len(stays) == len(patched):
        return None
    options = WriteOptions(segment_id=reader.segment_id)
    data = encode_segment(take(table, stays), column_ids=ids, options=options, features=reader.features & int(Feature.OVERLAY)).data
    return Blanked(data=data, columns={"num_rows": len(stays)})


def free_key(spec: TableSpec, kinds: Sequence[pa.DataType], erased: Keys, fixed: Mapping[int, pa.Scalar]) -> dict[int, pa.Scalar]:
    """A key for blank rows, by column id, that is not one of the erased.

    Args:
        spec: The table.
        kinds: The stored types of the key's columns.
        erased: The keys that it may not be.
        fixed: What a column should have, by id.

    Raises:
        SchemaError: The key's types have no other values.
    """
    count = len(erased) + _SPARE_KEYS
    for wish in (fixed, {}):
        columns = []
        for column_id, kind in zip(spec.primary_key_ids, kinds, strict=True):
            columns.append(take(pa.array([wish[column_id].as_py()], kind), np.zeros(count, np.int64)) if column_id in wish else _candidates(kind, count))
        free = np.flatnonzero(~is_among(keys_of(columns), erased))
        if len(free):
            return {column_id: column[int(free[0])] for column_id, column in zip(spec.primary_key_ids, columns, strict=True)}
    raise SchemaError(f"every value that a key of table {spec.name!r} ({spec.primary_key}) can have is to be erased: drop the table instead")


def is_among(keys: Keys, wanted: Keys) -> npt.NDArray[np.bool_]:
    """bool[len(keys)]: which keys are among `wanted`."""
    found: npt.NDArray[np.bool_] = np.isin(keys.low, wanted.low)
    if keys.high is not None and wanted.high is not None and found.any():
        at = np.flatnonzero(found)
        pairs = np.dtype([("low", "<u8"), ("high", "<u8")])
        mine, theirs = np.empty(len(at), pairs), np.empty(len(wanted), pairs)
        mine["low"], mine["high"], theirs["low"], theirs["high"] = keys.low[at], keys.high[at], wanted.low, wanted.high
        found[at] = np.isin(mine, theirs)
    return found


def _candidates(kind: pa.DataType, count: int) -> pa.Array:
    numbers = np.arange(count)
    if pa.types.is_boolean(kind):
        return pa.array(numbers % 2 == 1)
    if pa.types.is_integer(kind):
        return pa.array(numbers % (1 << min(kind.bit_width - 1, 62))).cast(kind)
    if pa.types.is_temporal(kind):
        days = numbers * 86_400_000 if pa.types.is_date64(kind) else numbers
        return pa.array(days, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)
    return pa.array(["" if number == 0 else f"erased-{number}" for number in range(count)]).cast(kind)


def _read(reader: SegmentReader) -> tuple[list[int], pa.Table]:
    """All that is stored, to be stored again as it is: what was rounded once is not rounded again, by another scale."""
    ids = [int(column_id) for column_id in reader.resolve(None)]
    table = reader.read(columns=ids).combine_chunks()
    fields = [field.with_metadata({key: value for key, value in (field.metadata or {}).items() if key != QUANTISE_KEY}) for field in table.schema]
    return ids, table.cast(pa.schema(fields, metadata=table.schema.metadata))


def _blank(table: pa.Table, ids: list[int], rows: Rows, fillers: Mapping[int, pa.Scalar]) -> pa.Table:
    arrays: list[Any] = []
    for column_id, field, column in zip(ids, table.schema, table.columns, strict=True):
        if column_id in _KEPT_COLUMNS:
            arrays.append(column)
            continue
        filler = fillers.get(column_id)
        one = pa.array([filler.as_py()], field.type) if filler is not None else pa.nulls(1, field.type) if field.nullable else empty_value(field.type)
        arrays.append(scatter(_whole(column), rows, take(one, np.zeros(len(rows), np.int64))))
    return pa.Table.from_arrays(arrays, schema=table.schema)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)


def empty_value(kind: pa.DataType) -> pa.Array:
    """One value that says nothing, of a type that may not be null: zero, the empty text, the empty list."""
    types = pa.types
    if types.is_fixed_size_list(kind):
        child = take(empty_value(kind.value_type), np.zeros(kind.list_size, np.int64))
        return pa.FixedSizeListArray.from_arrays(child, kind.list_size).cast(kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        return pa.array([[]], kind)
    if types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(pa.array([0], kind.index_type), empty_value(kind.value_type))
    if types.is_temporal(kind):
        return pa.array([0], pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)
    if types.is_boolean(kind):
        return pa.array([False])
    if types.is_integer(kind) or types.is_floating(kind):
        return pa.array(np.zeros(1, kind.to_pandas_dtype()), kind)
    if types.is_fixed_size_binary(kind):
        return pa.array([bytes(kind.byte_width)], kind)
    return pa.array([b""], pa.binary()).cast(kind)


def _time_scalar(value: int, kind: pa.DataType) -> pa.Scalar:
    if pa.types.is_integer(kind):
        return pa.scalar(value, pa.int64()).cast(kind)
    return pa.array([value], pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)[0]


def _without_keys(reader: SegmentReader, rows: Rows, erased: Keys) -> Keys:
    """The segment's keys by row, those of blank rows replaced by words that nobody has."""
    section = reader.section(Section.KEY_INDEX)
    assert section is not None, "segments of a table have a key index"
    index = KeyIndex.open(section)
    low = np.empty(len(index), np.uint64)
    low[index.rows] = index.keys.low
    high = None
    if index.keys.high is not None:
        high = np.empty(len(index), np.uint64)
        high[index.rows] = index.keys.high
        high[rows] = 0
    stay = np.ones(len(low), bool)
    stay[rows] = False
    taken = np.concatenate([low[stay], erased.low])
    start = low[stay].min() if stay.any() else np.uint64(1 << 63)
    words = start + np.arange(len(taken) + len(rows), dtype=np.uint64)  # may wrap around
    low[rows] = words[~np.isin(words, taken)][: len(rows)]
    return Keys(low, high)
