"""What the GPU path asks of a machine: memory, streams, events, copies and launches. Two runtimes give it: CUDA through CuPy, and a host
runtime that runs the same kernels on a CPU.

Owns the protocol and how a `device` setting becomes a runtime, with fallback or refusal in so many words. The runtimes stand in
cuda_runtime.py and host_runtime.py.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from loader.errors import DeviceError, MissingDependencyError

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
Stream = Any  # handles that only the runtime which made them understands
Event = Any
DEVICE_ALIGNMENT = 256
DEVICES = "auto, cpu, cuda or cuda:N"
logger = logging.getLogger(__name__)


class DeviceMemory(Protocol):
    """Memory of the device; it goes back when the object dies.

    Attributes:
        address: On DEVICE_ALIGNMENT bytes.
        num_bytes: As asked for.
    """

    address: int
    num_bytes: int


class Runtime(Protocol):
    """A device. Safe to call from several threads; every call but `synchronize` and allocation returns at once.

    Attributes:
        name: `cuda` or `host`.
        device: As torch names it: `cuda:0`, or `cpu` for the host runtime.
        launches: Kernels launched so far.
        allocations: How often device or pinned memory was allocated so far.
    """

    name: str
    device: str
    launches: int
    allocations: int

    def empty_device(self, num_bytes: int) -> DeviceMemory:
        """Device memory of undefined content.

        Raises:
            DeviceMemoryError: The device has no room for it.
        """

    def empty_pinned(self, num_bytes: int) -> Array:
        """uint8 of undefined content in pinned host memory, on a page; asynchronous copies need it. Views of it are pinned too."""

    def stream(self, name: str) -> Stream:
        """A non-blocking stream of our own; the same one for the same name."""

    def consumer_stream(self) -> Stream:
        """The stream on which the calling thread's torch code runs now."""

    def event(self) -> Event:
        """An event that was not recorded: waits pass it by, and it counts as done."""

    def record(self, event: Event, stream: Stream) -> None:
        """The event happens when all that the stream was given so far is done."""

    def wait(self, stream: Stream, event: Event) -> None:
        """What the stream is given from now on waits for the event as it was last recorded."""

    def is_done(self, event: Event) -> bool:
        """Whether the event has happened; does not block."""

    def synchronize(self, event: Event) -> None:
        """Block the calling thread until the event has happened."""

    def copy_to_device(self, address: int, source: Array, stream: Stream) -> None:
        """Asynchronous; `source` is contiguous and pinned, and must not change until an event behind the copy."""

    def copy_to_host(self, target: Array, address: int, num_bytes: int, stream: Stream) -> None:
        """Asynchronous; `target` is contiguous and pinned, and holds nothing useful until an event behind the copy."""

    def zero(self, address: int, num_bytes: int, stream: Stream) -> None:
        """Fill device memory with zeros, asynchronously."""

    def launch(self, kernel: str, grid: tuple[int, int], block: int, arguments: tuple[int, ...], stream: Stream) -> None:
        """Run a kernel of signatures.py, asynchronously; pointers are device addresses.

        Raises:
            ValueError: There is no such kernel, or the arguments are not its own.
        """

    def tensor(self, owner: object, address: int, shape: tuple[int, ...], dtype: Any) -> torch.Tensor:
        """A tensor over device memory, without a copy.

        Args:
            owner: Lives for as long as the tensor or any view of it does.
            address: Of the first item.
            shape: Of the tensor; it is contiguous.
            dtype: NumPy's, or torch's for what NumPy lacks.
        """


class TensorOwner:
    """Memory as NumPy and torch take it without a copy; keeps `owner` alive.

    Args:
        interface: `__array_interface__` or `__cuda_array_interface__`.
        owner: What the memory belongs to.
        address: Of the first item.
        shape: Contiguous.
        dtype: Of the items.
    """

    def __init__(self, interface: str, owner: object, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.owner = owner
        record = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (address, False), "strides": None}
        setattr(self, interface, record)


def split_dtype(dtype: Any) -> tuple[np.dtype[Any], Any]:
    """(NumPy type of the same bytes, torch type to view it as or None): torch knows types that NumPy lacks."""
    if type(dtype).__module__.partition(".")[0] != "torch":
        return np.dtype(dtype), None
    return np.dtype(f"i{dtype.itemsize}"), dtype


_override: list[Runtime] = []


@contextlib.contextmanager
def override(runtime: Runtime) -> Iterator[Runtime]:
    """Every `open_runtime` but of `cpu` gives this runtime meanwhile, in all threads. For tests, and for checks on machines without a GPU."""
    _override.append(runtime)
    try:
        yield runtime
    finally:
        _override.remove(runtime)


def open_runtime(device: str = "auto", *, needed_bytes: int = 0) -> Runtime | None:
    """The runtime of a `device` setting; None is the CPU.

    Args:
        device: `cpu`; `cuda` or `cuda:N` for a GPU or an error that says why not; `auto` for a GPU where one is usable, else the CPU
            with a warning that says why.
        needed_bytes: Device memory that must be free.

    Raises:
        DeviceError: A GPU was asked for, and there is no driver, an old one, no room, or a kernel does not compile.
        MissingDependencyError: A GPU was asked for, and CuPy or torch is not installed.
        ValueError: No such setting.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdecimal())):
        raise ValueError(f"device is {device!r}: {DEVICES}")
    if kind == "cpu":
        return None
    if _override:
        return _override[-1]
    try:
        from loader.kernels.cuda_runtime import CudaRuntime  # reads CuPy

        return CudaRuntime(int(number) if number else None, needed_bytes=needed_bytes)
    except (DeviceError, MissingDependencyError) as error:
        if kind == "cuda":
            raise
        logger.warning("device=auto decodes on the CPU: %s", error)
        return None
