"""What a figure was measured on: the processor, how much of it, the day and the commit."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_RESULTS = ("--", ".", ":(exclude)scripts/results")


def describe() -> dict[str, str | int]:
    """hardware, cpus (that this process may use), date, commit (with a + where files other than results differ from it) and python; for a benchmark's JSON."""
    return {
        "hardware": f"{_processor()}, {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)),
        "date": datetime.date.today().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "--untracked-files=no", *NOT_RESULTS) else ""),
        "python": platform.python_version(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _git(*arguments: str) -> str:
    """Output of a git command in the project's folder; empty where there is no git, or no repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    except OSError:
        return ""
