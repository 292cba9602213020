"""Launches the GPU kernels on the CPU under host_shim.h, over NumPy arrays."""

from __future__ import annotations

import ctypes
import pathlib
from typing import Any

import numpy as np

from loader.kernels import build

SCHEDULES = {"forward": 0, "reverse": 1, "shuffled": 7, "greedy": 1000, "greedy reverse": 1001, "greedy shuffled": 1007}
THREADS = 256


class Shim:
    """The kernels of one file. `launch` takes arrays by address and NumPy scalars by value."""

    def __init__(self, folder: pathlib.Path, kernel_file: str, schedule: str) -> None:
        target = folder / f"shim_{pathlib.Path(kernel_file).stem}.so"
        self._library = ctypes.CDLL(str(target if target.exists() else build.compile_shim(target, kernel_file)))
        self._library.shim_error.restype = ctypes.c_char_p
        self._library.shim_schedule(SCHEDULES[schedule])

    def launch(self, name: str, grid: tuple[int, int], *arguments: Any) -> None:
        """Run a kernel; fails with the shim's words where barriers are misused."""
        shape = (ctypes.c_uint * 6)(*grid, 1, THREADS, 1, 1)
        values = [ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else np.ctypeslib.as_ctypes_type(a.dtype)(a.item()) for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values))
        if getattr(self._library, f"shim_{name}")(shape, pointers):
            raise RuntimeError(self._library.shim_error().decode())
