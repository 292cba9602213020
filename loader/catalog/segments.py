"""The segments of a snapshot by column: arrays over all of them, and a `SegmentRef` of each only when somebody asks for it.

Owns how a row of the catalog's `segments` is packed and unpacked. A million segments are a thousand packs of about 70 KB; a field of all of them is an
int64 array, made when it is first asked for. Nothing here changes: a later snapshot is a new object that shares the packs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from loader.catalog.packed import I64, Packed, pack
from loader.catalog.records import OVERLAY_KINDS, ColumnFileRef, OverlayRef, SegmentRef
from loader.errors import UnsupportedVersionError

SEGMENT_COLUMNS = (
    "id, path, section_offset, num_bytes, bucket, time_partition, level, num_rows, live_rows, block_rows, sequence_min, sequence_max, "
    "key_min, key_max, time_min, time_max, added_in"
)
OVERLAY_COLUMNS = "segment_id, id, kind, path, section_offset, num_bytes, sequence, num_rows, num_deleted, level, column_ids"
COLUMN_FILE_COLUMNS = "segment_id, id, sequence, path, section_offset, num_bytes, column_ids"
NUMBERS = ("segment_id", "offset", "num_bytes", "bucket", "partition", "level", "num_rows", "live_rows", "sequence_min", "sequence_max", "added_in")
RANGES = ("key_min", "key_max", "time_min", "time_max")  # may be unknown: then 0, and a bit of `known` is not set
HAS_KEYS, HAS_TIMES = 1, 2
_SOURCES = dict(zip((*NUMBERS, *RANGES), (0, 2, 3, 4, 5, 6, 7, 8, 10, 11, 16, 12, 13, 14, 15), strict=True))
_PATH, _BLOCK_ROWS = 1, 9
_OPEN_PACKS = 64  # whose paths stay inflated


def pack_segments(rows: Sequence[Sequence[Any]]) -> bytes:
    """Rows of SEGMENT_COLUMNS, by id, as one pack."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * 17
    arrays = {name: np.array(columns[_SOURCES[name]], np.int64) for name in NUMBERS}
    for name in RANGES:
        arrays[name] = np.array([0 if value is None else value for value in columns[_SOURCES[name]]], np.int64)
    has = [np.array([value is not None for value in columns[_SOURCES[name]]], np.int64) for name in ("key_min", "time_min")]
    arrays["known"] = has[0] * HAS_KEYS + has[1] * HAS_TIMES
    blocks = [bytes(value) for value in columns[_BLOCK_ROWS]]
    arrays["num_blocks"] = np.array([len(value) // 4 for value in blocks], np.int64)
    arrays["block_rows"] = np.frombuffer(b"".join(blocks), "<u4").astype(np.int64)
    paths = {path: at for at, path in enumerate(dict.fromkeys(columns[_PATH]))}
    arrays["path"] = np.array([paths[path] for path in columns[_PATH]], np.int64)
    return pack(arrays, {"paths": "\0".join(paths).encode()})


class SegmentPack:
    """Some segments, by id, as `pack_segments` wrote them.

    Attributes:
        pack_id: Of the catalog's pack; empty where a handle made it, of rows that no pack held.
    """

    __slots__ = ("arrays", "num_segments", "pack_id")

    def __init__(self, data: bytes, pack_id: str = "") -> None:
        self.arrays = Packed(data)
        self.pack_id = pack_id
        self.num_segments = self.arrays.count("segment_id")

    def __reduce__(self) -> tuple[type[SegmentPack], tuple[bytes, str]]:
        return SegmentPack, (self.arrays.data, self.pack_id)

    def row(self, at: int) -> dict[str, Any]:
        """What is known of one segment, by the names of SegmentRef."""
        value, known = self.arrays.value, self.arrays.value("known", at)
        found: dict[str, Any] = {name: value(name, at) for name in NUMBERS}
        found |= {name: value(name, at) if known & _bit(name) else None for name in RANGES}
        first, last = _block_starts(self)[at : at + 2].tolist()
        blocks = tuple(value("block_rows", block) for block in range(first, last))
        return found | {"path": _paths(self)[value("path", at)], "block_rows": blocks}

    def rows(self) -> Iterator[dict[str, Any]]:
        """`row` of all segments."""
        lists: dict[str, list[Any]] = {name: self.arrays.array(name).tolist() for name in NUMBERS}
        known = self.arrays.array("known")
        for name in RANGES:
            values = self.arrays.array(name).tolist()
            lists[name] = [value if has else None for value, has in zip(values, (known & _bit(name)).tolist(), strict=True)]
        paths, blocks, starts = _paths(self), self.arrays.array("block_rows").tolist(), _block_starts(self).tolist()
        lists["path"] = [paths[at] for at in self.arrays.array("path").tolist()]
        lists["block_rows"] = [tuple(blocks[first:last]) for first, last in zip(starts[:-1], starts[1:], strict=True)]
        for values in zip(*lists.values(), strict=True):
            yield dict(zip(lists, values, strict=True))


def _bit(name: str) -> int:
    return HAS_KEYS if name.startswith("key") else HAS_TIMES


@functools.lru_cache(maxsize=_OPEN_PACKS)
def _paths(part: SegmentPack) -> list[str]:
    return part.arrays.string("paths").decode().split("\0")


@functools.lru_cache(maxsize=_OPEN_PACKS)
def _block_starts(part: SegmentPack) -> I64:
    """i64[num_segments + 1], where the blocks of each segment begin among those of the pack."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(part.arrays.array("num_blocks"))])


class Attached:
    """Overlays, or column files, as the catalog's rows, ordered by segment.

    Args:
        rows: Of OVERLAY_COLUMNS or COLUMN_FILE_COLUMNS, those of one segment in the order in which they are applied.
    """

    def __init__(self, rows: Sequence[Sequence[Any]] = ()) -> None:
        self.rows = list(rows)
        self.segment_ids = np.array([row[0] for row in self.rows], np.int64)
        if (np.diff(self.segment_ids) < 0).any():
            order = np.argsort(self.segment_ids, kind="stable")
            self.rows = [self.rows[at] for at in order.tolist()]
            self.segment_ids = self.segment_ids[order]

    def of(self, segment_id: int) -> list[Sequence[Any]]:
        """The rows of one segment."""
        if not self.rows:
            return []
        first, last = np.searchsorted(self.segment_ids, [segment_id, segment_id + 1]).tolist()
        return self.rows[first:last]

    def column(self, at: int) -> I64:
        """One column of numbers."""
        return np.array([row[at] for row in self.rows], np.int64)

    def touching(self, column_id: int) -> I64:
        """Ids of the segments of which some row names a column."""
        texts = {row[-1] for row in self.rows}
        hit = {text for text in texts if column_id in json.loads(text)}
        if not hit:
            return np.zeros(0, np.int64)
        return self.segment_ids[[row[-1] in hit for row in self.rows]]

    def changed(self, added: Sequence[Sequence[Any]], removed: set[int]) -> Attached:
        """Without the rows of these numbers, and with others."""
        kept = [row for row in self.rows if row[1] not in removed] if removed else self.rows
        return self if not added and len(kept) == len(self.rows) else Attached([*kept, *added])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The segments of a pack that are live: all, or those at some places in it, ascending."""

    pack: SegmentPack
    keep: I64 | None = None

    def __len__(self) -> int:
        return self.pack.num_segments if self.keep is None else len(self.keep)

    def array(self, name: str) -> I64:
        values = self.pack.arrays.array(name)
        return values if self.keep is None else values[self.keep]

    def where(self, mask: npt.NDArray[np.bool_]) -> Part:
        """Those of its segments where the mask is true."""
        if mask.all():
            return self
        return Part(pack=self.pack, keep=np.flatnonzero(mask) if self.keep is None else self.keep[mask])

    def block_rows(self) -> I64:
        """Rows of every block, segment by segment."""
        rows = self.pack.arrays.array("block_rows")
        return rows if self.keep is None else rows[np.isin(np.repeat(np.arange(self.pack.num_segments), self.pack.arrays.array("num_blocks")), self.keep)]


def join(parts: Sequence[Part]) -> Part:
    """Several parts as one, without what they leave out."""
    rows = [row for part in parts for at, row in enumerate(part.pack.rows()) if part.keep is None or at in set(part.keep.tolist())]
    return Part(pack=SegmentPack(pack_segments([_packed(row) for row in rows])))


class Segments(Sequence[SegmentRef]):
    """Live segments by id: a sequence of `SegmentRef`, and arrays.

    Args:
        parts: Packs by id, one after the other.
        overlays, column_files: Of these segments, live ones; those of others are left out.
    """

    def __init__(self, parts: Sequence[Part] = (), overlays: Attached | None = None, column_files: Attached | None = None) -> None:
        self.parts = tuple(part for part in parts if len(part))
        self.overlays, self.column_files = overlays or Attached(), column_files or Attached()
        self._starts = np.cumsum([0, *(len(part) for part in self.parts)], dtype=np.int64)
        self._fields: dict[str, I64] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Segments, (self.parts, self.overlays, self.column_files)

    @classmethod
    def of(cls, refs: Sequence[SegmentRef]) -> Segments:
        """The columnar form of segments that were made one by one."""
        if isinstance(refs, Segments):
            return refs
        ordered = sorted(refs, key=lambda ref: ref.segment_id)
        overlays = [_overlay_row(ref.segment_id, overlay) for ref in ordered for overlay in ref.overlays]
        files = [_column_file_row(ref.segment_id, file) for ref in ordered for file in ref.column_files]
        return cls([Part(pack=SegmentPack(pack_segments([_row(ref) for ref in ordered])))], Attached(overlays), Attached(files))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, at: int) -> SegmentRef: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[SegmentRef, ...]: ...
    def __getitem__(self, at: int | slice) -> SegmentRef | tuple[SegmentRef, ...]:
        if isinstance(at, slice):
            return tuple(self[index] for index in range(*at.indices(len(self))))
        index = at + len(self) if at < 0 else at
        if not 0 <= index < len(self):
            raise IndexError(f"segment {at} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        part, local = self.parts[number], index - int(self._starts[number])
        return self._ref(part.pack.row(local if part.keep is None else int(part.keep[local])))

    def __iter__(self) -> Iterator[SegmentRef]:
        for part in self.parts:
            if part.keep is not None and 8 * len(part) < part.pack.num_segments:
                yield from (self._ref(part.pack.row(at)) for at in part.keep.tolist())
            else:
                kept = None if part.keep is None else set(part.keep.tolist())
                yield from (self._ref(row) for at, row in enumerate(part.pack.rows()) if kept is None or at in kept)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Segments({len(self):,} in {len(self.parts):,} packs)"

    def _ref(self, row: dict[str, Any]) -> SegmentRef:
        segment_id = row["segment_id"]
        overlays = tuple(make_overlay(found) for found in self.overlays.of(segment_id))
        files = tuple(make_column_file(found) for found in self.column_files.of(segment_id))
        row["live_rows"] -= sum(overlay.num_deleted for overlay in overlays)
        return SegmentRef(**row, overlays=overlays, column_files=files)

    def field(self, name: str) -> I64:
        """i64[segments]: a number of each, by the names of SegmentRef; `known` has the bits HAS_KEYS and HAS_TIMES, `num_blocks` counts. Not to be written."""
        found = self._fields.get(name)
        if found is None:
            found = np.concatenate([np.zeros(0, np.int64), *(part.array(name) for part in self.parts)])
            if name == "live_rows" and self.overlays.rows:
                owners, inside = self._owners(self.overlays)
                np.subtract.at(found, owners, self.overlays.column(8)[inside])
            found.setflags(write=False)
            self._fields[name] = found
        return found

    def block_rows(self) -> I64:
        """Rows of every block of every segment, end to end; `num_blocks` says how many each has."""
        return np.concatenate([np.zeros(0, np.int64), *(part.block_rows() for part in self.parts)])

    def index_of(self, segment_ids: npt.NDArray[np.integer]) -> I64:
        """Places of segments by id; −1 where one is not here."""
        ids = self.field("segment_id")
        if not len(ids):
            return np.full(len(segment_ids), -1, np.int64)
        at = np.minimum(np.searchsorted(ids, segment_ids), len(ids) - 1)
        return np.where(ids[at] == segment_ids, at, -1)

    def touched(self, column_id: int) -> npt.NDArray[np.bool_]:
        """bool[segments]: whether a patch or a column file may have changed values of a column."""
        touched = np.zeros(len(self), np.bool_)
        for attached in (self.overlays, self.column_files):
            at = self.index_of(attached.touching(column_id))
            touched[at[at >= 0]] = True
        return touched

    def _owners(self, attached: Attached) -> tuple[I64, npt.NDArray[np.bool_]]:
        at = self.index_of(attached.segment_ids)
        return at[at >= 0], at >= 0

    def where(self, mask: npt.NDArray[np.bool_]) -> Segments:
        """Those where the mask is true."""
        if mask.all():
            return self
        cuts = zip(self.parts, self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)
        return Segments([part.where(mask[first:last]) for part, first, last in cuts], self.overlays, self.column_files)


def _overlay_row(segment_id: int, ref: OverlayRef) -> tuple[Any, ...]:
    where = (segment_id, ref.overlay_id, ref.kind, ref.path, ref.offset, ref.num_bytes, ref.sequence)
    return (*where, ref.num_rows, ref.num_deleted, ref.level, json.dumps(list(ref.column_ids)))


def _column_file_row(segment_id: int, ref: ColumnFileRef) -> tuple[Any, ...]:
    return segment_id, ref.file_id, 0, ref.path, ref.offset, ref.num_bytes, json.dumps(list(ref.column_ids))


def _row(ref: SegmentRef) -> tuple[Any, ...]:
    values = {field.name: getattr(ref, field.name) for field in dataclasses.fields(ref)}
    return _packed(values | {"live_rows": ref.live_rows + sum(overlay.num_deleted for overlay in ref.overlays)})


def _packed(row: dict[str, Any]) -> tuple[Any, ...]:
    """A segment as a row of SEGMENT_COLUMNS."""
    first = tuple(row[name] for name in ("segment_id", "path", "offset", "num_bytes", "bucket", "partition", "level", "num_rows", "live_rows"))
    ranges = tuple(row[name] for name in ("sequence_min", "sequence_max", *RANGES))
    return (*first, np.array(row["block_rows"], "<u4").tobytes(), *ranges, row["added_in"])


@functools.lru_cache(maxsize=1024)
def _column_ids(text: str) -> tuple[int, ...]:
    return tuple(json.loads(text))


def make_overlay(row: Sequence[Any]) -> OverlayRef:
    """From a row of OVERLAY_COLUMNS.

    Raises:
        UnsupportedVersionError: It is of a kind that only a newer Headrace knows.
    """
    if row[2] not in OVERLAY_KINDS:
        raise UnsupportedVersionError(
            f"overlay {row[1]} of segment {row[0]} is of kind {row[2]!r}, which a newer Headrace wrote: upgrade with `pip install --upgrade headrace`"
        )
    return OverlayRef(
        overlay_id=row[1],
        kind=row[2],
        path=row[3],
        offset=row[4],
        num_bytes=row[5],
        sequence=row[6],
        num_rows=row[7],
        num_deleted=row[8],
        level=row[9],
        column_ids=_column_ids(row[10]),
    )


def make_column_file(row: Sequence[Any]) -> ColumnFileRef:
    """From a row of COLUMN_FILE_COLUMNS."""
    return ColumnFileRef(file_id=row[1], path=row[3], offset=row[4], num_bytes=row[5], column_ids=_column_ids(row[6]))
