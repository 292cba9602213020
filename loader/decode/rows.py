"""Rows by number out of encoded chunks, to Arrow: one native call for all columns and blocks, each value in a bounded number of vectors.

Owns what stands between decode programs and the native look-up: chunks that are held open (`OpenChunks`), how columns look to it (`RowFields`), and the
reference (`loader.decode.lookup`) that answers instead without a native library, for types it does not know and for programs that are too deep for it.
Where the bytes of chunks come from is somebody else's.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from loader.decode.arrow import to_arrow
from loader.decode.inflate import inflate_into_slab, inflated_bytes
from loader.decode.lookup import look_up
from loader.decode.program import Program
from loader.encodings.leaf import LeafType, is_bytes, is_list, is_text, leaf_type, storage_type
from loader.errors import CorruptSegmentError
from loader.kernels import native, native_rows
from loader.kernels.native_rows import ROW_COLUMN, ROW_FIELD, ROW_GROUP, ROW_PROGRAM, RowsStatus
from loader.schema import take
from loader.segment.layout import PADDING_BYTES

Array = np.ndarray[Any, np.dtype[Any]]
Load = Callable[[Array, Array], None]
PAGE_BYTES = 4096  # of a slab: read whole or not at all
MAX_RESULT_BYTES = 1 << 30  # of one look-up
MAX_ROUNDS = 64  # of reading what a look-up misses: more than any program has levels


class OpenChunks:
    """Encoded chunks made ready for rows by number: their program, and their bytes, or those of them that were needed so far.

    Attributes:
        program: Of the chunks; compressed bytes are inflated if the slab is whole.
        slab: uint8, the chunks, what was inflated, and PADDING_BYTES.
        leaves: Physical type of each column's chunk; chunks past them are dictionaries that some share.
        where: Says in errors what a chunk is; may be None.
    """

    def __init__(
        self,
        program: Program,
        slab: Array,
        leaves: Sequence[LeafType],
        *,
        present: Array | None = None,
        load: Load | None = None,
        where: Callable[[int], str] | None = None,
    ) -> None:
        """
        Args:
            program: From `program.build` on this slab.
            slab: uint8 on 8 bytes.
            leaves: Physical type of each column's chunk.
            present: uint8, a flag for each PAGE_BYTES of the slab that has been read; None if all have. Then nothing may be compressed.
            load: Reads ranges of the slab (offsets, sizes; int64) and sets their flags; goes with `present`.
            where: Says in errors what a chunk is.

        Raises:
            CorruptSegmentError: Compressed bytes do not inflate.
        """
        self._present, self._load, self.where = present, load, where
        self.leaves = tuple(leaves)
        self.program, self.slab = _inflated(program, slab) if present is None else (program, slab)
        ops = self.program.ops
        self._tables = [ops[np.argsort(ops["out"], kind="stable")], np.ascontiguousarray(self.program.sources), np.ascontiguousarray(self.program.regions)]
        addresses = [number for table in self._tables for number in (table.ctypes.data, table.size)]
        self._record = np.zeros(1, ROW_PROGRAM)
        self._record[0] = (self.slab.ctypes.data, self.slab.size - PADDING_BYTES, 0 if present is None else present.ctypes.data, *addresses)
        self.address: int = self._record.ctypes.data

    @property
    def is_partial(self) -> bool:
        """Whether its slab is read in parts, as it is needed."""
        return self._present is not None

    @property
    def num_bytes(self) -> int:
        """Memory that this takes: as much as has been read, and the tables."""
        held = self.slab.size if self._present is None else int(np.count_nonzero(self._present)) * PAGE_BYTES
        return held + 2 * sum(table.nbytes for table in self._tables)

    def load(self, offsets: Array, sizes: Array) -> None:
        """Read what is missing of ranges of the slab."""
        assert self._load is not None, "all of the slab is there"
        self._load(offsets, sizes)

    def columns(self, chunks: Sequence[int], types: Sequence[pa.DataType], rows: Array) -> list[pa.Array]:
        """The reference: rows of some chunks as Arrow arrays.

        Args:
            chunks: Which.
            types: Their types in Arrow.
            rows: int64, in any order.

        Raises:
            CorruptSegmentError: The chunks do not hold together.
        """
        if self._present is not None:
            self.load(np.zeros(1, np.int64), np.array([self.slab.size - PADDING_BYTES]))
        found: list[pa.Array] = []
        try:
            for column, kind in zip(look_up(self.program, self.slab, self.leaves, chunks, rows), types, strict=True):
                found.append(to_arrow(column, kind))
        except CorruptSegmentError as error:
            named = re.match(r"chunk (\d+) of the request (is corrupt: )?", str(error))
            if named is None:
                raise self.located(chunks[len(found)], str(error)) from None
            raise self.located(int(named[1]), str(error)[named.end() :]) from None
        return found

    def located(self, chunk: int, what: str) -> CorruptSegmentError:
        """The error that something is wrong with a chunk."""
        where = f"chunk {chunk} of the request" if self.where is None else self.where(chunk)
        return CorruptSegmentError(f"{where}: {what}; fetch the file again or restore it")


class RowPart(NamedTuple):
    """Some rows of one block; a tuple, because many are made.

    Attributes:
        chunks: The chunks of each field; None where the block does not have the column.
        columns: ROW_COLUMN records `[fields]` of those.
        rows: uint32, numbers in the block.
        places: uint32, where they go in the result; no place twice in all parts.
        block: The number of the block.
    """

    chunks: Sequence[OpenChunks | None]
    columns: Array
    rows: Array
    places: Array
    block: int = 0


def address_of(array: Array) -> int:
    """Where an array's memory begins: `array.ctypes.data`, in a fraction of its time."""
    address: int = array.__array_interface__["data"][0]
    return address


def row_columns(chunks: Sequence[tuple[OpenChunks, int] | None]) -> Array:
    """ROW_COLUMN records of chunks: which chunk of which program each field is."""
    columns = np.zeros(len(chunks), ROW_COLUMN)
    for record, found in zip(columns, chunks, strict=True):
        if found is not None:
            record["program"], record["chunk"] = found[0].address, found[1]
    return columns


class RowFields:
    """The columns of look-ups, ready to be looked up again and again.

    Attributes:
        schema: Of the results.
    """

    def __init__(self, schema: pa.Schema) -> None:
        """
        Args:
            schema: Of the results: types that segments store.
        """
        self.schema = schema
        types = [field.type for field in schema]
        layouts = [_layouts(kind) for kind in types]
        # a map is two columns to the library: its keys, and its weights
        laid_out = [(index, layout) for index, known in enumerate(layouts) for layout in known]
        self._native, self._others = [index for index, _ in laid_out], [index for index, known in enumerate(layouts) if not known]
        self._records = np.frombuffer(b"".join(layout.record for _, layout in laid_out), ROW_FIELD)
        # equal types may still name their items otherwise
        kinds = [types[index] if layout.kind.equals(types[index]) else layout.kind for index, layout in laid_out]
        self._is_stored = len(kinds) == len(types) and all(kind is stated for kind, stated in zip(kinds, types, strict=True))
        self._stored = schema if self._is_stored else pa.schema([pa.field(str(at), kind) for at, kind in enumerate(kinds)])

    def take(self, parts: Sequence[RowPart], num_rows: int) -> pa.RecordBatch:
        """Look up rows.

        Args:
            parts: Blocks and their rows; of any segments that have the columns in these types.
            num_rows: Of the result. Rows that no part names are null, and so are columns that a part does not have.

        Raises:
            CorruptSegmentError: What was read does not hold together.
        """
        library = native.load()
        batch = None if library is None or not self._native else self.take_native(library, parts, num_rows)
        if batch is None:
            return self._assemble(self._reference(range(len(self.schema)), parts, num_rows))
        if self._is_stored:
            return batch
        made: dict[int, list[pa.Array]] = {}
        for index, array in zip(self._native, batch.columns, strict=True):
            made.setdefault(index, []).append(array)
        found = {index: _of_type(arrays, self.schema.field(index).type) for index, arrays in made.items()}
        return self._assemble(found | self._reference(self._others, parts, num_rows))

    def take_native(self, library: native.NativeLibrary, parts: Sequence[RowPart], num_rows: int) -> pa.RecordBatch | None:
        """The columns that the library knows; None where a program is too deep for it."""
        groups = np.array([number for part in parts for number in (address_of(part.rows), address_of(part.places), part.rows.size)], np.uint64).view(ROW_GROUP)
        chosen = [part.columns if self._is_stored else part.columns[self._native] for part in parts]
        # as words: NumPy joins structured arrays field by field
        columns = chosen[0] if len(chosen) == 1 else np.concatenate([np.zeros(0, np.uint64), *(part.view(np.uint64) for part in chosen)]).view(ROW_COLUMN)
        for _ in range(MAX_ROUNDS):
            taken = library.take_rows(columns, groups, self._records, num_rows, MAX_RESULT_BYTES)
            if taken.status == RowsStatus.DONE:
                try:
                    return pa.RecordBatch._import_from_c(taken.array, self._stored)
                finally:
                    library.release_rows(taken)
            if taken.status != RowsStatus.MISSING:
                break
            _load_missing(parts, taken.missing)
        if taken.status == RowsStatus.CORRUPT:
            part, index = parts[taken.group], self._native[taken.field]
            chunks = part.chunks[index]
            assert chunks is not None
            raise chunks.located(int(part.columns["chunk"][index]), native.REASONS.get(taken.reason, f"error {taken.reason}"))
        if taken.status == RowsStatus.MEMORY:
            raise MemoryError(f"a look-up of {num_rows:,} rows of {len(self._native):,} columns does not fit into memory: ask for fewer rows")
        return None

    def _reference(self, indexes: Sequence[int], parts: Sequence[RowPart], num_rows: int) -> dict[int, pa.Array]:
        """Some columns by the reference."""
        types = [field.type for field in self.schema]
        found: dict[int, list[pa.Array]] = {index: [pa.nulls(1, types[index])] for index in indexes}
        orders = {index: np.zeros(num_rows, np.int64) for index in indexes}
        for part in parts:
            for opened in {id(chunks): chunks for chunks in part.chunks if chunks is not None}.values():
                mine = [index for index in indexes if part.chunks[index] is opened]
                arrays = opened.columns(part.columns["chunk"][mine].tolist(), [types[index] for index in mine], part.rows.astype(np.int64))
                for index, array in zip(mine, arrays, strict=True):
                    orders[index][part.places] = sum(map(len, found[index])) + np.arange(part.rows.size)
                    found[index].append(array)
        return {index: reordered(found[index], orders[index], types[index]) for index in indexes}

    def _assemble(self, columns: dict[int, pa.Array]) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([columns[index] for index in range(len(self.schema))], schema=self.schema)


def reordered(arrays: Sequence[pa.Array], order: Array, kind: pa.DataType) -> pa.Array:
    """Entries of arrays laid end to end, by number."""
    found = take(pa.chunked_array(arrays, kind), order)
    whole = found.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)


def _of_type(arrays: Sequence[pa.Array], kind: pa.DataType) -> pa.Array:
    """What the library made of a column, as its type."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _of_type(arrays, kind.storage_type))
    if pt.is_map(kind):
        keys, weights = arrays
        if not keys.offsets.equals(weights.offsets):
            raise CorruptSegmentError("maps have other numbers of keys than of weights; fetch the file again or restore it")
        entries = pa.StructArray.from_arrays([keys.values, weights.values], fields=[kind.key_field, kind.item_field])
        return pa.Array.from_buffers(kind, len(keys), keys.buffers()[:2], keys.null_count, children=[entries])
    (array,) = arrays
    if array.type.equals(kind):
        return array
    return array.dictionary_encode().cast(kind) if pt.is_dictionary(kind) else array.cast(kind)


def _inflated(program: Program, slab: Array) -> tuple[Program, Array]:
    """The program with nothing compressed, and its slab with what was behind it."""
    more = inflated_bytes(program)
    if not more:
        return program, slab
    used = slab.size - PADDING_BYTES
    longer = np.zeros(slab.size + more, np.uint8)
    longer[:used] = slab[:used]
    return inflate_into_slab(program, longer, used)[0], longer


def _load_missing(parts: Sequence[RowPart], missing: Array) -> None:
    known = {chunks.address: chunks for part in parts for chunks in part.chunks if chunks is not None}
    for address in np.unique(missing["program"]).tolist():
        mine = missing[missing["program"] == address]
        known[address].load(mine["offset"].astype(np.int64), mine["num_bytes"].astype(np.int64))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layout:
    """What the library makes of a column: an array of `kind`, as a ROW_FIELD record says it."""

    kind: pa.DataType
    record: bytes


@functools.lru_cache(maxsize=1024)
def _layouts(kind: pa.DataType) -> tuple[_Layout, ...]:
    """How the library lays out a type; nothing if it does not."""
    stored = storage_type(kind)
    if pt.is_map(stored):
        parts = [_layout(pa.list_(pa.field("item", part, nullable=False))) for part in (stored.key_type, stored.item_type)]
        if any(part is None or leaf_type(part.kind, "").weights for part in parts):
            return ()
        keys, weights = (part for part in parts if part is not None)
        record = np.frombuffer(weights.record, ROW_FIELD).copy()
        record["flags"] |= native_rows.FIELD_WEIGHTS
        return keys, _Layout(kind=weights.kind, record=record.tobytes())
    if pt.is_string_view(stored) or pt.is_binary_view(stored):
        # not what the library makes: it is cast
        kind = stored = pa.large_string() if pt.is_string_view(stored) else pa.large_binary()
    layout = _layout(stored if pt.is_dictionary(kind) else kind)
    return () if layout is None else (layout,)


def _layout(kind: pa.DataType) -> _Layout | None:
    record = np.zeros(1, ROW_FIELD)
    leaf, inner = leaf_type(kind, ""), _storage(kind)
    flags = native_rows.FIELD_INTEGER if leaf.dtype.kind in "iu" else 0
    for depth in range(leaf.depth):
        if is_bytes(inner):
            flags |= native_rows.FIELD_BYTES | (native_rows.FIELD_TEXT if is_text(inner) else 0)
        elif not is_list(inner):
            return None
        record["levels"][0, depth] = _level(inner)
        inner = inner if is_bytes(inner) else _storage(inner.value_type)
    if leaf.fixed_size and pt.is_fixed_size_binary(inner):
        flags |= native_rows.FIELD_FIXED_BINARY
    elif leaf.fixed_size:
        inner = _storage(inner.value_type)
    if pt.is_dictionary(inner) or pt.is_null(inner):
        return None
    flags |= native_rows.FIELD_BITS if pt.is_boolean(inner) else 0
    record["depth"], record["value_type"], record["value_bytes"], record["flags"] = leaf.depth, leaf.value_type, leaf.dtype.itemsize, flags
    record["fixed_size"] = leaf.fixed_size
    return _Layout(kind=kind, record=record.tobytes())


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _level(kind: pa.DataType) -> int:
    if pt.is_list_view(kind) or pt.is_large_list_view(kind):
        return native_rows.LEVEL_LARGE_LIST_VIEW if pt.is_large_list_view(kind) else native_rows.LEVEL_LIST_VIEW
    wide = pt.is_large_list(kind) or pt.is_large_string(kind) or pt.is_large_binary(kind)
    return native_rows.LEVEL_LARGE_LIST if wide else native_rows.LEVEL_LIST
