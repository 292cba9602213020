"""Compiles the CPU library from the kernels beside this file: into the package, or into any folder.

Owns compiler flags and the hash of the sources. Imports the standard library only, because setup.py runs it where nothing else is
installed. `python -m loader.kernels.build` compiles into the package.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

FOLDER = pathlib.Path(__file__).resolve().parent
LIBRARY = "_native.so"
SOURCES = (
    "arrow_abi.h", "assemble.cu", "cascade.h", "choose.h", "chunk_builder.h", "columns.h", "columns_encoder.h", "crc32c.h", "decode.cu", "dictionary.h",
    "encode.h", "encoder.h", "encoders.h", "executor.h", "host.cpp", "host_shim.h", "key_filter.h", "key_index.h", "key_probe.h", "lanes.cuh", "lists.h",
    "measure.h", "page_reads.h", "program.h", "ranks.cuh", "rows.h", "rows_pick.h", "rows_take.h", "segment_writer.h", "shred.h", "stores.cuh", "streams.cuh",
    "threads.h", "values.h", "verify.h", "workspace.h",
)  # fmt: skip
FLAGS = ("-std=c++17", "-fPIC", "-shared", "-pthread", "-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden")
WARNINGS = ("-Wall", "-Wextra", "-Wno-maybe-uninitialized")
OPTIMISE = ("-O3",)
SANITIZE = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


class BuildError(RuntimeError):
    """No compiler, or it refused; the message holds what it said."""


def source_hash() -> str:
    """16 hex digits of the kernel sources and flags: a library carries the hash of those that it was compiled from."""
    digest = hashlib.sha256(repr(FLAGS + OPTIMISE).encode())
    for name in SOURCES:
        digest.update(name.encode() + b"\0" + (FOLDER / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def compiler() -> list[str] | None:
    """The C++ compiler's command: $CXX, or the first of g++, clang++ and c++ on the path; None without one."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
    return [found] if found else None


def compile_library(target: str | os.PathLike[str], *, optimise: Sequence[str] = OPTIMISE) -> pathlib.Path:
    """Compile the CPU library to `target`, replacing it at once so that nobody loads half a file.

    Args:
        target: Path of the shared library.
        optimise: Optimisation or sanitizer flags.

    Raises:
        BuildError: There is no C++ compiler, or it failed.
    """
    flags = [*optimise, f'-DHEADRACE_SOURCE_HASH="{source_hash()}"']
    return _compile(pathlib.Path(target), [*flags, str(FOLDER / "host.cpp")])


def compile_shim(target: str | os.PathLike[str], kernel: str, *, optimise: Sequence[str] = ("-O1",)) -> pathlib.Path:
    """Compile the GPU branch of one kernel file (`decode.cu`, `assemble.cu`) for the CPU, as host_shim.h runs it; flags as for `compile_library`."""
    return _compile(pathlib.Path(target), [*optimise, "-DHEADRACE_SHIM", "-x", "c++", str(FOLDER / kernel)])


def _compile(target: pathlib.Path, arguments: Sequence[str]) -> pathlib.Path:
    command = compiler()
    if command is None:
        raise BuildError("no C++ compiler: install g++ (or set CXX), or go without the native library")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        made = pathlib.Path(folder, target.name)
        result = subprocess.run([*command, *FLAGS, *WARNINGS, *arguments, "-o", str(made)], capture_output=True, text=True, check=False)
        if result.returncode:
            raise BuildError(f"{command[0]} could not compile {arguments[-1]}:\n{result.stderr.strip()[-4000:]}")
        made.replace(target)
    return target


def sanitizer_runtime() -> str | None:
    """What LD_PRELOAD must hold for a library with sanitizers: their runtime, and that of the exceptions which it watches. None where gcc has none."""
    names = ("libasan.so", "libstdc++.so")
    found = [subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=False).stdout.strip() for name in names]
    return " ".join(found) if all(os.path.isabs(path) for path in found) else None


def ensure(folder: str | os.PathLike[str] = FOLDER) -> pathlib.Path:
    """The library in `folder`, compiled if there is none from these sources. For tools that build on the spot.

    Raises:
        BuildError: As `compile_library`.
    """
    target = pathlib.Path(folder, LIBRARY)
    if target.exists() and source_hash().encode() in target.read_bytes():
        return target
    return compile_library(target)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        logging.info("built %s", compile_library(sys.argv[1] if len(sys.argv) > 1 else FOLDER / LIBRARY))
    except BuildError as error:
        sys.exit(str(error))
