"""The host runtime: the GPU path end to end on a CPU, with the same Python, the same kernels, and a device that is as unkind as it may be.

Device memory is host memory, poisoned and guarded. Kernels are the shim build, under a schedule of threads and blocks. Streams run
late, early or at random (host_streams.py). A missing wait therefore shows as wrong bytes, and what is wrong whatever the timing is an
error: pinned memory that changes under a copy, memory that dies under work in flight, addresses that are nobody's, writes past an end.
It does not see how weakly a GPU orders memory between threads, nor whose the addresses are that stand in tables.
"""

from __future__ import annotations

import collections
import pathlib
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from loader.errors import DeviceMemoryError
from loader.extras import require
from loader.kernels.host_memory import IN_FLIGHT, PAGE_BYTES, HostMemory, MisuseError, Space
from loader.kernels.host_streams import HostEvent, HostStream, HostStreams
from loader.kernels.runtime import DEVICE_ALIGNMENT, TensorOwner, split_dtype
from loader.kernels.shim import SCHEDULES, ShimLibrary
from loader.kernels.signatures import check_arguments

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]


class HostRuntime:
    """A `loader.kernels.runtime.Runtime` on the CPU.

    Args:
        schedule: Of threads inside of kernels, a key of `shim.SCHEDULES`.
        timing: Of streams: `eager`, `lazy` or `random`.
        seed: Of random timing.
        device_bytes: Size of the device; what does not fit raises DeviceMemoryError.
        folder: Of the compiled kernels; the user's cache if None.

    Attributes:
        launched: How often each kernel was launched.
        device_memory: Live device allocations.
        pinned_memory: Live pinned allocations.
    """

    name = "host"
    device = "cpu"

    def __init__(
        self, *, schedule: str = "forward", timing: str = "random", seed: int = 0, device_bytes: int = 1 << 40, folder: pathlib.Path | None = None
    ) -> None:
        self._schedule, self._device_bytes, self._folder = SCHEDULES[schedule], device_bytes, folder
        self._streams = HostStreams(timing, seed)
        self._libraries: dict[str, ShimLibrary] = {}
        self.device_memory, self.pinned_memory = Space("device"), Space("pinned")
        self.launches = self.allocations = 0
        self.launched: collections.Counter[str] = collections.Counter()

    def empty_device(self, num_bytes: int) -> HostMemory:
        with self._streams.lock:
            if self.device_memory.num_bytes + num_bytes > self._device_bytes:
                raise DeviceMemoryError(
                    f"no room for {num_bytes:,} bytes on the host runtime's device: {self.device_memory.num_bytes:,} of {self._device_bytes:,} are taken"
                )
            self.allocations += 1
            return HostMemory(self.device_memory, num_bytes, DEVICE_ALIGNMENT)

    def empty_pinned(self, num_bytes: int) -> Array:
        with self._streams.lock:
            self.allocations += 1
            return np.asarray(HostMemory(self.pinned_memory, num_bytes, PAGE_BYTES))

    def stream(self, name: str) -> HostStream:
        return self._streams.stream(name)

    def consumer_stream(self) -> HostStream:
        return self._streams.caller

    def event(self) -> HostEvent:
        return HostEvent()

    def record(self, event: HostEvent, stream: HostStream) -> None:
        self._streams.record(event, stream)

    def wait(self, stream: HostStream, event: HostEvent) -> None:
        self._streams.wait(stream, event)

    def is_done(self, event: HostEvent) -> bool:
        self._raise_violations()
        return self._streams.is_done(event)

    def synchronize(self, event: HostEvent) -> None:
        self._streams.synchronize(event)
        self._raise_violations()

    def finish(self) -> None:
        """Run all work that is left and check what can be checked at the end. Not of the protocol: tests end with it."""
        self._streams.finish()
        for space in (self.device_memory, self.pinned_memory):
            space.check_guards("something")
        self._raise_violations()

    def copy_to_device(self, address: int, source: Array, stream: HostStream) -> None:
        what = f"copy of {source.nbytes} bytes to the device on stream {stream.name}"
        with self._streams.lock:
            host, seen = self._pinned(source, what), _bytes_of(source).copy()
            target = self._device_bytes_at(address, source.nbytes, what)
            live = _bytes_of(_unowned(source))

            def run() -> None:
                if not np.array_equal(live, seen):
                    raise MisuseError(f"{what}: its pinned source changed, or died, before the copy had run")
                target[:] = live

            self._submit(stream, what, run, host, self.device_memory.find(address, source.nbytes, what))

    def copy_to_host(self, target: Array, address: int, num_bytes: int, stream: HostStream) -> None:
        what = f"copy of {num_bytes} bytes to the host on stream {stream.name}"
        if target.nbytes < num_bytes:
            raise ValueError(f"{what}: its target has {target.nbytes} bytes")
        with self._streams.lock:
            host = self._pinned(target, what)
            source = self._device_bytes_at(address, num_bytes, what)
            live = _bytes_of(_unowned(target))[:num_bytes]
            live[:] = IN_FLIGHT

            def run() -> None:
                if not (live == IN_FLIGHT).all():
                    raise MisuseError(f"{what}: its target was written, or died, before the copy had run")
                live[:] = source

            self._submit(stream, what, run, host, self.device_memory.find(address, num_bytes, what))

    def zero(self, address: int, num_bytes: int, stream: HostStream) -> None:
        what = f"zeros over {num_bytes} bytes on stream {stream.name}"
        with self._streams.lock:
            target = self._device_bytes_at(address, num_bytes, what)
            self._submit(stream, what, lambda: target.fill(0), self.device_memory.find(address, num_bytes, what))

    def launch(self, kernel: str, grid: tuple[int, int], block: int, arguments: tuple[int, ...], stream: HostStream) -> None:
        signature = check_arguments(kernel, grid, block, arguments)
        what = f"{kernel} on stream {stream.name}"
        with self._streams.lock:
            self.launches += 1
            self.launched[kernel] += 1
            library = self._libraries.get(signature.file) or self._libraries.setdefault(signature.file, ShimLibrary(signature.file, self._folder))
            pointers = [value for kind, value in zip(signature.types, arguments, strict=True) if kind == "pointer" and value]
            owners = [self.device_memory.find(value, 0, what) for value in pointers]

            def run() -> None:
                library.launch(signature, grid, block, arguments, self._schedule)
                self.device_memory.check_guards(what)

            self._submit(stream, what, run, *owners)

    def tensor(self, owner: object, address: int, shape: tuple[int, ...], dtype: Any) -> torch.Tensor:
        numpy_type, torch_type = split_dtype(dtype)
        made = require("torch", "torch").from_numpy(np.asarray(TensorOwner("__array_interface__", owner, address, shape, numpy_type)))
        result: torch.Tensor = made if torch_type is None else made.view(torch_type)
        return result

    def _submit(self, stream: HostStream, what: str, run: Callable[[], None], *owners: HostMemory) -> None:
        """Work that must find its memory alive when it runs."""
        alive = [weakref.ref(owner) for owner in owners]

        def checked() -> None:
            if any(reference() is None for reference in alive):
                raise MisuseError(f"{what}: its memory died before it had run")
            run()

        del owners
        self._streams.submit(stream, checked)

    def _pinned(self, array: Array, what: str) -> HostMemory:
        if not array.flags.c_contiguous:
            raise ValueError(f"{what}: the host's side is not contiguous")
        return self.pinned_memory.find(array.ctypes.data, array.nbytes, what)

    def _device_bytes_at(self, address: int, num_bytes: int, what: str) -> Array:
        memory = self.device_memory.find(address, num_bytes, what)
        return memory.data[address - memory.address :][:num_bytes]

    def _raise_violations(self) -> None:
        for space in (self.device_memory, self.pinned_memory):
            if space.violations:
                raise MisuseError(space.violations.pop())


def _bytes_of(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def _unowned(array: Array) -> Array:
    """The same bytes without a reference to who owns them, as a copy in flight has none."""
    interface = {"version": 3, "shape": array.shape, "typestr": array.dtype.str, "data": (array.ctypes.data, False)}
    return np.asarray(type("Bytes", (), {"__array_interface__": interface})())
