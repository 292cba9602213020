"""Rows of segments by number, again and again: what was read stays open, so that the next look-up costs microseconds.

Owns the cache of open chunks, and where their bytes come from: whole chunks with their checksums compared, or, where nobody wants checksums, the headers and
then only the pages that a look-up turns out to need. Decoding is `loader.decode.rows`'s.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from loader.decode.dense import dense_bytes, densed
from loader.decode.program import build
from loader.decode.rows import PAGE_BYTES, OpenChunks, RowFields, RowPart, row_columns
from loader.errors import CorruptSegmentError
from loader.segment.layout import CHUNK_HEADER, OP, PADDING_BYTES, REGION, SOURCE, Feature
from loader.segment.shared import behind_columns

if TYPE_CHECKING:
    from loader.segment.reader import SegmentReader

Array = np.ndarray[Any, np.dtype[Any]]
WHOLE_CHUNK_BYTES = 64 << 10  # a smaller chunk is read whole
HEAD_PAGES = 2  # read first of a larger one: its tables, as a rule
GAP_PAGES = 4  # read through rather than asked for around
DECODED_SHARE = 0.75  # of a cache: what decoded rows may take
_numbers = itertools.count()


Opened = tuple[list[OpenChunks | None], Array]  # the chunks of some columns, None for one that is not there, and their ROW_COLUMN records


def _opened(columns: dict[int, tuple[OpenChunks, int]], column_ids: Sequence[int]) -> Opened:
    chosen = [columns.get(column) for column in column_ids]
    return [found and found[0] for found in chosen], row_columns(chosen)


def _densed(chunks: OpenChunks) -> OpenChunks:
    try:
        return densed(chunks)
    except CorruptSegmentError:
        return chunks  # a look-up says where, once it needs what is damaged


class _Block:
    """What is open of one block."""

    def __init__(self) -> None:
        self.columns: dict[int, tuple[OpenChunks, int]] = {}
        self.requests: dict[tuple[int, ...], Opened] = {}
        self.num_bytes = self.num_looked_up = 0

    @property
    def chunks(self) -> list[OpenChunks]:
        return list({id(chunks): chunks for chunks, _ in self.columns.values()}.values())


class RowCache:
    """Open chunks of any segments, at most so many bytes of them: blocks that were not looked up for longest go first. Safe to share between threads.

    Where all rows there are would fit decoded, blocks that are looked up again and again are decoded.

    Attributes:
        num_rows: Of all segments whose rows may be looked up; 0 where that is not known, and nothing is decoded.
    """

    def __init__(self, max_bytes: int = 256 << 20, *, num_rows: int = 0, decode_after: int = 8) -> None:
        """
        Args:
            max_bytes: Of chunks and their tables. A look-up that needs more holds more until it ends.
            num_rows: See the class.
            decode_after: The look-up in a block, counted from 1, that decodes it.
        """
        self.max_bytes, self.num_rows, self._decode_after = max_bytes, num_rows, decode_after
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[int, int], _Block] = OrderedDict()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """In use."""
        return self._num_bytes

    def find(self, key: tuple[int, int], column_ids: tuple[int, ...]) -> Opened | list[int]:
        """The open chunks of some columns of a block, or the columns that are missing."""
        with self._lock:
            block = self._blocks.get(key)
            if block is None:
                return [column for column in dict.fromkeys(column_ids) if column >= 0]
            self._blocks.move_to_end(key)
            known = block.requests.get(column_ids)
            if known is None:
                missing = [column for column in dict.fromkeys(column_ids) if column >= 0 and column not in block.columns]
                if missing:
                    return missing
                known = block.requests[column_ids] = _opened(block.columns, column_ids)
            block.num_looked_up += 1
            if block.num_looked_up != self._decode_after or not self._fits(block):
                return known
            chunks = block.chunks
        made = {id(one): _densed(one) for one in chunks}
        with self._lock:
            if self._blocks.get(key) is not block:
                return known  # it was dropped meanwhile
            block.columns = {column: (made.get(id(one), one), number) for column, (one, number) in block.columns.items()}
            block.requests.clear()
            self._measure(key)
            return _opened(block.columns, column_ids)

    def add(self, key: tuple[int, int], columns: dict[int, tuple[OpenChunks, int]]) -> None:
        """Keep open chunks of a block."""
        with self._lock:
            block = self._blocks.setdefault(key, _Block())
            block.columns.update(columns)
            block.num_looked_up = 0
            self._measure(key)

    def _fits(self, block: _Block) -> bool:
        """Whether all rows there are would fit if all blocks were as this one, decoded."""
        rows = max((int(chunks.program.num_rows.max(initial=0)) for chunks in block.chunks), default=0)
        return bool(rows) and sum(map(dense_bytes, block.chunks)) * self.num_rows <= DECODED_SHARE * self.max_bytes * rows

    def measure(self, key: tuple[int, int]) -> None:
        """Count a block again that may have grown."""
        with self._lock:
            if key in self._blocks:
                self._measure(key)

    def _measure(self, key: tuple[int, int]) -> None:
        block = self._blocks[key]
        now = sum(chunks.num_bytes for chunks in block.chunks)
        self._num_bytes += now - block.num_bytes
        block.num_bytes = now
        self._blocks.move_to_end(key)
        while self._num_bytes > self.max_bytes and self._blocks:
            self._num_bytes -= self._blocks.popitem(last=False)[1].num_bytes

    def drop(self, number: int) -> None:
        """Forget the blocks of one reader."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] == number]:
                self._num_bytes -= self._blocks.pop(key).num_bytes


class RowReader:
    """Rows of one segment by number. Keeps footers, programs and bytes of what it read, within the bounds of its cache; safe to share between threads.

    A look-up over several segments joins the `parts` of their readers in one `RowFields.take`.
    """

    def __init__(self, reader: SegmentReader, *, cache: RowCache | None = None, verify: bool | None = None) -> None:
        """
        Args:
            reader: The segment; stays open as long as this is in use.
            cache: Shared with other readers; default one of its own.
            verify: Compare checksums, for which chunks are read whole; default as the reader was opened. Without, large chunks are read in parts.
        """
        self._reader, self._verify = reader, reader.verifies(verify)
        self._cache = RowCache(num_rows=reader.num_rows) if cache is None else cache
        self._number = next(_numbers)
        self.fields = functools.lru_cache(maxsize=64)(self._fields)
        self._resolved = functools.lru_cache(maxsize=64)(self._resolve)

    def _fields(self, column_ids: tuple[int, ...]) -> RowFields:
        return RowFields(self._reader.schema_of(column_ids))

    def _resolve(self, columns: tuple[str | int, ...] | None) -> tuple[tuple[int, ...], RowFields]:
        ids = tuple(self._reader.resolve(columns))
        return ids, self.fields(ids)

    def take(self, rows: Sequence[int] | Array, columns: Sequence[str | int] | None = None) -> pa.RecordBatch:
        """Rows in the order given.

        Args:
            rows: Row numbers, in any order; repeats allowed.
            columns: Names or ids in the order wanted; default all, in the order they were written.

        Raises:
            ColumnNotFoundError: A column is not in the segment.
            CorruptSegmentError: A checksum or the structure does not hold; names file, block, column and offset.
            ValueError: A row is not in the segment.
        """
        ids, fields = self._resolved(None if columns is None else tuple(columns))
        numbers = np.asarray(rows, np.int64)
        parts = self.parts(numbers, ids)
        batch = fields.take(parts, numbers.size)
        self.measure(parts)
        return batch

    def parts(self, rows: Array, column_ids: tuple[int, ...], places: Array | None = None, *, ascending: bool = False) -> list[RowPart]:
        """What `RowFields.take` needs of this segment.

        Args:
            rows: int64, row numbers in any order.
            column_ids: Which columns, in the order of the fields; negative where the segment has none for a field.
            places: uint32, where the rows go in the result; default in their order.
            ascending: The rows rise already.

        Raises:
            ColumnNotFoundError: A column is not in the segment.
            CorruptSegmentError: A checksum or the structure does not hold.
            ValueError: A row is not in the segment.
        """
        places = np.arange(rows.size, dtype=np.uint32) if places is None else places
        if rows.size > 1 and not ascending:
            # neighbours share vectors
            order = np.argsort(rows, kind="stable")
            rows, places = rows[order], places[order]
        blocks, cuts = self._reader.cut_at_blocks(rows)
        starts = self._reader.block_starts
        found = []
        for block, low, high in zip(blocks, cuts, cuts[1:], strict=False):
            chunks, columns = self._open(block, column_ids)
            inside = (rows[low:high] - starts[block]).astype(np.uint32)
            found.append(RowPart(chunks=chunks, columns=columns, rows=inside, places=places[low:high], block=block))
        return found

    def measure(self, parts: Sequence[RowPart]) -> None:
        """Count what a look-up read, where chunks are read in parts."""
        if not self._verify:
            for part in parts:
                self._cache.measure((self._number, part.block))

    def close(self) -> None:
        """Let go of what is kept. The segment stays open."""
        self._cache.drop(self._number)

    def _open(self, block: int, column_ids: tuple[int, ...]) -> Opened:
        key = (self._number, block)
        found = self._cache.find(key, column_ids)
        if not isinstance(found, list):
            return found
        opened = self._open_chunks(block, found) if found else None
        mine = {} if opened is None else {column: (opened, number) for number, column in enumerate(found)}
        self._cache.add(key, mine)
        again = self._cache.find(key, column_ids)
        if not isinstance(again, list):
            return again
        # the cache is too small for them all, or other threads' look-ups took their place
        mine |= {column: (self._open_chunks(block, [column]), 0) for column in again if column not in mine}
        return _opened(mine, column_ids)

    def _open_chunks(self, block: int, column_ids: Sequence[int]) -> OpenChunks:
        reader = self._reader
        if self._verify:
            found = reader.fetch(block, column_ids, verify=True)
            slab, offsets, records, shared, pages = found.slab, found.offsets, found.records, found.shared, None
        else:
            dictionaries, numbers = reader.dictionaries(column_ids)
            records, shared = np.concatenate([reader.chunks(column_ids, [block])[:, 0], dictionaries]), behind_columns(numbers)
            pages = _Pages(reader, records)
            slab, offsets = pages.slab, pages.offsets
        with reader.locating(block, column_ids, records, shared):
            program = build(slab, offsets, records["num_bytes"].astype(np.int64), shared=shared)
        reader.check_rows(block, program, len(column_ids))
        if pages is not None and (program.features & Feature.COMPRESSED_BYTES or pages.is_whole):
            pages.load_all()
            pages = None
        where = functools.partial(reader.where_of, block, tuple(column_ids), records, shared)
        present, load = (None, None) if pages is None else (pages.present, pages.load)
        with reader.locating(block, column_ids, records, shared):
            return OpenChunks(program, slab, reader.leaves(column_ids), present=present, load=load, where=where)


class _Pages:
    """Chunks of a block in a slab whose pages are read when they are needed.

    Attributes:
        slab: uint8; chunks begin on PAGE_BYTES, so that a page is of one chunk.
        offsets: int64, where each chunk begins in it.
        present: uint8, a flag for each page.
    """

    def __init__(self, reader: SegmentReader, records: Array) -> None:
        self._reader = reader
        self._files, self._sizes = records["offset"].astype(np.int64), records["num_bytes"].astype(np.int64)
        rooms = -(-self._sizes // PAGE_BYTES) * PAGE_BYTES
        self.offsets = np.cumsum(rooms) - rooms
        used = int(rooms.sum())
        self.slab = np.empty(used + PADDING_BYTES, np.uint8)  # untouched pages take no memory
        self.present = np.zeros(used // PAGE_BYTES, np.uint8)
        self.load(self.offsets, np.where(self._sizes <= WHOLE_CHUNK_BYTES, self._sizes, np.minimum(self._sizes, HEAD_PAGES * PAGE_BYTES)))
        self._load_tables()

    @property
    def is_whole(self) -> bool:
        """Whether everything has been read."""
        return bool(self.present.all())

    def load_all(self) -> None:
        """Read what is missing."""
        self.load(self.offsets, self._sizes)

    def _load_tables(self) -> None:
        """The rest of tables that are longer than what is read first."""
        good = self._sizes >= CHUNK_HEADER.itemsize
        headers = self.slab[(self.offsets[good, None] + np.arange(CHUNK_HEADER.itemsize))].reshape(-1).view(CHUNK_HEADER)
        sizes = np.full(headers.size, CHUNK_HEADER.itemsize, np.int64)
        for name, record in (("num_regions", REGION), ("num_ops", OP), ("num_sources", SOURCE)):
            sizes += headers[name].astype(np.int64) * record.itemsize
        self.load(self.offsets[good], np.minimum(sizes, self._sizes[good]))

    def load(self, offsets: Array, sizes: Array) -> None:
        """Read the missing pages of ranges of the slab (int64): neighbours, and pages with little between them, together."""
        wanted = np.zeros(self.present.size + 1, np.int32)
        np.add.at(wanted, offsets // PAGE_BYTES, 1)
        np.add.at(wanted, -(-(offsets + sizes) // PAGE_BYTES), -1)
        pages = np.flatnonzero((np.cumsum(wanted[:-1]) > 0) & (self.present == 0))
        if not pages.size:
            return
        chunk = np.searchsorted(self.offsets, pages * PAGE_BYTES, side="right") - 1
        cuts = np.flatnonzero((np.diff(pages) > 1 + GAP_PAGES) | (np.diff(chunk) > 0)) + 1
        first, last = pages[np.concatenate([[0], cuts])], pages[np.concatenate([cuts - 1, [pages.size - 1]])]
        chunk = chunk[np.concatenate([[0], cuts])]
        start = first * PAGE_BYTES
        stop = np.minimum((last + 1) * PAGE_BYTES, self.offsets[chunk] + self._sizes[chunk])
        shift = self._files[chunk] - self.offsets[chunk]
        self._reader.read_into(list(zip((start + shift).tolist(), (stop - start).tolist(), strict=True)), start.tolist(), self.slab)
        for low, high in zip(first.tolist(), last.tolist(), strict=True):
            self.present[low : high + 1] = 1
