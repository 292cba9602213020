"""A small, quiet Ray cluster on this machine, started once a test session and shared by its tests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    if ray.is_initialized():  # another conftest of this session started it, and ends it
        yield
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    here = str(Path(__file__).resolve().parent.parent)
    ray.init(
        address="local",  # never a cluster that somebody else started on this machine
        num_cpus=2,
        object_store_memory=160 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": here}},
    )
    try:
        yield
    finally:
        ray.shutdown()
