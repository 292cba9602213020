"""The training loader: DataLoader, its state and its statistics."""

from __future__ import annotations

from loader.train.loader import DataLoader
from loader.train.stats import LoaderStats

__all__ = ["DataLoader", "LoaderStats"]
