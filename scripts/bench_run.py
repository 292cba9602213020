"""What the benchmarks beside other systems share: an environment with the peers, and measurements in processes of their own that go on after a stop."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import site
import subprocess
import sys
import venv
from collections.abc import Callable, Collection, Sequence
from typing import Any

from rich.console import Console

Key = tuple[Any, ...]
messages = Console(stderr=True, highlight=False)


def environment(folder: pathlib.Path, peers: Sequence[str], *, keep: Sequence[str] = ()) -> pathlib.Path:
    """The Python of an environment that has `peers`, made where it is missing. It sees what this Python has.

    Args:
        folder: Of the environment.
        peers: What to install.
        keep: Packages of this Python that no peer may bring in another version.
    """
    python = folder / "bin" / "python"
    stamp = folder / "installed.json"
    kept = [f"{name}=={importlib.metadata.version(name)}" for name in keep]
    if stamp.exists() and json.loads(stamp.read_text()) == [sys.prefix, *kept, *peers]:
        return python
    messages.print(f"installing {', '.join(peers)} into {folder} (once)")
    venv.EnvBuilder(clear=True, with_pip=False).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "running.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(kept))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check", "--constraint", str(constraints)]
    subprocess.run([*install, *peers], check=True)
    stamp.write_text(json.dumps([sys.prefix, *kept, *peers]))
    return python


def versions(python: pathlib.Path, packages: Sequence[str]) -> dict[str, str]:
    """{package: version} of those that an environment has."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {tuple(packages)} if any(m.Distribution.discover(name=n))}}))"
    if python == pathlib.Path(sys.executable):
        return {name: importlib.metadata.version(name) for name in packages if any(importlib.metadata.Distribution.discover(name=name))}
    found: dict[str, str] = json.loads(subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout)
    return found


class Runner:
    """Runs measurements one after another and keeps what they found, so that a run which was stopped goes on.

    Args:
        command: What runs a job: it reads the job as JSON from its input, and the last line it prints is what it found.
        state: A file to remember findings in; None for no memory.
        meaning: What the findings depend on: commit, arguments. Those of another meaning are forgotten.
        here: Runs a tiny job in this process.
        again: Kinds of job, by the second part of their key, that are run although they are known: they leave files for the others.
    """

    def __init__(
        self,
        command: Sequence[str],
        state: pathlib.Path | None,
        meaning: dict[str, Any],
        *,
        here: Callable[[dict[str, Any]], dict[str, Any]],
        again: Collection[str] = (),
    ) -> None:
        self._command, self._state, self._meaning, self._here, self._again = list(command), state, meaning, here, again
        self.found: dict[Key, dict[str, Any]] = {}
        if state is not None and state.exists():
            known = json.loads(state.read_text())
            if known["meaning"] == meaning:
                self.found = {tuple(key): value for key, value in known["found"]}
            else:
                messages.print(f"{state} is of another commit or command: starting over")

    def __call__(
        self, key: Key, job: dict[str, Any], *, environment: dict[str, str] | None = None, timeout_seconds: float | None = None, may_fail: bool = False
    ) -> dict[str, Any]:
        """What the job finds, from before if it is known. With `may_fail`, {"failed": why} where it fails or takes longer than its time."""
        if key not in self.found or key[1] in self._again:
            self.found[key] = self._measure(key, job, environment or {}, timeout_seconds, may_fail)
            if self._state is not None:
                temporary = self._state.with_name(self._state.name + ".tmp")
                temporary.write_text(json.dumps({"meaning": self._meaning, "found": list(self.found.items())}))
                temporary.replace(self._state)
        return self.found[key]

    def _measure(self, key: Key, job: dict[str, Any], environment: dict[str, str], timeout_seconds: float | None, may_fail: bool) -> dict[str, Any]:
        """In a process of its own. A tiny job runs right here."""
        if job["tiny"]:
            return self._here(job)
        try:
            done = subprocess.run(
                self._command, input=json.dumps(job), capture_output=True, text=True, env=os.environ | environment, check=False, timeout=timeout_seconds
            )
        except subprocess.TimeoutExpired:
            if may_fail:
                return {"failed": f"not done after {timeout_seconds:.0f} s"}
            raise
        if done.returncode == 0:
            result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return result
        if may_fail:
            return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
        sys.exit(f"error: {' '.join(map(str, key))} failed:\n{done.stderr[-3000:]}")
