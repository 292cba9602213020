"""The CPU library through ctypes. Owns loading, the check of its version, and the checks of arrays before their addresses are passed.

Imports nothing but the standard library, NumPy and loader.errors, so that tools can use it on machines with little installed.
ctypes releases the GIL for the length of every call.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import pathlib

import numpy as np

from loader.errors import CorruptSegmentError
from loader.kernels import build
from loader.kernels.arrays import VECTOR_META as VECTOR_META
from loader.kernels.arrays import Array, address, check_dtype, item_bytes
from loader.kernels.native_columns import COLUMN_SIGNATURES, ColumnMethods
from loader.kernels.native_encoder import ENCODER_SIGNATURES, EncoderMethods
from loader.kernels.native_keys import KEY_SIGNATURES, KeyMethods
from loader.kernels.native_lists import LIST_SIGNATURES, ListMethods
from loader.kernels.native_pages import PAGE_SIGNATURES, PageMethods
from loader.kernels.native_program import PROGRAM_SIGNATURES, ProgramMethods
from loader.kernels.native_rows import ROW_REASONS, ROW_SIGNATURES, RowMethods
from loader.kernels.native_segments import SEGMENT_SIGNATURES, SegmentMethods

ABI_VERSION = 1
PADDING_BYTES = 8192
VECTOR = 1024
OP_BYTES, SOURCE_BYTES = 104, 32
NO_ERROR = 0xFFFF_FFFF_FFFF_FFFF
REASONS = {
    1: "a packed vector's words lie outside its stream, or its width is over 32 bits",
    2: "a code is not below the number of dictionary entries",
    3: "rank anchors do not count the bits before them, or a stream has another number of values than its bitmap has set bits",
    4: "a gathered row lies outside of the column",
    5: "a view reaches outside of its pool",
    6: "the lists do not fit into the output",
    7: "a vector's exceptions do not ascend inside of it",
    8: "an op's patches do not ascend inside of it",
    16: "an op of a kind, store or scan that this version does not know",
    17: "an op's sources are missing or hold too few values",
    18: "a stream lies outside the chunk's bytes or is not aligned",
    19: "a region lies outside the arena or is not aligned",
    20: "the ops are not in the order of their levels",
    **ROW_REASONS,
}
COMPILE = "python -m loader.kernels.build"
logger = logging.getLogger(__name__)


def describe_error(word: int) -> tuple[int, int, str]:
    """(op, vector, reason) of an error word that a kernel left."""
    return word >> 32, word >> 8 & 0xFF_FFFF, REASONS.get(word & 0xFF, f"error {word & 0xFF}")


def corrupt_chunk(ops: Array, word: int) -> CorruptSegmentError:
    """The error that an error word stands for, naming the chunk of its op."""
    op, vector, reason = describe_error(word)
    return CorruptSegmentError(f"chunk {int(ops['chunk'][op])} of the request is corrupt: {reason} (op {op}, vector {vector})")


class NativeLibrary(EncoderMethods, ColumnMethods, KeyMethods, ListMethods, PageMethods, ProgramMethods, RowMethods, SegmentMethods):
    """The compiled kernels. Methods take NumPy arrays, check them, and run without the GIL; safe to call from several threads.

    Attributes:
        path: The shared library.
        source_hash: Hash of the sources that it was compiled from.
        known_features: The `Feature` bits that a program may use, the ones that are gone before a program runs left out.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        library = ctypes.CDLL(str(self.path))
        library.headrace_abi_version.restype = ctypes.c_uint32
        version = library.headrace_abi_version()
        if version != ABI_VERSION:
            raise OSError(f"{self.path} has ABI version {version}, this Headrace needs {ABI_VERSION}: run python -m loader.kernels.build")
        pointer, u64, u32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32
        signatures = {
            **ENCODER_SIGNATURES,
            **COLUMN_SIGNATURES,
            **SEGMENT_SIGNATURES,
            **KEY_SIGNATURES,
            **PAGE_SIGNATURES,
            **LIST_SIGNATURES,
            **PROGRAM_SIGNATURES,
            **ROW_SIGNATURES,
            "headrace_source_hash": ([], ctypes.c_char_p),
            "headrace_records": ([], ctypes.c_char_p),
            "headrace_known_features": ([], u64),
            "headrace_force_portable": ([ctypes.c_int], None),
            "headrace_has_avx2": ([], ctypes.c_int),
            "headrace_decode": ([pointer, u64, pointer, u64, pointer, u64, pointer, u64, u32], u64),
            "headrace_check_program": ([pointer, u64, pointer, u64, u64, u64], u64),
            "headrace_gather_fixed": ([pointer, u64, u32, pointer, u32, u64, pointer, u32], u64),
            "headrace_list_offsets": ([pointer, u64, pointer], None),
            "headrace_gather_lists": ([pointer, u64, u32, u64, pointer, u64, pointer, u64, u32, u32], u64),
            "headrace_crc32c": ([pointer, u64, u32], u32),
            "headrace_first_mismatch": ([pointer, pointer, pointer, pointer, u64, u32], u64),
            "headrace_ranges": ([pointer, pointer, u64, pointer, u64], u64),
        }
        for name, (arguments, result) in signatures.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
        self._library = library
        self.source_hash: str = library.headrace_source_hash().decode()
        self.known_features: int = library.headrace_known_features()

    def records(self) -> str:
        """Sizes and field offsets of the records as C++ sees them, one record a line."""
        text: str = self._library.headrace_records().decode()
        return text

    def force_portable(self, on: bool) -> None:
        """Use the portable instruction set even where AVX2 and SSE4.2 are there. For tests; not while other calls run."""
        self._library.headrace_force_portable(int(on))

    @property
    def instruction_set(self) -> str:
        return "avx2" if self._library.headrace_has_avx2() else "portable"

    def decode(self, slab: Array, arena: Array, ops: Array, sources: Array, threads: int = 1) -> None:
        """Run a decode program.

        Args:
            slab: uint8, encoded bytes followed by PADDING_BYTES of padding.
            arena: uint8, output followed by PADDING_BYTES of padding; starts on 8 bytes, as the slab does.
            ops: PROGRAM_OP records sorted by level.
            sources: PROGRAM_SOURCE records.
            threads: How many share the vectors of a level.

        Raises:
            CorruptSegmentError: Names the chunk and what does not hold; the arena's content is then undefined.
        """
        for array, name in ((slab, "slab"), (arena, "arena")):
            check_dtype(array, name, "|u1")
            if array.size < PADDING_BYTES:
                raise ValueError(f"{name} has {array.size} bytes, fewer than the {PADDING_BYTES} of padding that decoding needs after its end")
        if ops.dtype.itemsize != OP_BYTES or sources.dtype.itemsize != SOURCE_BYTES:
            sizes = f"{ops.dtype.itemsize} and {sources.dtype.itemsize}"
            raise ValueError(f"ops and sources must be PROGRAM_OP and PROGRAM_SOURCE records, got items of {sizes} bytes")
        word = self._library.headrace_decode(
            address(slab, "slab", alignment=8), slab.size - PADDING_BYTES,
            address(arena, "arena", writable=True, alignment=8), arena.size - PADDING_BYTES,
            address(ops, "ops", alignment=8), ops.size, address(sources, "sources", alignment=8), sources.size, max(threads, 1),
        )  # fmt: skip
        if word != NO_ERROR:
            raise corrupt_chunk(ops, word)

    def check_program(self, ops: Array, sources: Array, slab_bytes: int, arena_bytes: int) -> None:
        """Check all that a program's tables say against the sizes of slab and arena (padding left out), as `decode` does before it starts.

        Raises:
            CorruptSegmentError: An op or a source lies outside, or is of no known kind; names the chunk.
        """
        tables = (address(ops, "ops", alignment=8), ops.size, address(sources, "sources", alignment=8), sources.size)
        word = self._library.headrace_check_program(*tables, slab_bytes, arena_bytes)
        if word != NO_ERROR:
            raise corrupt_chunk(ops, word)

    def gather_fixed(self, values: Array, rows: Array, out: Array, threads: int = 1) -> None:
        """`out[i] = values[rows[i]]` for items of 1, 2, 4 or 8 bytes; rows are uint32 or int64.

        Raises:
            ValueError: Arrays do not fit, or a row lies outside of `values`.
        """
        size = item_bytes(values, "values")
        check_dtype(rows, "rows", "<u4", "<i8")
        if item_bytes(out, "out") != size or out.size != rows.size:
            raise ValueError(f"out must hold {rows.size} items of {size} bytes, got {out.size} of {out.dtype.itemsize}")
        bad = self._library.headrace_gather_fixed(
            address(values, "values"), values.size, size, address(rows, "rows"), rows.dtype.itemsize, rows.size,
            address(out, "out", writable=True), max(threads, 1),
        )  # fmt: skip
        if bad != rows.size:
            raise ValueError(f"rows[{bad}] = {rows[bad]} lies outside of the column's {values.size} rows")

    def list_offsets(self, views: Array) -> Array:
        """Running sum of the lengths of views, int64 `[n + 1]`."""
        check_dtype(views, "views", "<u8")
        offsets = np.empty(views.size + 1, np.int64)
        self._library.headrace_list_offsets(address(views, "views"), views.size, offsets.ctypes.data)
        return offsets

    def gather_lists(self, pool: Array, base: int, views: Array, out: Array, threads: int = 1) -> None:
        """Lay lists end to end: `out` = base + the pool's items (zero-extended, modulo the out item), list after list.

        Args:
            pool: Items of 1, 2, 4 or 8 bytes.
            base: Added to each.
            views: uint64, start in the low half, length in the high.
            out: As many items as the lists hold, not narrower than the pool's.
            threads: How many share the lists.

        Raises:
            ValueError: Arrays do not fit.
            CorruptSegmentError: A view reaches outside of the pool.
        """
        pool_bytes, out_bytes = item_bytes(pool, "pool"), item_bytes(out, "out")
        check_dtype(views, "views", "<u8")
        if out_bytes < pool_bytes:
            raise ValueError(f"out has items of {out_bytes} bytes, narrower than the pool's {pool_bytes}")
        bad = self._library.headrace_gather_lists(
            address(pool, "pool"), pool.size, pool_bytes, base & NO_ERROR, address(views, "views"), views.size,
            address(out, "out", writable=True), out.size, out_bytes, max(threads, 1),
        )  # fmt: skip
        if bad == views.size:
            return
        start, length = int(views[bad]) & 0xFFFF_FFFF, int(views[bad]) >> 32
        if start + length > pool.size:
            raise CorruptSegmentError(f"view {bad} reaches from item {start} to {start + length} of a pool of {pool.size} items")
        raise ValueError(f"out has room for {out.size} items, the lists hold more: size it by list_offsets(views)[-1]")

    def crc32c(self, buffer: bytes | bytearray | memoryview | Array, seed: int = 0) -> int:
        """CRC32C of a contiguous buffer; `seed` is the sum of the bytes before it."""
        data = np.frombuffer(buffer, np.uint8) if not isinstance(buffer, np.ndarray) else buffer
        result: int = self._library.headrace_crc32c(address(data, "buffer", alignment=1), data.nbytes, seed)
        return result

    def first_mismatch(self, data: Array, starts: Array, sizes: Array, checksums: Array, threads: int = 1) -> int | None:
        """The first of some ranges of `data` whose CRC32C is not the one stated, None where all agree.

        Args:
            data: uint8.
            starts: int64 `[ranges]`.
            sizes: int64 `[ranges]`, bytes of each.
            checksums: uint32 `[ranges]`.
            threads: How many share the ranges.

        Raises:
            ValueError: Arrays do not fit, or a range leaves `data`.
        """
        for array, name, dtype in ((data, "data", "|u1"), (starts, "starts", "<i8"), (sizes, "sizes", "<i8"), (checksums, "checksums", "<u4")):
            check_dtype(array, name, dtype)
        if not starts.size == sizes.size == checksums.size or (starts.size and ((starts < 0) | (sizes < 0) | (starts > data.size - sizes)).any()):
            raise ValueError(f"{starts.size} starts, {sizes.size} sizes and {checksums.size} checksums do not fit {data.size} bytes")
        bad: int = self._library.headrace_first_mismatch(
            address(data, "data"), address(starts, "starts"), address(sizes, "sizes"), address(checksums, "checksums"), starts.size, max(threads, 1)
        )
        return None if bad == starts.size else bad

    def crc32c_pages(self, data: Array, page_bytes: int) -> Array:
        """CRC32C of each page of contiguous uint8, the last may be shorter; uint32."""
        check_dtype(data, "data", "|u1")
        start, checksum = address(data, "data", alignment=1), self._library.headrace_crc32c
        places = range(0, data.size, page_bytes)
        return np.array([checksum(start + at, min(page_bytes, data.size - at), 0) for at in places], np.uint32)

    def ranges(self, starts: Array, lengths: Array) -> Array:
        """The positions of ragged ranges laid end to end, int64: `starts[i] … starts[i] + lengths[i] − 1` for each i.

        Raises:
            ValueError: Arrays do not fit, or a length is negative.
        """
        check_dtype(starts, "starts", "<i8")
        check_dtype(lengths, "lengths", "<i8")
        if starts.size != lengths.size:
            raise ValueError(f"starts has {starts.size} ranges, lengths has {lengths.size}")
        positions = np.empty(max(int(lengths.sum()), 0), np.int64)
        bad = self._library.headrace_ranges(
            address(starts, "starts"), address(lengths, "lengths"), lengths.size, positions.ctypes.data, positions.size
        )  # fmt: skip
        if bad != lengths.size:
            raise ValueError(f"lengths[{bad}] = {lengths[bad]}: lengths must not be negative")
        return positions


@functools.cache
def _load(setting: str) -> NativeLibrary | None:
    if setting == "0":
        logger.info("HEADRACE_NATIVE=0: the NumPy reference serves, slower")
        return None
    path = pathlib.Path(setting) if setting else build.FOLDER / build.LIBRARY
    if not path.exists():
        logger.warning("no native library at %s: the NumPy reference serves, slower; %s compiles it with g++", path, COMPILE)
        return None
    try:
        library = NativeLibrary(path)
    except (OSError, AttributeError) as error:
        logger.warning("the native library does not load, the NumPy reference serves, slower: %s", error)
        return None
    if library.source_hash != build.source_hash():
        logger.warning("%s was compiled from other sources, and calls would mean other things: the NumPy reference serves, slower; run %s", path, COMPILE)
        return None
    return library


def load() -> NativeLibrary | None:
    """The native library, or None without one: that is logged once.

    The environment variable HEADRACE_NATIVE chooses: `0` none, a path that library, nothing the one inside the package.
    """
    return _load(os.environ.get("HEADRACE_NATIVE", ""))
