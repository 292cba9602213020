"""Exact accounting of an epoch: what became of every row, or group, of the plan. Arithmetic over positions; nothing is estimated.

Two views. *All ranks together*, from the position alone: it is right on every rank and after every resume. *This rank*, counted batch by batch since it
began or resumed: `total_audit` adds up the audits of all ranks, and checks that nothing is missing or double.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from loader.errors import HeadraceError
from loader.scan.order import num_batches
from loader.train.options import LoaderOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankAudit:
    """What one rank did since it began, or resumed. Units are rows, or groups where the scan groups.

    Attributes:
        rank: Which rank; -1 for all of them.
        began_at: Position at which it did.
        handed_over: Units in the batches it gave, masked ones too.
        remaining: Units it will give.
        rows: Rows in the batches it gave.
        masked_rows: Those of them that are masked: in damaged blocks, or erased.
        padding_rows: Rows of padding it gave besides.
    """

    rank: int
    began_at: int
    handed_over: int
    remaining: int
    rows: int
    masked_rows: int
    padding_rows: int

    @property
    def seen_rows(self) -> int:
        """Rows that could be trained on, each of them once."""
        return self.rows - self.masked_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """What became of the plan in an epoch. planned = handed_over + remaining + left_out, for all ranks together.

    Attributes:
        epoch: Which.
        unit: "rows", or "groups" where the scan groups.
        planned: Units of the plan.
        handed_over: Units that all ranks together have given, before this run and in it.
        remaining: Units that they will give.
        left_out: Units that remainder="drop" leaves out, at the end of the epoch.
        this_rank: Counted here.
    """

    epoch: int
    unit: str
    planned: int
    handed_over: int
    remaining: int
    left_out: int
    this_rank: RankAudit

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**dataclasses.asdict(self), "this_rank": {**dataclasses.asdict(self.this_rank), "seen_rows": self.this_rank.seen_rows}}


def total_audit(audits: Iterable[Audit]) -> Audit:
    """The audits of all ranks, at one position, added up.

    Raises:
        HeadraceError: They are not of one epoch and position, or what the ranks counted is not what the positions say.
    """
    found = list(audits)
    if not found:
        raise ValueError("there is no audit to add up: give one of each rank")
    first, ranks = found[0], [each.this_rank for each in found]
    added = RankAudit(
        rank=-1,
        began_at=first.this_rank.began_at,
        handed_over=sum(rank.handed_over for rank in ranks),
        remaining=sum(rank.remaining for rank in ranks),
        rows=sum(rank.rows for rank in ranks),
        masked_rows=sum(rank.masked_rows for rank in ranks),
        padding_rows=sum(rank.padding_rows for rank in ranks),
    )
    alike = {(each.epoch, each.planned, each.handed_over, each.remaining, each.this_rank.began_at) for each in found}
    if len(alike) > 1 or len({rank.rank for rank in ranks}) < len(ranks):
        raise HeadraceError(f"the audits are not of different ranks at one position: {[each.to_dict() for each in found]}; ask every rank after the same batch")
    if (added.began_at + added.handed_over, added.remaining) != (first.handed_over, first.remaining):
        raise HeadraceError(
            f"{len(ranks)} ranks gave {added.handed_over:,} {first.unit} from position {added.began_at:,} and have {added.remaining:,} left, where the "
            f"order has {first.handed_over - added.began_at:,} and {first.remaining:,}: an audit of a rank is missing, or samples were lost or doubled"
        )
    return dataclasses.replace(first, this_rank=added)


def num_dealt(start: int, stop: int, rank: int, world_size: int) -> int:
    """Positions of [start, stop) that are dealt to a rank."""
    return len(range(start + (rank - start) % world_size, stop, world_size))


class Ledger:
    """Counts what one loader hands over in an epoch."""

    def __init__(self) -> None:
        self.begin(0, 0)

    def begin(self, epoch: int, position: int) -> None:
        """An iteration begins, or a state was loaded."""
        self.epoch, self.began_at, self.position = epoch, position, position
        self.units = self.rows = self.masked_rows = self.padding_rows = 0

    def hand_over(self, *, position: int, units: int, rows: int, masked_rows: int, padding_rows: int) -> None:
        """A batch reaches the consumer; `position` is where the next one begins."""
        self.position = position
        self.units += units
        self.rows += rows
        self.masked_rows += masked_rows
        self.padding_rows += padding_rows

    def audit(self, options: LoaderOptions, *, planned: int, unit: str) -> Audit:
        """The accounts as they stand.

        Args:
            options: Of the loader.
            planned: Units of the plan.
            unit: What they are called.
        """
        rank, world_size, batch = options.rank, options.world_size, options.global_batch_size
        end = min(self.position + num_batches(planned, self.position, batch, options.remainder) * batch, planned)
        own = RankAudit(
            rank=rank,
            began_at=self.began_at,
            handed_over=self.units,
            remaining=num_dealt(self.position, end, rank, world_size),
            rows=self.rows,
            masked_rows=self.masked_rows,
            padding_rows=self.padding_rows,
        )
        return Audit(
            epoch=self.epoch,
            unit=unit,
            planned=planned,
            handed_over=self.position,
            remaining=end - self.position,
            left_out=planned - end,
            this_rank=own,
        )
