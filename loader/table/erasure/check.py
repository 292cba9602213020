"""Verifying an erasure: the key indexes of everything that is stored are read for its keys, and the rows that were blanked for what they still hold."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.catalog import erasure as records
from loader.catalog.connection import Database
from loader.catalog.erasure import REQUESTED, Erasure, StoredSection
from loader.catalog.records import ERASED, TableSpec
from loader.schema import Column, take
from loader.segment.key_index import KeyIndex, Keys, keys_of
from loader.segment.layout import LOOKUP_ROWS_COLUMN_ID, ROW_COLUMN_ID, SEQUENCE_COLUMN_ID, Section
from loader.segment.lookup_rows import LookupRows
from loader.segment.reader import SegmentReader
from loader.storage import Storage
from loader.table.diff import equal_rows
from loader.table.erasure.blank import Rows, empty_value, is_among
from loader.table.erasure.find import find
from loader.table.erasure.proof import ErasureProof, key_hashes
from loader.table.row_reads import GroupPages, GroupPart, take_rows
from loader.table.segments import operand_rows, read_by_id

if TYPE_CHECKING:
    from loader.lake import Lake

_SEGMENT = "select path, section_offset, num_bytes from segments where id = ?"


def find_again(lake: Lake, spec: TableSpec, proof: ErasureProof, keys: Keys | None, signing_key: bytes | None) -> list[str]:
    """What a proof states and the lake denies, line by line."""
    hashes, salt = set(proof.key_hashes), proof.salt(signing_key)

    def hashed(stored: Keys) -> npt.NDArray[np.bool_]:
        return np.fromiter((one in hashes for one in key_hashes(stored, salt)), bool, len(stored))

    found = find(lake.database, lake.storage, spec, hashed if keys is None else keys, until=proof.deleted_in, whole=True)
    problems = [f"segment {segment.id} at {segment.path} holds {len(rows)} rows of erased keys" for segment, rows in found.segments]
    problems += [f"entry {labels.id} of waiting labels holds {len(labels.positions)} erased keys" for labels in found.pending]
    problems += left_over(lake.database, lake.storage, spec)
    old = [path for path, _ in proof.rewritten]
    with lake.database.read() as connection:
        known = {path for path in old if records.sections_of(connection, spec.id, path)}
        waiting = {path for path, _ in records.waiting_garbage(connection, spec.id)}
    problems += [f"{path} was replaced and is referred to again" for path in sorted(known)]
    if proof.is_complete:
        problems += [f"{path} was to be deleted and is there" for path in [*old, *(path for path, _ in proof.waiting)] if lake.storage.exists(path)]
    else:
        problems += [f"{path} was replaced and is neither deleted nor about to be" for path in old if path not in waiting and lake.storage.exists(path)]
    return problems


def left_over(catalog: Database, storage: Storage, spec: TableSpec) -> list[str]:
    """What rows that are marked as erased still hold: values in their segments or column files, operands in patches.

    Rows of another request that is still at work are left to that one.
    """
    with catalog.read() as connection:
        marked = [row[0] for row in connection.execute("select distinct segment_id from overlays where table_id = ? and kind = ?", (spec.id, ERASED))]
    problems = []
    for segment_id in marked:
        with catalog.read() as connection:
            path, offset, num_bytes = connection.execute(_SEGMENT, (segment_id,)).fetchone() or (None, 0, 0)
            belongings = records.belongings(connection, spec.id, segment_id)
            unfinished = [request for request in records.load_erasures(connection, spec.id) if request.state == REQUESTED and request.num_keys]
        if path is None:
            continue  # forgotten meanwhile
        readers = {section.id: _open(storage, section) for section, kind, _ in belongings if kind in (ERASED, "patch")}
        vectors = [operand_rows(read_by_id(readers[section.id], [ROW_COLUMN_ID])) for section, kind, _ in belongings if kind == ERASED]
        base = _open(storage, StoredSection(table="segments", id=segment_id, segment_id=segment_id, path=path, offset=offset, num_bytes=num_bytes))
        rows = np.unique(np.concatenate(vectors)).astype(np.uint32)
        for request in unfinished:
            rows = np.setdiff1d(rows, rows_of_keys(base, unpack_request(request))).astype(np.uint32)
        for section, kind, _ in belongings:
            if kind == "patch" and np.isin(operand_rows(read_by_id(readers[section.id], [ROW_COLUMN_ID])), rows).any():
                problems.append(f"overlay {section.id} at {section.path} patches erased rows of segment {segment_id}")
        holders = [(f"segment {segment_id} at {path}", base)]
        holders += [(f"column file {section.id} at {section.path}", _open(storage, section)) for section, kind, _ in belongings if kind == "columns"]
        for what, reader in holders:
            names = not_blank(spec, reader, rows) if len(rows) else []
            if names:
                problems.append(f"{what} has values of erased rows in {', '.join(names)}")
    return problems


def rows_of_keys(reader: SegmentReader, keys: Keys) -> Rows:
    """Rows of a segment whose entry in its key index is one of these keys."""
    section = reader.section(Section.KEY_INDEX)
    assert section is not None, "segments of a table have a key index"
    index = KeyIndex.open(section)
    return np.sort(index.rows[is_among(index.keys, keys)]).astype(np.uint32)


def unpack_request(request: Erasure) -> Keys:
    """The keys of a request that is not complete."""
    assert request.keys is not None, "only a complete erasure has forgotten its keys"
    words = np.frombuffer(request.keys, "<u8").reshape(-1, request.num_keys).astype(np.uint64)
    return Keys(words[0], words[1] if request.key_bytes == 16 else None)


def _open(storage: Storage, section: StoredSection) -> SegmentReader:
    return SegmentReader(storage.section(section.path, section.offset, section.num_bytes))


def not_blank(spec: TableSpec, reader: SegmentReader, rows: Rows) -> list[str]:
    """Names of the columns in which some of these rows hold a value."""
    filled = {*spec.primary_key_ids, spec.time_column_id, SEQUENCE_COLUMN_ID}
    if reader.resolve(None) == [LOOKUP_ROWS_COLUMN_ID]:
        return _not_blank_side_by_side(reader, rows, filled)
    ids = [column_id for column_id in reader.resolve(None) if column_id not in filled]
    names = []
    for column_id, field in zip(ids, reader.schema_of(ids), strict=True):
        values = read_by_id(reader, [column_id], rows=rows.astype(np.int64))[column_id]
        blank = values.null_count == len(values) if field.nullable else _is_empty(values)
        if not blank:
            names.append(field.name)
    return names


def names_of_keys(spec: TableSpec, reader: SegmentReader, rows: Rows, erased: Keys) -> list[str]:
    """The primary key's columns, if they or the key index hold an erased key in one of these rows; else none."""
    ids = list(spec.primary_key_ids)
    read = read_by_id(reader, ids, rows=rows.astype(np.int64))
    stored = is_among(keys_of([read[column_id] for column_id in ids]), erased).any()
    return spec.primary_key if stored or len(np.intersect1d(rows_of_keys(reader, erased), rows)) else []


def _not_blank_side_by_side(reader: SegmentReader, rows: Rows, filled: Collection[int | None]) -> list[str]:
    """`not_blank` of a row group: it holds the blank rows of a segment that was blanked before it was made."""
    pages = reader.pages(Section.LOOKUP_ROWS)
    assert pages is not None, "its column says that it has one"
    group = LookupRows(pages, "a row group")
    fields = zip(group.layout.column_ids, group.layout.schema, strict=True)
    columns = [Column(id=column_id, name=field.name, type=field.type) for column_id, field in fields if column_id not in filled]
    part = GroupPart(group=group, numbers=rows.astype(np.int64), places=np.arange(len(rows)))
    found = zip(columns, take_rows(GroupPages(), [part], columns, len(rows)), strict=True)
    return [column.name for column, values in found if values.null_count < len(values) and not _is_empty(values)]


def _is_empty(values: pa.Array) -> bool:
    return bool(equal_rows(values, take(empty_value(values.type), np.zeros(len(values), np.int64))).all())
