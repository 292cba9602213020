"""The CUDA runtime: an NVIDIA GPU through CuPy's runtime and driver layers, memory from torch's allocator.

Owns what a GPU must be to be used, and says what it is not. Device memory is torch's, so that one allocator owns the card; taking it waits
for whatever had it before, giving it back waits for the device, and neither happens in the steady state. It has not run on a GPU: tests run it
over a look-alike of CuPy on the host runtime, and check what it calls against the real package where that is installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from loader.errors import DeviceError, DeviceMemoryError, MissingDependencyError
from loader.extras import require
from loader.kernels import cubin
from loader.kernels.nvrtc import CompileError, load_wheels
from loader.kernels.runtime import TensorOwner, split_dtype
from loader.kernels.signatures import KERNEL_FILES, check_arguments, signatures

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
MIN_DRIVER = 12000  # CUDA 12.0, as cudaDriverGetVersion counts
MIN_CAPABILITY = (7, 0)
_TYPES = {"pointer": ctypes.c_uint64, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64, "i64": ctypes.c_int64}


class CudaMemory:
    """Device memory from torch; goes back to it once the device is done with all that it was given.

    Attributes:
        address: On 512 bytes.
        num_bytes: As asked for.
    """

    def __init__(self, tensor: Any, num_bytes: int, settle: Callable[[], None]) -> None:
        self.address, self.num_bytes = int(tensor.data_ptr()), num_bytes
        self._tensor, self._settle = tensor, settle

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self._settle()


class _Device:
    """One device, made the calling thread's for a while.

    Every call goes through it, even those that name an event: threads begin on device 0, where CUDA would make a context for each rank (half a gigabyte).
    """

    def __init__(self, cupy: Any, torch: Any, number: int) -> None:
        self._cuda, self._torch, self.number = cupy.cuda.runtime, torch, number

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Our device is the thread's meanwhile; whose it was before it is again. torch's guard goes back without a new context there."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._torch.cuda.device(self.number))
                self._cuda.setDevice(self.number)  # torch does nothing where it is the thread's already, and the driver's calls need its context
            except RuntimeError as error:
                raise DeviceError(f"cuda:{self.number} cannot be used: {error}") from error
            yield


class _Handle:
    """A stream, an event or pinned memory of ours, destroyed with its last reference."""

    def __init__(self, handle: int, destroy: Callable[[int], None] | None = None, device: _Device | None = None) -> None:
        self.handle, self._destroy, self._device = handle, destroy, device

    def __del__(self) -> None:
        if self._destroy is not None and self._device is not None and not sys.is_finalizing():
            with self._device.current():
                self._destroy(self.handle)


class CudaRuntime:
    """A `loader.kernels.runtime.Runtime` on an NVIDIA GPU.

    Args:
        number: Of the device; torch's current one if None.
        needed_bytes: Device memory that must be free.

    Attributes:
        architecture: What the kernels are compiled for.
        properties: Name, compute capability, memory and driver, for reports.

    Raises:
        DeviceError: No driver, an old one, an old GPU, no such device, no room, or a kernel that does not compile.
        MissingDependencyError: CuPy or torch is not installed.
    """

    name = "cuda"

    def __init__(self, number: int | None = None, *, needed_bytes: int = 0) -> None:
        self._cupy, self._torch = _require_cupy(), require("torch", "torch")
        self._cuda, self._driver = self._cupy.cuda.runtime, self._cupy.cuda.driver
        self.properties = _check_driver(self._cuda, self._torch)
        self._device = _Device(self._cupy, self._torch, self._torch.cuda.current_device() if number is None else number)
        self._on_device = self._device.current
        self.device = f"cuda:{self._device.number}"
        self.launches = self.allocations = 0
        self._streams: dict[str, _Handle] = {}
        self._consumers: dict[int, _Handle] = {}
        self._lock = threading.RLock()
        with self._on_device():
            self.properties |= _check_device(self._cuda, self._torch, self._device.number, needed_bytes)
            self.architecture, self._functions = self._load_kernels()

    def _load_kernels(self) -> tuple[str, dict[str, int]]:
        """Every kernel's function by name: one that does not compile is met here, not in the middle of an epoch."""
        functions: dict[str, int] = {}
        try:
            load_wheels()
            nvrtc = self._cupy.cuda.nvrtc
            architecture = cubin.architecture_of(nvrtc, self.properties["compute_capability"])
            for file in KERNEL_FILES:
                module = self._driver.moduleLoadData(cubin.machine_code(nvrtc, file, architecture))
                functions |= {name: self._driver.moduleGetFunction(module, name) for name in _names(file)}
        except (CompileError, ImportError, RuntimeError) as error:
            raise DeviceError(f"the kernels cannot be made for {self.device}, {self.properties['name']}: {error}") from error
        return architecture, functions

    def empty_device(self, num_bytes: int) -> CudaMemory:
        torch = self._torch
        try:
            tensor = torch.empty(max(num_bytes, 1), dtype=torch.uint8, device=self.device)
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceMemoryError(f"no room for {num_bytes:,} bytes on {self.device}: {error}") from error
        # what had this memory before may still run on torch's stream
        torch.cuda.current_stream(self.device).synchronize()
        self.allocations += 1
        return CudaMemory(tensor, num_bytes, self._settle)

    def _settle(self) -> None:
        with self._on_device():
            self._cuda.deviceSynchronize()

    def empty_pinned(self, num_bytes: int) -> Array:
        try:
            with self._on_device():
                memory = _Handle(self._cuda.hostAlloc(max(num_bytes, 1), self._cuda.hostAllocPortable), self._cuda.freeHost, self._device)
        except self._cuda.CUDARuntimeError as error:
            raise DeviceMemoryError(f"no room for {num_bytes:,} bytes of pinned host memory: {error}") from error
        self.allocations += 1
        return np.asarray(TensorOwner("__array_interface__", memory, memory.handle, (num_bytes,), np.dtype(np.uint8)))

    def stream(self, name: str) -> _Handle:
        with self._lock:
            if name not in self._streams:
                with self._on_device():
                    handle = self._cuda.streamCreateWithFlags(self._cuda.streamNonBlocking)
                    self._streams[name] = _Handle(handle, self._cuda.streamDestroy, self._device)
            return self._streams[name]

    def consumer_stream(self) -> _Handle:
        handle = int(self._torch.cuda.current_stream(self.device).cuda_stream)
        return self._consumers.setdefault(handle, _Handle(handle))  # one object a stream, so that callers can tell them apart

    def event(self) -> _Handle:
        with self._on_device():
            return _Handle(self._cuda.eventCreateWithFlags(self._cuda.eventDisableTiming), self._cuda.eventDestroy, self._device)

    def record(self, event: _Handle, stream: _Handle) -> None:
        with self._on_device():
            self._cuda.eventRecord(event.handle, stream.handle)

    def wait(self, stream: _Handle, event: _Handle) -> None:
        with self._on_device():
            self._cuda.streamWaitEvent(stream.handle, event.handle)

    def is_done(self, event: _Handle) -> bool:
        with self._on_device():
            return bool(self._cuda.eventQuery(event.handle) == 0)

    def synchronize(self, event: _Handle) -> None:
        with self._on_device():
            self._cuda.eventSynchronize(event.handle)

    def copy_to_device(self, address: int, source: Array, stream: _Handle) -> None:
        _check_contiguous(source)
        with self._on_device():
            self._cuda.memcpyAsync(address, source.ctypes.data, source.nbytes, self._cuda.memcpyHostToDevice, stream.handle)

    def copy_to_host(self, target: Array, address: int, num_bytes: int, stream: _Handle) -> None:
        _check_contiguous(target)
        if target.nbytes < num_bytes:
            raise ValueError(f"copy of {num_bytes} bytes to the host: its target has {target.nbytes} bytes")
        with self._on_device():
            self._cuda.memcpyAsync(target.ctypes.data, address, num_bytes, self._cuda.memcpyDeviceToHost, stream.handle)

    def zero(self, address: int, num_bytes: int, stream: _Handle) -> None:
        with self._on_device():
            self._cuda.memsetAsync(address, 0, num_bytes, stream.handle)

    def launch(self, kernel: str, grid: tuple[int, int], block: int, arguments: tuple[int, ...], stream: _Handle) -> None:
        signature = check_arguments(kernel, grid, block, arguments)
        values = [_TYPES[kind](argument) for kind, argument in zip(signature.types, arguments, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        with self._on_device():  # the driver copies the values before it returns
            self._driver.launchKernel(self._functions[kernel], grid[0], grid[1], 1, block, 1, 1, 0, stream.handle, ctypes.addressof(pointers), 0)
        self.launches += 1

    def tensor(self, owner: object, address: int, shape: tuple[int, ...], dtype: Any) -> torch.Tensor:
        numpy_type, torch_type = split_dtype(dtype)
        if 0 in shape:  # torch asks the driver whose an address is, and that of no items may be nobody's
            empty: torch.Tensor = self._torch.empty(shape, dtype=torch_type or getattr(self._torch, numpy_type.name), device=self.device)
            return empty
        held = TensorOwner("__cuda_array_interface__", owner, address, shape, numpy_type)
        made = self._torch.as_tensor(held, device=self.device)
        result: torch.Tensor = made if torch_type is None else made.view(torch_type)
        return result


def _require_cupy() -> Any:
    try:
        return require("cupy", "gpu")
    except MissingDependencyError as error:
        raise MissingDependencyError(
            "cupy is not installed and decoding on a GPU needs it: pip install 'headrace[gpu]' for CUDA 12 drivers, 'headrace[gpu13]' for CUDA 13", name="cupy"
        ) from error
    except ImportError as error:
        raise DeviceError(f"cupy does not load: {error}") from error


def _check_driver(cuda: Any, torch: Any) -> dict[str, Any]:
    if torch.version.cuda is None:
        raise DeviceError(f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch, or set device to cpu")
    driver = int(cuda.driverGetVersion())
    if driver == 0:
        raise DeviceError("there is no NVIDIA driver on this machine: install one, or set device to cpu")
    if driver < MIN_DRIVER:
        raise DeviceError(f"the NVIDIA driver speaks CUDA {_version(driver)}, this needs {_version(MIN_DRIVER)}: install a newer driver")
    try:
        count = int(cuda.getDeviceCount())
    except cuda.CUDARuntimeError as error:
        raise DeviceError(f"the NVIDIA driver (CUDA {_version(driver)}) shows no GPU: {error}") from error
    return {"driver": _version(driver), "runtime": _version(int(cuda.runtimeGetVersion())), "num_devices": count}


def _check_device(cuda: Any, torch: Any, number: int, needed_bytes: int) -> dict[str, Any]:
    found = cuda.getDeviceProperties(number)
    capability = (int(found["major"]), int(found["minor"]))
    name = found["name"].decode() if isinstance(found["name"], bytes) else str(found["name"])
    if capability < MIN_CAPABILITY:
        raise DeviceError(f"cuda:{number}, {name}, has compute capability {capability[0]}.{capability[1]}, this needs {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}")
    free, total = cuda.memGetInfo()
    idle = torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)  # torch's, but not in use
    if free + idle < needed_bytes:
        raise DeviceMemoryError(
            f"cuda:{number}, {name}, has {free + idle:,} bytes free of {total:,}, {needed_bytes:,} are needed: give it less to hold, or another GPU"
        )
    return {"name": name, "compute_capability": capability, "total_bytes": int(total)}


def _names(file: str) -> tuple[str, ...]:
    return tuple(name for name, one in signatures().items() if one.file == file)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _check_contiguous(array: Array) -> None:
    if not array.flags.c_contiguous:
        raise ValueError("the host's side of a copy is not contiguous")
