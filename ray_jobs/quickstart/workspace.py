"""The folder of one quickstart: where its streams, lake, runs and results lie, and which stages are done. Owns paths and small JSON files."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

TABLE = "samples"
PIPELINE = "quickstart"
RUN_NAME = "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workspace:
    """Paths under the output folder. A stage's result is written when the stage is done, so a second run goes on after it."""

    output: Path
    small: bool

    @property
    def streams(self) -> Path:
        return self.output / "streams"

    @property
    def lake(self) -> Path:
        return self.output / "lake"

    @property
    def runs(self) -> Path:
        return self.output / "runs"

    @property
    def run(self) -> Path:
        return self.runs / RUN_NAME

    @property
    def report(self) -> Path:
        return self.output / "report.html"

    @property
    def ingest_log(self) -> Path:
        return self.output / "results" / "ingest.jsonl"

    def result(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage left, or None."""
        path = self.result_file(stage)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def save(self, stage: str, result: dict[str, Any]) -> dict[str, Any]:
        path = self.result_file(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(json.dumps(result, indent=1), encoding="utf-8")
        part.replace(path)
        return result

    def clear(self) -> None:
        """Remove what a quickstart makes, and nothing else that may lie in the folder."""
        for folder in (self.streams, self.streams.with_name("streams.part"), self.lake, self.runs, self.output / "results", self.output / "parquet"):
            shutil.rmtree(folder, ignore_errors=True)
        self.report.unlink(missing_ok=True)

    def result_file(self, stage: str) -> Path:
        return self.output / "results" / f"{stage}.json"
