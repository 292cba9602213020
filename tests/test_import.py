"""`import loader` is quick and light, and gives exactly the names it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "ray", "cupy", "pandas", "sqlglot", "typer")
ROOT = Path(__file__).parents[1]


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60, env=environment).stdout


def test_importing_takes_under_300_milliseconds() -> None:
    """Processor time of the import, best of a few, so that a busy machine does not decide."""
    code = "import time; start = time.process_time(); import loader; print(time.process_time() - start)"
    assert min(float(run_python(code)) for _ in range(5)) < 0.3


def test_importing_loads_no_heavy_package() -> None:
    loaded = run_python(f"import loader, sys; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_public_names_are_sorted_and_all_there() -> None:
    import loader

    assert list(loader.__all__) == sorted(loader.__all__)
    for name in loader.__all__:
        assert getattr(loader, name) is not None
    assert set(loader.__all__) <= set(dir(loader))


def test_the_promised_names_are_public() -> None:
    import loader

    assert {"connect", "Attribution", "DataLoader", "Schema", "SegmentReader", "write_segment"} <= set(loader.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import loader

    with pytest.raises(AttributeError, match="conect"):
        _ = loader.conect


def test_every_folder_of_python_files_is_a_package() -> None:
    for package in ("loader", "ray_jobs"):
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), f"{folder} is left out of the distribution without an __init__.py"
