"""Finding what is to be erased: every stored row with one of the keys that was there when its erasure began, live or kept for an earlier snapshot.

The key indexes themselves are read, of every segment that the catalog knows. A row that came later under the same key (its commit sequence says so) is a new
row and is left alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from loader.catalog.connection import Database
from loader.catalog.records import TableSpec
from loader.errors import CorruptSegmentError, NotFoundError
from loader.segment.key_index import KeyIndex, Keys, signed
from loader.segment.layout import SEQUENCE_COLUMN_ID, Section
from loader.segment.reader import SegmentReader
from loader.storage import Storage
from loader.table.erasure.blank import Rows, is_among
from loader.table.pending import unpack_keys
from loader.table.segments import column_ids_of, read_by_id

Match: TypeAlias = Callable[[Keys], npt.NDArray[np.bool_]]
BATCH_SEGMENTS = 1_000
THREADS = 4
_SEGMENTS = "select id, path, section_offset, num_bytes, time_partition, num_rows, key_min, key_max, sequence_min, sequence_max from segments where "
_PENDING = "select id, bucket, path, section_offset, num_bytes, num_held, keys, met, sequence from pending where "


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredSegment:
    """A segment that the catalog knows, live or not."""

    id: int
    path: str
    offset: int
    num_bytes: int
    partition: int
    num_rows: int
    key_min: int | None
    key_max: int | None
    sequence_min: int
    sequence_max: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldLabels:
    """Waiting labels of erased keys: positions among the entry's keys, and their rows in its section."""

    id: int
    bucket: int
    path: str
    offset: int
    num_bytes: int
    num_held: int
    keys: bytes
    met: bytes | None
    positions: npt.NDArray[np.int64]
    rows: Rows


@dataclasses.dataclass(kw_only=True)
class Found:
    """What a search found.

    Attributes:
        segments: Segments with rows to erase, and the rows, sorted.
        pending: Entries with labels to erase.
        num_segments, num_keys, num_pending: What was looked at.
    """

    segments: list[tuple[StoredSegment, Rows]] = dataclasses.field(default_factory=list)
    pending: list[HeldLabels] = dataclasses.field(default_factory=list)
    num_segments: int = 0
    num_keys: int = 0
    num_pending: int = 0

    @property
    def is_empty(self) -> bool:
        return not self.segments and not self.pending

    @property
    def num_rows(self) -> int:
        return sum(len(rows) for _, rows in self.segments)


def find(
    catalog: Database,
    storage: Storage,
    spec: TableSpec,
    keys: Keys | Match,
    *,
    until: int,
    whole: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Look for keys in everything that the catalog refers to.

    Args:
        catalog, storage, spec: The table.
        keys: What to find; or what says of keys which are meant.
        until: Only rows that came with this snapshot or before.
        whole: Read every key index, whatever range the catalog states for it: for a proof.
        progress: Called with (segments looked at, segments there are).
    """
    found = Found()
    match, bounds = (keys, None) if callable(keys) else (functools.partial(_among, keys), None if whole else _bounds(keys))
    with catalog.read() as connection:
        (total,) = connection.execute("select count(*) from segments where table_id = ?", (spec.id,)).fetchone()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="headrace-erase") as pool:
        after = 0
        while True:
            with catalog.read() as connection:
                rows = connection.execute(_SEGMENTS + "table_id = ? and id > ? order by id limit ?", (spec.id, after, BATCH_SEGMENTS)).fetchall()
            if not rows:
                break
            batch = [_segment(row) for row in rows]
            for segment, hits in zip(batch, pool.map(lambda one: _rows_of(catalog, storage, one, match, until, bounds), batch), strict=True):
                found.num_keys += segment.num_rows
                if len(hits):
                    found.segments.append((segment, hits))
            found.num_segments += len(batch)
            after = batch[-1].id
            if progress is not None:
                progress(found.num_segments, max(total, found.num_segments))
    _find_pending(catalog, spec, match, until, found)
    return found


def _segment(row: tuple) -> StoredSegment:  # type: ignore[type-arg]
    names = [field.name for field in dataclasses.fields(StoredSegment)]
    return StoredSegment(**dict(zip(names, row, strict=True)))


def _among(keys: Keys, among: Keys) -> npt.NDArray[np.bool_]:
    return is_among(among, keys)


def _bounds(keys: Keys) -> tuple[int, int]:
    """The range of keys as the catalog states it."""
    return (signed(int(keys.low.min())), signed(int(keys.low.max()))) if len(keys) else (0, -1)


def _rows_of(catalog: Database, storage: Storage, segment: StoredSegment, match: Match, until: int, bounds: tuple[int, int] | None) -> Rows:
    """The rows of a segment with one of the keys that came by `until`."""
    nothing = np.zeros(0, np.uint32)
    if segment.num_rows == 0 or segment.sequence_min > until:
        return nothing
    if bounds is not None and segment.key_min is not None and segment.key_max is not None and (bounds[1] < segment.key_min or bounds[0] > segment.key_max):
        return nothing
    try:
        reader = SegmentReader(storage.section(segment.path, segment.offset, segment.num_bytes))
        section = reader.section(Section.KEY_INDEX)
    except NotFoundError:
        if _is_there(catalog, segment):
            raise
        return nothing  # it was forgotten, or moved by another, while this ran: the next search sees it
    if section is None:
        raise CorruptSegmentError(f"segment {segment.id} at {segment.path} offset {segment.offset} has no key index: nobody can say which keys it holds")
    index = KeyIndex.open(section)
    rows = np.sort(index.rows[match(index.keys)]).astype(np.uint32)
    if len(rows) and segment.sequence_max > until and SEQUENCE_COLUMN_ID in column_ids_of(reader):
        sequences = read_by_id(reader, [SEQUENCE_COLUMN_ID], rows=rows)[SEQUENCE_COLUMN_ID].to_numpy(zero_copy_only=False)
        rows = rows[sequences <= until]
    return rows


def _is_there(catalog: Database, segment: StoredSegment) -> bool:
    with catalog.read() as connection:
        return connection.execute("select 1 from segments where id = ? and path = ?", (segment.id, segment.path)).fetchone() is not None


def _find_pending(catalog: Database, spec: TableSpec, match: Match, until: int, found: Found) -> None:
    after = 0
    while True:
        with catalog.read() as connection:
            rows = connection.execute(_PENDING + "table_id = ? and id > ? order by id limit ?", (spec.id, after, BATCH_SEGMENTS)).fetchall()
        if not rows:
            return
        for row_id, bucket, path, offset, num_bytes, num_held, held, met, sequence in rows:
            after = row_id
            found.num_pending += 1
            if sequence > until:
                continue
            words, in_section = unpack_keys(bytes(held), num_held)
            masked = np.frombuffer(met or b"", "<u4")
            masked = masked[words.low[masked] == 0]  # taken out by an erasure
            positions = np.setdiff1d(np.flatnonzero(match(words)), masked)
            if len(positions):
                labels = HeldLabels(
                    id=row_id,
                    bucket=bucket,
                    path=path,
                    offset=offset,
                    num_bytes=num_bytes,
                    num_held=num_held,
                    keys=bytes(held),
                    met=None if met is None else bytes(met),
                    positions=positions,
                    rows=np.sort(in_section[positions]).astype(np.uint32),
                )
                found.pending.append(labels)
