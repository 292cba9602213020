"""What all tests share: Hypothesis profiles, throw-away lakes, and the tests that run alone on a worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.pop("HEADRACE_LAKE", None)
os.environ.pop("HEADRACE_CATALOG", None)

hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("explore", deadline=None, max_examples=500, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    """Kernels that tests compile are kept under pytest's cache, by the hash of their sources."""
    if getattr(config, "cache", None) is not None:
        os.environ.setdefault("HEADRACE_CACHE", str(config.cache.mkdir("headrace")))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One Ray cluster at a time: all of its tests go to the same worker of pytest-xdist."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Any]:
    """An empty lake in a folder of its own."""
    import loader

    opened = loader.connect(str(tmp_path / "lake"))
    yield opened
    opened.close()


@pytest.fixture
def in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the smallest commit is sorted into buckets, as large ones are."""
    monkeypatch.setattr("loader.table.rows.MIXED_ROWS", 0)


@pytest.fixture
def make_lake(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens lakes by name under the test's folder; the same name opens the same lake again."""
    import loader

    opened: list[Any] = []

    def make(name: str = "lake", **options: Any) -> Any:
        opened.append(loader.connect(str(tmp_path / name), **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
