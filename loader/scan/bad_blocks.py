"""Blocks that cannot be had: damaged, or gone from storage. Owns how one travels in the place of a block, so that positions never shift.

A bad block arrives as one without a chunk: every column of it reads as null, and all of its rows are masked. What to do about it is the loader's policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from loader import errors
from loader.errors import FormatError, HeadraceError, NotFoundError
from loader.scan.encoded import BadBlock, EncodedBlock, FetchRequest, empty_slab

UNREADABLE = (FormatError, NotFoundError)  # what does not get better by asking again; a store that refuses stops the loader whatever the policy


def describe(error: HeadraceError) -> BadBlock:
    """An error as plain data."""
    columns: tuple[int, ...] = getattr(error, "column_ids", ())
    return BadBlock(kind=type(error).__name__, reason=str(error), column_ids=columns)


def error_of(bad: BadBlock) -> HeadraceError:
    """The error that a bad block stands for."""
    kind = getattr(errors, bad.kind, errors.CorruptSegmentError)
    assert issubclass(kind, HeadraceError)
    return kind(bad.reason)


def bad_block(request: FetchRequest, num_rows: int, num_columns: int, selected: Any, bad: BadBlock) -> EncodedBlock:
    """What stands in the place of a block that cannot be had."""
    return EncodedBlock(
        request=request,
        num_rows=num_rows,
        slab=empty_slab(0),
        chunk_offsets=np.full(num_columns, -1, np.int64),
        chunk_bytes=np.zeros(num_columns, np.int64),
        selected=selected,
        bad=bad,
    )


def marking(fetch: Callable[..., EncodedBlock], stand_in: Callable[[FetchRequest, BadBlock], EncodedBlock]) -> Callable[..., EncodedBlock]:
    """A fetch that gives a bad block where the bytes are damaged or gone.

    Args:
        fetch: Raises then.
        stand_in: Makes the bad block of a request.
    """

    def mark(request: FetchRequest, *rest: Any) -> EncodedBlock:
        try:
            return fetch(request, *rest)
        except UNREADABLE as error:
            return stand_in(request, describe(error))

    return mark
