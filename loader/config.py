"""The experiment file: YAML with `key=value` overrides in, one frozen `ExperimentConfig` out; unknown keys are refused by name.

Owns the sections and their checks, and how a mistake is reported (file or override, dotted path, closest valid key). Owns no behaviour: what the
keys mean is the business of the modules that read them. Nothing in a file is executed, and environment variables are not expanded.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_core import ErrorDetails

from loader import config_tree
from loader.batch.transforms import Transforms
from loader.errors import ConfigError, did_you_mean
from loader.scan.sampling import Sample

TimeValue = int | str | None


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, validate_default=True)


class LakeConfig(_Section):
    """Where the samples are.

    Attributes:
        location: Folder or URL of the lake, as for `loader.connect`.
        catalog: URL of its catalog; default, SQLite inside a local lake.
        table: The table of samples.
        snapshot: Snapshot number or tag to train on; default the newest when the run starts.
    """

    location: str
    catalog: str | None = None
    table: str
    snapshot: int | str | None = None


class DenseFeature(_Section):
    """One number a row.

    Attributes:
        column: A numeric column.
        transform: `log1p` is log(1 + max(x, 0)); it comes before shift and scale.
        shift: Subtracted after the transform.
        scale: Multiplied last.
        fill: What a null becomes, before the transform.
    """

    column: str
    transform: Literal["none", "log1p"] = "none"
    shift: float = 0.0
    scale: float = 1.0
    fill: float = 0.0


class SparseFeature(_Section):
    """One id a row, with its embedding table.

    Attributes:
        column: An integer column.
        num_embeddings: Rows of the embedding table. Null ids take the last row.
        hash: Spread ids over the rows by a hash; without it an id is its row and must be below `num_embeddings` - 1.
    """

    column: str
    num_embeddings: Annotated[int, Field(ge=2)]
    hash: bool = False


class HistoryFeature(_Section):
    """A list of ids a row, embedded with the table of a sparse feature.

    Attributes:
        column: A list column of integers.
        embedding: The sparse feature (by column) whose table and hashing it shares.
        pooling: How the list becomes one vector; `attention` weighs its entries by the sparse feature's own id.
        time_column: A list column aligned with `column`: when each entry happened.
        max_length: Only the last entries count; default all.
    """

    column: str
    embedding: str
    pooling: Literal["mean", "sum", "attention"] = "mean"
    time_column: str | None = None
    max_length: PositiveInt | None = None


class MixSource(_Section):
    """Another table of the lake whose rows are mixed into the training rows.

    Attributes:
        table: Its name.
        weight: Its rows in a period of the mix.
        snapshot: Number or tag; a run pins the newest if left out.
        where, closed_before: Which of its rows; see DataConfig.
    """

    table: str
    weight: PositiveInt
    snapshot: int | str | None = None
    where: str | None = None
    closed_before: TimeValue = None


class FollowConfig(_Section):
    """How a run goes on with rows that come after its snapshot, by the names of `loader.Follow`.

    Attributes:
        min_rows: New rows worth an increment; a global batch if left out.
        max_wait_seconds: After so long fewer do.
        poll_seconds: Between looks at the catalog.
        idle_seconds: The run ends where nothing has come for so long; if left out it goes on until it is stopped.
    """

    min_rows: PositiveInt | None = None
    max_wait_seconds: NonNegativeFloat = 30.0
    poll_seconds: PositiveFloat = 1.0
    idle_seconds: NonNegativeFloat | None = None


class DataConfig(_Section):
    """What a row gives the model, and which rows train and test it.

    Attributes:
        dense, sparse, history: The features.
        label: Column of the target, 0 or 1.
        time_column: Column of the sample's time, where a report or a feature needs it.
        where: SQL expression of the training rows.
        closed_before: Train only on rows whose attribution window closed by then: a time value, or `watermark`.
        sample: Which share of the training rows, by rules, as for `loader.Sample`: `[{where: label = 1, rate: 1}, {rate: 0.1}]`, or a mapping with `rules`,
            `seed` and `by`. The loss weighs a row by 1 / rate.
        group_by: Columns of a request or session, whose rows stay in one batch; `loader.global_batch_size` then counts groups.
        test_where, test_closed_before: The same for the rows that measure the model; without either nothing is measured.
        transforms: Steps from the table's columns to the model's, as for `loader.Transforms`: a kind and its keys each.
        weight: With `mix`, rows of the experiment's own table in a period.
        mix: Other tables whose rows are mixed in, by their weights, as `loader.mix` does. They have the same columns.
        follow: After the snapshot's rows, train on those that come, once each: one seed, one epoch, without a remainder.
    """

    dense: tuple[DenseFeature, ...] = ()
    sparse: tuple[SparseFeature, ...] = ()
    history: tuple[HistoryFeature, ...] = ()
    label: str
    time_column: str | None = None
    where: str | None = None
    closed_before: TimeValue = None
    sample: dict[str, Any] | tuple[Any, ...] | None = None
    group_by: tuple[str, ...] = ()
    test_where: str | None = None
    test_closed_before: TimeValue = None
    transforms: tuple[dict[str, Any], ...] = ()
    weight: PositiveInt = 1
    mix: tuple[MixSource, ...] = ()
    follow: FollowConfig | None = None

    @property
    def columns(self) -> list[str]:
        """Every column that is read of the table: what the model and the transforms need, each once."""
        return Transforms(self.transforms).inputs(self.model_columns)

    @property
    def model_columns(self) -> list[str]:
        """Every column that the model reads, label last, each once."""
        names = [dense.column for dense in self.dense] + [sparse.column for sparse in self.sparse]
        for feature in self.history:
            names += [feature.column] + ([feature.time_column] if feature.time_column else [])
        return list(dict.fromkeys([*names, *([self.time_column] if self.time_column else []), self.label]))

    @pydantic.model_validator(mode="after")
    def _check(self) -> DataConfig:
        if not (self.dense or self.sparse or self.history):
            raise ValueError("names no feature: give dense, sparse or history")
        Transforms(self.transforms)
        if self.sample is not None and Sample.of(self.sample).per_epoch:
            raise ValueError("sample.per_epoch is for loops of your own: an experiment counts its steps before the first epoch")
        tables = [feature.column for feature in self.sparse]
        for feature in self.history:
            if feature.embedding not in tables:
                raise ValueError(
                    f"history {feature.column!r} shares the embedding of {feature.embedding!r}, no sparse feature: {did_you_mean(feature.embedding, tables)}"
                )
        return self


class LoaderConfig(_Section):
    """The options of `loader.DataLoader`, by the same names.

    Attributes:
        decode: `rank` decodes in the ranks, `cpu` too and there on the CPU whatever the device, `actor` in Ray Data actors that send whole batches.
        device_memory_bytes: GPU memory for encoded bytes and windows, taken once; what the plan needs if left out.
        pinned_bytes: Pinned host memory that blocks are fetched into, taken once.
        bad_records: What to do about damaged blocks: `fail`; `skip` masks their rows, which the loss leaves out; `quarantine` does, and has later runs know.
        max_consecutive_bad: Bad blocks one after another at which these give up.
    """

    global_batch_size: PositiveInt
    shuffle: Literal["none", "blocks", "windows", "full"] = "windows"
    shuffle_run_rows: PositiveInt = 1
    window_rows: PositiveInt = 262_144
    canonical_shards: PositiveInt | None = None
    seed: int = 17
    remainder: Literal["drop", "pad", "uneven"] = "drop"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    decode: Literal["rank", "actor", "cpu"] = "rank"
    output: Literal["dict", "kjt", "nested", "arrow", "numpy"] = "dict"
    prefetch_bytes: PositiveInt = 64 << 20
    device_memory_bytes: PositiveInt | None = None
    pinned_bytes: PositiveInt | None = None
    bad_records: Literal["fail", "skip", "quarantine"] = "fail"
    max_consecutive_bad: PositiveInt = 8
    threads: PositiveInt = 2


class ModelConfig(_Section):
    """A DLRM: embeddings for ids, an MLP over the dense features, dot products between all of them, an MLP on top.

    Attributes:
        embedding_dim: Width of every embedding, and of the bottom MLP's output.
        embedding_std: Deviation of the initial embeddings; small ones let ids that were never met say nothing.
        bottom_mlp: Hidden widths before that output.
        top_mlp: Hidden widths before the logit.
        interaction: `dot` multiplies all pairs of vectors; `cat` lays them side by side.
        dropout: Share of the top MLP's activations dropped in training.
    """

    kind: Literal["dlrm"] = "dlrm"
    embedding_dim: PositiveInt = 16
    embedding_std: PositiveFloat = 0.01
    bottom_mlp: tuple[PositiveInt, ...] = (64,)
    top_mlp: tuple[PositiveInt, ...] = (128, 64)
    interaction: Literal["dot", "cat"] = "dot"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TrainConfig(_Section):
    """How the ranks train.

    Attributes:
        ranks: Data-parallel processes.
        device: `auto` takes a GPU a rank when there are enough, else the CPU (nccl or gloo follow from it).
        stream: Who fetches blocks: threads in the rank, or Ray Data actors. With `loader.decode: actor` those actors fetch for themselves.
        fetch_actors: Actors that serve one rank (`stream: ray`).
        decode_actors: Actors that make one rank's batches (`loader.decode: actor`), at most.
        decode_actor_cpus: Logical CPUs that each of them reserves. 0 lets them start where the ranks hold every CPU.
        decode_actor_gpus: Share of a GPU that each of them reserves, and decodes on; 0 decodes on its CPU.
        epochs: Passes over the plan.
        seeds: One training a seed; it sets the initial weights. The order follows `loader.seed` and goes on from seed to seed as from epoch to epoch.
        learning_rate: Of the dense layers.
        embedding_learning_rate: Of the embedding tables.
        learning_rate_decay: Share of a training's steps, the last ones, over which both rates fall to zero in a line.
        weight_decay: Of the dense layers.
        checkpoint_every_steps: Global batches between two checkpoints.
        max_failures: How often a run that loses a rank starts again from its last checkpoint.
        log_every_steps: Global batches between two lines of metrics.jsonl.
        record_ids: Write the (segment, row) of every trained sample, so that a run can be audited.
        kill_rank_at_step: End one rank with SIGKILL after this global batch, once, to show the recovery.
        kill_rank: Which rank that is.
        threads_per_rank: Threads of torch in each rank.
    """

    ranks: PositiveInt = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    stream: Literal["threads", "ray"] = "threads"
    fetch_actors: PositiveInt = 1
    decode_actors: PositiveInt = 1
    decode_actor_cpus: NonNegativeFloat = 0.0
    decode_actor_gpus: NonNegativeFloat = 0.0
    epochs: PositiveInt = 1
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (17,)
    learning_rate: PositiveFloat = 1e-3
    embedding_learning_rate: PositiveFloat = 1e-2
    learning_rate_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    checkpoint_every_steps: PositiveInt = 100
    max_failures: NonNegativeInt = 2
    log_every_steps: PositiveInt = 10
    record_ids: bool = False
    kill_rank_at_step: PositiveInt | None = None
    kill_rank: NonNegativeInt = 1
    threads_per_rank: PositiveInt = 1


class RunConfig(_Section):
    """Where a run leaves its resolved config, metrics, checkpoints and result.

    Attributes:
        folder: Parent of all runs.
        name: Folder of this run inside it. A run of the same name continues.
    """

    folder: str = "runs"
    name: str = "train"

    @property
    def path(self) -> Path:
        return Path(self.folder) / self.name


class ExperimentConfig(_Section):
    """One experiment, resolved. Sections: lake, data, loader, model, train, run."""

    lake: LakeConfig
    data: DataConfig
    loader: LoaderConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    run: RunConfig = RunConfig()

    @pydantic.model_validator(mode="after")
    def _check(self) -> ExperimentConfig:
        if self.loader.global_batch_size % self.train.ranks:
            raise ValueError(f"loader.global_batch_size = {self.loader.global_batch_size} is not a multiple of train.ranks = {self.train.ranks}: change one")
        if self.train.kill_rank_at_step is not None and self.train.kill_rank >= self.train.ranks:
            raise ValueError(f"train.kill_rank = {self.train.kill_rank} is not one of the {self.train.ranks} ranks: give one below train.ranks")
        if self.data.follow is not None:
            self._check_follow()
        return self

    def _check_follow(self) -> None:
        train, unfit = self.train, []
        unfit += ["data.mix"] if self.data.mix else []
        unfit += [f"train.epochs = {train.epochs}"] if train.epochs > 1 else []
        unfit += [f"{len(train.seeds)} train.seeds"] if len(train.seeds) > 1 else []
        unfit += ["train.learning_rate_decay"] if train.learning_rate_decay else []
        unfit += ["train.record_ids"] if train.record_ids else []
        unfit += [f"loader.remainder = {self.loader.remainder}"] if self.loader.remainder != "drop" else []
        if unfit:
            raise ValueError(f"data.follow trains once on rows whose number nobody knows, and does not go with {', '.join(unfit)}: leave that out")

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write every key, defaults too, as YAML that `load` reads back to an equal config."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}")
        part.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8")
        part.replace(target)


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read an experiment.

    Args:
        path: A YAML file.
        overrides: `dotted.path=value`, the value in YAML (`train.seeds=[1, 2]`, `data.dense.0.column=price`); later ones win.

    Raises:
        ConfigError: The file is missing or is not YAML; a key is unknown, missing or of the wrong type. One line: file or override, path, cure.
    """
    tree = config_tree.read(Path(path))
    sources: dict[tuple[str, ...], str] = {}
    for override in overrides:
        key, value = config_tree.parse_override(override)
        config_tree.put(tree, key, value, override)
        sources[key] = override
    return parse(tree, source=str(path), overrides=sources)


def parse(tree: Mapping[str, Any], *, source: str, overrides: Mapping[tuple[str, ...], str] | None = None) -> ExperimentConfig:
    """Check a tree of plain values.

    Args:
        tree: Sections by name.
        source: What to call it in an error: its file.
        overrides: Dotted paths (split) that came from the command line, with the text the user wrote.

    Raises:
        ConfigError: As in `load`.
    """
    try:
        return ExperimentConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(error, source, overrides or {})) from None


_WANTED = {"int": "a whole number", "float": "a number", "string": "text", "bool": "true or false", "tuple": "a list", "model": "a section of key: value"}


def _wanted(problem: ErrorDetails) -> str:
    return _WANTED.get(problem["type"].partition("_")[0]) or problem["msg"].removeprefix("Input should be ")


def _explain(error: pydantic.ValidationError, source: str, overrides: Mapping[tuple[str, ...], str]) -> str:
    """One line for the first problem: unknown keys before missing ones, since a typo makes both."""
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    path = _written_path(first["loc"])
    dotted = ".".join(path)
    where = next((f"override {text!r}" for key, text in overrides.items() if path and path[: len(key)] == key[: len(path)]), source)
    if first["type"] == "extra_forbidden":
        what = f"unknown key {dotted}: {did_you_mean(path[-1], _keys_at(path[:-1]))}"
    elif first["type"] == "missing":
        what = f"{dotted} is missing: add it"
    elif first["type"] == "value_error":
        what = f"{dotted}: {first['ctx']['error']}" if dotted else str(first["ctx"]["error"])
    else:
        wanted = [_wanted(problem) for problem in problems if _written_path(problem["loc"]) == path]
        what = f"{dotted} must be {' or '.join(dict.fromkeys(wanted))}, not {first['input']!r}"
    more = len({_written_path(problem["loc"]) for problem in problems}) - 1
    return f"{where}: {what}" + (f" (and {more} more)" if more else "")


def _written_path(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The path as the user wrote it: pydantic adds the names of a union's members, which no file holds."""
    return tuple(str(part) for part in loc if str(part) not in ("int", "str", "none", "constrained-int"))


def _keys_at(path: tuple[str, ...]) -> list[str]:
    """The keys that the section at this path takes."""
    model: Any = ExperimentConfig
    for part in path:
        if part.isdigit():
            continue
        if isinstance(model, type) and issubclass(model, pydantic.BaseModel):
            model = _model_in(model.model_fields[part].annotation) if part in model.model_fields else None
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, pydantic.BaseModel) else []


def _model_in(annotation: Any) -> Any:
    """The section class inside `X`, `tuple[X, ...]` or `X | None`."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation
    return next((found for found in map(_model_in, typing.get_args(annotation)) if isinstance(found, type) and issubclass(found, pydantic.BaseModel)), None)
