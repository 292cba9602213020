"""No bytes and no op table make the native executor crash, write where it must not, or read out of bounds."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from loader.kernels import build

FUZZ = pathlib.Path(__file__).with_name("fuzz.py")
FUZZ_ROWS = FUZZ.with_name("fuzz_rows.py")


def run_fuzz(library: pathlib.Path, first: int, count: int, script: pathlib.Path = FUZZ, **environment: str) -> int:
    """Number of damaged programs that were refused; fails with the child's words if it dies."""
    arguments = [str(library)] if script == FUZZ else []
    command = [sys.executable, str(script), *arguments, str(first), str(count)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HEADRACE_NATIVE": str(library), **environment}, check=False)
    assert result.returncode == 0, result.stderr[-6000:]
    found = re.fullmatch(r"(\d+) of \d+ refused\n", result.stdout)
    assert found is not None, result.stdout
    return int(found[1])


def test_damaged_programs_never_crash(library_path: pathlib.Path) -> None:
    count = int(os.environ.get("HEADRACE_FUZZ", "1500"))
    refused = run_fuzz(library_path, 0, count)
    assert 0.2 * count < refused < 0.95 * count


def test_rows_of_damaged_programs_never_crash(library_path: pathlib.Path) -> None:
    count = int(os.environ.get("HEADRACE_FUZZ", "1500"))
    assert 0.2 * count < run_fuzz(library_path, 0, count, FUZZ_ROWS) < 0.95 * count


@pytest.fixture
def sanitized(build_folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, str]]:
    """A library with AddressSanitizer and UBSan, and the environment that it needs."""
    runtime = build.sanitizer_runtime()
    if runtime is None:
        pytest.skip("gcc has no libasan")
    target = build_folder / "sanitized.so"
    if not target.exists():
        build.compile_library(target, optimise=build.SANITIZE)
    return target, {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


@pytest.mark.timeout(900)  # both instruction sets are compiled with sanitizers, which takes minutes where others work too
def test_damaged_programs_are_clean_under_address_and_undefined_behaviour_sanitizers(sanitized: tuple[pathlib.Path, dict[str, str]]) -> None:
    target, options = sanitized
    overrun = (
        "import numpy as np; from loader.kernels import native; data = np.zeros(4096, np.uint8); "
        f"native.NativeLibrary({str(target)!r})._library.headrace_crc32c(data.ctypes.data, 4097, 0)"
    )
    planted = subprocess.run([sys.executable, "-c", overrun], capture_output=True, text=True, env={**os.environ, **options}, cwd=FUZZ.parents[2], check=False)
    assert "heap-buffer-overflow" in planted.stderr, "the sanitizer does not see one byte past an array"
    assert run_fuzz(target, 10_000, int(os.environ.get("HEADRACE_FUZZ", "300")), **options) > 50
    assert run_fuzz(target, 10_000, int(os.environ.get("HEADRACE_FUZZ", "300")), FUZZ_ROWS, **options) > 50


def test_encoding_tables_is_clean_under_address_and_undefined_behaviour_sanitizers(sanitized: tuple[pathlib.Path, dict[str, str]]) -> None:
    target, options = sanitized
    count = int(os.environ.get("HEADRACE_FUZZ", "30"))
    script = [sys.executable, str(FUZZ.with_name("encode_tables.py")), str(target), "0", str(count)]
    # Arrow's arrays from malloc, so that the sanitizer sees where they end
    environment = {**os.environ, **options, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    result = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-6000:]
    assert result.stdout == f"{count} read back\n"
