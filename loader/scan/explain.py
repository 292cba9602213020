"""What each step of pruning leaves of a scan, without reading a row: for people who wonder why a plan is slow, or what is read."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from loader.scan.condition import Condition
from loader.scan.counting import select_blocks
from loader.scan.prune import Step

if TYPE_CHECKING:
    from loader.scan.scan import Scan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """How a scan prunes.

    Attributes:
        table: Its name.
        snapshot: Its number.
        where: The normalised predicate, or None.
        steps: What each step left, the first is the snapshot. The last looks at the statistics of blocks in the footers of what is left.
        segments_whole: Segments left of which every live row is selected, so that nothing is counted.
    """

    table: str
    snapshot: int
    where: str | None
    steps: tuple[Step, ...]
    segments_whole: int

    def __str__(self) -> str:
        width = max(len(step.name) for step in self.steps)
        lines = [f"{self.table} at snapshot {self.snapshot}" + (f", where {self.where}" if self.where else "")]
        for step in self.steps:
            lines.append(f"  {step.name:{width}}  {step.segments:>12,} segments {step.blocks:>12,} blocks {step.rows:>16,} rows")
        return "\n".join(lines)


def explain(scan: Scan, *, footers: bool) -> Explanation:
    """See `Scan.explain`."""
    view = scan.table.view(scan.snapshot)
    closed_before = scan.closed_before_value(view)
    condition = Condition.of(view, scan.where, closed_before)
    pruned = condition.prune(view, scan.table.lake.database)
    steps = pruned.steps
    if footers and not pruned.whole.all():
        segments, blocks, rows = select_blocks(scan, view, condition, pruned)
        steps = (*steps, Step(name="statistics of blocks", segments=segments, blocks=blocks, rows=rows))
    return Explanation(table=view.table, snapshot=view.snapshot_id, where=scan.where, steps=steps, segments_whole=int(pruned.whole.sum()))
