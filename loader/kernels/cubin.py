"""Machine code of the kernels for one GPU, compiled once and kept on disk.

The key is all that the code depends on: the hash of every kernel file and header, the compiler's version, its options, and the architecture. (A key
over the kernel file alone, as CuPy's own cache has it, misses a change in a header.)
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import tempfile
from typing import Any

from loader.kernels import nvrtc as compilers
from loader.kernels.shim import cache_folder

logger = logging.getLogger(__name__)
_DIGEST_BYTES = 32


def architecture_of(nvrtc: Any, capability: tuple[int, int]) -> str:
    """What to compile for: the GPU's own machine code, or PTX of the newest architecture that this compiler knows."""
    number = capability[0] * 10 + capability[1]
    supported = [int(one) for one in nvrtc.getSupportedArchs()]
    if number in supported:
        return f"sm_{number}"
    older = [one for one in supported if one < number]
    if not older:
        raise compilers.CompileError(f"NVRTC {nvrtc.getVersion()} does not compile for compute capability {capability[0]}.{capability[1]}")
    return f"compute_{max(older)}"


def machine_code(nvrtc: Any, name: str, architecture: str, folder: pathlib.Path | None = None) -> bytes:
    """Machine code of a kernel file, from the cache or compiled into it.

    Args:
        nvrtc: `cupy.cuda.nvrtc`.
        name: Such as `decode.cu`.
        architecture: From `architecture_of`.
        folder: Of the cache; by default the user's, by the hash of the sources.

    Raises:
        CompileError: With the compiler's log.
    """
    folder = folder or cache_folder()
    version = ".".join(str(part) for part in nvrtc.getVersion())
    options = hashlib.sha256(repr(compilers.OPTIONS).encode()).hexdigest()[:8]
    path = folder / f"{pathlib.Path(name).stem}-{architecture}-nvrtc{version}-{options}.bin"
    found = _read(path)
    if found is None:
        found, _ = compilers.compile_file(nvrtc, name, architecture)
        _write(path, found)
    return found


def _read(path: pathlib.Path) -> bytes | None:
    try:
        held = path.read_bytes()
    except OSError:
        return None
    digest, code = held[:_DIGEST_BYTES], held[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: pathlib.Path, code: bytes) -> None:
    """Put it there at once, so that nobody reads half of it. A folder that cannot be written costs a second at every start, no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".cubin-", delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning("compiled kernels are not kept at %s: %s", path, error)
