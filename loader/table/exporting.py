"""An export from a table handle: resolves its arguments, pins the snapshot, and hands over to `export`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from loader.catalog.records import Snapshot
from loader.errors import CatalogBusyError
from loader.scan.condition import selected
from loader.table import reading
from loader.table.batches import BatchSource
from loader.table.export import ExportOptions, ExportReport, begin, export, open_target

if TYPE_CHECKING:
    from loader.table.table import Table

PIN_SECONDS = 24 * 3600
RENEW_SECONDS = 3600


def run_export(
    table: Table,
    location: str | os.PathLike[str],
    columns: Sequence[str] | None,
    where: str | None,
    snapshot: int | str | Snapshot | None,
    closed_before: Any,
    options: ExportOptions,
    progress: Callable[[int, int], None] | None,
) -> ExportReport:
    """See `Table.export`."""
    lake, storage = table.lake, open_target(location)
    head = table.view(snapshot)
    predicate = None if where is None else reading.predicate_of(head, where)
    source = BatchSource(head, lake.storage, columns, predicate, None if closed_before is None else reading.closed_time(head, closed_before))
    definition = {
        "lake": lake.database.lake_id,
        "table": table.name,
        "columns": source.schema.names,
        "where": None if predicate is None else predicate.text,
        "closed_before": None if closed_before is None else str(closed_before),
        "file_bytes": options.file_bytes,
        "row_group_rows": options.row_group_rows,
        "compression": options.compression,
    }
    chosen = begin(storage, definition, None if snapshot is None else head.snapshot_id, head.snapshot_id)
    pin = lake.pin(table.name, chosen, f"export to {storage.url}", PIN_SECONDS)
    try:
        view = table.view(chosen)
        last_time = None if closed_before is None else reading.closed_time(view, closed_before)
        predicate = None if where is None else reading.predicate_of(view, where)
        whole = predicate is None and last_time is None
        renewed = time.monotonic()

        def advance(done: int, total: int) -> None:
            nonlocal renewed
            if time.monotonic() - renewed > RENEW_SECONDS:
                lake.renew(pin, PIN_SECONDS)
                renewed = time.monotonic()
            if progress is not None:
                progress(done, total)

        return export(
            view,
            storage,
            BatchSource(view, lake.storage, columns, predicate, last_time),
            selected(view, lake.database, predicate, last_time),
            options,
            expected_rows=view.num_rows if whole else None,
            progress=advance,
        )
    finally:
        with contextlib.suppress(CatalogBusyError):
            lake.unpin(pin)
