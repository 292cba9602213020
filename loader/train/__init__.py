"""The training loader: DataLoader, its state and its statistics. Loaded when first used: what moves blocks to batches needs no catalog."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loader.train.loader import DataLoader
    from loader.train.stats import LoaderStats

__all__ = ["DataLoader", "LoaderStats"]
_MODULES = {"DataLoader": "loader.train.loader", "LoaderStats": "loader.train.stats"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'loader.train' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
