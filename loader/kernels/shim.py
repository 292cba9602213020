"""The kernels' GPU branch compiled for the CPU, and its launches: host_shim.h runs every CUDA thread as a fiber.

Owns building and loading, one library a kernel file, and schedules by name. Who may run when in a block is a schedule's doing; what
runs when between streams is host_streams.py's.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import threading

from loader.kernels import build
from loader.kernels.signatures import Signature, kernel_hash

SCHEDULES = {"forward": 0, "reverse": 1, "shuffled": 7, "greedy": 1000, "greedy reverse": 1001, "greedy shuffled": 1007}
_TYPES = {"pointer": ctypes.c_uint64, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64, "i64": ctypes.c_int64}


class ShimError(RuntimeError):
    """A kernel misused a barrier; names the line."""


def cache_folder() -> pathlib.Path:
    """Where compiled kernels are kept: $HEADRACE_CACHE, or `headrace` in the user's cache folder; by the hash of their sources."""
    root = os.environ.get("HEADRACE_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "headrace")
    return pathlib.Path(root, "kernels", kernel_hash())


class ShimLibrary:
    """The kernels of one file, compiled where they are not yet.

    Args:
        kernel_file: Such as `decode.cu`.
        folder: Where the library lies or shall lie; it must belong to these sources.

    Raises:
        BuildError: There is no C++ compiler, or it failed.
    """

    _lock = threading.Lock()  # a library's threads and shared memory are static

    def __init__(self, kernel_file: str, folder: pathlib.Path | None = None) -> None:
        target = (folder or cache_folder()) / f"shim_{pathlib.Path(kernel_file).stem}.so"
        with self._lock:
            path = target if target.exists() else build.compile_shim(target, kernel_file)
        self._library = ctypes.CDLL(str(path))
        self._library.shim_error.restype = ctypes.c_char_p

    def launch(self, signature: Signature, grid: tuple[int, int], block: int, arguments: tuple[int, ...], schedule: int) -> None:
        """Run a kernel to its end.

        Raises:
            ShimError: Threads wait at different barriers, or for ever.
        """
        shape = (ctypes.c_uint * 6)(*grid, 1, block, 1, 1)
        values = [_TYPES[kind](argument) for kind, argument in zip(signature.types, arguments, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        with self._lock:
            self._library.shim_schedule(schedule)
            failed = getattr(self._library, f"shim_{signature.name}")(shape, pointers)
            reason = self._library.shim_error().decode() if failed else ""
        if failed:
            raise ShimError(f"{signature.name}: {reason}")
