"""The quickstart's driver: one stage after the other, each skipped when it is done, then the table and the report.

Owns arguments, order and messages. Ctrl-C anywhere leaves a folder in which the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import loader.config
from loader.errors import ConfigError, HeadraceError
from ray_jobs.quickstart import report, stages, training
from ray_jobs.quickstart.dataset import Manifest
from ray_jobs.quickstart.stages import Advance
from ray_jobs.quickstart.workspace import Workspace

log = logging.getLogger("headrace.quickstart")
ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path("configs") / "quickstart.yaml"
# A tenth of the rows: smaller batches keep the number of steps, and the table of products (sparse feature 0) is cut to those that are sold.
SMALL_CHANGES = ("loader.global_batch_size=512", "data.sparse.0.num_embeddings=25744", "train.checkpoint_every_steps=50")
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when everything held, 1 for an error it can name or a check that failed, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    console = Console()
    handler = RichHandler(console=console, show_path=False, omit_repeated_times=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", datefmt="%H:%M:%S", handlers=[handler])
    workspace = Workspace(output=options.output or Path("runs") / ("quickstart-small" if options.small else "quickstart"), small=options.small)
    try:
        return Driver(workspace, console).run(fresh=options.fresh)
    except HeadraceError as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.warning("stopped; the lake is as its last commit left it, and the same command goes on from here")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace quickstart", description="Real shopping baskets, from two event streams to a trained, killed, resumed, audited and compared model."
    )
    parser.add_argument("--small", action="store_true", help="a tenth of the households: ends within 90 seconds")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on where an earlier run stopped")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where the lake, the run and the report go (default: runs/quickstart or runs/quickstart-small)"
    )
    return parser


class Driver:
    """Runs the stages that are left."""

    def __init__(self, workspace: Workspace, console: Console) -> None:
        self.workspace, self.console = workspace, console
        self.config_file = ROOT / CONFIG
        if not self.config_file.exists():
            raise ConfigError(f"{self.config_file} is not there: run the quickstart from a clone of the repository")
        self.changes = training.overrides(workspace, small=SMALL_CHANGES)
        self.config = loader.config.load(self.config_file, self.changes)

    def run(self, *, fresh: bool) -> int:
        began = time.monotonic()
        if fresh:
            self.workspace.clear()
        with self._said("prepare", "making features and two event streams of the transactions") as advance:
            manifest = stages.prepare(self.workspace, advance)
        stages.check_split(self.config, manifest)
        self._stage("ingest", "replaying samples and labels into the lake", lambda advance: stages.ingest(self.workspace, manifest, advance))
        self._stage("compact", "compacting: rows by household and time, labels folded in", lambda advance: stages.compact(self.workspace, advance))
        self._stage("parquet", "weighing the same rows as Parquet", lambda advance: stages.weigh_parquet(self.workspace, manifest, advance))
        self._stage("loader", "timing the loader alone", lambda advance: stages.measure_loader(self.workspace, self.config, advance))
        self._train(manifest)
        self._stage("audit", "accounting for every trained sample by its id", lambda advance: training.account(self.workspace.run))
        self._stage("baselines", "fitting the baselines on the same rows", lambda advance: stages.compare(self.workspace, self.config, advance))
        return self._finish(manifest, time.monotonic() - began)

    def _train(self, manifest: Manifest) -> None:
        if self.workspace.result("train") is not None:
            return
        step = training.kill_step(manifest.train_rows, self.config)
        command = training.command(self.config_file, self.changes, step)
        log.info("training; rank %d will be killed after step %d on purpose:\n  %s", self.config.train.kill_rank, step, shlex.join(["python", *command[1:]]))
        began = time.monotonic()
        result = training.train(command, self.workspace.run, folder=ROOT)
        self.workspace.save("train", {**result, "stage_seconds": time.monotonic() - began})

    def _stage(self, name: str, text: str, work: Callable[[Advance], dict[str, Any]]) -> None:
        if self.workspace.result(name) is not None:
            return
        began = time.monotonic()
        with self._said(name, text) as advance:
            result = work(advance)
        self.workspace.save(name, {**result, "stage_seconds": time.monotonic() - began})

    @contextlib.contextmanager
    def _said(self, name: str, text: str) -> Iterator[Advance]:
        """A progress bar while the stage runs, and a line with its time after it."""
        began = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(text, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        log.info("%s: %s (%.1f s)", name, text, time.monotonic() - began)

    def _finish(self, manifest: Manifest, seconds: float) -> int:
        results = report.collect(self.workspace, manifest)
        report.write_html(results, self.workspace.report)
        self.workspace.result_file("summary").write_text(report.to_json(results), encoding="utf-8")
        self.console.print(report.table(results))
        log.info("done in %.0f s; report: %s", seconds, self.workspace.report)
        if not results.audit["exact"]:
            log.error("the trained samples are NOT exactly the planned ones: see python -m ray_jobs.audit %s", self.workspace.run)
            return 1
        return 0
