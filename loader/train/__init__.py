"""The training loader: DataLoader, its state, its statistics and its torchdata node. Loaded when first used: what moves blocks to batches needs no catalog."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loader.train.loader import DataLoader
    from loader.train.nodes import BatchNode
    from loader.train.stats import LoaderStats

__all__ = ["BatchNode", "DataLoader", "LoaderStats"]
_MODULES = {"BatchNode": "loader.train.nodes", "DataLoader": "loader.train.loader", "LoaderStats": "loader.train.stats"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'loader.train' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
