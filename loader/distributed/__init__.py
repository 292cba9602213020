"""Ray: fetch actors that send encoded blocks through the object store to the ranks, decode actors that send whole batches.

Importing it needs no Ray; using it does.
"""

from __future__ import annotations

from loader.distributed.batch_stream import RayBatchStream
from loader.distributed.stream import RayBlockStream

__all__ = ["RayBatchStream", "RayBlockStream"]
