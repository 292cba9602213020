"""Which columns the catalog keeps statistics of, and their records for a segment that was just encoded: from its footer, texts from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loader.catalog.column_stats import HAS_RANGE, RECORD, Kind, flags_of, text_word
from loader.catalog.records import TableSpec
from loader.encodings.leaf import LeafType, is_bytes, leaf_type, storage_type
from loader.schema import Column, plain_type
from loader.segment.layout import STATS_HAS_RANGE, ValueType
from loader.segment.stats import SegmentStats, has_range

MAX_OTHER_COLUMNS = 12  # beside those that say where rows lie and those asked for
STATISTICS_KEY = b"headrace.statistics"  # field metadata: b"on" keeps statistics of the column, b"off" keeps none
_MAX_SPECS = 64
_QUANTISE_KEY = b"headrace.quantise"  # what is stored is not what was measured
_I64, _U64 = np.iinfo(np.int64), np.iinfo(np.uint64)
_VIEWS = (  # kind, how patterns read, the least and the greatest value
    (Kind.SIGNED, np.int64, _I64.min, _I64.max),
    (Kind.UNSIGNED, np.uint64, _U64.min, _U64.max),
    (Kind.FLOAT, np.float64, -np.inf, np.inf),
)
_UNSIGNED = (ValueType.BOOL, ValueType.UINT8, ValueType.UINT16, ValueType.UINT32, ValueType.UINT64)


_tracked: dict[int, tuple[TableSpec, dict[int, Kind]]] = {}  # by identity: a writer asks at every commit


def tracked_columns(spec: TableSpec) -> dict[int, Kind]:
    """Column id -> how its range reads, for the columns of which statistics are kept: key, bucket, cluster and time, others as far as they are few."""
    kept = _tracked.get(id(spec))
    if kept is None or kept[0] is not spec:
        if len(_tracked) >= _MAX_SPECS:
            _tracked.clear()
        kept = _tracked[id(spec)] = (spec, _kinds(spec))
    return kept[1]


def _kinds(spec: TableSpec) -> dict[int, Kind]:
    placing = {*spec.primary_key_ids, *spec.bucket_by_ids, *spec.cluster_by_ids, spec.time_column_id}
    found, others = {}, 0
    for column in spec.schema:
        asked = (column.metadata or {}).get(STATISTICS_KEY)
        kind = _kind(column)
        if kind is None or asked == b"off":
            continue
        if column.id not in placing and asked != b"on":
            others += 1
            if others > MAX_OTHER_COLUMNS:
                continue
        found[column.id] = kind
    return found


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


def records_of(kinds: dict[int, Kind], table: pa.Table, column_ids: Sequence[int], bounds: Sequence[int], stats: Sequence[SegmentStats]) -> list[bytes]:
    """The statistics of segments that were encoded together, as `NewSegment` takes them.

    Args:
        kinds: From `tracked_columns`.
        table: Their rows, end to end.
        column_ids: Of the table's columns.
        bounds: Where each segment begins, and where the last ends.
        stats: From the encoder, of each.
    """
    places = {column_id: at for at, column_id in enumerate(column_ids)}
    ids = [column_id for column_id in kinds if column_id in places]
    records = np.zeros((len(stats), len(ids)), RECORD)
    records["column_id"] = ids
    records["flags"] = [flags_of(kinds[column_id], has_range=False) for column_id in ids]
    cuts = np.cumsum([0, *(part.records.shape[1] for part in stats)])
    filled = np.flatnonzero(np.diff(cuts))
    if len(filled) and ids:
        blocks = np.empty((len(stats[0].records), int(cuts[-1])), stats[0].records.dtype)  # concatenating records compares their fields each time
        for part, start, stop in zip(stats, cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            blocks[:, start:stop] = part.records
        made = {name: blocks[name][stats[0].places(ids)] for name in ("min", "max", "null_count", "flags")}
        records[filled] = _ranges(records[filled], made, cuts[filled], [kinds[column_id] for column_id in ids])
    for at, column_id in enumerate(ids):
        if kinds[column_id] == Kind.TEXT:
            _set_text(records[:, at], table.column(places[column_id]), bounds)
    return [row.tobytes() for row in records]


def _ranges(records: npt.NDArray[Any], made: dict[str, npt.NDArray[Any]], starts: npt.NDArray[np.int64], kinds: Sequence[Kind]) -> npt.NDArray[Any]:
    """Counts and ranges of segments [segments, columns] from their blocks [columns, blocks], which lie end to end from `starts` on."""
    records["null_count"] = np.add.reduceat(made["null_count"].astype(np.uint64), starts, axis=1).T
    has = (made["flags"] & STATS_HAS_RANGE) != 0
    ranged = np.logical_or.reduceat(has, starts, axis=1)
    for kind, view, least, most in _VIEWS:
        own = np.array([at for at, of in enumerate(kinds) if of == kind], np.int64)
        if not len(own):
            continue
        low, high = (np.where(has[own], made[name][own].view(view), empty) for name, empty in (("min", most), ("max", least)))
        records["min"][:, own] = np.minimum.reduceat(low, starts, axis=1).view(np.uint64).T
        records["max"][:, own] = np.maximum.reduceat(high, starts, axis=1).view(np.uint64).T
        records["flags"][:, own] |= np.where(ranged[own].T, HAS_RANGE, 0).astype(np.uint32)
    return records


def _set_text(records: npt.NDArray[Any], column: pa.ChunkedArray, bounds: Sequence[int]) -> None:
    """Counts and ranges of one column of text, segment by segment."""
    plain = plain_type(column.type)
    values = (column if plain is column.type else column.cast(plain)).combine_chunks()
    wide = pa.types.is_large_string(plain) or pa.types.is_large_binary(plain)
    values = values.cast(pa.large_binary() if wide else pa.binary())
    for at, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        part = values.slice(start, stop - start)
        ends = pc.min_max(part).as_py()
        records["null_count"][at] = part.null_count
        if ends["min"] is not None:
            records["min"][at], records["max"][at] = text_word(ends["min"]), text_word(ends["max"])
            records["flags"][at] |= HAS_RANGE
