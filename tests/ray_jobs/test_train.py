"""A whole run on a tiny table: two ranks fed by Ray Data actors, one killed; what survives is exact, and trains the model of an undisturbed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("ray.train")

import loader
import loader.config
from loader import config as configs
from loader.catalog.admin import active_pins
from loader.config import ExperimentConfig
from loader.distributed import RayBlockStream
from loader.distributed.ahead import expect
from loader.errors import ColumnNotFoundError, ConfigError, TableNotFoundError
from ray_jobs import audit, train
from ray_jobs.training import data, journal
from ray_jobs.training.journal import RunFolder
from tests.ray_jobs.conftest import PRODUCTS, ROWS


def make_config(lake: Path, runs: Path, name: str, **train_options: Any) -> ExperimentConfig:
    tree = {
        "lake": {"location": str(lake), "table": "samples"},
        "data": {
            "dense": [{"column": "price"}],
            "sparse": [{"column": "product", "num_embeddings": PRODUCTS + 1}],
            "history": [{"column": "past", "embedding": "product", "pooling": "attention", "time_column": "past_ts"}],
            "label": "label",
            "time_column": "ts",
            "where": f"ts < {ROWS * 4 // 5}",
            "test_where": f"ts >= {ROWS * 4 // 5}",
            "test_closed_before": "watermark",
        },
        "loader": {"global_batch_size": 256, "window_rows": 1024, "remainder": "pad"},
        "train": {"ranks": 2, "epochs": 2, "seeds": [1, 2], "checkpoint_every_steps": 6, "log_every_steps": 1, "record_ids": True, "device": "cpu"}
        | train_options,
        "run": {"folder": str(runs), "name": name},
    }
    return loader.config.parse(tree, source="test")


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_rank_loses_and_repeats_nothing(ray_cluster: None, tiny_lake: Path, tmp_path: Path) -> None:
    config = make_config(tiny_lake, tmp_path, "killed", stream="ray", kill_rank_at_step=10, learning_rate_decay=0.5)
    result = train.train(config)
    run = RunFolder(tmp_path / "killed")
    events = [event["event"] for event in journal.read(run.events)]
    assert events.count("kill") == 1 and events.count("resume") == 1 and events.count("test") == 2
    verdict = audit.audit(run.path)
    assert verdict.exact and verdict.attempts == 2 and verdict.rolled_back > 0 and len(verdict.epochs) == 4
    assert {epoch.trained for epoch in verdict.epochs} == {ROWS * 4 // 5}
    assert result["restarts"] == 1 and result["rows_trained"] == 4 * result["rows_planned"]
    undisturbed = train.train(make_config(tiny_lake, tmp_path, "whole", stream="threads", seeds=[1], learning_rate_decay=0.5))
    assert result["seeds"][0]["test"] == undisturbed["seeds"][0]["test"] and undisturbed["auc"]["mean"] > 0.8
    with pytest.raises(ConfigError, match="is finished"):
        train.train(config)


@pytest.mark.ray
@pytest.mark.slow
def test_decode_actors_feed_every_row_once(ray_cluster: None, tiny_lake: Path, tmp_path: Path) -> None:
    config = make_config(tiny_lake, tmp_path, "actors", seeds=[1], epochs=1, decode_actors=2)
    result = train.train(config.model_copy(update={"loader": config.loader.model_copy(update={"decode": "actor"})}))
    verdict = audit.audit(tmp_path / "actors")
    assert verdict.exact and {epoch.trained for epoch in verdict.epochs} == {ROWS * 4 // 5}
    assert result["decode"] == "actor" and result["auc"]["mean"] > 0.5 and result["loader"]["encoded_bytes"] > 0


def mix_two(config: ExperimentConfig) -> ExperimentConfig:
    """Two parts of the rows, three of one to one of the other."""
    source = loader.config.MixSource(table="samples", weight=1, where="ts >= 3000 and ts < 4800")
    return config.model_copy(update={"data": config.data.model_copy(update={"where": "ts < 3000", "weight": 3, "mix": (source,)})})


@pytest.mark.ray
@pytest.mark.slow
def test_a_mix_is_trained_in_its_proportions_through_a_kill(ray_cluster: None, tiny_lake: Path, tmp_path: Path) -> None:
    config = mix_two(make_config(tiny_lake, tmp_path, "mix", stream="ray", seeds=[1], epochs=1, kill_rank_at_step=10))
    result = train.train(config)
    verdict = audit.audit(tmp_path / "mix")
    assert verdict.exact and verdict.attempts == 2 and {epoch.trained for epoch in verdict.epochs} == {4000}
    assert result["rows_trained"] == result["rows_planned"] == 4000 and result["auc"]["mean"] > 0.5


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_follows_a_table_that_grows_through_a_kill(ray_cluster: None, tiny_lake: Path, tmp_path: Path) -> None:
    with loader.connect(str(tiny_lake)) as lake:
        whole = lake.table("samples").to_arrow()
        stream = lake.create_table("stream", lake.table("samples").schema, primary_key=["id"], time_column="ts")
        stream.append(whole.slice(0, 2000))
        config = make_config(tiny_lake, tmp_path, "follow", seeds=[1], epochs=1, kill_rank_at_step=10, record_ids=False)
        data_of = config.data.model_copy(update={"where": None, "test_where": None, "test_closed_before": None, "follow": configs.FollowConfig(idle_seconds=5)})
        lake_of = config.lake.model_copy(update={"table": "stream"})
        config = config.model_copy(update={"data": data_of, "lake": lake_of, "loader": config.loader.model_copy(update={"remainder": "drop"})})
        prepared, plan = train.prepare(config)
        assert plan["rows"] == 2000 and prepared.lake.snapshot == 1
        for start in range(2000, ROWS, 1000):
            stream.append(whole.slice(start, 1000))
            stream.compact()
        result = train.train(prepared)
        assert result["restarts"] == 1 and result["rows_trained"] == ROWS - ROWS % 256 and result["steps"] == ROWS // 256


def test_what_does_not_go_with_follow_is_named(tiny_lake: Path, tmp_path: Path) -> None:
    tree = make_config(tiny_lake, tmp_path, "follow").model_dump(mode="json")
    tree["data"]["follow"] = {}
    with pytest.raises(ConfigError, match="train.epochs = 2, 2 train.seeds, train.record_ids, loader.remainder = pad"):
        configs.parse(tree, source="test")


def test_a_mix_goes_on_at_the_snapshots_of_all_its_sources(tiny_lake: Path, tmp_path: Path) -> None:
    first, plan = train.prepare(mix_two(make_config(tiny_lake, tmp_path, "mix")))
    assert plan["mix"] == [["samples", 4], ["samples", 4]] and plan["rows"] == 4000
    assert train.prepare(mix_two(make_config(tiny_lake, tmp_path, "mix"))) == (first, plan)
    heavier = mix_two(make_config(tiny_lake, tmp_path, "mix"))
    with pytest.raises(ConfigError, match="another run.name"):
        train.prepare(heavier.model_copy(update={"data": heavier.data.model_copy(update={"weight": 5})}))
    with pytest.raises(ConfigError, match="another run.name"):
        train.prepare(make_config(tiny_lake, tmp_path, "mix"))


@pytest.mark.ray
@pytest.mark.parametrize("skip", [0, 5])
def test_batches_through_ray_equal_those_through_threads(ray_cluster: None, tiny_lake: Path, tmp_path: Path, skip: int) -> None:
    config = make_config(tiny_lake, tmp_path, "batches")
    with data.open_lake(config) as lake:
        scan = data.make_scan(config, lake)
        for rank in range(2):
            expected = data.make_loader(config, scan, rank=rank, world_size=2)
            states, batches = [], []
            for batch in expected:
                batches.append((batch.positions(), batch["price"], batch["past"].values, batch["past"].offsets))
                states.append(expected.state_dict())
            stream = RayBlockStream(expected.plan.fetch_spec())
            through_ray = data.make_loader(config, scan, rank=rank, world_size=2, stream=stream)
            if skip:
                through_ray.load_state_dict(json.loads(json.dumps(states[skip - 1])))
            expect(stream, through_ray, epochs=[0], position=skip * 256)
            started = stream._lane.read
            for index, batch in enumerate(through_ray, start=skip):
                assert stream._lane.read in (started, None), "the loader asked for other blocks than were fetched ahead"
                for arrived, wanted in zip((batch.positions(), batch["price"], batch["past"].values, batch["past"].offsets), batches[index], strict=True):
                    np.testing.assert_array_equal(np.asarray(arrived), np.asarray(wanted))
            assert index == len(batches) - 1
            stream.close()


def test_planned_positions_are_the_selected_rows(tiny_lake: Path, tmp_path: Path) -> None:
    config = make_config(tiny_lake, tmp_path, "plan")
    with data.open_lake(config) as lake:
        plan = data.make_scan(config, lake).plan()
        positions = data.planned_positions(plan)
    assert len(positions) == plan.num_rows == ROWS * 4 // 5
    assert len(np.unique(positions, axis=0)) == len(positions)


def test_a_run_of_another_experiment_is_not_continued(tiny_lake: Path, tmp_path: Path) -> None:
    config, plan = train.prepare(make_config(tiny_lake, tmp_path, "again"))
    assert plan["rows"] == ROWS * 4 // 5 and plan["batches_per_epoch"] == 19
    assert train.prepare(make_config(tiny_lake, tmp_path, "again")) == (config, plan)
    with pytest.raises(ConfigError, match="another run.name"):
        train.prepare(make_config(tiny_lake, tmp_path, "again", epochs=3))


def test_a_run_goes_on_at_its_snapshot_and_refuses_another(tiny_lake: Path, tmp_path: Path) -> None:
    config, plan = train.prepare(make_config(tiny_lake, tmp_path, "snapshot"))
    assert train.prepare(config) == (config, plan)
    earlier = config.model_copy(update={"lake": config.lake.model_copy(update={"snapshot": plan["snapshot"] - 1})})
    with pytest.raises(ConfigError, match="another run.name"):
        train.prepare(earlier)


def test_rows_that_measure_the_model_are_checked_before_it_is_trained(tiny_lake: Path, tmp_path: Path) -> None:
    config = make_config(tiny_lake, tmp_path, "untested")
    with pytest.raises(ConfigError, match="select no row to measure"):
        train.prepare(config.model_copy(update={"data": config.data.model_copy(update={"test_where": "ts < 0"})}))
    with pytest.raises(ColumnNotFoundError, match="tss"):
        train.prepare(config.model_copy(update={"data": config.data.model_copy(update={"test_where": "tss > 0"})}))
    assert not (tmp_path / "untested").exists()


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("data", {"where": "ts >"}, "where 'ts >' is not a SQL expression"),
        ("data", {"closed_before": 10**9}, "after the watermark"),
    ],
)
def test_what_the_ranks_would_refuse_is_refused_before_they_start(tiny_lake: Path, tmp_path: Path, section: str, values: dict[str, Any], message: str) -> None:
    config = make_config(tiny_lake, tmp_path, "refused")
    with pytest.raises(ConfigError, match=message) as error:
        train.prepare(config.model_copy(update={section: getattr(config, section).model_copy(update=values)}))
    assert "\n" not in str(error.value) and not (tmp_path / "refused").exists()


def test_a_run_holds_its_snapshot_until_it_is_finished(tiny_lake: Path, tmp_path: Path) -> None:
    config, _ = train.prepare(make_config(tiny_lake, tmp_path, "held"))

    def owners() -> list[str]:
        with lake.database.read() as connection:
            return [pin.owner for pin in active_pins(connection, lake.table("samples").spec) if pin.owner == "run:held"]

    with data.open_lake(config) as lake:
        with pytest.raises(KeyboardInterrupt), train._pinned(config, lake):
            raise KeyboardInterrupt
        assert owners() == ["run:held"], "a run that was stopped can go on"
        with train._pinned(config, lake):
            assert len(owners()) == 2
        assert len(owners()) == 1


def test_a_missing_table_is_one_line(tiny_lake: Path, tmp_path: Path) -> None:
    config = make_config(tiny_lake, tmp_path, "missing")
    wrong = config.model_copy(update={"lake": config.lake.model_copy(update={"table": "sample"})})
    with pytest.raises(TableNotFoundError, match="samples"):
        train.prepare(wrong)
    assert not (tmp_path / "missing").exists()
