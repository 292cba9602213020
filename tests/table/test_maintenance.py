"""Maintenance in this process: rounds beside writers, ended in good order."""

from __future__ import annotations

import datetime
import threading

from loader.lake import Lake
from loader.table.compaction.pick import CompactionOptions
from loader.table.maintenance import MaintenanceOptions, MaintenanceTotals, maintain
from tests.table.samples import create, labels, rows

FEW = CompactionOptions(max_segments=3, max_overlays=2)


def test_rounds_follow_the_writers_and_leave_what_is_needed(lake: Lake) -> None:
    table = create(lake, buckets=1)
    stop, rounds = threading.Event(), 0

    def after(totals: MaintenanceTotals) -> None:
        nonlocal rounds
        rounds += 1
        if rounds > 12:
            stop.set()
            return
        table.append(rows(rounds * 10, rounds * 10 + 10))
        table.patch(labels([10, 11], clicks=[1, 1]))
        assert len(table.view().segments) <= FEW.max_segments and max(len(ref.overlays) for ref in table.view().segments) <= FEW.max_overlays + 2

    options = MaintenanceOptions(compaction=FEW, expire_older_than=datetime.timedelta(0), grace_seconds=0, collect_garbage=True)
    totals = maintain(lake, "samples", options, interval_seconds=0, stop=stop, after_round=after)
    assert totals.stopped and totals.rounds == 13 and totals.num_tasks >= 5 and totals.overlays_folded >= 5
    assert totals.snapshots_expired > 20 and len(table.history()) == 1
    assert table.to_arrow().num_rows == 120 and table.to_arrow(["clicks"], where="item = 10")["clicks"].to_pylist() == [12]


def test_it_stops_in_the_middle_of_a_rewrite(lake: Lake) -> None:
    table = create(lake, buckets=1)
    for start in range(0, 40, 10):
        table.append(rows(start, start + 10))
    stop = threading.Event()
    totals = maintain(lake, "samples", MaintenanceOptions(compaction=FEW), interval_seconds=0, stop=stop, progress=lambda done, total: stop.set())
    assert totals.stopped and (totals.rounds, totals.num_tasks) == (0, 0) and len(table.view().segments) == 4
    assert maintain(lake, "samples", MaintenanceOptions(compaction=FEW), interval_seconds=None, stop=threading.Event()).num_tasks == 1
