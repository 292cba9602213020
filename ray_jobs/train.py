"""Train a ranking model: `python -m ray_jobs.train --config configs/quickstart.yaml train.ranks=2 …`, alone or under `ray job submit`.

Resolves the experiment, pins the snapshot, writes down the plan, and lets Ray Train run the ranks (`ray_jobs.training.worker`). A run of the same
name goes on from its newest checkpoint; Ctrl-C and SIGTERM (`ray job stop`) end the cluster cleanly and leave a run that can go on.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.logging import RichHandler

import loader.config
from loader.config import ExperimentConfig
from loader.errors import CatalogBusyError, ConfigError, HeadraceError
from loader.extras import require
from loader.scan import order
from loader.train.renewal import Renewal
from ray_jobs.training import cluster, data, journal
from ray_jobs.training.journal import RunFolder
from ray_jobs.training.watch import Watcher

logger = logging.getLogger("headrace.train")

_LOOK_SECONDS = 0.5
_PIN_SECONDS = 24 * 3600
_INTERRUPTED = 130
WORKING_DIRECTORIES = "working_dir_files"  # the folder in which Ray unpacks those of submitted jobs


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when the run finished, 1 for an error it can name, 130 after Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.train", description="Train a ranking model on a Headrace table with Ray Train.")
    parser.add_argument("--config", required=True, help="experiment file, such as configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the experiment, such as train.epochs=2")
    options = parser.parse_args(arguments)
    _log_to_standard_error()
    try:
        with _stopped_by_sigterm():
            train(loader.config.load(options.config, options.overrides))
    except HeadraceError as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.warning("interrupted; the same command goes on from the newest checkpoint")
        return _INTERRUPTED
    return 0


def _log_to_standard_error() -> None:
    """Lines with the time, coloured and fitted where there is a terminal, plain in a job's log."""
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(console=Console(stderr=True), show_path=False, omit_repeated_times=False)
        logging.basicConfig(level=logging.INFO, format="%(message)s", datefmt="%H:%M:%S", handlers=[handler])
    else:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM is a Ctrl-C: it is what `ray job stop` and schedulers send."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _ray_speaks_to(path: Path) -> Iterator[None]:
    """Ray prints the deaths of processes to standard output, where they would drown what the job says (on standard error)."""
    with open(path, "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        yield


def train(config: ExperimentConfig) -> dict[str, Any]:
    """Run an experiment to its end and return what result.json holds.

    Raises:
        ConfigError: A finished or different run has this name.
        HeadraceError: Whatever stopped the ranks.
    """
    require("ray", extra="ray")
    config, plan = prepare(config)
    run = RunFolder(Path(config.run.path))
    logger.info("%s: %s", config.run.name, _describe(config, plan))
    watcher = Watcher(run, batches_per_epoch=None if config.data.follow is not None else plan["batches_per_epoch"], epochs=config.train.epochs)
    threading.Thread(target=_import_trainer, name="headrace-import", daemon=True).start()
    actors = config.train.decode_actors if config.loader.decode == "actor" else 1
    room = 2 * config.train.ranks * actors * config.loader.prefetch_bytes
    with (
        _ray_speaks_to(run.path / "ray.log"),
        cluster.connect(ranks=config.train.ranks, object_store_bytes=room),
        _stopped_by_sigterm(),  # once more: Ray sets a handler of its own when it starts
        data.open_lake(config) as lake,
        _pinned(config, lake) as renew,
    ):
        _fit(config, run, watcher, renew)
    result: dict[str, Any] = json.loads(run.result.read_text(encoding="utf-8"))
    logger.info("%s", _describe_result(result))
    return result


@contextlib.contextmanager
def _pinned(config: ExperimentConfig, lake: Any) -> Iterator[Callable[[], None]]:
    """Hold the run's snapshots: what is given renews the pins, a finished run lets them go, and one that was stopped has a day to go on."""
    pins = [lake.pin(table, snapshot, f"run:{config.run.name}", ttl_seconds=_PIN_SECONDS) for table, snapshot in data.snapshots(config)]

    def renew() -> None:
        for pin in pins if config.data.follow is None else ():  # a stream holds what it needs, and moves forward
            lake.renew(pin, _PIN_SECONDS)

    yield Renewal(renew)
    with contextlib.suppress(CatalogBusyError):
        for pin in pins:
            lake.unpin(pin)


def _as_begun(config: ExperimentConfig, before: ExperimentConfig, lake: Any) -> ExperimentConfig:
    """The experiment at the snapshots that its run began with, where it names none, and at numbers where it names tags."""

    def found(table: str, wanted: int | str | None, begun: int | str | None) -> int | str | None:
        return begun if wanted is None else lake.table(table).view(wanted).snapshot_id

    begun = [snapshot for _, snapshot in data.snapshots(before)]
    if len(begun) != 1 + len(config.data.mix):
        return config
    first, *others = [found(table, wanted, then) for (table, wanted), then in zip(data.snapshots(config), begun, strict=True)]
    sources = tuple(source.model_copy(update={"snapshot": snapshot}) for source, snapshot in zip(config.data.mix, others, strict=True))
    return _change(config, lake={"snapshot": first}, data={"mix": sources})


def prepare(config: ExperimentConfig) -> tuple[ExperimentConfig, dict[str, Any]]:
    """Resolve paths and the snapshot, and write config.yaml and plan.json; a run that exists must be the same, and is continued.

    Raises:
        ConfigError: A finished or different run has this name, or the loader would refuse a value: before ranks start, and before a run folder is made.
    """
    if config.loader.output != "dict":
        raise ConfigError(f"loader.output = {config.loader.output}: the model reads tensors; set loader.output=dict")
    folder, location = _absolute("run.folder", config.run.folder), config.lake.location
    location = location if "://" in location else str(_absolute("lake.location", location))
    config = _change(config, run={"folder": str(folder)}, lake={"location": location})
    run = RunFolder(Path(config.run.path))
    if run.result.exists():
        raise ConfigError(f"{run.path}: this run is finished: give another run.name, or remove the folder")
    with data.open_lake(config) as lake:
        if run.config.exists():
            before = loader.config.load(run.config)
            config = _as_begun(config, before, lake)
            if config != before:
                raise ConfigError(f"{run.path}: a run of this name began with another experiment: give another run.name, or remove the folder")
            return config, json.loads(run.plan.read_text(encoding="utf-8"))
        with _wrong_values_named():
            data.loader_options(config, rank=0, world_size=config.train.ranks)
            plan = data.make_scan(config, lake).plan()
            plan.release()  # the run has a pin of its own
            config = data.pinned_at(config, plan)
            _check_test_rows(config, lake)
        run.path.mkdir(parents=True, exist_ok=True)
        if config.train.record_ids:
            run.ids.mkdir(exist_ok=True)
            np.save(run.ids / "planned.npy", data.planned_positions(plan))
    described = _plan_numbers(config, plan.num_rows)
    journal.write_json(run.plan, described)
    config.dump(run.config)
    return config, described


@contextlib.contextmanager
def _wrong_values_named() -> Iterator[None]:
    """What the loader refuses as an argument is a value of the experiment here."""
    try:
        yield
    except HeadraceError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _absolute(name: str, path: str) -> Path:
    """A folder of the experiment, wherever the job runs. The working directory of a submitted job is a copy that Ray makes on a host, and deletes."""
    if not Path(path).is_absolute() and WORKING_DIRECTORIES in Path.cwd().parts:
        raise ConfigError(f"{name} = {path}: this job runs in a copy of its working directory, which Ray deletes: give an absolute path that all hosts share")
    return Path(path).absolute()


def _check_test_rows(config: ExperimentConfig, lake: Any) -> None:
    """Count the rows that measure the model before it is trained; ranks find the count in the catalog."""
    if not data.is_tested(config):
        return
    plan = data.make_scan(config, lake, test=True).plan()
    plan.release()
    if not plan.num_rows:
        raise ConfigError("data.test_where and data.test_closed_before select no row to measure the model on: change them, or leave both out")


def _plan_numbers(config: ExperimentConfig, num_rows: int) -> dict[str, Any]:
    size = config.loader.global_batch_size
    batches = order.num_batches(num_rows, 0, size, config.loader.remainder)
    if not batches and config.data.follow is None:
        raise ConfigError(f"the plan has {num_rows:,} rows, fewer than loader.global_batch_size = {size:,}, and loader.remainder = drop would train on none")
    return {
        "table": config.lake.table,
        "snapshot": config.lake.snapshot,
        **({"mix": [[table, snapshot] for table, snapshot in data.snapshots(config)]} if config.data.mix else {}),
        **({"follow": True} if config.data.follow is not None else {}),
        "rows": num_rows,
        "rows_per_epoch": min(batches * size, num_rows),
        "batches_per_epoch": batches,
        "ranks": config.train.ranks,
        "epochs": config.train.epochs,
        "seeds": list(config.train.seeds),
    }


def _fit(config: ExperimentConfig, run: RunFolder, watcher: Watcher, renew: Callable[[], None]) -> None:
    """Run the ranks while this thread says how they do and holds the snapshot; Ctrl-C reaches this thread, not Ray's."""
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            _make_trainer(config, run).fit()
        except BaseException as error:  # noqa: BLE001 (carried to the other thread)
            failure.append(error)

    thread = threading.Thread(target=fit, name="headrace-fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_SECONDS)
        watcher.look()
        renew()
    watcher.look()
    if failure:
        raise _cause(failure[0], run.path / "error.log") from None


def _import_trainer() -> None:
    """Importing torch takes as long as starting Ray; they need not wait for each other."""
    with contextlib.suppress(ImportError):
        importlib.import_module("ray_jobs.training.worker")


def _make_trainer(config: ExperimentConfig, run: RunFolder) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from ray_jobs.training.worker import train_worker

    on_gpu = _use_gpu(config)
    resources = {"GPU": 1.0, "CPU": 1.0} if on_gpu else {"CPU": 1.0}
    return TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "run": str(run.path)},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=config.train.ranks, use_gpu=on_gpu, resources_per_worker=resources),
        run_config=ray.train.RunConfig(
            name=run.checkpoints.name,
            storage_path=str(run.path),
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def _use_gpu(config: ExperimentConfig) -> bool:
    import ray

    available = ray.cluster_resources().get("GPU", 0)
    if config.train.device == "cuda" and available < config.train.ranks:
        raise ConfigError(f"train.device = cuda needs {config.train.ranks} GPUs and the cluster has {available:g}: lower train.ranks, or set train.device=cpu")
    return config.train.device != "cpu" and available >= config.train.ranks


def _cause(error: BaseException, log: Path) -> BaseException:
    """What stopped the run, for one line: the error of the rank as it was raised there, where it is one of ours, else its kind and message.

    Args:
        error: As `fit` raised it.
        log: Where all traces go.
    """
    ray_error = require("ray.exceptions", extra="ray").RayError
    log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    chains = {rank: list(_chain(failure)) for rank, failure in [*failures.items(), (-1, error)]}
    for candidate in (link for chain in chains.values() for link in chain):
        if isinstance(candidate, HeadraceError):
            return candidate
    for rank, failure in failures.items():
        own = next((link for link in chains[rank] if not isinstance(link, ray_error)), failure)
        text = str(own).strip().splitlines() or [""]
        return HeadraceError(f"rank {rank} stopped the run: {type(own).__name__}: {text[0]} (the traces of all ranks: {log})")
    if isinstance(error, ray_error):
        return HeadraceError(f"Ray lost the run: {str(error).splitlines()[0]} The same command goes on from the newest checkpoint (trace: {log})")
    return error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those it was raised from, those that Ray carries included."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        cause = getattr(seen, "cause", None)
        if isinstance(cause, BaseException):
            yield cause
        seen = seen.__cause__


def _change(config: ExperimentConfig, **sections: dict[str, Any]) -> ExperimentConfig:
    return config.model_copy(update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()})


def _describe(config: ExperimentConfig, plan: dict[str, Any]) -> str:
    train_config = config.train
    stream = "blocks by Ray Data actors" if train_config.stream == "ray" else "blocks by threads"
    stream = "batches by Ray Data actors" if config.loader.decode == "actor" else stream
    return (
        f"{plan['rows']:,} rows of {plan['table']!r} at snapshot {plan['snapshot']}{' and those that come' if 'follow' in plan else ''}; {train_config.ranks} "
        f"ranks, {train_config.epochs} epochs of {plan['batches_per_epoch']:,} batches, seeds {', '.join(map(str, plan['seeds']))}; {stream}"
    )


def _describe_result(result: dict[str, Any]) -> str:
    quality = "".join(
        f", test {name.replace('_', ' ')} {result[name]['mean']:.4f} ± {result[name]['spread']:.4f}" for name in ("auc", "log_loss") if name in result
    )
    return (
        f"done: {result['rows_trained']:,} samples in {result['steps']:,} steps at {result['samples_per_second']:,.0f}/s, "
        f"waited {result['wait_share']:.1%} for data ({result['first_wait_seconds']:.1f} s of it for first batches), {result['restarts']} restarts{quality}"
    )


if __name__ == "__main__":
    sys.exit(main())
