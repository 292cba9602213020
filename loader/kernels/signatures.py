"""What each kernel takes, read from the kernels' own sources: the one table by which every runtime packs arguments.

Owns the names of the kernel files and the hash of all that a compiler reads for them. Imports the standard library only.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping

from loader.kernels.build import FOLDER

KERNEL_FILES = ("batch.cu", "decode.cu", "window.cu")
ARGUMENT_BYTES = {"pointer": 8, "u32": 4, "u64": 8, "i64": 8}
_ENTRY = re.compile(r'extern "C" __global__ void(?:\s+__launch_bounds__\((\d+)[^)]*\))?\s+(\w+)\(([^)]*)\)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signature:
    """One kernel.

    Attributes:
        name: Of the entry point.
        file: Where it stands.
        max_threads: The largest block that it may be launched with.
        arguments: Names of its arguments.
        types: Of each argument, a key of ARGUMENT_BYTES.
    """

    name: str
    file: str
    max_threads: int
    arguments: tuple[str, ...]
    types: tuple[str, ...]


def _argument(text: str) -> tuple[str, str]:
    words = text.replace("*", " * ").split()
    kind = "pointer" if "*" in words else words[-2]
    if kind not in ARGUMENT_BYTES:
        raise ValueError(f"argument {text.strip()!r} of a kernel has type {kind}, known are {', '.join(ARGUMENT_BYTES)}")
    return words[-1], kind


def parse(source: str, file: str) -> dict[str, Signature]:
    """The kernels of one file by name.

    Raises:
        ValueError: An argument has a type that runtimes do not pass.
    """
    found = {}
    for max_threads, name, inside in _ENTRY.findall(source):
        pairs = [_argument(part) for part in inside.split(",") if part.strip()]
        arguments, types = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
        found[name] = Signature(name=name, file=file, max_threads=int(max_threads or 1024), arguments=arguments, types=types)
    return found


@functools.cache
def signatures() -> Mapping[str, Signature]:
    """All kernels by name."""
    return {name: one for file in KERNEL_FILES for name, one in parse((FOLDER / file).read_text(), file).items()}


def check_arguments(kernel: str, grid: tuple[int, int], block: int, arguments: tuple[int, ...]) -> Signature:
    """The kernel's signature.

    Raises:
        ValueError: There is no such kernel, or it is not launched like this.
    """
    signature = signatures().get(kernel)
    if signature is None:
        raise ValueError(f"no kernel is named {kernel!r}: there are {', '.join(sorted(signatures()))}")
    if len(arguments) != len(signature.types):
        raise ValueError(f"{kernel} takes {len(signature.types)} arguments ({', '.join(signature.arguments)}), got {len(arguments)}")
    if not (0 < grid[0] < 1 << 31 and 0 < grid[1] < 1 << 16):
        raise ValueError(f"{kernel} got a grid of {grid[0]} x {grid[1]} blocks: 1 to {(1 << 31) - 1:,} x 1 to {(1 << 16) - 1:,}")
    if not 0 < block <= signature.max_threads or block % 32:
        raise ValueError(f"{kernel} runs in blocks of up to {signature.max_threads} threads, a multiple of 32; got {block}")
    return signature


@functools.cache
def kernel_hash() -> str:
    """16 hex digits of every kernel file and header: what a compiled kernel depends on, whichever of them it includes."""
    digest = hashlib.sha256()
    for path in sorted([*FOLDER.glob("*.cu"), *FOLDER.glob("*.cuh"), *FOLDER.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
