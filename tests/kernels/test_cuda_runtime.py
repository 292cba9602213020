"""The CUDA runtime's Python over a look-alike of CuPy, and its calls held against the real CuPy where that is installed."""

from __future__ import annotations

import ast
import concurrent.futures
import importlib.util
import inspect
import logging
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import torch

from loader.decode import cpu
from loader.decode.cuda import CudaExecutor, execute
from loader.errors import DeviceError, DeviceMemoryError, MissingDependencyError
from loader.kernels import cuda_runtime
from loader.kernels.cuda_runtime import CudaRuntime
from loader.kernels.host_runtime import HostRuntime
from loader.kernels.runtime import open_runtime
from loader.kernels.signatures import KERNEL_FILES
from tests.kernels.fake_cuda import FakeCuda, FakeDriver, FakeNvrtc, FakeRuntime
from tests.kernels.programs import random_program


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> FakeCuda:
    made = FakeCuda(HostRuntime(timing="random", seed=3))
    monkeypatch.setattr(cuda_runtime, "require", made.require)
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    # the shim's libraries are compiled already, elsewhere
    made.host._folder = _shim_folder
    return made


_shim_folder: pathlib.Path


@pytest.fixture(autouse=True, scope="module")
def _where_shims_are() -> None:
    from loader.kernels.shim import cache_folder

    global _shim_folder
    _shim_folder = cache_folder()


def test_programs_decode_through_cupy_as_on_the_cpu(fake: FakeCuda) -> None:
    fake.runtime.touch()
    runtime = CudaRuntime(1)
    executor = CudaExecutor(runtime)
    for seed in range(8):
        built = random_program(seed, max_count=1300, num_ops=12)
        want, arena = built.arena(), built.arena()
        cpu.execute(built.program, built.slab, want)
        execute(executor, built.program, built.slab, arena)
        np.testing.assert_array_equal(arena, want)
    assert runtime.launches == fake.host.launches > 0
    assert fake.runtime.current == 0, "the caller's device is its own again"
    del executor
    fake.host.finish()
    assert fake.host.device_memory.num_bytes == fake.host.pinned_memory.num_bytes == 0


def test_streams_events_and_zeros(fake: FakeCuda) -> None:
    runtime = CudaRuntime()
    assert (runtime.device, runtime.architecture, runtime.properties["driver"]) == ("cuda:0", "sm_90", "12.4")
    memory, pinned = runtime.empty_device(100), runtime.empty_pinned(100)
    stream, event = runtime.stream("copy"), runtime.event()
    assert runtime.stream("copy") is stream
    assert runtime.consumer_stream() is runtime.consumer_stream()
    assert runtime.is_done(event)
    pinned[:] = 7
    runtime.copy_to_device(memory.address, pinned, stream)
    runtime.zero(memory.address + 50, 50, stream)
    back = runtime.empty_pinned(100)
    runtime.copy_to_host(back, memory.address, 100, stream)
    runtime.record(event, stream)
    runtime.wait(runtime.consumer_stream(), event)
    assert back.tolist() == [7] * 50 + [0] * 50
    with pytest.raises(ValueError, match="target has 100 bytes"):
        runtime.copy_to_host(back, memory.address, 101, stream)
    with pytest.raises(ValueError, match="not contiguous"):
        runtime.copy_to_device(memory.address, pinned[::2], stream)


@pytest.mark.parametrize("number", [0, 1])
def test_no_thread_of_a_rank_makes_a_context_on_another_ranks_gpu(fake: FakeCuda, number: int) -> None:
    runtime = CudaRuntime(number)
    memory, stream = runtime.empty_device(64), runtime.stream("copy")

    def work() -> None:
        pinned, event = runtime.empty_pinned(64), runtime.event()
        assert runtime.is_done(event)
        runtime.copy_to_device(memory.address, pinned, stream)
        runtime.record(event, stream)
        runtime.synchronize(event)

    def launch() -> None:
        runtime.launch("scan_lists", (1, 1), 256, (memory.address, 0, memory.address), stream)

    def drop() -> None:
        del kept[:]

    kept = [runtime.event(), runtime.empty_pinned(64)]
    for target in (work, launch, drop):
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            thread.submit(target).result()
    assert len(fake.runtime.events) == 0
    assert fake.runtime.contexts == {number}


def test_a_tensor_keeps_its_owner_and_needs_no_copy(fake: FakeCuda) -> None:
    runtime = CudaRuntime()
    memory = runtime.empty_device(256)
    address = memory.address
    whole, halves = runtime.tensor(memory, address, (4, 16), np.float32), runtime.tensor(memory, address, (8,), torch.bfloat16)
    assert (whole.data_ptr(), whole.shape, whole.dtype, halves.dtype) == (address, (4, 16), torch.float32, torch.bfloat16)
    nothing = runtime.tensor(memory, address + 256, (0, 4), np.int64)
    assert (nothing.shape, nothing.dtype) == ((0, 4), torch.int64)
    part = whole[1:]
    del memory, whole, halves
    assert fake.host.device_memory.num_bytes == 256
    del part
    assert fake.host.device_memory.num_bytes == 0


def test_kernels_are_compiled_once_for_an_architecture_and_again_for_other_headers(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    CudaRuntime()
    assert [name for name, _ in fake.nvrtc.compiled] == list(KERNEL_FILES)
    options = fake.nvrtc.compiled[0][1]
    assert {"-fmad=false", "-ftz=false", "--gpu-architecture=sm_90"} <= set(options)
    CudaRuntime()
    assert len(fake.nvrtc.compiled) == len(KERNEL_FILES), "the second one came from the cache"
    fake.runtime.capability = (8, 0)
    CudaRuntime()
    assert len(fake.nvrtc.compiled) == 2 * len(KERNEL_FILES)
    monkeypatch.setattr("loader.kernels.shim.kernel_hash", lambda: "0123456789abcdef")
    CudaRuntime()
    assert len(fake.nvrtc.compiled) == 3 * len(KERNEL_FILES)


def test_a_damaged_cache_file_is_compiled_anew(fake: FakeCuda, tmp_path: pathlib.Path) -> None:
    CudaRuntime()
    for path in tmp_path.rglob("*.bin"):
        path.write_bytes(path.read_bytes()[:-7])
    CudaRuntime()
    assert len(fake.nvrtc.compiled) == 2 * len(KERNEL_FILES)


def test_a_cache_that_cannot_be_written_is_said_once_a_file_and_does_not_stop(
    fake: FakeCuda, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "file"))
    CudaRuntime()
    assert len(fake.nvrtc.compiled) == len(KERNEL_FILES)
    assert "not kept" in caplog.text


def test_a_gpu_newer_than_the_compiler_gets_ptx(fake: FakeCuda) -> None:
    fake.runtime.capability = (12, 1)
    with pytest.raises(AssertionError):  # the look-alike's driver takes machine code only
        CudaRuntime()
    assert fake.nvrtc.compiled[0][1][0] == "--gpu-architecture=compute_100"


FAULTS: dict[str, tuple[Any, str]] = {
    "no driver": (lambda fake: setattr(fake.runtime, "driver_version", 0), "no NVIDIA driver"),
    "old driver": (lambda fake: setattr(fake.runtime, "driver_version", 11080), r"speaks CUDA 11\.8, this needs 12\.0"),
    "no gpu": (lambda fake: setattr(fake.runtime, "device_count", 0), "shows no GPU"),
    "old gpu": (lambda fake: setattr(fake.runtime, "capability", (6, 1)), r"compute capability 6\.1"),
    "full": (lambda fake: setattr(fake.runtime, "free", 1 << 20), "3,145,728 bytes free of .* are needed"),
    "kernel": (lambda fake: setattr(fake.nvrtc, "refuses", "decode.cu(7): error: expected a ;"), "expected a ;"),
    "torch": (lambda fake: setattr(fake.torch.version, "cuda", None), "built without CUDA"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_gpu_is_refused_or_falls_back_loudly(fake: FakeCuda, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    spoil, words = FAULTS[fault]
    spoil(fake)
    with pytest.raises(DeviceError, match=words):
        open_runtime("cuda", needed_bytes=1 << 30)
    with caplog.at_level(logging.WARNING):
        assert open_runtime("auto", needed_bytes=1 << 30) is None
    assert "device=auto decodes on the CPU" in caplog.text
    assert re.search(words, caplog.text)


def test_a_gpu_that_is_fine_is_opened_and_one_that_does_not_exist_is_refused(fake: FakeCuda) -> None:
    opened = open_runtime("cuda:1")
    assert opened is not None
    assert (opened.name, opened.device) == ("cuda", "cuda:1")
    assert open_runtime("cpu") is None
    with pytest.raises(DeviceError, match="cuda:7 cannot be used: cudaErrorInvalidDevice"):
        open_runtime("cuda:7")


def test_memory_that_runs_out_later_is_an_error_of_its_own(fake: FakeCuda) -> None:
    runtime = CudaRuntime()

    def refuse(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    fake.torch.empty = refuse
    with pytest.raises(DeviceMemoryError, match="no room for 1,000 bytes on cuda:0"):
        runtime.empty_device(1000)


def test_without_cupy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("cupy is installed")
    with pytest.raises(MissingDependencyError, match=r"headrace\[gpu13\]"):
        open_runtime("cuda")
    assert open_runtime("auto") is None


def _calls() -> set[tuple[str, str]]:
    """What cuda_runtime.py and nvrtc.py take from CuPy's layers, as they are written."""
    found = set()
    folder = pathlib.Path(cuda_runtime.__file__).parent
    for file in ("cuda_runtime.py", "nvrtc.py", "cubin.py"):
        for node in ast.walk(ast.parse((folder / file).read_text())):
            if isinstance(node, ast.Attribute):
                layer = {"self._cuda": "runtime", "cuda": "runtime", "self._driver": "driver", "nvrtc": "nvrtc"}.get(ast.unparse(node.value))
                if layer:
                    found.add((layer, node.attr))
    return found


def test_the_look_alike_has_all_that_is_called() -> None:
    layers: dict[str, type] = {"runtime": FakeRuntime, "driver": FakeDriver, "nvrtc": FakeNvrtc}
    calls = _calls()
    assert len(calls) > 25
    for layer, name in calls:
        assert hasattr(layers[layer], name), f"{layer}.{name}"


@pytest.mark.parametrize(("layer", "fake_layer"), [("runtime", FakeRuntime), ("driver", FakeDriver), ("nvrtc", FakeNvrtc)])
def test_the_real_cupy_takes_the_same_arguments(layer: str, fake_layer: type) -> None:
    cupy = pytest.importorskip("cupy")
    real = getattr(cupy.cuda, layer)
    for name in sorted(name for where, name in _calls() if where == layer):
        assert hasattr(real, name), f"this cupy has no cupy.cuda.{layer}.{name}"
        signature = re.match(rf"{name}\((.*?)\)", getattr(real, name).__doc__ or "") if callable(getattr(real, name)) else None
        if signature is None:
            continue
        stated = [part for part in signature[1].split(",") if part.strip()]
        ours = list(inspect.signature(getattr(fake_layer, name)).parameters)[1:]
        assert len(stated) == len(ours), f"{layer}.{name}({signature[1]}) is called as {name}({', '.join(ours)})"
