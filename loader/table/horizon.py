"""The resolve horizon: a table may refuse patches of rows that lie too far below its watermark, so that writers and caches need only know what is recent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loader.catalog.read import load_watermark
from loader.errors import HorizonError
from loader.table.context import TableContext
from loader.table.keys import Hits
from loader.table.segments import open_columns, read_by_id
from loader.table.times import from_seconds, time_words


def refuse_old(context: TableContext, hits: Hits, snapshot_id: int, describe: Callable[[int], str]) -> None:
    """Refuse a patch of rows older than the table's horizon; times are read only of segments that reach below it.

    Args:
        context: The table.
        hits: The rows.
        snapshot_id: Where they were found; the age is counted from its watermark, and nothing is old before there is one.
        describe: The key of a hit, by its position, for the error.

    Raises:
        HorizonError: A row is too old; names its key and its time.
    """
    spec = context.spec
    if spec.resolve_horizon_seconds is None or spec.time_column is None:
        return
    with context.catalog.read() as connection:
        watermark = load_watermark(connection, spec, snapshot_id)
    if watermark is None:
        return
    column = spec.time_column
    limit = watermark - from_seconds(spec.resolve_horizon_seconds, column.type)
    for segment_id in np.unique(hits.segment_ids[hits.found]).tolist():
        ref = context.directory.ref(segment_id)
        if ref.time_min is None or ref.time_min >= limit:
            continue
        mine = np.flatnonzero(hits.segment_ids == segment_id)
        times = time_words(read_by_id(open_columns(context.storage, ref), [column.id], rows=hits.rows[mine])[column.id])
        old = np.flatnonzero(times < limit)
        if len(old):
            raise HorizonError(
                f"{len(old)} of the patched rows of table {spec.name!r} are older than its resolve horizon of {spec.resolve_horizon_seconds:,} seconds "
                f"below the watermark: key {describe(int(mine[old[0]]))} has {column.name} {int(times[old[0]])}, the limit is {limit}; leave such rows out"
            )
