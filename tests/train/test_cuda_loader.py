"""The whole loader over the CUDA runtime's own Python, on a look-alike of CuPy: handles, addresses and arguments as the driver would get them."""

from __future__ import annotations

from typing import Any

import pytest

import loader
from loader.kernels import cuda_runtime
from loader.kernels.cuda_runtime import CudaRuntime
from loader.kernels.host_runtime import HostRuntime
from tests.kernels.fake_cuda import FakeCuda

from .device import compare
from .sample_table import TENSOR_COLUMNS, create


@pytest.mark.parametrize("timing", ["random", "lazy"])
def test_batches_through_the_driver_are_the_cpus(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, timing: str) -> None:
    fake = FakeCuda(HostRuntime(timing=timing, seed=4))
    monkeypatch.setattr(cuda_runtime, "require", fake.require)
    runtime: Any = CudaRuntime()
    runtime.name, runtime.device = "host", "cpu"  # its tensors are the CPU's: torch's own streams stay out of it
    runtime.finish = fake.host.finish
    lake = loader.connect(str(tmp_path / "lake"))
    table = create(lake, num_rows=200)

    def make(device: str) -> Any:
        scan = table.scan(columns=list(TENSOR_COLUMNS))
        return loader.DataLoader(scan, global_batch_size=48, device=device, threads=2, window_rows=80, unique=("tags",))

    assert compare(make, runtime) == 4
    assert runtime.launches == fake.host.launches > 0
    lake.close()
    fake.host.finish()
    assert fake.runtime.current == 0
