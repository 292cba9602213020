"""Rows out of row groups: the pages that are missing are read side by side, then all columns are cut out of the rows at once.

Owns the reading order and the bound on pages that stay in memory. Which segments have a group, and for which columns, is `row_groups`'.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.encodings.overlap import ranges
from loader.errors import NotFoundError, StorageError
from loader.kernels import native
from loader.schema import Column
from loader.segment.lookup_rows import IS_VARIABLE, LookupRows, fixed_array, heap_array, slots, validity

I64 = npt.NDArray[np.int64]
Array = np.ndarray[Any, np.dtype[Any]]
GroupKey = tuple[str, int]  # path and offset of its column file
READ_THREADS = 16
MAX_OPEN_GROUPS = 1024
PAGES_PER_READ = 16  # of one thread at a time: fewer than this are not worth a thread


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupPart:
    """Rows wanted of one group: numbers i64[n] in the segment, and places i64[n] in the result."""

    group: LookupRows
    numbers: I64
    places: I64


class GroupPages:
    """Reads groups and bounds what stays in memory of them: the groups not used for longest go first."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._held: OrderedDict[GroupKey, tuple[LookupRows, int]] = OrderedDict()  # with the bytes it holds
        self.num_bytes = 0

    def find(self, key: GroupKey) -> LookupRows | None:
        """A group that is open."""
        held = self._held.get(key)
        return None if held is None else held[0]

    def keep(self, groups: Iterable[tuple[GroupKey, LookupRows]], max_bytes: int) -> None:
        """Hold on to groups that were read, and to their pages within a bound."""
        for key, group in groups:
            before = self._held.pop(key, None)
            self._held[key] = (group, group.loaded_bytes)
            self.num_bytes += group.loaded_bytes - (0 if before is None else before[1])
        for key, (group, num_bytes) in list(self._held.items()) if self.num_bytes > max_bytes else ():
            if self.num_bytes <= max_bytes:
                break
            if num_bytes:
                group.pages.forget()
                self._held[key] = (group, 0)
                self.num_bytes -= num_bytes
        while len(self._held) > MAX_OPEN_GROUPS:
            self.num_bytes -= self._held.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Forget all groups."""
        self._held.clear()
        self.num_bytes = 0

    def load(self, wanted: Sequence[tuple[LookupRows, I64]]) -> None:
        """Read pages of groups, many at a time: those of local files in one native call."""
        library = native.load()
        wanted = [(group, pages) for group, pages in wanted if len(pages)]
        local = [] if library is None else [(group, pages) for group, pages in wanted if group.place is not None]
        if library is not None and sum(len(pages) for _, pages in local) >= PAGES_PER_READ:
            self._load_local(library, local)
            wanted = [(group, pages) for group, pages in wanted if group.place is None]
        tasks = [(group, pages[at : at + PAGES_PER_READ]) for group, pages in wanted for at in range(0, len(pages), PAGES_PER_READ)]
        if len(tasks) < 2:
            for group, pages in tasks:
                group.load(pages)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="headrace-lookup")
        for read in [self._pool.submit(group.load, pages) for group, pages in tasks]:
            read.result()

    def _load_local(self, library: native.NativeLibrary, wanted: Sequence[tuple[LookupRows, I64]]) -> None:
        files: dict[pathlib.Path, int] = {}
        try:
            for group, _ in wanted:
                assert group.place is not None
                if group.place[0] not in files:
                    files[group.place[0]] = _open_scattered(group.place[0])
            reads = [group.pages.reads(pages, files[group.place[0]], group.place[1]) for group, pages in wanted if group.place is not None]
            bad = library.read_pages(np.concatenate(reads), READ_THREADS)
        finally:
            for file in files.values():
                os.close(file)
        if bad is not None:  # read again one by one, which says what is wrong
            for group, pages in wanted:
                group.load(pages)
            return
        for group, pages in wanted:
            group.pages.loaded(pages)


def _open_scattered(path: pathlib.Path) -> int:
    """A file to read a page of here and there; the system is told, or it would read 31 more with each."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {path}: it was deleted, or the lake was moved without it") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    return file


def take_rows(pages: GroupPages, parts: Sequence[GroupPart], columns: Sequence[Column], num_rows: int) -> list[pa.Array]:
    """Columns of rows, in their places; null where no part has a row.

    Args:
        pages: Reads what is missing.
        parts: Of groups that have one layout, with all of the columns.
        columns: What to read.
        num_rows: Of the result.

    Raises:
        CorruptSegmentError: A checksum does not match, or a group does not hold together.
    """
    layout = parts[0].group.layout
    pages.load([(part.group, part.group.missing(part.numbers)) for part in parts])
    matrix = np.zeros((num_rows, layout.row_bytes), np.uint8)
    for part in parts:
        matrix[part.places] = part.group.rows(part.numbers)
    records, number_of = layout.columns, {column_id: number for number, column_id in enumerate(layout.column_ids)}
    chosen = [number_of[column.id] for column in columns]
    heaped = [number for number in chosen if records[number]["flags"] & IS_VARIABLE]
    found = {number: fixed_array(matrix, records[number], layout.schema.field(number)) for number in chosen if number not in heaped}
    if heaped:
        found |= _from_heap(pages, parts, matrix, heaped)
    return [found[number] for number in chosen]


def _from_heap(pages: GroupPages, parts: Sequence[GroupPart], matrix: Array, chosen: Sequence[int]) -> dict[int, pa.Array]:
    """Columns of strings and lists, by their number in the layout."""
    layout = parts[0].group.layout
    placed = {number: slots(matrix, layout.columns[number]) for number in chosen}
    widths = {number: int(layout.columns[number]["item_bytes"]) for number in chosen}
    wanted = []
    for part in parts:
        starts = np.concatenate([placed[number]["start"][part.places] for number in chosen]).astype(np.int64)
        sizes = np.concatenate([placed[number]["length"][part.places].astype(np.int64) * widths[number] for number in chosen])
        wanted.append((part.group, part.group.missing_heap(starts, sizes)))
    pages.load(wanted)
    found = {}
    for number in chosen:
        lengths = placed[number]["length"].astype(np.int64)
        sizes = lengths * widths[number]
        pool, starts, at = [np.zeros(0, np.uint8)], np.zeros(len(matrix), np.int64), 0
        for part in parts:
            mine = sizes[part.places]
            pool.append(part.group.heap(placed[number]["start"][part.places].astype(np.int64), mine))
            starts[part.places] = at + np.cumsum(mine) - mine
            at += len(pool[-1])
        data = np.concatenate(pool)[ranges(starts, sizes)]
        found[number] = heap_array(layout.schema.field(number), lengths, data, validity(matrix, layout.columns[number]))
    return found
