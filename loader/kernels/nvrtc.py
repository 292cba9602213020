"""Compiles the kernels to machine code, which needs no GPU: for the CUDA runtime, and to see their registers and spills.

Reports come from nvcc where it is on the path, else from NVRTC: CuPy's binding, or the library of the nvidia-cuda-nvrtc wheel or of a toolkit.
`python -m loader.kernels.nvrtc sm_80 sm_90` logs a line for each kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import glob
import importlib.util
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from loader.kernels.build import FOLDER
from loader.kernels.signatures import KERNEL_FILES

# no fused multiply-add, no flush to zero, exact division: the same bits as the CPU library
OPTIONS = ("-std=c++17", "-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true")
_USAGE = re.compile(
    r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)", re.DOTALL
)


class CompileError(RuntimeError):
    """The compiler refused; the message is its log."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelReport:
    """What one kernel takes on one architecture.

    Attributes:
        name: Of the entry point.
        architecture: Such as `sm_90`.
        registers: A thread.
        stack_bytes: Local memory a thread, for arrays that are indexed at run time.
        spill_bytes: Stores and loads that did not fit into registers.
        shared_bytes: Static shared memory of a block.
    """

    name: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int


def available() -> str | None:
    """The compiler that `compile_kernels` would use: `nvcc`, `cupy`, a path of libnvrtc, or None."""
    if shutil.which("nvcc"):
        return "nvcc"
    if importlib.util.find_spec("cupy") is not None:
        return "cupy"
    return _find_nvrtc()


def _find_nvrtc() -> str | None:
    return next(iter(_nvrtc_libraries()), None)


def load_wheels() -> None:
    """Load the NVRTC of NVIDIA's wheels, so that CuPy finds it loaded: before CuPy 14 it looks for one on the system's path only."""
    for path in _nvrtc_libraries():
        with contextlib.suppress(OSError):  # CuPy says what it lacks
            ctypes.CDLL(path)


def _nvrtc_libraries() -> list[str]:
    folders = [path for path in sys.path if path] + ["/usr/local/cuda"]
    patterns = ("nvidia/*/lib/libnvrtc.so.*", "lib64/libnvrtc.so.*")
    found = [path for folder in folders for pattern in patterns for path in glob.glob(os.path.join(folder, pattern))]
    return [path for path in sorted(found) if "builtins" not in os.path.basename(path) and ".alt" not in os.path.basename(path)]


def compile_kernels(architecture: str) -> list[KernelReport]:
    """Compile all kernels for an architecture.

    Args:
        architecture: Such as `sm_80`.

    Raises:
        CompileError: With the compiler's log, or because there is no compiler.
    """
    compilers: dict[str, Callable[[str, str], str]] = {"nvcc": _with_nvcc, "cupy": _with_cupy}
    found = available()
    if found is None:
        raise CompileError("no CUDA compiler: install nvcc, cupy-cuda12x or nvidia-cuda-nvrtc-cu12")
    run = compilers.get(found, _with_library)
    return [report for name in KERNEL_FILES for report in _parse(run(name, architecture), architecture)]


def _parse(log: str, architecture: str) -> list[KernelReport]:
    reports = []
    for name, stack, stores, loads, registers, rest in _USAGE.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        spills = int(stores) + int(loads)
        found = KernelReport(
            name=name, architecture=architecture, registers=int(registers), stack_bytes=int(stack), spill_bytes=spills,
            shared_bytes=int(shared[1]) if shared else 0,
        )  # fmt: skip
        reports.append(found)
    return reports


def _with_nvcc(name: str, architecture: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *OPTIONS, "-cubin", f"-arch={architecture}", "-Xptxas", "-v", str(FOLDER / name), "-o", str(pathlib.Path(folder, "out.cubin"))]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise CompileError(f"nvcc could not compile {name} for {architecture}:\n{result.stderr[-4000:]}")
    return result.stderr + result.stdout


def _arguments(architecture: str) -> list[str]:
    return [f"--gpu-architecture={architecture}", *OPTIONS, "--ptxas-options=-v", f"--include-path={FOLDER}"]


def _with_cupy(name: str, architecture: str) -> str:
    from cupy.cuda import nvrtc

    return compile_file(nvrtc, name, architecture)[1]


def compile_file(nvrtc: Any, name: str, architecture: str) -> tuple[bytes, str]:
    """Machine code and log of a kernel file.

    Args:
        nvrtc: `cupy.cuda.nvrtc`.
        name: Such as `decode.cu`.
        architecture: `sm_90` for machine code, `compute_90` for PTX that a driver compiles.

    Raises:
        CompileError: With the compiler's log.
    """
    program = nvrtc.createProgram((FOLDER / name).read_text(), name, (), ())
    try:
        nvrtc.compileProgram(program, tuple(_arguments(architecture)))
        log: str = nvrtc.getProgramLog(program)
        if architecture.startswith("compute_"):
            text = nvrtc.getPTX(program)
            return (text if isinstance(text, bytes) else text.encode()) + b"\0", log
        return nvrtc.getCUBIN(program) + b"\0", log  # CuPy leaves out the last byte
    except nvrtc.NVRTCError as error:
        raise CompileError(f"NVRTC could not compile {name} for {architecture}: {error}\n{nvrtc.getProgramLog(program)}") from None
    finally:
        nvrtc.destroyProgram(program)


def _with_library(name: str, architecture: str) -> str:
    library = ctypes.CDLL(_find_nvrtc() or "libnvrtc.so")
    program = ctypes.c_void_p()
    source, options = (FOLDER / name).read_bytes(), [option.encode() for option in _arguments(architecture)]
    if library.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None):
        raise CompileError(f"NVRTC could not take {name}")
    try:
        failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        size = ctypes.c_size_t()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise CompileError(f"NVRTC could not compile {name} for {architecture}:\n{log.value.decode(errors='replace')}")
    return log.value.decode(errors="replace")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for one in sys.argv[1:] or ["sm_80", "sm_90"]:
        for kernel in compile_kernels(one):
            usage = (
                f"{kernel.registers:3} registers {kernel.shared_bytes:5} bytes shared {kernel.spill_bytes} bytes spilled {kernel.stack_bytes} bytes of stack"
            )
            logging.info("%s %-16s %s", one, kernel.name, usage)
