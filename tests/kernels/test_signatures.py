"""Host and kernels agree: on every kernel's arguments, on the records that both read, and on the constants that both use."""

from __future__ import annotations

import pathlib
import re
import subprocess
from typing import Any

import numpy as np
import pytest

from loader.batch import device_tables as tables
from loader.decode import cuda
from loader.decode.program import PROGRAM_OP, PROGRAM_SOURCE
from loader.kernels import build
from loader.kernels.host_runtime import HostRuntime
from loader.kernels.shim import ShimLibrary
from loader.kernels.signatures import ARGUMENT_BYTES, KERNEL_FILES, kernel_hash, parse, signatures
from loader.segment.layout import MAX_CLASSES, PADDING_BYTES, VECTOR, VECTOR_META, OpKind, OutKind, Scan, SourceKind

RECORDS = {
    "lanes.cuh": {"VectorMeta": VECTOR_META, "ProgramOp": PROGRAM_OP, "ProgramSource": PROGRAM_SOURCE},
    "window.cu": {"WindowPlane": tables.WINDOW_PLANE, "PieceItems": tables.PIECE_ITEMS, "LabelFill": tables.LABEL_FILL, "Patch": tables.PATCH},
    "batch.cu": {
        "BatchPart": tables.BATCH_PART, "BatchPlane": tables.BATCH_PLANE, "PoolPiece": tables.POOL_PIECE, "ListColumn": tables.LIST_COLUMN,
        "ListOut": tables.LIST_OUT,
    },
}  # fmt: skip
CONSTANTS = {
    "VECTOR": VECTOR, "PADDING_BYTES": PADDING_BYTES, "MAX_CLASSES": MAX_CLASSES, "WARPS_PER_BLOCK": cuda.WARPS_PER_BLOCK, "THREADS_PER_BLOCK": cuda.THREADS,
    "KNOWN_FEATURES": int(cuda.KNOWN_FEATURES),
}  # fmt: skip
ENUMS: dict[str, Any] = {"OP_": OpKind, "SOURCE_": SourceKind, "SCAN_": Scan, "OUT_": OutKind}


def compiles(code: str, file: str = "lanes.cuh") -> str:
    """What the compiler says of a file that includes a kernel file's records; empty if nothing."""
    compiler = build.compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    source = f'#include "{file}"\n#include <cstddef>\n' + code
    command = [*compiler, "-std=c++17", "-fsyntax-only", "-DHEADRACE_SHIM", "-I", str(build.FOLDER), "-x", "c++", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("file", RECORDS)
def test_records_are_the_same_on_both_sides(file: str) -> None:
    checks = [f"static_assert(sizeof({name}) == {record.itemsize});" for name, record in RECORDS[file].items()]
    for name, record in RECORDS[file].items():
        for field in record.names or ():
            kind, offset = record.fields[field][:2]  # type: ignore[index]
            checks.append(f"static_assert(offsetof({name}, {field}) == {offset} && sizeof((({name}*)0)->{field}) == {kind.itemsize});")
    assert compiles("\n".join(checks), file) == ""


def test_constants_are_the_same_on_both_sides() -> None:
    checks = [f"static_assert((u64){name} == {value}ull);" for name, value in CONSTANTS.items()]
    checks += [f"static_assert({prefix}{one.name} == {int(one)});" for prefix, enum in ENUMS.items() for one in enum]
    assert compiles("\n".join(checks)) == ""
    assert "static assertion failed" in compiles("static_assert(sizeof(ProgramOp) == 96);")
    sizes = {"TILE_ROWS": tables.TILE_ROWS, "TILE_VALUES": tables.TILE_VALUES, "PLANES_PER_BLOCK": tables.PLANES_PER_BLOCK, "ENTRY_BITS": tables.ENTRY_BITS}
    assert compiles("\n".join(f"static_assert({name} == {value});" for name, value in sizes.items()), "batch.cu") == ""
    kinds = {"ITEMS": tables.ITEMS, "ZEROS": tables.ZEROS, "ONES": tables.ONES, "INVERTED": tables.INVERTED}
    assert compiles("\n".join(f"static_assert(PIECE_{name} == {value});" for name, value in kinds.items()), "window.cu") == ""


def test_every_kernel_is_known_with_its_arguments_and_has_an_entry_in_the_shim() -> None:
    found = signatures()
    assert found["decode_stage"].arguments == ("slab", "arena", "ops", "sources", "first_items", "first_op", "num_ops", "error")
    assert found["decode_stage"].types == ("pointer",) * 5 + ("u32", "u32", "pointer")
    for file in KERNEL_FILES:
        source = (build.FOLDER / file).read_text()
        own = {name for name, one in found.items() if one.file == file}
        assert len(own) == source.count("__global__"), f"{file} has a kernel whose head is not written as the others'"
        assert own == set(re.findall(r"SHIM_KERNEL\((\w+)\)", source))
    assert {path.name for path in build.FOLDER.glob("*.cu")} == {*KERNEL_FILES, "assemble.cu"}, "assemble.cu is the CPU's alone"
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
        runtime.launch("scan_lists", (0, 1), 256, (memory.address, 0, memory.address), stream)
    with pytest.raises(ValueError, match="grid of 1 x 65536 blocks"):
        runtime.launch("scan_lists", (1, 1 << 16), 256, (memory.address, 0, memory.address), stream)


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
