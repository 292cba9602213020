"""A run's folder: where each file is, and lines of JSON that survive the death of the process that wrote them.

config.yaml      the resolved experiment              ids/               what was trained, see records.py
plan.json        rows, batches, snapshot              checkpoints/       Ray Train's checkpoints, see checkpoint.py
attempts.jsonl   each start of the ranks              result.json        the end of a finished run
metrics.jsonl    loss and waits by step (rank 0)      events.jsonl       kills, checkpoints, evaluations
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loader.errors import StorageFullError


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def ids(self) -> Path:
        return self.path / "ids"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def result(self) -> Path:
        return self.path / "result.json"


def append(path: Path, record: Mapping[str, Any], *, sync: bool = False) -> None:
    """Add one line, in one write, so that ranks may share a file; `time` is added.

    Args:
        path: A .jsonl file.
        record: JSON values.
        sync: Also wait for the disk.

    Raises:
        StorageFullError: The line did not fit; what is there of it is left out by `read`.
    """
    line = (json.dumps({"time": round(time.time(), 3), **record}) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        whole = b"\n" + line if torn else line
        if os.write(descriptor, whole) < len(whole):
            raise StorageFullError(f"no space left to write {path}: free some, and give the same command to go on")
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; the half line of a process that died while writing is left out."""
    return parse(path.read_bytes()) if path.exists() else []


def parse(data: bytes) -> list[dict[str, Any]]:
    """The records of whole lines. A torn line has no end, or is no JSON where a later process went on after it."""
    records = []
    for line in data.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def write_json(path: Path, value: Any) -> None:
    """Replace a file in one step."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
