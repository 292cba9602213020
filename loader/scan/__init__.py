"""Scans: what to read (predicate, prune, plan), in which order, and how its blocks arrive (fetch, stream)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loader.scan.scan import Scan as Scan

__all__ = ["Scan"]


def __getattr__(name: str) -> Any:
    if name == "Scan":
        import importlib

        return importlib.import_module("loader.scan.scan").Scan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
