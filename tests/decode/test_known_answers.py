"""A device that decodes wrongly is refused before it is trusted; one that decodes rightly is not."""

from __future__ import annotations

from typing import Any

import pytest

from loader.decode.cuda import CudaExecutor
from loader.decode.known_answers import check_device, known_program, open_device
from loader.errors import DeviceError
from loader.kernels import cuda_runtime
from loader.kernels.host_runtime import HostRuntime
from loader.kernels.runtime import override
from loader.segment.layout import OpKind
from tests.kernels.fake_cuda import FakeCuda


class Broken(HostRuntime):
    """Runs no kernel of a level above 0, or gives each the bytes of another slab."""

    def __init__(self, how: str) -> None:
        super().__init__(timing="eager")
        self._how = how

    def launch(self, kernel: str, grid: tuple[int, int], block: int, arguments: tuple[int, ...], stream: Any) -> None:
        if self._how == "skips a level" and self.launches:
            return
        if self._how == "reads elsewhere":
            arguments = (arguments[0] + 64, *arguments[1:])
        super().launch(kernel, grid, block, arguments, stream)


def test_the_known_columns_have_every_kind_of_op() -> None:
    program, _ = known_program()
    assert {int(kind) for kind in program.ops["kind"]} == {int(kind) for kind in OpKind}
    assert program.level_starts.size > 2


@pytest.mark.parametrize("schedule", ["forward", "greedy shuffled"])
def test_a_device_that_works_passes(schedule: str) -> None:
    runtime = HostRuntime(schedule=schedule)
    check_device(CudaExecutor(runtime))
    runtime.finish()


@pytest.mark.parametrize(("how", "words"), [("skips a level", "decodes known columns to other bytes"), ("reads elsewhere", "reports sound bytes as corrupt")])
def test_a_device_that_computes_something_else_is_refused(how: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        check_device(CudaExecutor(Broken(how)))


def test_opening_a_gpu_asks_it_and_falls_back_or_refuses(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(cuda_runtime, "require", FakeCuda(HostRuntime()).require)
    opened = open_device("cuda")
    assert opened is not None
    assert opened.launches > 0
    monkeypatch.setattr(cuda_runtime, "require", FakeCuda(Broken("skips a level")).require)
    with pytest.raises(DeviceError, match="cuda:0 decodes known columns to other bytes"):
        open_device("cuda")
    assert open_device("auto") is None
    assert "device=auto decodes on the CPU: cuda:0 decodes known columns" in caplog.text
    with override(HostRuntime()) as runtime:
        assert open_device("cuda") is runtime
        assert runtime.launches == 0
    assert open_device("cpu") is None
