"""The rivals, on a tiny shop's lake: they learn something, and see exactly the rows that they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loader
from loader.config import DataConfig, ExperimentConfig
from loader.config import load as load_config
from ray_jobs.quickstart import baselines, driver, stages, storage
from ray_jobs.quickstart.dataset import Manifest
from ray_jobs.quickstart.workspace import TABLE, Workspace


@pytest.fixture(scope="module")
def lake(streams: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny shop, replayed and compacted."""
    workspace = Workspace(output=tmp_path_factory.mktemp("out"), small=True)
    workspace.streams.symlink_to(streams[0])
    stages.ingest(workspace, streams[1], lambda done, total: None)
    workspace.save("compact", stages.compact(workspace, lambda done, total: None))
    return workspace


@pytest.fixture(scope="module")
def data(streams: tuple[Path, Manifest]) -> DataConfig:
    """The quickstart's own features, with the toy's cut."""
    config: ExperimentConfig = load_config(driver.ROOT / driver.CONFIG)
    cut = streams[1].cut_text
    return config.data.model_copy(update={"closed_before": cut, "test_where": f"ts >= '{cut}'"})


@pytest.fixture(scope="module")
def rows(lake: Workspace, data: DataConfig) -> tuple[baselines.Rows, baselines.Rows]:
    with loader.connect(str(lake.lake), create=False) as opened:
        table = opened.table(TABLE)
        train = baselines.read(table.scan(columns=data.columns, where=data.where, closed_before=data.closed_before), data)
        test = baselines.read(table.scan(columns=data.columns, where=data.test_where, closed_before=data.test_closed_before), data)
    return train, test


def test_rows_are_those_of_the_split(rows: tuple[baselines.Rows, baselines.Rows], streams: tuple[Path, Manifest]) -> None:
    assert (len(rows[0]), len(rows[1])) == (streams[1].train_rows, streams[1].test_rows)
    assert set(np.unique(rows[0].labels)) == {0, 1}


def test_both_baselines_beat_chance(rows: tuple[baselines.Rows, baselines.Rows]) -> None:
    train, test = rows
    rule = baselines.evaluate_rule(train, test)
    regression = baselines.evaluate_regression(train, test, seeds=[1, 2])
    assert rule["auc"] > 0.6 and rule["rows"] == len(test)
    assert [result["seed"] for result in regression] == [1, 2]
    assert all(result["auc"] > 0.6 and result["log_loss"] < np.log(2) for result in regression)


def test_a_seed_gives_one_result(rows: tuple[baselines.Rows, baselines.Rows]) -> None:
    first, second = (baselines.evaluate_regression(*rows, seeds=[7])[0] for _ in range(2))
    assert first == second


def test_hash_tells_columns_apart_and_depends_on_the_seed() -> None:
    ids = np.arange(2000)[:, None].repeat(2, axis=1)
    first = baselines.hash_ids(ids, 1, 1 << 19)
    assert (first[:, 0] != first[:, 1]).mean() > 0.99
    assert (first != baselines.hash_ids(ids, 2, 1 << 19)).mean() > 0.99
    assert first.min() >= 0 and first.max() < 1 << 19


def test_compaction_report_and_parquet_weigh_the_same_rows(lake: Workspace, streams: tuple[Path, Manifest]) -> None:
    compacted = lake.result("compact")
    assert compacted is not None and compacted["after"]["overlays"] == 0 and compacted["before"]["overlays"] > 0
    with loader.connect(str(lake.lake), create=False) as opened:
        table = opened.table(TABLE)
        total, columns = storage.parquet_bytes(table, streams[1], lake.output / "parquet")
        assert set(columns) == set(table.schema.names) and 0 < sum(columns.values()) <= total
        whole = storage.in_order(table.to_arrow(["household_id", "ts", "history"]), ["household_id", "ts"])
    keys = list(zip(whole["household_id"].to_pylist(), whole["ts"].to_pylist(), strict=True))
    assert keys == sorted(keys) and len(keys) == streams[1].samples
    assert not (lake.output / "parquet").exists()
