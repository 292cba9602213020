"""The whole-column encoder of the CPU library: Arrow arrays of many columns in, finished chunks out, on threads without the GIL.

Owns its C records and signatures; `NativeLibrary` inherits the methods. Arrow arrays come as addresses of the C data interface's structs.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from loader.kernels.arrays import Array, address, check_dtype

_POINTER, _U64, _U32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32
COLUMN_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "headrace_encodable_columns": ([_POINTER, _POINTER], None),
    "headrace_encode_columns": ([_POINTER, _POINTER, _U64, _POINTER, _U32, _POINTER], _POINTER),
    "headrace_encoded_pointers": ([_POINTER, _POINTER], None),
    "headrace_decoded_bytes": ([_POINTER, _POINTER, _POINTER], None),
    "headrace_encoded_notes": ([_POINTER, _POINTER, _POINTER], None),
    "headrace_encoded_free": ([_POINTER], None),
}
TASK = np.dtype([("batch", "<u8"), ("schema", "<u8"), ("column", "<u8"), ("first_row", "<u8"), ("num_rows", "<u8")])
OPTIONS = np.dtype(
    [("bytes_per_ns", "<f8"), ("min_pool_saving", "<f8"), ("max_slide_items", "<i8"), ("compress", "<u8"), ("dictionary", "u1"), ("list_views", "u1"),
     ("nested_splits", "u1"), ("reserved", "V5")]
)  # fmt: skip
MADE = np.dtype(
    [("num_bytes", "<u8"), ("arena_bytes", "<u8"), ("features", "<u8"), ("checksum", "<u4"), ("failed", "<u4"), ("min", "<u8"), ("max", "<u8"),
     ("num_values", "<u8"), ("null_count", "<u4"), ("flags", "<u4")]
)  # fmt: skip
_COMPRESS = ctypes.CFUNCTYPE(_U64, _POINTER, _U64, _POINTER, _U64)
_NO_ROOM = (1 << 64) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """What the encoder may use: `encodings.options.EncodeOptions` as numbers.

    Attributes:
        compress: Bytes to a zstd frame; None: no compression. Called from threads of the encoder.
    """

    bytes_per_ns: float
    min_pool_saving: float
    max_slide_items: int
    dictionary: bool
    list_views: bool
    nested_splits: bool
    compress: Callable[[Any], Any] | None


@functools.cache
def _callback(compress: Callable[[Any], Any]) -> Any:
    """A C function that compresses into memory of the encoder."""

    def call(source: int, num_bytes: int, out: int, room: int) -> int:
        frame = compress((ctypes.c_char * num_bytes).from_address(source))
        view = memoryview(frame)
        if view.nbytes > room:
            return _NO_ROOM
        ctypes.memmove(out, (ctypes.c_char * view.nbytes).from_buffer_copy(view), view.nbytes)
        return view.nbytes

    return _COMPRESS(call)


class NativeChunks:
    """Chunks that the encoder made and still holds.

    Attributes:
        made: MADE records, one a task.
    """

    def __init__(self, library: Any, handle: int, made: Array) -> None:
        self._library, self._handle, self.made = library, handle, made

    def pointers(self) -> Array:
        """Addresses of the chunks' bytes, uint64; good as long as this object lives."""
        found = np.empty(self.made.size, np.uint64)
        self._library.headrace_encoded_pointers(self._handle, found.ctypes.data)
        return found

    def notes(self) -> tuple[bytes, Array]:
        """What was chosen and why, JSON objects end to end, and where each ends; empty for tasks of which no note was asked."""
        ends = np.zeros(self.made.size, np.uint64)
        self._library.headrace_encoded_notes(self._handle, ends.ctypes.data, None)
        text = ctypes.create_string_buffer(int(ends[-1]) if ends.size else 0)
        self._library.headrace_encoded_notes(self._handle, ends.ctypes.data, text)
        return text.raw, ends

    def __del__(self) -> None:
        if self._handle:
            self._library.headrace_encoded_free(self._handle)
            self._handle = 0


class ColumnMethods:
    """The whole-column encoder, for a class that holds the library as `_library`."""

    _library: Any

    def encodable_columns(self, schema: int, num_columns: int) -> Array:
        """Which columns of an ArrowSchema (of a record batch) are of types that `encode_columns` knows, bool."""
        supported = np.zeros(num_columns, np.uint8)
        self._library.headrace_encodable_columns(schema, supported.ctypes.data)
        return supported.view(np.bool_)

    def decoded_bytes(self, array: int, schema: int, num_columns: int) -> Array:
        """Bytes that each column of a record batch takes as an Arrow array, at most, uint64; all ones where its type is not known."""
        found = np.zeros(num_columns, np.uint64)
        self._library.headrace_decoded_bytes(array, schema, found.ctypes.data)
        return found

    def encode_columns(self, tasks: Array, noted: Array, options: ColumnOptions, threads: int) -> NativeChunks:
        """Encode chunks; the same bytes as `encodings.chunk.encode_chunk`.

        Args:
            tasks: TASK records, of record batches that outlive the call; rows are inside of them.
            noted: uint8, for which tasks to note what was chosen.
            options: What encoders may use.
            threads: At most; tasks are shared out among them.
        """
        check_dtype(noted, "noted", "|u1")
        record, made = np.zeros(1, OPTIONS), np.zeros(tasks.size, MADE)
        callback = None if options.compress is None else _callback(options.compress)
        for name in ("bytes_per_ns", "min_pool_saving", "max_slide_items", "dictionary", "list_views", "nested_splits"):
            record[name] = getattr(options, name)
        record["compress"] = 0 if callback is None else ctypes.cast(callback, _POINTER).value
        handle = self._library.headrace_encode_columns(
            address(tasks, "tasks", alignment=8), address(noted, "noted"), tasks.size, record.ctypes.data, max(threads, 1), made.ctypes.data
        )  # fmt: skip
        return NativeChunks(self._library, handle, made)
