"""Reference models: `build` makes the one that an experiment names."""

from __future__ import annotations

from ray_jobs.models.dlrm import DLRM, build

__all__ = ["DLRM", "build"]
