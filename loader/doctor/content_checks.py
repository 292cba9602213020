"""Deep checks: whether stored sections hold what the catalog says of them. Each looks at one opened section, whose checksums were compared before.

A check of a segment sees all of its rows, deleted ones too: what the catalog states of a segment was true when it was written, and must hold for every
snapshot that shows it. Rows that were erased are blank and count for nothing.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loader.catalog.column_stats import RECORD, Kind, Ranges, by_column, text_word
from loader.catalog.records import ALL_BUCKETS, DELETES, OverlayRef, TableSpec
from loader.doctor.checks import Found, check
from loader.doctor.history_checks import FROM_BACKUP
from loader.errors import FormatError
from loader.segment.key_index import KeyIndex, bucket_of, keys_of, signed
from loader.segment.layout import ROW_COLUMN_ID, SEQUENCE_COLUMN_ID, STATS_HAS_RANGE, Feature, Section
from loader.segment.reader import SegmentReader
from loader.segment.stats import narrow
from loader.storage import Storage
from loader.table.pending import unpack_keys
from loader.table.segments import column_ids_of, one_type, open_segment, operand_rows, read_by_id
from loader.table.times import partition_of, time_words

REWRITE = "headrace compact TABLE --full writes the segment anew from its columns; if that does not help, " + FROM_BACKUP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A stored section with its record.

    Attributes:
        record: Its row in the catalog, by column.
        reader: Of its bytes.
        spec: The table; None where its definition cannot be read.
        segment: Of an overlay or a column file: the row of its segment.
        overlays: Of a segment: its live overlays, and those that hide rows for good.
        storage: The lake's.
    """

    record: Mapping[str, Any]
    reader: SegmentReader
    spec: TableSpec | None
    segment: Mapping[str, Any] | None
    overlays: tuple[OverlayRef, ...]
    storage: Storage

    def read(self, ids: tuple[int, ...]) -> list[pa.Array] | None:
        """Columns as the table has them now; None where the segment was written without one of them."""
        assert self.spec is not None
        read = read_by_id(self.reader, ids)
        types = {column.id: column.type for column in self.spec.schema}
        return [one_type(read[column_id], types[column_id]) for column_id in ids] if set(ids) <= set(read) else None

    def rows_of(self, kind: str) -> list[npt.NDArray[np.uint32]]:
        """The rows of each overlay of a kind."""
        return [
            operand_rows(read_by_id(open_segment(self.storage, overlay), [ROW_COLUMN_ID]))
            for overlay in self.overlays
            if overlay.kind == kind and overlay.num_rows
        ]

    def kept(self) -> npt.NDArray[np.bool_]:
        """bool[num_rows]: rows that were not erased."""
        kept = np.ones(self.reader.num_rows, bool)
        for rows in self.rows_of("erased"):
            kept[rows[rows < len(kept)]] = False
        return kept


@check(
    "segment-content",
    scope="segments",
    explains="the object at this place is another one than was committed, or the catalog's record of it was changed",
    remedy="restore the file that was committed (headrace restore)",
)
def segment_content(opened: Opened) -> Iterator[Found]:
    record, reader = opened.record, opened.reader
    stored = uuid.UUID(bytes=bytes(reader.segment_id)).hex
    if stored != record["segment_uuid"]:
        yield _of(opened, f"it is segment {stored}, and {record['segment_uuid']} was committed")
    if reader.num_rows != record["num_rows"] or reader.block_rows.astype("<u4").tobytes() != bytes(record["block_rows"]):
        yield _of(opened, f"{reader.num_rows:,} rows in {reader.num_blocks:,} blocks, and the catalog states {record['num_rows']:,} rows, or other blocks")


def _of(opened: Opened, what: str) -> Found:
    record = opened.record
    return Found(where=f"{record['path']} at {record['section_offset']}", what=what)


@check(
    "key-index",
    scope="segments",
    explains="writes and look-ups find rows by the key index: a row whose key is not in it, or stands wrong, is written twice and never found",
    remedy=REWRITE,
)
def key_index(opened: Opened) -> Iterator[Found]:
    section = opened.reader.section(Section.KEY_INDEX)
    if section is None:
        yield _of(opened, "it has no key index")
        return
    try:
        index = KeyIndex.open(section)
    except FormatError as error:
        yield _of(opened, str(error))
        return
    num_rows = opened.reader.num_rows
    if len(index) != num_rows or not np.array_equal(np.sort(index.rows), np.arange(num_rows)):
        yield _of(opened, f"its key index has {len(index):,} entries, and not each of its {num_rows:,} rows once")
        return
    if (index.keys.low[1:] < index.keys.low[:-1]).any():
        yield _of(opened, "its key index is not sorted")
    if not index.may_contain(index.keys).all():
        yield _of(opened, "its Bloom filter denies keys that it has")
    if opened.spec is not None:
        yield from _wrong_keys(opened, index)


def _wrong_keys(opened: Opened, index: KeyIndex) -> Iterator[Found]:
    assert opened.spec is not None
    columns = opened.read(opened.spec.primary_key_ids)
    if columns is None:
        yield _of(opened, "it was written without a column of the key")
        return
    keys, kept = keys_of(columns).take(index.rows), opened.kept()[index.rows]
    differs = keys.low != index.keys.low
    if keys.high is not None and index.keys.high is not None:
        differs |= keys.high != index.keys.high
    wrong = np.flatnonzero(differs & kept)
    if len(wrong) or (keys.high is None) != (index.keys.high is None):
        yield _of(opened, f"its key index has other keys than {len(wrong):,} of its rows, first row {index.rows[wrong[0]] if len(wrong) else 0}")
    low = keys.low[kept]
    bounds = (opened.record["key_min"], opened.record["key_max"])
    if len(low) and (bounds[0] is None or signed(int(low.min())) < bounds[0] or signed(int(low.max())) > bounds[1]):
        yield _of(opened, f"its keys go from {signed(int(low.min()))} to {signed(int(low.max()))}, and the catalog states {bounds[0]} to {bounds[1]}")


@check(
    "place-of-rows",
    scope="segments",
    explains="a scan of a bucket, a partition, a time or a sequence skips this segment by what the catalog states: these rows are missed",
    remedy=REWRITE,
)
def place_of_rows(opened: Opened) -> Iterator[Found]:
    spec, record = opened.spec, opened.record
    kept = opened.kept()
    if spec is None or not kept.any():
        return
    own = opened.read(spec.bucket_by_ids)
    if own is not None and record["bucket"] != ALL_BUCKETS:
        buckets = bucket_of(keys_of(own, hashed=spec.bucket_by_ids != spec.primary_key_ids), spec.buckets)[kept]
        if (buckets != record["bucket"]).any():
            yield _of(opened, f"{int((buckets != record['bucket']).sum()):,} rows are of other buckets than {record['bucket']}")
    times = None if spec.time_column_id is None or spec.time_column is None else opened.read((spec.time_column_id,))
    if times is not None and spec.time_column is not None:
        words = time_words(times[0])[kept]
        low, high = int(words.min()), int(words.max())
        if record["time_min"] is None or low < record["time_min"] or high > record["time_max"]:
            yield _of(opened, f"its times go from {low} to {high}, and the catalog states {record['time_min']} to {record['time_max']}")
        if (partition_of(words, spec.time_column.type, spec.partition_by) != record["time_partition"]).any():
            yield _of(opened, f"it has rows of other partitions than {record['time_partition']}")
    hidden = read_by_id(opened.reader, [SEQUENCE_COLUMN_ID]).get(SEQUENCE_COLUMN_ID)
    if hidden is not None:
        sequence = hidden.to_numpy(zero_copy_only=False)
        if sequence.min() < record["sequence_min"] or sequence.max() > record["sequence_max"]:
            yield _of(
                opened,
                f"its rows have sequences {sequence.min()} to {sequence.max()}, and the catalog states {record['sequence_min']} to {record['sequence_max']}",
            )
    elif record["sequence_min"] != record["sequence_max"]:
        yield _of(opened, f"its rows have no sequence of their own, and the catalog states {record['sequence_min']} to {record['sequence_max']}")


def _numbers(array: pa.Array) -> pa.Array | None:
    """Values as the footer counts them; None for types whose smallest and largest are not compared here."""
    types = pa.types
    if types.is_integer(array.type) or types.is_float32(array.type) or types.is_float64(array.type):
        return array
    if types.is_date32(array.type):
        return array.view(pa.int32())
    return array.view(pa.int64()) if types.is_timestamp(array.type) or types.is_date64(array.type) or types.is_duration(array.type) else None


@check(
    "block-statistics",
    scope="segments",
    explains="blocks are skipped by their smallest and largest values: a wrong one hides rows from a predicate",
    remedy=REWRITE,
)
def block_statistics(opened: Opened) -> Iterator[Found]:
    reader = opened.reader
    for column_id in reader.columns["column_id"].tolist():
        array = read_by_id(reader, [column_id])[column_id]
        name, leaf, numbers = reader.column_name(reader.column_index(column_id)), reader.leaves([column_id])[0].value_type, _numbers(array)
        for block, (record, start, count) in enumerate(zip(reader.stats(column_id), reader.block_starts.tolist(), reader.block_rows.tolist(), strict=True)):
            where = f"column {name!r}, block {block}"
            nulls = array.slice(start, count).null_count
            if nulls != int(record["null_count"]):
                yield _of(opened, f"{where}: {nulls} nulls, and its footer states {record['null_count']}")
            if numbers is None or not int(record["flags"]) & STATS_HAS_RANGE:
                continue
            found = pc.min_max(numbers.slice(start, count)).as_py()
            low, high = narrow(int(record["min"]), leaf), narrow(int(record["max"]), leaf)
            if found["min"] is not None and (found["min"] < low or found["max"] > high):
                yield _of(opened, f"{where}: values {found['min']} to {found['max']}, and its footer states {low} to {high}")


@check(
    "segment-statistics",
    scope="segments",
    explains="whole segments are skipped by the smallest and largest values that the catalog keeps of them: a wrong one hides rows from a predicate",
    remedy=REWRITE,
)
def segment_statistics(opened: Opened) -> Iterator[Found]:
    """What the catalog keeps of columns beside the segment's row; rows that were erased count for nothing."""
    kept = opened.kept()
    for stated in np.frombuffer(bytes(opened.record["stats"] or b""), RECORD):
        ranges = by_column([stated.tobytes()])[int(stated["column_id"])]
        array = read_by_id(opened.reader, [int(stated["column_id"])]).get(int(stated["column_id"]))
        if array is None or not ranges.known[0]:
            continue
        rows = array if kept.all() else array.filter(pa.array(kept))
        if kept.all() and rows.null_count != int(stated["null_count"]):
            yield _of(opened, f"column {stated['column_id']}: {rows.null_count:,} nulls, and the catalog states {stated['null_count']:,}")
        found = _bounds(rows)
        if found is not None and ranges.ranged[0]:
            low, high = _stated_bounds(ranges)
            if found[0] < low or found[1] > high:
                yield _of(opened, f"column {stated['column_id']}: values {found[0]} to {found[1]}, and the catalog states {low} to {high}")


def _bounds(array: pa.Array) -> tuple[Any, Any] | None:
    """The smallest and largest value as the catalog counts them; None where nothing is compared."""
    numbers = _numbers(array)
    if numbers is None and any(test(array.type) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)):
        ends = pc.min_max(array.cast(pa.large_binary())).as_py()
        return None if ends["min"] is None else (text_word(ends["min"]), text_word(ends["max"]))
    ends = {"min": None} if numbers is None else pc.min_max(numbers).as_py()
    return None if ends["min"] is None else (ends["min"], ends["max"])


def _stated_bounds(ranges: Ranges) -> tuple[Any, Any]:
    view = "<i8" if ranges.of_kind(Kind.SIGNED)[0] else "<f8" if ranges.of_kind(Kind.FLOAT)[0] else "<u8"
    return ranges.min.view(view)[0].item(), ranges.max.view(view)[0].item()


@check(
    "deleted-twice",
    scope="segments",
    explains="a row that two deletion vectors delete is subtracted twice from every row count",
    remedy="headrace compact TABLE --full writes the segment anew without its deleted rows",
)
def deleted_twice(opened: Opened) -> Iterator[Found]:
    vectors = opened.rows_of(DELETES)
    rows = np.concatenate(vectors) if vectors else np.zeros(0, np.uint32)
    twice = len(rows) - len(np.unique(rows))
    if twice:
        yield _of(opened, f"{twice:,} of its rows are deleted by more than one deletion vector")


@check(
    "overlay-content",
    scope="overlays",
    explains="overlays change rows by position: a wrong one changes other rows, and a wrong count makes every plan wrong",
    remedy="restore the file that was committed (headrace restore)",
)
def overlay_content(opened: Opened) -> Iterator[Found]:
    record, segment = opened.record, opened.segment
    if ROW_COLUMN_ID not in column_ids_of(opened.reader) or not opened.reader.features & Feature.OVERLAY:
        yield _of(opened, "it is no overlay: it has no rows to change")
        return
    rows = operand_rows(read_by_id(opened.reader, [ROW_COLUMN_ID])).astype(np.int64)
    if len(rows) != record["num_rows"]:
        yield _of(opened, f"it changes {len(rows):,} rows, and the catalog states {record['num_rows']:,}")
    if (np.diff(rows) < 0).any():
        yield _of(opened, "its rows are not sorted")
    if segment is not None and len(rows) and int(rows.max()) >= segment["num_rows"]:
        yield _of(opened, f"it changes row {int(rows.max()):,} of segment {segment['id']}, which has {segment['num_rows']:,}")
    if record["kind"] == DELETES and len(np.unique(rows)) != record["num_deleted"]:
        yield _of(opened, f"it deletes {len(np.unique(rows)):,} rows, and the catalog states {record['num_deleted']:,}")
    yield from _wrong_columns(opened)


def _wrong_columns(opened: Opened) -> Iterator[Found]:
    missing = sorted(set(opened.record["column_ids"]) - column_ids_of(opened.reader))
    if missing:
        yield _of(opened, f"the catalog says that it has columns {missing}, and it does not")


@check(
    "column-file-content",
    scope="column_files",
    explains="a column file is read beside its segment, row by row",
    remedy="restore the file that was committed (headrace restore), or backfill the columns again",
)
def column_file_content(opened: Opened) -> Iterator[Found]:
    segment = opened.segment
    if segment is not None and opened.reader.num_rows != segment["num_rows"]:
        yield _of(opened, f"it has {opened.reader.num_rows:,} rows, and its segment {segment['id']} {segment['num_rows']:,}")
    elif segment is not None and opened.reader.block_rows.astype("<u4").tobytes() != bytes(segment["block_rows"]):
        yield _of(opened, f"its blocks are not those of its segment {segment['id']}")
    yield from _wrong_columns(opened)


@check(
    "waiting-content",
    scope="pending",
    explains="labels that wait for their row are read by the rows that the catalog keeps beside their keys",
    remedy="restore the file that was committed (headrace restore)",
)
def waiting_content(opened: Opened) -> Iterator[Found]:
    record = opened.record
    try:
        keys, rows = unpack_keys(bytes(record["keys"]), record["num_held"])
    except FormatError as error:
        yield _of(opened, str(error))
        return
    if len(rows) and int(rows.max()) >= opened.reader.num_rows:
        yield _of(opened, f"row {int(rows.max()):,} of its operands is asked for, and it has {opened.reader.num_rows:,}")
    left = keys.take(np.setdiff1d(np.arange(len(keys)), np.frombuffer(bytes(record["met"] or b""), "<u4")))  # an erased key counts as met
    if opened.spec is not None and len(left) and (bucket_of(left, opened.spec.buckets) != record["bucket"]).any():
        yield _of(opened, f"it holds keys of other buckets than {record['bucket']}")
    yield from _wrong_columns(opened)
