"""The kernels' GPU branch under AddressSanitizer and UndefinedBehaviorSanitizer: no read or write out of bounds, no undefined shift, on any bytes."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from loader.kernels import build
from loader.kernels.signatures import KERNEL_FILES, kernel_hash

FUZZ = pathlib.Path(__file__).with_name("fuzz_device.py")
FLAGS = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


@pytest.fixture(scope="module")
def sanitized(build_folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, str]]:
    """The folder of the shims, and what a process needs to load them."""
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=False).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("gcc has no libasan")
    folder = build_folder / f"sanitized-{kernel_hash()}"
    for file in KERNEL_FILES:
        target = folder / f"shim_{pathlib.Path(file).stem}.so"
        if not target.exists():
            build.compile_shim(target, file, optimise=FLAGS)
    options = "detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=0"
    return folder, {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"}


def run(sanitized: tuple[pathlib.Path, dict[str, str]], *arguments: str) -> subprocess.CompletedProcess[str]:
    folder, environment = sanitized
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=FUZZ.parents[2], check=False)


@pytest.mark.parametrize("schedule", ["forward", "greedy shuffled"])
def test_programs_sound_and_damaged_are_clean(sanitized: tuple[pathlib.Path, dict[str, str]], schedule: str) -> None:
    count = int(os.environ.get("HEADRACE_FUZZ", "40"))
    result = run(sanitized, str(FUZZ), str(sanitized[0]), schedule, "5000", str(count))
    assert result.returncode == 0, result.stderr[-6000:]
    found = re.fullmatch(rf"(\d+) of {count} refused\n", result.stdout)
    assert found is not None
    assert 0.2 * count < int(found[1]) < 0.75 * count


def test_windows_and_batches_are_clean(sanitized: tuple[pathlib.Path, dict[str, str]]) -> None:
    code = (
        "import pathlib; from tests.kernels import fuzz_device as f; f.poison_guards(); from tests.batch.test_device_batches import check\n"
        "for seed, schedule in enumerate(('forward', 'greedy shuffled')):\n"
        f"    runtime = f.HostRuntime(schedule=schedule, timing='random', seed=seed, folder=pathlib.Path({str(sanitized[0])!r}))\n"
        "    check(runtime, seed, unique=('ids', 'short'), rows=1300 if seed else 40, batches=2)\n"
    )
    result = run(sanitized, "-c", code)
    assert result.returncode == 0, result.stderr[-6000:]


def test_a_read_behind_device_memory_is_seen(sanitized: tuple[pathlib.Path, dict[str, str]]) -> None:
    planted = (
        "import pathlib; from tests.kernels import fuzz_device as f; f.poison_guards()\n"
        f"runtime = f.HostRuntime(timing='eager', folder=pathlib.Path({str(sanitized[0])!r}))\n"
        "sums, totals = runtime.empty_device(8 * 99), runtime.empty_device(8)\n"
        "runtime.launch('scan_lists', (1, 1), 256, (sums.address, 100, totals.address), runtime.stream('assemble'))\n"
    )
    result = run(sanitized, "-c", planted)
    assert "AddressSanitizer: use-after-poison" in result.stderr
    assert "READ of size 8" in result.stderr
