"""The records that window.cu and batch.cu read, mirrored; and how several tables travel to a device in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ALIGNMENT = 64  # of every table, plane and pool in device memory
TILE_ROWS, TILE_VALUES, PLANES_PER_BLOCK, THREADS = 1024, 2048, 8, 256
ENTRY_BITS = 24
MAX_BATCH_ROWS = 1 << ENTRY_BITS
NO_PLANE = 0xFFFF_FFFF

WINDOW_PLANE = np.dtype(
    [("out", "<u8"), ("plane", "<u4"), ("item_bytes", "<u4"), ("width", "<u4"), ("validity_plane", "<u4"), ("column", "<u4"), ("reserved", "<u4")]
)
PIECE_ITEMS = np.dtype([("items", "<u8"), ("kind", "<u4"), ("num_rows", "<u4")])
LABEL_FILL = np.dtype(
    [("value", "<u8"), ("last_closed", "<i8"), ("value_plane", "<u4"), ("validity_plane", "<u4"), ("time_plane", "<u4"), ("time_validity_plane", "<u4"),
     ("time_item_bytes", "<u4"), ("time_is_unsigned", "<u4")]
)  # fmt: skip
PATCH = np.dtype(
    [("target", "<u8"), ("rows", "<u8"), ("items", "<u8"), ("count", "<u4"), ("width", "<u4"), ("unit_bytes", "<u4"), ("num_rows", "<u4"), ("column", "<u4"),
     ("reserved", "<u4")]
)  # fmt: skip
BATCH_PART = np.dtype([("planes", "<u8"), ("pieces", "<u8"), ("pools", "<u8"), ("at", "<u4"), ("start", "<u4"), ("step", "<u4"), ("num_pieces", "<u4")])
BATCH_PLANE = np.dtype([("out", "<u8"), ("plane", "<u4"), ("item_bytes", "<u4"), ("width", "<u4"), ("reserved", "<u4")])
POOL_PIECE = np.dtype(
    [("pool", "<u8"), ("more", "<u8"), ("base", "<i8"), ("pool_count", "<u4"), ("more_count", "<u4"), ("item_bytes", "<u4"), ("reserved", "<u4")]
)
LIST_COLUMN = np.dtype(
    [("table", "<u8"), ("first", "<u8"), ("number", "<u8"), ("entry_row", "<u8"), ("plane", "<u4"), ("list", "<u4"), ("slots", "<u4"), ("column", "<u4")]
)
LIST_OUT = np.dtype(
    [("offsets", "<u8"), ("values", "<u8"), ("inverse", "<u8"), ("first_tile", "<u4"), ("num_tiles", "<u4"), ("item_bytes", "<u4"), ("num_entries", "<u4")]
)

ITEMS, ZEROS, ONES, INVERTED = range(4)  # PieceKind


def aligned(num_bytes: Any) -> Any:
    """The next multiple of ALIGNMENT; of an integer or an array of them."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def places(num_bytes: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], int]:
    """Where regions of so many bytes start when they are laid end to end, each aligned, and the bytes of all."""
    sizes = aligned(np.asarray(num_bytes, np.int64))
    ends = np.cumsum(sizes)
    return ends - sizes, int(ends[-1]) if ends.size else 0


def pack(target: npt.NDArray[np.uint8], tables: Sequence[Array], starts: npt.NDArray[np.int64]) -> None:
    """Write tables into a buffer at `starts`."""
    for start, table in zip(starts.tolist(), tables, strict=True):
        target[start : start + table.nbytes] = np.ascontiguousarray(table).reshape(-1).view(np.uint8)
