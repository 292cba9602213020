"""Launches the GPU kernels on the CPU under host_shim.h, over NumPy arrays."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from loader.kernels import build
from loader.kernels.shim import SCHEDULES as SCHEDULES
from loader.kernels.shim import ShimLibrary
from loader.kernels.signatures import parse

THREADS = 256


class Shim:
    """The kernels of one file. `launch` takes arrays by address, numbers by value."""

    def __init__(self, folder: pathlib.Path, kernel_file: str, schedule: str) -> None:
        self._library, self._schedule = ShimLibrary(kernel_file, folder), SCHEDULES[schedule]
        self._signatures = parse(pathlib.Path(build.FOLDER, kernel_file).read_text(), kernel_file)

    def launch(self, name: str, grid: tuple[int, int], *arguments: Any) -> None:
        """Run a kernel; fails with the shim's words where barriers are misused."""
        values = tuple(a.ctypes.data if isinstance(a, np.ndarray) else int(a) for a in arguments)
        self._library.launch(self._signatures[name], grid, THREADS, values, self._schedule)
