"""The Ray cluster of a job: the one that RAY_ADDRESS names (as `ray job submit` sets it), else a small quiet one of its own."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from loader.extras import require

# Ray Train asks its ranks how they are this often; a lost rank is noticed within it. Ray's own default is 2 seconds.
_HEALTH_CHECK_SECONDS = "0.5"
_MIN_OBJECT_STORE_BYTES = 80 << 20


@contextlib.contextmanager
def connect(*, ranks: int, object_store_bytes: int) -> Iterator[None]:
    """Join or start the cluster, and leave or end it, whatever happens inside.

    Args:
        ranks: Data-parallel processes that must fit.
        object_store_bytes: Room for encoded blocks on the way, in a cluster of our own.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _HEALTH_CHECK_SECONDS)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet()
    ray = require("ray", extra="ray")
    if ray.is_initialized():
        yield
        return
    common = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**common)
    else:
        os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # ours must not end because another program fills this machine
        # Ray starts a worker process for each CPU it is told of; fetch actors reserve none
        size = max(object_store_bytes, _MIN_OBJECT_STORE_BYTES)
        ray.init(address="local", num_cpus=ranks, object_store_memory=size, include_dashboard=False, **common)
    try:
        yield
    finally:
        ray.shutdown()


def quiet() -> None:
    """Let Ray's own loggers speak only of errors; what a person needs to know, the job says itself."""
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
