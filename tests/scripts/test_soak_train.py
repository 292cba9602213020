"""The soak of training in its small form: two ranks, killed with their actors, train every planned row once an epoch, also at another number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("ray.train")

from scripts import soak_train_run as soak

SMALL = {"rows": 9_600, "batch_rows": 192, "epochs": 2, "limit_seconds": 150.0}


def test_kills_are_the_seeds_and_lie_in_their_job() -> None:
    plan = soak.Soak(mode="ray", worlds=(2, 1, 3), seed=4)
    jobs = soak.plan_kills(plan)
    assert jobs == soak.plan_kills(plan) != soak.plan_kills(soak.Soak(mode="ray", worlds=(2, 1, 3), seed=5))
    assert [kills[-1].kind for kills in jobs[:2]] == ["job", "job"] and all(kill.kind != "job" for kill in jobs[2])
    kinds = [kill.kind for kills in jobs for kill in kills]
    assert kinds.count("rank") == 6 and kinds.count("actor") == 6
    steps = [kill.step for kills in jobs for kill in kills]
    assert steps == sorted(steps) and steps[-1] < plan.steps


@pytest.mark.ray
@pytest.mark.slow
def test_killed_ranks_and_actors_of_ray_train_lose_and_repeat_nothing(tmp_path: Path) -> None:
    result = soak.run(soak.Soak(mode="ray", rank_kills=1, actor_kills=1, **SMALL), tmp_path, print)
    assert result["exact"] and result["rows_trained"] == [9_600, 9_600]
    assert result["rank_kills"] == 1 and result["actor_kills"] == 1 and result["starts_of_ranks"] == 2


@pytest.mark.slow
def test_torchrun_goes_on_after_a_kill_and_with_other_ranks(tmp_path: Path) -> None:
    result = soak.run(soak.Soak(mode="torchrun", rank_kills=1, worlds=(2, 3), **SMALL), tmp_path, print)
    assert result["exact"] and result["rows_trained"] == [9_600, 9_600]
    assert result["rank_kills"] == 1 and result["job_kills"] == 1 and set(result["worlds_seen"]) == {2, 3} and result["starts_of_ranks"] == 3
