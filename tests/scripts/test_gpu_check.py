"""scripts/gpu_check in its tiny form on the host runtime, with nothing installed but what a GPU machine has; without a GPU it says that it did not run."""

from __future__ import annotations

import ast
import configparser
import importlib.machinery
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import types
from typing import Any

import pytest

pytest.importorskip("torch")
from loader.kernels.host_runtime import HostRuntime

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check"
ALLOWED = {"numpy", "pyarrow", "torch", "cupy-cuda12x", "cupy-cuda13x"}
MODULES = {"google-crc32c": "google_crc32c", "pyyaml": "yaml", "nvidia-dali-cuda120": "nvidia", "scikit-learn": "sklearn"}
BLOCKER = """
import importlib.abc, runpy, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}: it is not on the machine", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = ARGUMENTS
runpy.run_path(ARGUMENTS[0], run_name="__main__")
"""


def dependencies() -> set[str]:
    """Modules of everything that setup.cfg names, but for what gpu_check may use."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    names = {re.split(r"[\[>=<;!]", line)[0].strip().lower() for text in lines for line in text.splitlines() if line.strip()}
    return {MODULES.get(name, name.replace("-", "_")) for name in names - ALLOWED}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = BLOCKER.replace("BLOCKED", repr(dependencies() | {"pandas", "psutil"})).replace("ARGUMENTS", repr([str(SCRIPT), *arguments]))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=170)


def test_the_correctness_stages_pass_with_four_packages(tmp_path: pathlib.Path) -> None:
    assert {"ray", "sqlalchemy", "obstore", "sqlglot", "pydantic", "google_crc32c", "rich"} <= dependencies()
    target = tmp_path / "gpu_check.json"
    done = run("--runtime", "host", "--tiny", "--json", str(target))
    if "no C++ compiler" in done.stderr:
        pytest.skip("no C++ compiler")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(target.read_text())
    assert {"hardware", "driver", "commit", "passed", "failed", "figures"} <= set(report)
    assert report["failed"] == 0 and report["passed"] > 100
    assert report["runtime"] == "host" and "not run on a GPU" in report["status"] and "not run on a GPU" in done.stdout
    for stage in ("benchmark", "shapes", "steady"):
        assert report["stages"][stage]["not_run"] == ["needs a GPU"] and not report["stages"][stage]["figures"]
    assert "gb_per_second" not in target.read_text()


def test_without_a_gpu_it_says_that_nothing_ran(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    target = tmp_path / "gpu_check.json"
    done = run("--tiny", "--json", str(target))
    assert done.returncode == 3 and "not run on a GPU" in done.stderr and "Traceback" not in done.stderr
    report = json.loads(target.read_text())
    assert report["status"] == "not run on a GPU" and report["passed"] == report["failed"] == 0 and report["figures"] == {}


def test_a_wrong_byte_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself: a kernel that forgets its last launch must not pass."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_check_equality

    class Forgetful(HostRuntime):
        def launch(self, kernel: str, *arguments: Any) -> None:
            if kernel != "list_values":
                super().launch(kernel, *arguments)

    bench = gpu_check_equality.Bench(open_runtime=lambda case: Forgetful(seed=case), on_gpu=False, tiny=True, seconds=20.0, seed=17)
    tally = gpu_check_equality.batches(bench)
    assert tally.failed and "differ" in tally.problems[0]


def test_the_benchmark_runs_where_nobody_keeps_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_check_bench
    import gpu_check_equality

    bench = gpu_check_equality.Bench(open_runtime=lambda case: HostRuntime(timing="eager", seed=case), on_gpu=False, tiny=True, seconds=20.0, seed=17)
    figures = gpu_check_bench.measure(bench, gpu_check_bench.TINY).figures
    assert set(figures["reached"]) == {"decode_share_of_copy", "fixed_width_share_of_copy", "pinned_share_of_bus"}
    assert figures["decode"]["launches"] <= 6
    steady = gpu_check_bench.measure_steady(bench, gpu_check_bench.TINY)
    assert steady.failed == 0 and steady.figures["batches"] >= gpu_check_bench.TINY.batches


def _script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", list(sys.path))
    loader = importlib.machinery.SourceFileLoader("gpu_check", str(SCRIPT))
    spec = importlib.util.spec_from_loader("gpu_check", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_sanitizer_stage_keeps_its_time_and_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_check = _script(monkeypatch)
    assert max(2 * gpu_check.SECONDS["decode"], *gpu_check.SECONDS.values()) < 480, "a stage takes less than eight minutes"
    asked: list[tuple[list[str], float]] = []

    def run_tool(command: list[str], *, timeout: float, **_: Any) -> Any:
        asked.append((command, timeout))
        if "racecheck" in command:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 9 if "synccheck" in command else 0, "", "a barrier that diverges")

    monkeypatch.setattr(gpu_check.shutil, "which", lambda tool: "/usr/bin/compute-sanitizer")
    monkeypatch.setattr(gpu_check.subprocess, "run", run_tool)
    runtime = types.SimpleNamespace(device="cuda:3")
    tally = gpu_check.sanitizer(gpu_check.Bench(open_runtime=lambda case: runtime, on_gpu=True, tiny=False, seconds=440.0, seed=17))
    assert (tally.passed, tally.failed) == (1, 1) and "a barrier that diverges" in tally.problems[0]
    assert len(tally.not_run) == 1 and "racecheck did not end" in tally.not_run[0]
    assert all(timeout <= 440 and command[command.index("--device") + 1] == "3" for command, timeout in asked)


def test_results_do_not_make_the_commit_they_were_measured_on_another_one(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Stages that are run one after another into a committed file keep what earlier ones found."""
    from ray_jobs import machine

    monkeypatch.setattr(machine, "ROOT", tmp_path)
    results, code = tmp_path / "scripts" / "results" / "gpu_check.json", tmp_path / "code.py"
    results.parent.mkdir(parents=True)
    for path in (results, code):
        path.write_text("0")
    for arguments in (("init",), ("add", "."), ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "0")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)
    before = str(machine.describe()["commit"])
    results.write_text("1")
    assert machine.describe()["commit"] == before and not before.endswith("+")
    code.write_text("1")
    assert machine.describe()["commit"] == before + "+"


def test_python_3_10_reads_what_it_imports() -> None:
    for path in [SCRIPT, *(ROOT / "scripts").glob("gpu_check_*.py"), *(ROOT / "loader").rglob("*.py")]:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))
