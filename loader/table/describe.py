"""What a table says of itself: its definition and the present state, as JSON values."""

from __future__ import annotations

import dataclasses
from typing import Any

from loader.catalog import admin
from loader.catalog.read import load_head, load_pending, load_view
from loader.table.context import TableContext
from loader.table.ttl import load_retention


def describe(context: TableContext) -> dict[str, Any]:
    """See `Table.describe`."""
    spec = context.spec
    retention = load_retention(context)
    with context.catalog.read() as connection:
        view = load_view(connection, spec, load_head(connection, spec))
        tags = admin.load_tags(connection, spec)
        waiting = load_pending(connection, spec.id, range(spec.buckets))
    held = sum(entry.num_held - len(entry.met or b"") // 4 for entry in waiting)
    overlays = [overlay for segment in view.segments for overlay in segment.overlays]
    return {
        "name": spec.name,
        "columns": [{"id": column.id, "name": column.name, "type": str(column.type), "nullable": column.nullable} for column in spec.schema],
        "primary_key": spec.primary_key,
        "bucket_by": spec.bucket_by,
        "buckets": spec.buckets,
        "cluster_by": spec.cluster_by,
        "time_column": None if spec.time_column is None else spec.time_column.name,
        "partition_by": spec.partition_by,
        "merge": spec.merge,
        "attribution": None if spec.attribution is None else dataclasses.asdict(spec.attribution),
        "durability": spec.durability,
        "snapshot": view.snapshot_id,
        "watermark": view.watermark,
        "num_rows": view.num_rows,
        "num_segments": len(view.segments),
        "num_overlays": len(overlays),
        "num_pending": held,
        "segment_bytes": sum(segment.num_bytes for segment in view.segments),
        "overlay_bytes": sum(overlay.num_bytes for overlay in overlays),
        "retention": dataclasses.asdict(retention),
        "tags": tags,
    }
