"""Headrace: a streaming lakehouse and GPU-oriented loader of training data. Public names only, loaded when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loader.backup.restore import restore as restore
    from loader.batch.jagged import Jagged as Jagged
    from loader.batch.kjt import KeyedJagged as KeyedJagged
    from loader.batch.transforms import Transforms as Transforms
    from loader.catalog.records import Attribution as Attribution
    from loader.catalog.records import Snapshot as Snapshot
    from loader.catalog.records import SourceOffsets as SourceOffsets
    from loader.decode.images import ImageOptions as ImageOptions
    from loader.lake import Lake as Lake
    from loader.lake import connect as connect
    from loader.scan import Scan as Scan
    from loader.scan.follow import Follow as Follow
    from loader.scan.mix import mix as mix
    from loader.scan.sampling import Sample as Sample
    from loader.schema import Schema as Schema
    from loader.segment.reader import SegmentReader as SegmentReader
    from loader.segment.writer import WriteOptions as WriteOptions
    from loader.segment.writer import write_segment as write_segment
    from loader.table.compaction.pick import CompactionOptions as CompactionOptions
    from loader.table.table import Table as Table
    from loader.train import DataLoader as DataLoader
    from loader.train.audit import Audit as Audit
    from loader.train.audit import total_audit as total_audit
    from loader.train.metrics import serve_metrics as serve_metrics

__version__ = "0.1.0"

_MODULES = {
    "Audit": "loader.train.audit",
    "Attribution": "loader.catalog.records",
    "CompactionOptions": "loader.table.compaction.pick",
    "DataLoader": "loader.train",
    "Follow": "loader.scan.follow",
    "HeadraceError": "loader.errors",
    "ImageOptions": "loader.decode.images",
    "Jagged": "loader.batch.jagged",
    "KeyedJagged": "loader.batch.kjt",
    "Lake": "loader.lake",
    "Sample": "loader.scan.sampling",
    "Scan": "loader.scan",
    "Schema": "loader.schema",
    "SegmentReader": "loader.segment.reader",
    "Snapshot": "loader.catalog.records",
    "SourceOffsets": "loader.catalog.records",
    "Table": "loader.table.table",
    "Transforms": "loader.batch.transforms",
    "WriteOptions": "loader.segment.writer",
    "connect": "loader.lake",
    "mix": "loader.scan.mix",
    "serve_metrics": "loader.train.metrics",
    "errors": "",
    "restore": "loader.backup.restore",
    "total_audit": "loader.train.audit",
    "write_segment": "loader.segment.writer",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("loader.errors")
    if name not in _MODULES:
        raise AttributeError(f"module 'loader' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
