"""Fetching: the encoded chunks of one block, read together, verified, with its patches and selection. The only module of a scan that reads blocks.

A fetcher is rebuilt anywhere from a `FetchSpec`, which is plain data. It keeps the footers and the folded patches of the segments it met last.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from loader.catalog.inline import LakeStorage
from loader.catalog.read import load_segments_by_id
from loader.catalog.records import ERASED, SegmentRef, SnapshotView
from loader.errors import CorruptSegmentError, NotFoundError, StorageError, StorageFullError
from loader.scan.adapt import default_chunk, is_narrower, widened_chunk
from loader.scan.bad_blocks import bad_block, marking
from loader.scan.columns import ReadColumn
from loader.scan.encoded import BadBlock, BlockPatch, Dictionaries, EncodedBlock, FetchRequest, empty_slab
from loader.segment.checksum import crc32c
from loader.segment.layout import ALIGNMENT
from loader.segment.reader import SegmentReader
from loader.storage import Storage
from loader.table.reading import state_of
from loader.table.resolve import fold

if TYPE_CHECKING:
    from loader.table.resolve import Resolved

GAP_BYTES = 64 * 1024
MAX_REQUEST_BYTES = 8 * 1024 * 1024
CACHED_SEGMENTS = 256
ATTEMPTS = 4
FIRST_DELAY_SECONDS = 0.1
T = TypeVar("T")
Empty: TypeAlias = Callable[[int], npt.NDArray[np.uint8]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchSpec:
    """All that another process needs to fetch the blocks of a plan.

    Attributes:
        location: Of the lake.
        catalog: Url of its catalog; None where the location says it.
        table: Name.
        snapshot: Number of the pinned snapshot.
        columns: As in the scan.
        where: Normalised predicate.
        closed_before: In the time column's unit; with `since`, as in the scan.
        selection: Hash of the selection, which the catalog holds.
        num_rows: Rows of the plan; a fetcher that counts others refuses.
        sample: Of the scan, as plain values, or None.
        group_by: Of the scan.
        since: As in the scan.
        block_bytes: Encoded bytes of a block on average, 0 where nobody knows: how many of them are worth a task. Not part of what the spec names.
    """

    location: str
    catalog: str | None
    table: str
    snapshot: int
    columns: tuple[str, ...]
    where: str | None
    closed_before: int | str | None
    selection: str
    num_rows: int
    sample: dict[str, Any] | None = None
    group_by: tuple[str, ...] = ()
    since: int | None = None
    block_bytes: int = dataclasses.field(default=0, compare=False)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FetchSpec:
        value = json.loads(text)
        return cls(**{**value, "columns": tuple(value["columns"]), "group_by": tuple(value.get("group_by", ()))})


class OpensPlan(Protocol):
    """Plain data, like a `FetchSpec`, that makes a plan of several scans."""

    def open(self) -> Any: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockPlace:
    """Where a block of a plan is.

    Attributes:
        ref: Its segment.
        block: Number in the segment.
        row_start: First row in the segment.
        num_rows: Rows stored.
        selected: Bits of the selected rows, or None when all are.
        bad: Why it is in quarantine, where it is: then it is not fetched.
    """

    ref: SegmentRef
    block: int
    row_start: int
    num_rows: int
    selected: npt.NDArray[np.uint8] | None
    bad: BadBlock | None = None

    def __str__(self) -> str:
        return f"{self.ref.path} at byte {self.ref.offset}, block {self.block} (rows {self.row_start:,} to {self.row_start + self.num_rows - 1:,})"


class BlockFetcher:
    """Fetches blocks; safe to call from several threads.

    Args:
        view: The snapshot.
        storage: Where its paths lie.
        columns: What to read.
        locate: Block of the plan -> its place; None where only `fetch_place` is used.
    """

    def __init__(self, view: SnapshotView, storage: Storage, columns: Sequence[ReadColumn], locate: Callable[[int], BlockPlace] | None = None) -> None:
        self._view = view
        self._storage = storage
        self._columns = tuple(columns)
        self._locate = locate
        self._readers = _Cache[tuple[str, int, int], SegmentReader](CACHED_SEGMENTS)
        self._folds = _Cache[tuple[int, ...], "Resolved"](CACHED_SEGMENTS)
        self._moved: dict[int, SegmentRef] = {}

    def fetch(self, request: FetchRequest, empty: Empty | None = None) -> EncodedBlock:
        """Fetch and verify one block of the plan.

        Args:
            request: Which.
            empty: Makes the slab's memory, of so many bytes; chunks are read straight into it where the store can.

        Raises:
            CorruptSegmentError: A checksum does not hold; names file, block and column.
            StorageError: The store refused several times.
        """
        assert self._locate is not None
        place = self._locate(request.block)
        return self.fetch_place(request, place, empty) if place.bad is None else self._stand_in(request, place.bad)

    def fetch_or_mark(self, request: FetchRequest, empty: Empty | None = None) -> EncodedBlock:
        """The same, but for a block that is damaged or gone one that says so.

        Raises:
            StorageError: As `fetch`.
        """
        return marking(self.fetch, self._stand_in)(request, empty)

    def _stand_in(self, request: FetchRequest, bad: BadBlock) -> EncodedBlock:
        assert self._locate is not None
        place = self._locate(request.block)
        return bad_block(request, place.num_rows, len(self._columns), place.selected, bad)

    def fetch_place(self, request: FetchRequest, place: BlockPlace, empty: Empty | None = None) -> EncodedBlock:
        """Fetch the block at a place, whatever number a plan gives it. Where an erasure has moved its bytes since it was planned, they are read from there."""
        if place.ref.segment_id in self._moved:
            place = dataclasses.replace(place, ref=self._moved[place.ref.segment_id])
        try:
            return self._fetch_place(request, place, empty)
        except NotFoundError:
            moved = self._find_moved(place)
            if moved is None:
                raise
        return self._fetch_place(request, moved, empty)

    def _find_moved(self, place: BlockPlace) -> BlockPlace | None:
        """The same block where the catalog has it now; None where that is nowhere else."""
        if not isinstance(self._storage, LakeStorage):
            return None
        with self._storage.catalog.read() as connection:
            refs = load_segments_by_id(connection, self._view.spec.id, [place.ref.segment_id], self._view.snapshot_id)
        if not refs or refs[0] == place.ref:
            return None
        self._moved[place.ref.segment_id] = refs[0]
        return dataclasses.replace(place, ref=refs[0])

    def _fetch_place(self, request: FetchRequest, place: BlockPlace, empty: Empty | None) -> EncodedBlock:
        slab, offsets, num_bytes, dictionaries = self._fetch_chunks(place, empty)
        return EncodedBlock(
            request=request,
            num_rows=place.num_rows,
            slab=slab,
            chunk_offsets=offsets,
            chunk_bytes=num_bytes,
            selected=place.selected,
            patches=self._patches(place),
            dictionaries=dictionaries,
            masked=self._erased(place),
        )

    def reader(self, path: str, offset: int, num_bytes: int) -> SegmentReader:
        """The opened segment at a section of a stored object."""
        return self._readers.get((path, offset, num_bytes), lambda: retry(functools.partial(SegmentReader, self._storage.section(path, offset, num_bytes))))

    def fold(self, ref: SegmentRef) -> Resolved:
        """The patches and deletes of a segment, for the columns read."""
        ids = [column.id for column in self._columns]
        return self._folds.get(state_of(ref), lambda: retry(functools.partial(fold, self._view, ref, ids, self._storage)))

    def sources(self, ref: SegmentRef) -> dict[tuple[str, int, int], list[int]]:
        """Which section holds which columns (as indices): the newest column file that has it, else the segment, if that has it."""
        places: dict[tuple[str, int, int], list[int]] = {}
        for index, column in enumerate(self._columns):
            holders = [file for file in ref.column_files if column.id in file.column_ids]
            holder = holders[-1] if holders else ref
            section = (holder.path, holder.offset, holder.num_bytes)
            if column.id in self.reader(*section).columns["column_id"]:
                places.setdefault(section, []).append(index)
        return places

    def _fetch_chunks(
        self, place: BlockPlace, empty: Empty | None
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64], Dictionaries | None]:
        """Read all chunks of the block into one slab: (slab, offset of each column's chunk, its bytes, what columns share with other blocks)."""
        sources = self.sources(place.ref)
        stored, made = self._split_chunks(place, sources)
        shared, of_column = self._shared_chunks(sources, made)
        num_bytes = np.zeros(len(self._columns), np.int64)
        for _, _, members, chunks in stored:
            num_bytes[members] = chunks["num_bytes"]
        for index, chunk in made.items():
            num_bytes[index] = memoryview(chunk).nbytes
        present = np.array([*(index for _, _, members, _ in stored for index in members), *made], np.int64)
        sizes = np.concatenate([num_bytes[present], np.array([part.size for part in shared], np.int64)])
        ends = np.cumsum(-(-sizes // ALIGNMENT) * ALIGNMENT)
        starts = np.concatenate([[0], ends[:-1]])[: sizes.size]
        offsets = np.full(len(self._columns), -1, np.int64)
        offsets[present] = starts[: present.size]
        slab = empty_slab(int(ends[-1]) if sizes.size else 0, empty)
        for start, size, end in zip(starts.tolist(), sizes.tolist(), ends.tolist(), strict=True):
            slab[start + size : end] = 0  # nothing of this process's memory leaves with a block
        for start, part in zip(starts[present.size :].tolist(), shared, strict=True):
            slab[start : start + part.size] = part
        for index, chunk in made.items():
            slab[offsets[index] : offsets[index] + num_bytes[index]] = np.frombuffer(chunk, np.uint8)
        for path, offset, members, chunks in stored:
            parts = [slab[offsets[i] : offsets[i] + num_bytes[i]] for i in members]
            ranges = [(offset + int(chunk["offset"]), int(chunk["num_bytes"])) for chunk in chunks]
            read = functools.partial(self._storage.read_ranges_into, coalesce_gap_bytes=GAP_BYTES, max_request_bytes=MAX_REQUEST_BYTES)
            retry(functools.partial(read, path, ranges, parts))
            for index, chunk, part in zip(members, chunks, parts, strict=True):
                self._verify(place, path, index, chunk, part)
        behind = slice(present.size, None)
        return slab, offsets, num_bytes, Dictionaries(offsets=starts[behind], num_bytes=sizes[behind], of_column=of_column) if shared else None

    def _shared_chunks(
        self, sources: dict[tuple[str, int, int], list[int]], made: dict[int, memoryview]
    ) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.int64]]:
        """The dictionaries that columns share with other blocks, and which of them each column looks up; a column that was made anew has none."""
        shared: list[npt.NDArray[np.uint8]] = []
        of_column = np.full(len(self._columns), -1, np.int64)
        for section, columns in sources.items():
            reader, members = self.reader(*section), [index for index in columns if index not in made]
            records, numbers = reader.dictionaries([self._columns[index].id for index in members])
            of_column[members] = np.where(numbers >= 0, numbers + len(shared), -1)
            shared += retry(functools.partial(reader.shared.data, records, verify=True))
        return shared, of_column

    def _split_chunks(
        self, place: BlockPlace, sources: dict[tuple[str, int, int], list[int]]
    ) -> tuple[list[tuple[str, int, list[int], npt.NDArray[Any]]], dict[int, memoryview]]:
        """Chunks to be read as they are stored, (path, offset of its section, columns, chunks), and those that schema changes make anew, by column."""
        made: dict[int, memoryview] = {}
        stored = []
        for (path, offset, size), columns in sources.items():
            reader = self.reader(path, offset, size)
            narrow = [index for index in columns if is_narrower(reader, self._columns[index])]
            rows = range(place.row_start, place.row_start + place.num_rows)
            made |= {index: retry(functools.partial(widened_chunk, reader, self._columns[index], rows)) for index in narrow}
            members = [index for index in columns if index not in narrow]
            stored.append((path, offset, members, reader.chunks([self._columns[i].id for i in members], [place.block])[:, 0]))
        known = {index for columns in sources.values() for index in columns}
        later = [index for index, column in enumerate(self._columns) if column.default is not None and index not in known]
        made |= {index: default_chunk(self._columns[index], place.num_rows) for index in later}
        return stored, made

    def _verify(self, place: BlockPlace, path: str, index: int, chunk: Any, part: npt.NDArray[np.uint8]) -> None:
        actual = crc32c(part)
        if actual != int(chunk["checksum"]):
            error = CorruptSegmentError(
                f"{path}: the chunk of column {self._columns[index].name!r} in block {place.block} of the segment at byte {place.ref.offset} "
                f"({part.nbytes:,} bytes at {int(chunk['offset']):,}) has checksum {actual:#010x}, not {int(chunk['checksum']):#010x}: "
                "the file is damaged; restore it from a backup or another copy"
            )
            error.column_ids = (self._columns[index].id,)
            raise error

    def _erased(self, place: BlockPlace) -> npt.NDArray[np.uint8] | None:
        """Bits of the rows that were erased since the snapshot: they are blank, and keep their place."""
        if not any(overlay.kind == ERASED for overlay in place.ref.overlays):
            return None
        resolved, rows = self.fold(place.ref), slice(place.row_start, place.row_start + place.num_rows)
        assert resolved.deleted is not None
        erased = resolved.deleted[rows] if resolved.left is None else resolved.deleted[rows] & ~resolved.left[rows]
        return np.packbits(erased, bitorder="little") if erased.any() else None

    def _patches(self, place: BlockPlace) -> dict[int, BlockPatch]:
        if not place.ref.overlays:
            return {}
        resolved, patches = self.fold(place.ref), {}
        for index, column in enumerate(self._columns):
            patch = resolved.patches.get(column.id)
            if patch is None:
                continue
            low, high = np.searchsorted(patch.rows, [place.row_start, place.row_start + place.num_rows])
            if low < high:
                rows = (patch.rows[low:high] - np.uint32(place.row_start)).astype(np.uint32)
                patches[index] = BlockPatch(rows=rows, values=patch.values.slice(int(low), int(high - low)))
        return patches


def retry(action: Callable[[], T], *, attempts: int = ATTEMPTS, delay_seconds: float = FIRST_DELAY_SECONDS, sleep: Callable[[float], None] = time.sleep) -> T:
    """Call `action` again where the store refused, after a growing, jittered pause. What cannot get better is raised at once."""
    for attempt in range(attempts):
        try:
            return action()
        except (NotFoundError, StorageFullError):
            raise
        except StorageError as error:
            if attempt == attempts - 1:
                error.add_note(f"after {attempts} attempts")
                raise
            sleep(delay_seconds * 2**attempt * (0.5 + random.random()))
    raise AssertionError("unreachable")


K = TypeVar("K")


class _Cache(Generic[K, T]):
    """The values used last; each is made once even when several threads ask for it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._values: OrderedDict[K, T] = OrderedDict()
        self._making: dict[K, threading.Lock] = {}

    def get(self, key: K, make: Callable[[], T]) -> T:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            own = self._making.setdefault(key, threading.Lock())
        with own:
            with self._lock:
                if key in self._values:
                    return self._values[key]
            value = make()
            with self._lock:
                self._values[key] = value
                self._making.pop(key, None)
                if len(self._values) > self._size:
                    self._values.popitem(last=False)
        return value
