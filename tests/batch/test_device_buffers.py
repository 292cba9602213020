"""Memory of batches on a device that is nearly full."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
from loader.batch.device_buffers import DeviceBufferPool
from loader.errors import DeviceMemoryError
from loader.kernels.host_runtime import HostRuntime


def test_idle_buffers_of_other_sizes_make_room_for_a_batch_that_has_none() -> None:
    runtime = HostRuntime(device_bytes=12 << 20)
    work, consumer = runtime.stream("work"), runtime.stream("consumer")
    pool = DeviceBufferPool(runtime, work)
    lease = pool.empty(8 << 20)
    runtime.zero(lease.address, 8 << 20, consumer)
    lease.used_on(consumer)
    del lease
    assert pool.idle_bytes >= 8 << 20
    kept = pool.empty(2 << 20)
    other = pool.empty(3 << 20)
    assert kept.address != other.address and pool.idle_bytes == 0 and runtime.device_memory.num_bytes <= 12 << 20
    with pytest.raises(DeviceMemoryError, match="no room"):
        pool.empty(8 << 20)
    runtime.finish()
