"""Row and list gathers: the native kernels where they are built, NumPy otherwise, bit for bit equal.

Owns the dispatch and the NumPy bodies, which are the truth. A list view is a u64: start in the low 32 bits, length in the high.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from loader.errors import CorruptSegmentError
from loader.kernels import native

Array = npt.NDArray[Any]
START_MASK = np.uint64(0xFFFF_FFFF)
LENGTH_SHIFT = np.uint64(32)
ITEM_BYTES = (1, 2, 4, 8)
PARALLEL_BYTES = 32 << 20  # below this, starting threads costs more than they save
TRUSTED_BYTES = 64 << 20  # views may ask for so much memory before they are compared with their pool
MAX_LIST_BYTES = 8 << 30  # of the lists of one batch: more is a segment that means harm, or far too many rows


def gather_fixed(values: Array, rows: npt.NDArray[np.uint32], out: Array, *, threads: int = 1) -> None:
    """out[i] = values[rows[i]].

    Args:
        values: [n] or [n, width], contiguous.
        rows: uint32 [m], each below n.
        out: [m] or [m, width], of the same dtype.
        threads: For the native kernel.
    """
    library = native.load()
    if library is not None and values.ndim == 1 and values.itemsize in ITEM_BYTES and len(rows):
        library.gather_fixed(values, rows, out, _threads(out, threads))
    else:
        np.take(values, rows, axis=0, out=out, mode="clip")


def list_offsets(views: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """int64 [n + 1]: where each list starts when all are laid end to end."""
    library = native.load()
    if library is not None and views.flags.c_contiguous:
        return library.list_offsets(views)
    offsets = np.zeros(len(views) + 1, np.int64)
    np.cumsum(views >> LENGTH_SHIFT, out=offsets[1:], dtype=np.int64)
    return offsets


def check_views(views: npt.NDArray[np.uint64], pool_items: int, num_bytes: int | None = None) -> None:
    """Refuse views before memory is made for what they show; copying compares each of them anyway, so that little memory needs no look.

    Args:
        views: uint64 [n].
        pool_items: Of the pool that they show.
        num_bytes: What all their lists take, or what all lists of a batch do; None compares however little that is.

    Raises:
        CorruptSegmentError: A view leaves its pool, or the lists take more than 8 GiB.
    """
    if num_bytes is not None and num_bytes <= TRUSTED_BYTES:
        return
    lengths = views >> LENGTH_SHIFT
    longest = int(((views & START_MASK) + lengths)[lengths > 0].max(initial=0))
    if longest > pool_items:
        raise CorruptSegmentError(f"a list view ends at {longest:,}, past its pool of {pool_items:,} values")
    if num_bytes is not None and num_bytes > MAX_LIST_BYTES:
        raise CorruptSegmentError(f"the lists of {len(views):,} rows take {num_bytes:,} bytes, more than {MAX_LIST_BYTES:,}: read fewer rows at a time")


def gather_lists(pool: Array, base: int, views: npt.NDArray[np.uint64], out: Array, *, threads: int = 1) -> None:
    """Copy the lists that `views` show of `pool` end to end into `out`.

    Args:
        pool: Values; where its items are narrower than those of `out`, a value is base + zero-extended item, modulo the width of `out`.
        base: See `pool`.
        views: uint64 [n].
        out: [sum of lengths], contiguous.
        threads: For the native kernel.

    Raises:
        CorruptSegmentError: A view leaves the pool.
    """
    if not len(out):
        return
    base = base if pool.itemsize < out.itemsize else 0
    library = native.load()
    if library is not None:
        library.gather_lists(pool, base, views, out, _threads(out, threads))
    else:
        gather_lists_reference(pool, base, views, out)


def _threads(out: Array, threads: int) -> int:
    return threads if out.nbytes >= PARALLEL_BYTES else 1


def gather_lists_reference(pool: Array, base: int, views: npt.NDArray[np.uint64], out: Array) -> None:
    """`gather_lists` in NumPy."""
    starts, lengths = (views & START_MASK).astype(np.int64), (views >> LENGTH_SHIFT).astype(np.int64)
    if len(views) and int((starts + lengths)[lengths > 0].max(initial=0)) > len(pool):
        raise CorruptSegmentError(f"a list view ends at {int((starts + lengths).max()):,}, past its pool of {len(pool):,} values")
    index = np.arange(int(lengths.sum())) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    if pool.itemsize == out.itemsize:
        out[:] = pool.view(out.dtype)[index]
        return
    unsigned = np.dtype(f"<u{out.itemsize}")
    narrow = pool.view(np.dtype(f"<u{pool.itemsize}"))[index]
    out.view(unsigned)[:] = narrow.astype(unsigned) + np.array([base % 2 ** (8 * out.itemsize)], unsigned)
