"""Which columns the catalog keeps statistics of, and their records for a segment that was just encoded: from its footer, texts from its rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loader.catalog.column_stats import RECORD, Kind, flags_of, text_word
from loader.catalog.records import TableSpec
from loader.encodings.leaf import LeafType, is_bytes, leaf_type, storage_type
from loader.schema import Column, plain_type
from loader.segment.layout import STATS_HAS_RANGE, ValueType
from loader.segment.stats import SegmentStats, has_range

MAX_OTHER_COLUMNS = 12  # beside those that say where rows lie and those asked for
STATISTICS_KEY = b"headrace.statistics"  # field metadata: b"on" keeps statistics of the column, b"off" keeps none
_QUANTISE_KEY = b"headrace.quantise"  # what is stored is not what was measured
_UNSIGNED = (ValueType.BOOL, ValueType.UINT8, ValueType.UINT16, ValueType.UINT32, ValueType.UINT64)


@functools.lru_cache(maxsize=64)
def _kinds(spec: _Spec) -> dict[int, Kind]:
    """Tracked column -> how its range reads, in the order of the schema."""
    wanted, others = set(spec.placing), 0
    found = {}
    for column in spec.columns:
        asked = (column.metadata or {}).get(STATISTICS_KEY)
        kind = _kind(column)
        if kind is None or asked == b"off":
            continue
        if column.id not in wanted and asked != b"on":
            others += 1
            if others > MAX_OTHER_COLUMNS:
                continue
        found[column.id] = kind
    return found


class _Spec:
    """What of a table decides which columns are tracked, as a key of a cache."""

    def __init__(self, spec: TableSpec) -> None:
        time = () if spec.time_column_id is None else (spec.time_column_id,)
        self.placing = (*spec.primary_key_ids, *spec.bucket_by_ids, *spec.cluster_by_ids, *time)
        self.columns = spec.schema.columns
        self._key = (spec.id, spec.schema_id, self.placing, tuple((column.id, str(column.type)) for column in self.columns))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Spec) and self._key == other._key


def tracked_columns(spec: TableSpec) -> dict[int, Kind]:
    """Column id -> how its range reads, for the columns of which statistics are kept: key, bucket, cluster and time, others as far as they are few."""
    return _kinds(_Spec(spec))


def _kind(column: Column) -> Kind | None:
    """How the range of a column reads; None where it has none that a comparison can use."""
    if is_bytes(plain_type(column.type)):
        return Kind.TEXT
    leaf: LeafType = leaf_type(column.type, column.name)
    if leaf.depth or leaf.fixed_size or leaf.weights or _QUANTISE_KEY in (column.metadata or {}) or not has_range(storage_type(column.type)):
        return None
    if leaf.value_type >= ValueType.FLOAT16:
        return None if leaf.value_type == ValueType.BFLOAT16 else Kind.FLOAT
    return Kind.UNSIGNED if leaf.value_type in _UNSIGNED else Kind.SIGNED


def records_of(kinds: dict[int, Kind], table: pa.Table, column_ids: Sequence[int], stats: SegmentStats) -> bytes:
    """The statistics of a segment, as `NewSegment` takes them.

    Args:
        kinds: From `tracked_columns`.
        table: The segment's rows.
        column_ids: Of the table's columns.
        stats: From its encoder.
    """
    places = {column_id: at for at, column_id in enumerate(column_ids)}
    ids = [column_id for column_id in kinds if column_id in places]
    found = stats.select(ids)  # [columns, blocks]
    records = np.zeros(len(ids), RECORD)
    records["column_id"] = ids
    records["null_count"] = found["null_count"].sum(axis=1)
    ranged = (found["flags"] & STATS_HAS_RANGE) != 0
    records["flags"] = [flags_of(kinds[column_id], has_range=bool(has)) for column_id, has in zip(ids, ranged.any(axis=1).tolist(), strict=True)]
    for at, column_id in enumerate(ids):
        kind = kinds[column_id]
        if kind == Kind.TEXT:
            records[at] = _text_record(column_id, table.column(places[column_id]))
        elif found.shape[1] == 1:
            records["min"][at], records["max"][at] = found["min"][at, 0], found["max"][at, 0]
        elif ranged[at].any():
            records["min"][at], records["max"][at] = _widest(found["min"][at][ranged[at]], found["max"][at][ranged[at]], kind)
    return records.tobytes()


def _widest(low: npt.NDArray[np.uint64], high: npt.NDArray[np.uint64], kind: Kind) -> tuple[int, int]:
    """The bit patterns of the least and the greatest over blocks."""
    view = {Kind.SIGNED: np.int64, Kind.UNSIGNED: np.uint64, Kind.FLOAT: np.float64}[kind]
    low, high = np.ascontiguousarray(low), np.ascontiguousarray(high)
    return int(low[int(np.argmin(low.view(view)))]), int(high[int(np.argmax(high.view(view)))])


def _text_record(column_id: int, column: pa.ChunkedArray) -> tuple[int, int, int, int, int]:
    values = column.cast(plain_type(column.type)) if plain_type(column.type) is not column.type else column
    values = values.cast(pa.large_binary() if pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type) else pa.binary())
    ends = pc.min_max(values)
    low, high = ends["min"].as_py(), ends["max"].as_py()
    if low is None:
        return column_id, flags_of(Kind.TEXT, has_range=False), values.null_count, 0, 0
    return column_id, flags_of(Kind.TEXT, has_range=True), values.null_count, text_word(low), text_word(high)
