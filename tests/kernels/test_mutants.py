"""Bugs planted in the kernels' GPU branch: each must be caught by the shim's schedules, or the schedules prove nothing."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import pytest

from loader.kernels import build
from loader.kernels.shim import ShimLibrary, cache_folder
from loader.kernels.signatures import KERNEL_FILES

ROOT = pathlib.Path(__file__).parents[2]
MUTANTS = {
    "a barrier before what another lane wrote": ("ranks.cuh", "FN void wait_for_near() { __syncwarp(); }", "FN void wait_for_near() {}"),
    "a barrier before a patch over another lane's item": ("stores.cuh", "#if defined(HEADRACE_GPU)\n    __syncwarp();\n", "#if defined(HEADRACE_GPU)\n"),
    "a scan that adds a lane too few": ("lanes.cuh", "if (lane_id() >= step) x += below;", "if (lane_id() > step) x += below;"),
    "a search that goes one place too far": ("decode.cu", "low += (below - 1) * step;", "low += below * step;"),
    "a row of four that is stored past the end": ("decode.cu", "if (i < num_values) out[i] =", "if (i <= num_values) out[i] ="),
    "a barrier before another warp's sum": ("batch.cu", "warp_sums[warp] = sum;\n    __syncthreads();\n", "warp_sums[warp] = sum;\n"),
    "a barrier before sums are written again": ("batch.cu", "    __syncthreads();\n    return before + sum;", "    return before + sum;"),
    "a barrier before another thread's staged offset": ("batch.cu", "tile_start);\n    __syncthreads();\n", "tile_start);\n"),
    "a row past the tile": ("window.cu", "if (k < tile.live) ((T*)plane.out)", "if (k <= tile.live) ((T*)plane.out)"),
}
DECODE = """
import pathlib, sys
import numpy as np
from loader.decode import cpu
from loader.decode.cuda import CudaExecutor, execute
from loader.kernels.host_runtime import HostRuntime
from loader.kernels.shim import SCHEDULES
from tests.kernels.programs import random_program
for schedule in SCHEDULES:
    executor = CudaExecutor(HostRuntime(schedule=schedule, timing="eager", folder=pathlib.Path(sys.argv[1])))
    for seed in range(6):
        built = random_program(seed, max_count=1500, num_ops=12)
        want, found = built.arena(), built.arena()
        cpu.execute(built.program, built.slab, want)
        execute(executor, built.program, built.slab, found)
        if not np.array_equal(want, found):
            sys.exit("wrong bytes")
"""
LOAD = """
import pathlib, sys
import numpy as np
import loader
from loader.kernels.host_runtime import HostRuntime
from tests.train.device import compare
from tests.train.sample_table import TENSOR_COLUMNS, create
folder = pathlib.Path(sys.argv[1])
table = create(loader.connect(str(folder / "lake")), num_rows=200)
make = lambda device: loader.DataLoader(table.scan(columns=list(TENSOR_COLUMNS)), global_batch_size=100, device=device, window_rows=150)
for schedule in ("forward", "reverse", "greedy shuffled"):
    compare(make, HostRuntime(schedule=schedule, timing="eager", folder=folder))
    # more tiles than a block has threads: its sums are written again
    runtime, sums = HostRuntime(schedule=schedule, timing="eager", folder=folder), np.arange(1, 601, dtype=np.uint64)
    tiles, totals = runtime.empty_device(8 * 600), runtime.empty_device(8)
    tiles.data.view(np.uint64)[:] = sums
    runtime.launch("scan_lists", (1, 1), 256, (tiles.address, 600, totals.address), runtime.stream("assemble"))
    if not np.array_equal(tiles.data.view(np.uint64), np.cumsum(sums) - sums):
        sys.exit("wrong sums")
"""


def seen(folder: pathlib.Path, check: str) -> bool:
    """Whether a check fails with the shims of a folder, in a process of its own: a planted bug may crash it."""
    return subprocess.run([sys.executable, "-c", check, str(folder)], cwd=ROOT, capture_output=True, check=False).returncode != 0


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """All kernels without a planted bug."""
    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("sound")
    for file in KERNEL_FILES:
        ShimLibrary(file)
        shutil.copy(cache_folder() / f"shim_{pathlib.Path(file).stem}.so", folder)
    return folder


def test_what_is_sound_passes(sound: pathlib.Path) -> None:
    assert not seen(sound, DECODE)
    assert not seen(sound, LOAD)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bugs_are_caught(sound: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    file, right, wrong = MUTANTS[mutant]
    sources, shims = tmp_path / "sources", tmp_path / "shims"
    shutil.copytree(build.FOLDER, sources, ignore=shutil.ignore_patterns("*.so", "*.py", "__pycache__"))
    shutil.copytree(sound, shims, ignore=shutil.ignore_patterns("lake"))
    text = (sources / file).read_text()
    assert text.count(right) == 1, f"{file} changed: plant the bug anew"
    (sources / file).write_text(text.replace(right, wrong))
    monkeypatch.setattr(build, "FOLDER", sources)
    kernel_file = file if file.endswith(".cu") else "decode.cu"
    build.compile_shim(shims / f"shim_{pathlib.Path(kernel_file).stem}.so", kernel_file)
    assert seen(shims, DECODE if kernel_file == "decode.cu" else LOAD)
