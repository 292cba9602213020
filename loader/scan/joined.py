"""A plan of several plans: their blocks in one list, each fetched and labelled as its own plan says. Owns that list; its order is the subclass's."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.catalog.records import SnapshotView
from loader.errors import SchemaError
from loader.scan.columns import LabelFill, ReadColumn
from loader.scan.encoded import BadBlock, EncodedBlock, FetchRequest
from loader.scan.fetch import BlockPlace, Empty, OpensPlan
from loader.scan.mixed_order import AnyLayout
from loader.scan.order import Order
from loader.scan.plan import Plan
from loader.scan.selection import JoinedWeights


class JoinedPlan(abc.ABC):
    """Several plans as one. Has what a `Plan` has, as far as a loader needs it.

    Args:
        parts: Plans whose columns agree by name and type. The joined plan owns them.
        names: What to call each of them in an error.

    Raises:
        SchemaError: The columns of two of them differ.
    """

    def __init__(self, parts: Sequence[Plan], names: Sequence[str]) -> None:
        self.parts = tuple(parts)
        for part, name in zip(self.parts[1:], names[1:], strict=True):
            check_columns(self.parts[0], part, names[0], name)
        self.columns, self.read = self.parts[0].columns, self.parts[0].read
        self.blocks: npt.NDArray[Any] = np.concatenate([part.blocks for part in self.parts])
        self.row_starts = np.concatenate([part.row_starts for part in self.parts])
        self.block_starts = np.cumsum([0, *(part.num_blocks for part in self.parts)])

    @property
    @abc.abstractmethod
    def num_rows(self) -> int:
        """Rows of an epoch, exactly."""

    @abc.abstractmethod
    def lay_out(self, order: Order) -> AnyLayout:
        """The blocks in the order of an epoch."""

    @abc.abstractmethod
    def window_rows(self, order: Order) -> int:
        """Rows at most of the windows that a shard needs at a time."""

    @abc.abstractmethod
    def fetch_spec(self) -> OpensPlan:
        """What another process needs to make the plan again."""

    @property
    @abc.abstractmethod
    def table(self) -> str:
        """What is read, for people."""

    @property
    @abc.abstractmethod
    def block_sources(self) -> npt.NDArray[np.int64] | None:
        """Of a mix, int64 [blocks], the source of each block."""

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """What a loader's state says of what is read; plain values."""

    @property
    def view(self) -> SnapshotView:
        """The snapshot of the first part, by whose schema the columns are known."""
        return self.parts[0].view

    groups = None

    @property
    def num_units(self) -> int:
        """What positions count."""
        return self.num_rows

    @functools.cached_property
    def row_weights(self) -> JoinedWeights | None:
        """What each row stands for, where a part samples."""
        return JoinedWeights.of([part.row_weights for part in self.parts], self.block_starts)

    def quarantine(self, block: int, bad: BadBlock) -> None:
        """Have later plans go on without a damaged block."""
        part, own = self.part_of(block)
        part.quarantine(own, bad)

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def shard_blocks(self) -> int:
        """Blocks that the canonical shards divide among them, in the part that has fewest."""
        return min(part.num_blocks for part in self.parts)

    def part_of(self, block: int) -> tuple[Plan, int]:
        """The part of a block, and its number there."""
        number = int(np.searchsorted(self.block_starts, block, "right")) - 1
        return self.parts[number], block - int(self.block_starts[number])

    def place(self, block: int) -> BlockPlace:
        """Where a block is."""
        part, own = self.part_of(block)
        return part.place(own)

    def label_of(self, block: int) -> LabelFill | None:
        """How null labels of a block read."""
        return self.part_of(block)[0].label

    def renew(self) -> None:
        """Hold the snapshots for another day."""
        for part in self.parts:
            part.renew()

    def release(self) -> None:
        """Let the snapshots go."""
        for part in self.parts:
            part.release()

    def fetcher(self) -> JoinedFetcher:
        """The fetcher of the blocks in this process; one, so that what it opened stays open."""
        return self._fetcher

    @functools.cached_property
    def _fetcher(self) -> JoinedFetcher:
        return JoinedFetcher(self.part_of)

    @property
    def row_bytes(self) -> float:
        """Decoded bytes a row of the columns read: that of the part whose rows are largest."""
        return max(part.row_bytes for part in self.parts)

    @property
    def encoded_row_bytes(self) -> float:
        """Stored bytes a row of the columns read, likewise."""
        return max(part.encoded_row_bytes for part in self.parts)


class JoinedFetcher:
    """Fetches blocks of several plans; safe to call from several threads.

    Args:
        part_of: Block -> its plan, and its number there.
    """

    def __init__(self, part_of: Callable[[int], tuple[Plan, int]]) -> None:
        self._part_of = part_of

    def fetch(self, request: FetchRequest, empty: Empty | None = None) -> EncodedBlock:
        """As `BlockFetcher.fetch`, by the joined plan's numbers."""
        part, own = self._part_of(request.block)
        block = part.fetcher().fetch(dataclasses.replace(request, block=own), empty)
        return dataclasses.replace(block, request=request)

    def fetch_or_mark(self, request: FetchRequest, empty: Empty | None = None) -> EncodedBlock:
        """As `BlockFetcher.fetch_or_mark`, by the joined plan's numbers."""
        part, own = self._part_of(request.block)
        block = part.fetcher().fetch_or_mark(dataclasses.replace(request, block=own), empty)
        return dataclasses.replace(block, request=request)


def check_columns(first: Plan, other: Plan, first_name: str, other_name: str) -> None:
    """Refuse plans whose blocks do not decode to the same columns.

    Raises:
        SchemaError: Names the column and both types.
    """
    if first.columns != other.columns:
        odd = next((name for name in (*first.columns, *other.columns) if name not in first.columns or name not in other.columns), None)
        what = "have the same columns in another order" if odd is None else f"do not both have column {odd!r}"
        raise SchemaError(f"{first_name} and {other_name} {what}: name the columns of both, in one order: scan(columns=[…])")
    for mine, its in zip(first.read, other.read, strict=False):
        if _physical(mine) != _physical(its):
            raise SchemaError(
                f"column {mine.name!r} is {mine.type} in {first_name} and {its.type} in {other_name}: their batches cannot be one; widen the narrower one "
                "(table.widen_column), or leave it out of columns=[…]"
            )
    if len(first.read) != len(other.read):
        extra = (first if len(first.read) > len(other.read) else other).read[-1].name
        raise SchemaError(
            f"{first_name} and {other_name} do not read the same: one needs its time column {extra!r} to say which labels are still open. Name it among the "
            "columns of both, or read closed rows only: closed_before='watermark'"
        )


def _physical(column: ReadColumn) -> tuple[Any, ...]:
    return column.type, column.leaf
