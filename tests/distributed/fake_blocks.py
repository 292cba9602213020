"""A fetcher without a lake: every block's bytes follow from its number. Imported by actors too, so it stands in a module of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loader.errors import CorruptSegmentError
from loader.scan.encoded import BlockPatch, EncodedBlock, FetchRequest, empty_slab


def expected_slab(block: int, num_bytes: int) -> np.ndarray:
    slab = empty_slab(num_bytes)
    slab[:num_bytes] = np.random.default_rng(block).integers(0, 256, num_bytes, np.uint8)
    return slab


class FakeFetcher:
    """Makes blocks of `bytes`; fails at block `corrupt`; kills its process once at block `kill`, leaving the file `killed`; notes fetches in `log`."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = spec

    def fetch(self, request: FetchRequest) -> EncodedBlock:
        spec = self.spec
        if "log" in spec:
            with open(spec["log"], "a", encoding="utf-8") as file:
                file.write(f"{request.block}\n")
        if request.block == spec.get("corrupt"):
            raise CorruptSegmentError(f"seg-1.hr, block {request.block}, column 'price': checksum does not hold: restore the file")
        if request.block == spec.get("kill") and not Path(spec["killed"]).exists():
            Path(spec["killed"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        size = int(spec.get("bytes", 1000))
        odd = request.block % 2 == 1
        return EncodedBlock(
            request=request,
            num_rows=80,
            slab=expected_slab(request.block, size),
            chunk_offsets=np.array([0, 64], np.int64),
            chunk_bytes=np.array([64, size - 64], np.int64),
            selected=np.full(10, 0b101, np.uint8) if odd else None,
            patches={1: BlockPatch(rows=np.array([3, 7], np.uint32), values=pa.array([1.5, None]))} if odd else {},
        )
