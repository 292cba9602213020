"""Mixing: several scans as one, by integer weights. Owns the public `mix`, the scan and the plan of a mix; its order is in `mixed_order.py`.

Sources may lie in different tables, lakes and snapshots; each is pinned by itself. Columns must agree by name, order and type, so that a batch is one;
whether nulls are allowed may differ, and `batch.source` tells which source a row is from. No column is made up for a source that lacks it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loader.errors import SchemaError
from loader.scan import order as ordering
from loader.scan.fetch import FetchSpec
from loader.scan.joined import JoinedPlan
from loader.scan.mixed_order import MixedLayout, check_weights, lay_out_mix, mixed_rows, source_order
from loader.scan.order import Order
from loader.scan.plan import Plan, open_plan
from loader.scan.scan import Scan


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedScan:
    """Several scans, mixed.

    Attributes:
        sources: Scans of single tables.
        weights: Rows of each in a period, without a common factor.
    """

    sources: tuple[Scan, ...]
    weights: tuple[int, ...]

    def at(self, *snapshots: int) -> MixedScan:
        """The same mix of given snapshots, one a source."""
        return dataclasses.replace(self, sources=tuple(source.at(snapshot) for source, snapshot in zip(self.sources, snapshots, strict=True)))

    def for_epoch(self, epoch: int) -> MixedScan:
        """The same mix with the rows that its sources' samples draw in an epoch; itself where they draw the same in all."""
        sources = tuple(source.for_epoch(epoch) for source in self.sources)
        return self if all(mine is its for mine, its in zip(self.sources, sources, strict=True)) else dataclasses.replace(self, sources=sources)

    def plan(self) -> MixedPlan:
        """Plan and pin every source."""
        parts: list[Plan] = []
        try:
            parts += (source.plan() for source in self.sources)
            return MixedPlan(self, parts)
        except BaseException:
            for part in parts:
                part.release()
            raise

    def __repr__(self) -> str:
        return f"MixedScan({', '.join(f'{weight} × {source}' for source, weight in zip(self.sources, self.weights, strict=True))})"


def mix(sources: Sequence[tuple[Scan, int]]) -> MixedScan:
    """A scan of scans: of every sum(weights) samples, each source gives its weight, evenly spread; exactly so over an epoch.

    An epoch ends at the last whole period before a source would repeat a row; each epoch draws other rows of the sources that have more.

    Args:
        sources: (scan, weight) pairs. Their columns agree by name, order and type.

    Raises:
        ValueError: There is no source, a weight is no whole number of at least 1, or a scan is no scan of a table.
    """
    pairs = list(sources)
    if not pairs:
        raise ValueError("a mix has at least one source: mix([(scan, weight), …])")
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], Scan)):
            raise ValueError(f"{pair!r} is no (scan, weight) of a mix: give table.scan(…) and a whole number; mixes are not mixed again")
        if pair[0].follow is not None:
            raise ValueError(f"{pair[0]} follows its table: a mix is of snapshots; follow in a loader of its own, or mix without follow")
    return MixedScan(sources=tuple(scan for scan, _ in pairs), weights=check_weights([weight for _, weight in pairs]))


class MixedPlan(JoinedPlan):
    """The plan of a mix.

    Args:
        scan: The mix.
        parts: The plan of each source.

    Raises:
        SchemaError: Columns of two sources differ.
    """

    def __init__(self, scan: MixedScan, parts: Sequence[Plan]) -> None:
        for number, part in enumerate(parts):
            if part.groups is not None:
                raise SchemaError(f"source {number} of a mix (table {part.table!r}) has group_by: groups are not mixed; leave it out, or train on it alone")
        super().__init__(parts, [f"source {number} (table {part.table!r})" for number, part in enumerate(parts)])
        self.scan = scan
        self.weights = scan.weights

    def __repr__(self) -> str:
        return f"MixedPlan({self.table}, {self.num_rows:,} rows an epoch)"

    @property
    def table(self) -> str:
        return " + ".join(f"{weight} {part.table}" for part, weight in zip(self.parts, self.weights, strict=True))

    @property
    def num_rows(self) -> int:
        return mixed_rows(self.weights, [part.num_rows for part in self.parts])

    @property
    def block_sources(self) -> npt.NDArray[np.int64]:
        return np.repeat(np.arange(len(self.parts)), np.diff(self.block_starts))

    def lay_out(self, order: Order) -> MixedLayout:
        return lay_out_mix([part.blocks["selected"] for part in self.parts], self.weights, order)

    def window_rows(self, order: Order) -> int:
        periods = self.num_rows // sum(self.weights)
        largest = [int(part.blocks["selected"].max(initial=0)) for part in self.parts]
        orders = [source_order(order, self.weights, source) for source in range(len(self.parts))]
        shares = zip(self.weights, largest, orders, strict=True)
        return sum(ordering.most_window_rows(periods * weight, rows, own) + weight for weight, rows, own in shares)  # a shard has up to a period more

    def state(self) -> dict[str, Any]:
        sources = [{"weight": weight, **part.state()} for part, weight in zip(self.parts, self.weights, strict=True)]
        for source in sources:
            del source["columns"]
        return {"columns": list(self.columns), "sources": sources, "num_rows": self.num_rows}

    def fetch_spec(self) -> MixSpec:
        return MixSpec(sources=tuple(part.fetch_spec() for part in self.parts), weights=self.weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixSpec:
    """All that another process needs to make the plan of a mix: plain data.

    Attributes:
        sources: Of the sources' plans.
        weights: Of the sources.
    """

    sources: tuple[FetchSpec, ...]
    weights: tuple[int, ...]

    def open(self) -> MixedPlan:
        """The plan. Raises as `open_plan`."""
        parts: list[Plan] = [open_plan(source) for source in self.sources]
        return MixedPlan(MixedScan(sources=tuple(part.scan for part in parts), weights=self.weights), parts)


AnyScan: TypeAlias = Scan | MixedScan
AnyPlan: TypeAlias = Plan | JoinedPlan
