"""setup.py takes the native library along where a compiler is, and installs without it where none is; the benchmark runs."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of what a build reads."""
    pytest.importorskip("setuptools")
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a source tree")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "loader" / "kernels", tmp_path / "loader" / "kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "loader" / "__init__.py").touch()
    return tmp_path


def build_in(tree: pathlib.Path, cxx: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", "out"]
    return subprocess.run(command, cwd=tree, env={**os.environ, "CXX": cxx}, capture_output=True, text=True, check=True)


def test_build_puts_library_and_sources_into_the_package(tree: pathlib.Path) -> None:
    compiler = tree / "compiler"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$last"\n')
    compiler.chmod(0o755)
    build_in(tree, str(compiler))
    made = tree / "out" / "loader" / "kernels"
    flags = (made / "_native.so").read_text().split()
    assert {"-O3", "-ffp-contract=off"} <= set(flags)
    assert not {"-march=native", "-ffast-math"} & set(flags)
    assert {"decode.cu", "assemble.cu", "lanes.cuh", "host.cpp", "host_shim.h", "verify.h"} <= {path.name for path in made.iterdir()}


def test_build_without_a_compiler_warns_and_goes_on(tree: pathlib.Path) -> None:
    result = build_in(tree, "/bin/false")
    assert "installed without its native library" in result.stderr + result.stdout
    assert (tree / "out" / "loader" / "kernels" / "native.py").exists()
    assert not (tree / "out" / "loader" / "kernels" / "_native.so").exists()


def test_benchmark_prints_a_table_and_writes_its_figures(tmp_path: pathlib.Path, library_path: pathlib.Path) -> None:
    target = tmp_path / "bench.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench_kernels"), "--tiny", "--library", str(library_path), "--json", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "unpack 13 bits to u32" in result.stdout
    report = json.loads(target.read_text())
    assert set(report) == {"hardware", "date", "commit", "command", "figures"}
    assert all(figure["gb_per_second"] > 0 for figure in report["figures"])
