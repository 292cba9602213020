"""Bugs planted in the kernels' GPU branch: each must be caught by the shim's schedules, or the schedules prove nothing."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import pytest

from loader.kernels import build

ROOT = pathlib.Path(__file__).parents[2]
MUTANTS = {
    "a barrier before what another lane wrote": ("ranks.cuh", "FN void wait_for_near() { __syncwarp(); }", "FN void wait_for_near() {}"),
    "a barrier before a patch over another lane's item": ("stores.cuh", "#if defined(HEADRACE_GPU)\n    __syncwarp();\n", "#if defined(HEADRACE_GPU)\n"),
    "a scan that adds a lane too few": ("lanes.cuh", "if (lane_id() >= step) x += below;", "if (lane_id() > step) x += below;"),
    "a search that goes one place too far": ("decode.cu", "low += (below - 1) * step;", "low += below * step;"),
    "a row of four that is stored past the end": ("decode.cu", "if (i < num_values) out[i] =", "if (i <= num_values) out[i] ="),
}
CHECK = """
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


def check(folder: pathlib.Path) -> int:
    """Runs programs by the shim in a folder, in a process of its own: a planted bug may crash it. 0 if nothing was seen."""
    return subprocess.run([sys.executable, "-c", CHECK, str(folder)], cwd=ROOT, capture_output=True, check=False).returncode


@pytest.mark.parametrize("mutant", ["none", *MUTANTS])
def test_planted_bugs_are_caught(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    sources = tmp_path / "sources"
    shutil.copytree(build.FOLDER, sources, ignore=shutil.ignore_patterns("*.so", "*.py", "__pycache__"))
    if mutant != "none":
        file, right, wrong = MUTANTS[mutant]
        text = (sources / file).read_text()
        assert text.count(right) == 1, f"{file} changed: plant the bug anew"
        (sources / file).write_text(text.replace(right, wrong))
    monkeypatch.setattr(build, "FOLDER", sources)
    build.compile_shim(tmp_path / "shim_decode.so", "decode.cu")
    assert (check(tmp_path) != 0) == (mutant != "none")
