"""Ray: fetch actors that send encoded blocks through the object store to the ranks. Importing it needs no Ray; using it does."""

from __future__ import annotations

from loader.distributed.stream import RayBlockStream

__all__ = ["RayBlockStream"]
