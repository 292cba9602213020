"""Ray: fetch actors that send encoded blocks through the object store to the ranks, decode actors that send whole batches, datasets for Ray Train.

Importing it needs no Ray; using it does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from loader.distributed.batch_stream import RayBatchStream
from loader.distributed.shard import ScanShard
from loader.distributed.stream import RayBlockStream

if TYPE_CHECKING:
    from loader.distributed.data_config import ScanDataConfig

__all__ = ["RayBatchStream", "RayBlockStream", "ScanDataConfig", "ScanShard"]


def __getattr__(name: str) -> Any:
    if name == "ScanDataConfig":  # a subclass of Ray's, so its module imports Ray
        return importlib.import_module("loader.distributed.data_config").ScanDataConfig
    raise AttributeError(f"module 'loader.distributed' has no attribute {name!r}")
