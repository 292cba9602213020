"""A decode program with its regions somewhere else in the arena: what outlives a window apart from what is read once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.decode.program import NO_OFFSET, Program
from loader.segment.layout import OpKind, SourceKind

Array = np.ndarray[Any, np.dtype[Any]]


def region_bytes(program: Program) -> npt.NDArray[np.int64]:
    """Bytes of each region."""
    regions = program.regions
    return np.asarray(regions["count"].astype(np.int64) * regions["item_bytes"])


def place_regions(program: Program, starts: npt.NDArray[np.int64]) -> Program:
    """The program with region k at `starts[k]`.

    Args:
        program: From `program.build`: its regions tile its arena.
        starts: int64 [regions], multiples of 64; regions must not overlap there.
    """
    if not program.regions.size:
        return program
    old = program.regions["arena"]
    shift = starts - old

    def moved(offsets: Array) -> Array:
        """Arena offsets, each in the last region that starts at or before it: regions of no bytes hold none."""
        region = np.searchsorted(old, offsets.astype(np.int64), side="right") - 1
        return np.asarray(offsets + shift[region].astype(np.uint64))

    ops, sources, regions = program.ops.copy(), program.sources.copy(), program.regions.copy()
    ops["out"] = moved(ops["out"])
    has_dictionary = ops["dict"] != NO_OFFSET
    ops["dict"][has_dictionary] = moved(ops["dict"][has_dictionary])
    in_arena = sources["kind"] == SourceKind.PLAIN
    in_arena[ops["first_source"][ops["kind"] == OpKind.COPY]] = False
    sources["data"][in_arena] = moved(sources["data"][in_arena])
    regions["arena"] = starts
    return dataclasses.replace(program, ops=ops, sources=sources, regions=regions)
