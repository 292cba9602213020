"""Host and kernels agree: on every kernel's arguments, on the records that both read, and on the constants that both use."""

from __future__ import annotations

import pathlib
import re
import subprocess
from typing import Any

import numpy as np
import pytest

from loader.decode import cuda
from loader.decode.program import PROGRAM_OP, PROGRAM_SOURCE
from loader.kernels import build
from loader.kernels.host_runtime import HostRuntime
from loader.kernels.shim import ShimLibrary
from loader.kernels.signatures import ARGUMENT_BYTES, KERNEL_FILES, kernel_hash, parse, signatures
from loader.segment.layout import MAX_CLASSES, PADDING_BYTES, VECTOR, VECTOR_META, OpKind, OutKind, Scan, SourceKind
from tests.kernels.test_shim import FIXED_COLUMN, LIST_COLUMN

RECORDS = {"VectorMeta": VECTOR_META, "ProgramOp": PROGRAM_OP, "ProgramSource": PROGRAM_SOURCE, "FixedColumn": FIXED_COLUMN, "ListColumn": LIST_COLUMN}
CONSTANTS = {
    "VECTOR": VECTOR, "PADDING_BYTES": PADDING_BYTES, "MAX_CLASSES": MAX_CLASSES, "WARPS_PER_BLOCK": cuda.WARPS_PER_BLOCK, "THREADS_PER_BLOCK": cuda.THREADS,
    "KNOWN_FEATURES": int(cuda.KNOWN_FEATURES),
}  # fmt: skip
ENUMS: dict[str, Any] = {"OP_": OpKind, "SOURCE_": SourceKind, "SCAN_": Scan, "OUT_": OutKind}


def compiles(code: str) -> str:
    """What the compiler says of a file that includes all kernels' records; empty if nothing."""
    compiler = build.compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    source = '#include "assemble.cu"\n#include <cstddef>\n' + code
    command = [*compiler, "-std=c++17", "-fsyntax-only", "-DHEADRACE_SHIM", "-I", str(build.FOLDER), "-x", "c++", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False).stderr


def test_records_and_constants_are_the_same_on_both_sides() -> None:
    checks = [f"static_assert(sizeof({name}) == {record.itemsize});" for name, record in RECORDS.items()]
    for name, record in RECORDS.items():
        for field in record.names or ():
            kind, offset = record.fields[field][:2]  # type: ignore[index]
            checks.append(f"static_assert(offsetof({name}, {field}) == {offset} && sizeof((({name}*)0)->{field}) == {kind.itemsize});")
    checks += [f"static_assert((u64){name} == {value}ull);" for name, value in CONSTANTS.items()]
    checks += [f"static_assert({prefix}{one.name} == {int(one)});" for prefix, enum in ENUMS.items() for one in enum]
    assert compiles("\n".join(checks)) == ""
    assert "static assertion failed" in compiles("static_assert(sizeof(ProgramOp) == 96);")


def test_every_kernel_is_known_with_its_arguments_and_has_an_entry_in_the_shim() -> None:
    found = signatures()
    assert found["decode_stage"].arguments == ("slab", "arena", "ops", "sources", "first_items", "first_op", "num_ops", "error")
    assert found["decode_stage"].types == ("pointer",) * 5 + ("u32", "u32", "pointer")
    for file in KERNEL_FILES:
        source = (build.FOLDER / file).read_text()
        own = {name for name, one in found.items() if one.file == file}
        assert len(own) == source.count("__global__"), f"{file} has a kernel whose head is not written as the others'"
        assert own == set(re.findall(r"SHIM_KERNEL\((\w+)\)", source))
    assert {path.name for path in build.FOLDER.glob("*.cu")} == set(KERNEL_FILES)
    with pytest.raises(ValueError, match=r"argument 'float x' of a kernel has type float"):
        parse('extern "C" __global__ void bad(float x) {}', "bad.cu")


def test_arguments_arrive_whole(tmp_path: pathlib.Path) -> None:
    """Every type of argument, at its limits, through a launch."""
    types = ", ".join(f"{kind} {kind}_" for kind in ARGUMENT_BYTES if kind != "pointer")
    source = (
        f'#include "{build.FOLDER}/lanes.cuh"\nextern "C" __global__ void __launch_bounds__(32) echo(u64* out, {types}) '
        "{ if (threadIdx.x == 0) { out[0] = u32_; out[1] = u64_; out[2] = (u64)i64_; } }\nSHIM_KERNEL(echo)\n"
    )
    (tmp_path / "echo.cu").write_text(source)
    library, out = ShimLibrary(str(tmp_path / "echo.cu"), tmp_path), np.zeros(3, np.uint64)
    library.launch(parse(source, "echo.cu")["echo"], (1, 1), 32, (out.ctypes.data, 0xFFFF_FFFE, (1 << 64) - 3, -(1 << 63)), 0)
    assert out.tolist() == [0xFFFF_FFFE, (1 << 64) - 3, 1 << 63]


def test_a_grid_that_no_gpu_has_is_refused() -> None:
    runtime = HostRuntime()
    memory, stream = runtime.empty_device(64), runtime.stream("decode")
    with pytest.raises(ValueError, match="grid of 0 x 1 blocks"):
        runtime.launch("scan_tiles", (0, 1), 256, (memory.address, 0, memory.address), stream)
    with pytest.raises(ValueError, match="grid of 1 x 65536 blocks"):
        runtime.launch("scan_tiles", (1, 1 << 16), 256, (memory.address, 0, memory.address), stream)


def test_the_hash_sees_every_header(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in build.FOLDER.iterdir():
        if path.suffix in (".cu", ".cuh", ".h"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr("loader.kernels.signatures.FOLDER", tmp_path)
    seen = {kernel_hash.__wrapped__()}
    for name in ("decode.cu", "lanes.cuh", "ranks.cuh", "stores.cuh", "streams.cuh", "host_shim.h"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        seen.add(kernel_hash.__wrapped__())
    assert len(seen) == 7
