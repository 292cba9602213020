"""A look-alike of the parts of CuPy and torch that the CUDA runtime calls, over the host runtime: handles are numbers, arguments are checked."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from loader.kernels.host_runtime import HostRuntime
from loader.kernels.signatures import signatures

NOT_READY = 600
_READ = {"pointer": ctypes.c_uint64, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64, "i64": ctypes.c_int64}


class CUDARuntimeError(RuntimeError):
    """As CuPy raises it."""


class NVRTCError(RuntimeError):
    """As CuPy raises it."""


class Handles:
    """Numbers for objects, as a C library hands them out."""

    def __init__(self) -> None:
        self._numbers, self._objects = itertools.count(0x1000), dict[int, Any]()

    def add(self, thing: Any) -> int:
        number = next(self._numbers)
        self._objects[number] = thing
        return number

    def __getitem__(self, number: int) -> Any:
        assert type(number) is int
        return self._objects[number]

    def drop(self, number: int) -> None:
        del self._objects[number]

    def __len__(self) -> int:
        return len(self._objects)


class FakeRuntime:
    """`cupy.cuda.runtime`."""

    CUDARuntimeError = CUDARuntimeError
    streamNonBlocking, eventDisableTiming, hostAllocPortable = 1, 2, 1
    memcpyHostToDevice, memcpyDeviceToHost = 1, 2

    def __init__(self, host: HostRuntime) -> None:
        self.host, self.streams, self.events = host, Handles(), Handles()
        self.contexts: set[int] = set()
        self._thread = threading.local()
        self.driver_version, self.device_count, self.capability, self.free = 12040, 2, (9, 0), 1 << 34
        self.pinned: dict[int, Any] = {}
        self.consumer = self.streams.add(host.consumer_stream())

    @property
    def current(self) -> int:
        """The calling thread's device; a new thread begins on device 0."""
        return getattr(self._thread, "device", 0)

    def touch(self) -> None:
        """What almost every call does: the thread's device has a context from now on, and it is the thread's."""
        self.contexts.add(self.current)
        self._thread.has_context = True

    @property
    def has_context(self) -> bool:
        """Whether the calling thread may call the driver."""
        return getattr(self._thread, "has_context", False)

    @contextlib.contextmanager
    def guard(self, device: int) -> Iterator[None]:
        """`torch.cuda.device`: goes back to a device that has a context, and leaves the thread where it is otherwise."""
        before = self.current
        if before != device:
            self.setDevice(device)
        yield
        if before != device and before in self.contexts:
            self.setDevice(before)

    def getDevice(self) -> int:
        return self.current

    def setDevice(self, device: int) -> None:
        if not 0 <= device < self.device_count:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._thread.device = device
        self.touch()

    def driverGetVersion(self) -> int:
        return self.driver_version

    def runtimeGetVersion(self) -> int:
        return 12090

    def getDeviceCount(self) -> int:
        if self.driver_version < 12000 or not self.device_count:
            raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")
        return self.device_count

    def getDeviceProperties(self, device: int) -> dict[str, Any]:
        return {"name": b"NVIDIA Pretence", "major": self.capability[0], "minor": self.capability[1]}

    def memGetInfo(self) -> tuple[int, int]:
        self.touch()
        return self.free, 1 << 35

    def hostAlloc(self, size: int, flags: int) -> int:
        self.touch()
        assert flags == self.hostAllocPortable
        array = self.host.empty_pinned(size)
        self.pinned[array.ctypes.data] = array
        return int(array.ctypes.data)

    def freeHost(self, ptr: int) -> None:
        self.touch()
        del self.pinned[ptr]

    def deviceSynchronize(self) -> None:
        self.touch()
        self.host._streams.finish()

    def streamCreateWithFlags(self, flags: int) -> int:
        self.touch()
        assert flags == self.streamNonBlocking
        return self.streams.add(self.host.stream(f"stream {len(self.streams)}"))

    def streamDestroy(self, stream: int) -> None:
        self.touch()
        self.streams.drop(stream)

    def streamWaitEvent(self, stream: int, event: int, flags: int = 0) -> None:
        self.touch()
        self.host.wait(self.streams[stream], self.events[event])

    def eventCreateWithFlags(self, flags: int) -> int:
        self.touch()
        assert flags == self.eventDisableTiming
        return self.events.add(self.host.event())

    def eventDestroy(self, event: int) -> None:
        self.touch()
        self.events.drop(event)

    def eventRecord(self, event: int, stream: int) -> None:
        self.touch()
        self.host.record(self.events[event], self.streams[stream])

    def eventQuery(self, event: int) -> int:
        self.touch()
        return 0 if self.host.is_done(self.events[event]) else NOT_READY

    def eventSynchronize(self, event: int) -> None:
        self.touch()
        self.host.synchronize(self.events[event])

    def memcpyAsync(self, dst: int, src: int, size: int, kind: int, stream: int) -> None:
        self.touch()
        assert all(type(number) is int for number in (dst, src, size, kind, stream))
        at = src if kind == self.memcpyHostToDevice else dst
        memory = self.host.pinned_memory.find(at, size, "memcpyAsync")
        pinned = memory.data[at - memory.address :][:size]
        if kind == self.memcpyHostToDevice:
            self.host.copy_to_device(dst, pinned, self.streams[stream])
        else:
            self.host.copy_to_host(pinned, src, size, self.streams[stream])

    def memsetAsync(self, ptr: int, value: int, size: int, stream: int) -> None:
        self.touch()
        assert value == 0
        self.host.zero(ptr, size, self.streams[stream])


class FakeDriver:
    """`cupy.cuda.driver`."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime, self.modules, self._functions = runtime, list[bytes](), Handles()

    def moduleLoadData(self, image: bytes) -> int:
        assert type(image) is bytes and image.startswith(b"\x7fELF")
        self.modules.append(image)
        return len(self.modules)

    def moduleGetFunction(self, module: int, funcname: str) -> int:
        assert funcname.encode() in self.modules[module - 1]
        return self._functions.add(funcname)

    def launchKernel(
        self, f: int, grid_x: int, grid_y: int, grid_z: int, block_x: int, block_y: int, block_z: int, shared: int, stream: int, params: int, extra: int
    ) -> None:
        assert (grid_z, block_y, block_z, shared, extra) == (1, 1, 1, 0, 0)
        assert self._runtime.has_context, "cudaErrorDeviceUninitialized: invalid device context"
        name = self._functions[f]
        types_ = signatures()[name].types
        places = (ctypes.c_uint64 * len(types_)).from_address(params)
        values = tuple(_READ[kind].from_address(place).value for kind, place in zip(types_, places, strict=True))
        self._runtime.host.launch(name, (grid_x, grid_y), block_x, values, self._runtime.streams[stream])


class FakeNvrtc:
    """`cupy.cuda.nvrtc`: code that names its kernels, or a refusal."""

    NVRTCError = NVRTCError

    def __init__(self) -> None:
        self.refuses, self.compiled, self._programs = "", list[tuple[str, tuple[str, ...]]](), Handles()

    def getVersion(self) -> tuple[int, int]:
        return 12, 9

    def getSupportedArchs(self) -> tuple[int, ...]:
        return 75, 80, 86, 90, 100

    def createProgram(self, src: str, name: str, headers: tuple[str, ...], include_names: tuple[str, ...]) -> int:
        return self._programs.add((src, name))

    def compileProgram(self, prog: int, options: tuple[str, ...]) -> None:
        if self.refuses:
            raise NVRTCError("NVRTC_ERROR_COMPILATION (6)")
        self.compiled.append((self._programs[prog][1], options))

    def getProgramLog(self, prog: int) -> str:
        return self.refuses

    def getCUBIN(self, prog: int) -> bytes:
        return b"\x7fELF" + self._programs[prog][0].encode()

    def getPTX(self, prog: int) -> bytes:
        return self._programs[prog][0].encode()

    def destroyProgram(self, prog: int) -> None:
        self._programs.drop(prog)


class FakeCuda:
    """Both packages over one host runtime; `install` puts them where the CUDA runtime looks."""

    def __init__(self, host: HostRuntime) -> None:
        self.host, self.runtime, self.nvrtc = host, FakeRuntime(host), FakeNvrtc()
        self.driver = FakeDriver(self.runtime)

        cuda = types.SimpleNamespace(runtime=self.runtime, driver=self.driver, nvrtc=self.nvrtc)
        self.cupy = types.SimpleNamespace(cuda=cuda)
        self.torch = self._torch()

    def _torch(self) -> types.SimpleNamespace:
        host, runtime = self.host, self.runtime

        def empty(shape: int | tuple[int, ...], *, dtype: Any, device: str) -> Any:
            if isinstance(shape, tuple):
                return torch.empty(shape, dtype=dtype)
            memory = host.empty_device(shape)
            return types.SimpleNamespace(data_ptr=lambda: memory.address)

        def as_tensor(data: Any, *, device: str) -> torch.Tensor:
            host.device_memory.find(data.__cuda_array_interface__["data"][0], 1, "as_tensor")
            view = types.SimpleNamespace(__array_interface__=data.__cuda_array_interface__, owner=data)
            return torch.from_numpy(np.asarray(view))

        def current_stream(device: str) -> Any:
            return types.SimpleNamespace(cuda_stream=runtime.consumer, synchronize=lambda: None)

        cuda = types.SimpleNamespace(
            current_device=runtime.getDevice, current_stream=current_stream, device=runtime.guard, OutOfMemoryError=torch.cuda.OutOfMemoryError,
            memory_reserved=lambda device: 3 << 20, memory_allocated=lambda device: 1 << 20,
        )  # fmt: skip
        version = types.SimpleNamespace(cuda="12.9")
        return types.SimpleNamespace(empty=empty, as_tensor=as_tensor, cuda=cuda, uint8=torch.uint8, int64=torch.int64, version=version, __version__="2.9")

    def require(self, module: str, extra: str) -> Any:
        return {"cupy": self.cupy, "torch": self.torch}[module]
