"""Follow mode: after a snapshot's rows, those that later snapshots added, increment by increment. Owns the settings and the plan of an increment.

An increment holds the rows offered at its end and not at its beginning (`since.py`): each row comes once, judged by `where` as it is when it comes. Rows
that fill no whole batch are carried: they open the next increment, from the snapshot that offered them. So nothing is dropped between increments, and every
increment but the last is a whole number of global batches, laid out, dealt and resumed as any plan:

    increment k   carried rows of k - 1, then the new blocks in a keyed order; cut to N_k, a multiple of the global batch; the rest, all new, is carried on

Where increments end is agreed through the catalog (`catalog/follow.py`), when they end is decided in `train/follow.py`.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.scan import order as ordering
from loader.scan.fetch import FetchSpec
from loader.scan.joined import JoinedPlan
from loader.scan.order import Layout, Order
from loader.scan.plan import Plan, open_plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Follow:
    """How a scan follows its table: `table.scan(…, follow=Follow(…))`.

    Attributes:
        name: Of the run's way through the table, which all of its ranks share. Default one made up, by rank 0 where torch.distributed is initialised, or that
            of the state that is loaded; ranks that are numbered by hand must name it.
        min_rows: New rows worth an increment; default a global batch.
        max_wait_seconds: After so long fewer do, as long as they fill a batch; with remainder="pad" or "uneven" the last batch then comes incomplete.
        poll_seconds: Between looks at the catalog while there is nothing to read.
        idle_seconds: The stream ends where nothing has come for so long; default never.
        end: The stream ends at this time, behind the increment under way; default never.
    """

    name: str | None = None
    min_rows: int | None = None
    max_wait_seconds: float = 30.0
    poll_seconds: float = 1.0
    idle_seconds: float | None = None
    end: datetime.datetime | None = None

    def __post_init__(self) -> None:
        if self.min_rows is not None and self.min_rows < 1:
            raise ValueError(f"min_rows is {self.min_rows}; it must be at least 1")
        if self.poll_seconds <= 0 or self.max_wait_seconds < 0 or (self.idle_seconds is not None and self.idle_seconds < 0):
            raise ValueError(
                f"poll_seconds is {self.poll_seconds}, max_wait_seconds {self.max_wait_seconds} and idle_seconds {self.idle_seconds}: the first must be "
                "above 0, the others not negative"
            )
        if self.end is not None and self.end.tzinfo is None:
            raise ValueError(f"end is {self.end}, without a time zone: give datetime.datetime(…, tzinfo=datetime.UTC)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Increment:
    """One increment of a stream.

    Attributes:
        number: From 0, the snapshot's own rows; the epoch of its order.
        before: Where the increment before began; None before the first.
        since: Where it begins, exclusive; None in the first.
        until: The snapshot that it reads.
        carried: Rows of the increment before that open it.
        num_rows: Rows that it gives; None takes all whole batches.
    """

    number: int
    before: int | None
    since: int | None
    until: int
    carried: int = 0
    num_rows: int | None = None

    @property
    def cursor(self) -> int:
        """Where the stream stands behind it, for the catalog: twice the snapshot, and one more where nothing but carried rows came."""
        return 2 * self.until + (self.since == self.until)


Range = tuple[int, int, int]  # block of the plan, first ordinal, rows


def tail_ranges(layout: Layout, num_rows: int) -> list[Range]:
    """The last rows of a layout, as ranges of its blocks."""
    low = layout.num_rows - num_rows
    ends = layout.starts[1:]
    found = []
    for at in np.flatnonzero(ends > low).tolist():
        skipped = max(low - int(layout.starts[at]), 0)
        found.append((int(layout.blocks[at]), int(layout.first[at]) + skipped, int(ends[at]) - int(layout.starts[at]) - skipped))
    return found


class FollowPlan(JoinedPlan):
    """The plan of an increment.

    Args:
        increment: Which.
        now: The plan of its new rows.
        before: The plan whose last rows are carried, if any are.
        ranges: Which those are, by the blocks of `before`.
        batch_rows: Rows of a global batch.

    """

    def __init__(self, increment: Increment, now: Plan, before: Plan | None = None, ranges: tuple[Range, ...] = (), *, batch_rows: int) -> None:
        carried = () if before is None or not ranges else (_only(before, [block for block, _, _ in ranges], now),)
        parts = (*carried, now)
        super().__init__(parts, [f"snapshot {part.snapshot} of table {part.table!r}" for part in parts])
        self.now, self.before, self.ranges = now, before, ranges
        self.scan = now.scan
        self.available = now.num_rows + sum(rows for _, _, rows in ranges)
        whole = self.available - self.available % batch_rows
        self.increment = dataclasses.replace(increment, num_rows=whole if increment.num_rows is None else increment.num_rows)
        self.stream, self.later_shards = "", 0  # of the stream, which sets them

    def __repr__(self) -> str:
        return f"FollowPlan({self.table!r}, {self.num_rows:,} rows of snapshots past {self.increment.since} up to {self.increment.until})"

    @property
    def table(self) -> str:
        return self.now.table

    @property
    def snapshot(self) -> int:
        """Its end."""
        return self.now.snapshot

    @property
    def num_rows(self) -> int:
        return int(self.increment.num_rows or 0)

    @property
    def left(self) -> int:
        """Rows that the next increment carries."""
        return self.available - self.num_rows

    @property
    def is_ready(self) -> bool:
        """Whether the rows left are all new, so that no row is carried twice."""
        return self.left <= self.now.num_rows

    @property
    def block_sources(self) -> npt.NDArray[np.int64] | None:
        return None

    @property
    def shard_blocks(self) -> int:
        return self.num_blocks

    def lay_out(self, order: Order) -> Layout:
        fresh = self.now.lay_out(order)
        rows = np.array([rows for _, _, rows in self.ranges], np.int64)
        starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        blocks = np.concatenate([np.arange(len(rows)), fresh.blocks + len(rows)])
        first = np.concatenate([np.array([first for _, first, _ in self.ranges], np.int64), fresh.first])
        joined = Layout(order=order, blocks=blocks, first=first, starts=np.concatenate([starts[:-1], fresh.starts + starts[-1]]))
        return ordering.cut(joined, self.num_rows)

    def window_rows(self, order: Order) -> int:
        return ordering.most_window_rows(self.num_rows, int(self.blocks["selected"].max(initial=0)), order)

    def carried_ranges(self, order: Order) -> tuple[Range, ...]:
        """The rows that the next increment carries, by the blocks of `now`."""
        return carried_ranges(self.now, order, self.left)

    def state(self) -> dict[str, Any]:
        step = self.increment
        follow = {"name": self.stream, "number": step.number, "before": step.before, "since": step.since, "carried": step.carried, "shards": self.later_shards}
        return {**self.now.state(), "num_rows": self.num_rows, "follow": follow}

    def fetch_spec(self) -> FollowSpec:
        before = self.before.fetch_spec() if self.before is not None and self.ranges else None
        return FollowSpec(increment=self.increment, now=self.now.fetch_spec(), before=before, ranges=self.ranges)


def carried_ranges(plan: Plan, order: Order, num_rows: int) -> tuple[Range, ...]:
    """The last rows of a plan's own order, which the increment after it carries."""
    return tuple(tail_ranges(plan.lay_out(order), num_rows)) if num_rows else ()


def _only(plan: Plan, blocks: list[int], now: Plan) -> Plan:
    """A plan of some of its blocks, read as a later one reads: by its schema, whatever came or was widened since."""
    at = np.array(blocks, np.int64)
    return dataclasses.replace(
        plan,
        read=now.read,
        label=now.label,
        blocks=plan.blocks[at],
        row_starts=plan.row_starts[at],
        segment_index=plan.segment_index[at],
        bits={new: plan.bits[old] for new, old in enumerate(blocks) if old in plan.bits},
        quarantined={new: plan.quarantined[old] for new, old in enumerate(blocks) if old in plan.quarantined},
        row_weights=None if plan.row_weights is None else plan.row_weights.of_blocks(at),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FollowSpec:
    """All that another process needs to make the plan of an increment: plain data.

    Attributes:
        increment: Which.
        now: Of the plan of its new rows.
        before: Of the plan whose last rows are carried, or None.
        ranges: Which those are.
    """

    increment: Increment
    now: FetchSpec
    before: FetchSpec | None
    ranges: tuple[Range, ...]

    def open(self) -> FollowPlan:
        """The plan. Raises as `open_plan`."""
        now: Plan = open_plan(self.now)
        before: Plan | None = None if self.before is None else open_plan(self.before)
        return FollowPlan(self.increment, now, before, self.ranges, batch_rows=1)
